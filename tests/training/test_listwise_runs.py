"""Runs of losses over whole ranked lists: any split into micro-batches, resume, and the options they refuse."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from adadpo_lightning.data.lists import ListOptions
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import build_loss
from tests.support.tiny import make_lists, write_rows
from tests.training.test_module import QUIET, data, module, train, weights

LISTS, ANSWERS = 6, 4


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    rows = make_lists(LISTS) + make_lists(2, scores=(1, 2), seed=1) + make_lists(2, scores=(3, 1, 2), seed=2)
    return write_rows(tmp_path_factory.mktemp("lists") / "lists.jsonl", rows)


def chained(lists, **options):
    return data(lists, lists=ListOptions(pairs="adjacent"), **{"global_batch_size": 4, "max_length": 80, **options})


@pytest.mark.parametrize("loss", ["pldpo", "adapldpo"])
def test_any_split_of_the_lists_trains_the_same(model_dir, lists, loss):
    results = []
    for options in ({"micro_batch_size": 4}, {"micro_batch_size": 1}, {"max_tokens": 200}, {"group": "never"}):
        lit = module(model_dir, loss)
        train(lit, chained(lists, **options), max_epochs=2)
        results.append(weights(lit))
    for other in results[1:]:
        for name, value in results[0].items():
            # Norms of transformers round to float32.
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-5)


def test_step_is_the_mean_over_choices(model_dir, lists):
    """The batch's share against the ranking's probability, written out from the answers' log-probabilities."""
    lit, dm = (
        module(model_dir, build_loss("pldpo", beta=0.5)),
        chained(lists, global_batch_size=10, micro_batch_size=10),
    )
    train(lit, dm, max_steps=1)
    (batch,) = list(dm._train_batches(0, 0))
    share, output = lit.step(dm.train_dataloader().batches[batch])
    assert batch.step_pairs == 6 * 3 + 2 * 1 + 2 * 2
    h = [
        0.5 * (output.pairs.chosen - output.pairs.ref_chosen),
        0.5 * (output.pairs.rejected - output.pairs.ref_rejected),
    ]
    total, start = 0.0, 0
    for size in _sizes(output.pairs.list_rest.tolist()):
        scores = torch.cat([h[0][start : start + size], h[1][start + size - 1 : start + size]])
        total -= sum((scores[k] - scores[k:].logsumexp(0)).item() for k in range(size))
        start += size
    assert share.item() == pytest.approx(total / batch.step_pairs, rel=1e-9)


def _sizes(rest):
    starts = [i for i in range(len(rest)) if i == 0 or rest[i - 1] == 0]
    return [rest[i] + 1 for i in starts]


def test_resumed_run_equals_the_uninterrupted_one(model_dir, lists, tmp_path):
    options = {"max_epochs": 2, "enable_checkpointing": True}
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = module(model_dir, "adapldpo", dtype="float32")
    train(whole, chained(lists, micro_batch_size=2), callbacks=[saver], **options)
    resumed, dm = module(model_dir, "adapldpo", dtype="float32"), chained(lists, micro_batch_size=2)
    trainer = Trainer(**{**QUIET, **options, "enable_checkpointing": False})
    trainer.fit(resumed, datamodule=dm, ckpt_path=str(tmp_path / "step=2.ckpt"))
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


def test_validation_and_cached_reference(model_dir, lists, tmp_path):
    results = []
    for reference in ("frozen", "cached"):
        lit = module(model_dir, "adapldpo")
        lit.reference_mode, lit.reference_cache = reference, tmp_path
        trainer = train(lit, chained(lists, val_size=3, micro_batch_size=2))
        results.append(weights(lit))
        trainer.validate(lit, datamodule=trainer.datamodule)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_validation_of_lists_does_not_depend_on_batches(model_dir, lists):
    results = []
    for options in ({"eval_batch_size": 1}, {"eval_batch_size": 3}, {"eval_max_tokens": 1}, {"eval_max_tokens": 150}):
        lit = module(model_dir, "adapldpo")
        trainer = train(lit, chained(lists, val=str(lists), **options), max_steps=1)
        (found,) = trainer.validate(lit, datamodule=trainer.datamodule, verbose=False)
        results.append(found)
    assert "val/loss" in results[0]
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-6)


def test_other_pairs_are_refused(model_dir, lists):
    for pairs in ("best_worst", "all"):
        with pytest.raises(UserError, match=r"data\.lists\.pairs.*adjacent"):
            train(module(model_dir, "pldpo"), data(lists, lists=ListOptions(pairs=pairs)))


def test_a_list_that_is_too_long_is_refused(model_dir, lists):
    with pytest.raises(UserError, match=r"data\.max_tokens: the ranked list at .*alone has"):
        train(module(model_dir, "pldpo"), chained(lists, max_tokens=20))


def test_a_batch_that_names_no_lists_is_refused(model_dir, lists):
    lit, dm = module(model_dir, "dpo"), chained(lists)
    train(lit, dm, max_steps=0)
    batch = next(iter(dm.train_dataloader()))
    lit.loss = build_loss("pldpo")
    with pytest.raises(UserError, match="needs whole ranked lists"):
        lit.step(batch)


def test_lists_with_ties_are_counted(model_dir, tmp_path, capsys):
    rows = make_lists(2, scores=(4, 3, 3, 1)) + make_lists(2, seed=3)
    file = write_rows(tmp_path / "ties.jsonl", rows)
    dm = chained(file)
    train(module(model_dir, "pldpo"), dm, max_steps=1)
    chains = dm.prepared["train"].chains()
    assert (chains.split, chains.of_two, chains.longer) == (2, 4, 2)
    assert "2 ranked lists are in pieces" in "".join(capsys.readouterr())
