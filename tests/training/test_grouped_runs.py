"""Runs over ranked lists: prompts and answers computed once, with the training of pair by pair."""

import pytest
import torch
from lightning.pytorch import Trainer

from adadpo_lightning.callbacks import PreferenceMetrics
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.data.lists import ListOptions
from adadpo_lightning.losses import build_loss
from tests.support.tiny import make_lists, write_rows
from tests.training.test_module import QUIET, data, module, train, weights

LISTS, ANSWERS = 5, 4
PAIRS = LISTS * ANSWERS * (ANSWERS - 1) // 2


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("lists") / "lists.jsonl", make_lists(LISTS))


def grouped(lists, **options):
    return data(lists, lists=ListOptions(pairs="all"), **options)


@pytest.mark.parametrize("loss", ["adadpo", "adacpo"])
def test_the_same_weights_as_pair_by_pair(model_dir, lists, loss):
    """Steps of all pairs, so that both orders have the same steps."""
    results = []
    for options in ({"group": "never"}, {"max_tokens": 200}, {"micro_batch_size": 6}, {"micro_batch_size": 5}):
        lit, dm = module(model_dir, loss), grouped(lists, global_batch_size=PAIRS, **options)
        train(lit, dm, max_epochs=2)
        results.append(weights(lit))
        assert (dm.plan.groups is None) == (options.get("group") == "never")
    for other in results[1:]:
        for name, value in results[0].items():
            # Norms of transformers round to float32.
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-5)


def test_each_answer_is_computed_once(model_dir, lists):
    lit, dm = module(model_dir, build_loss("dpo")), grouped(lists, global_batch_size=12, micro_batch_size=6)
    train(lit, dm, max_steps=0)
    for batch in dm.train_dataloader():
        assert len(batch) == 6
        assert [len(segment) for segment in batch.segments] == [1 + ANSWERS]


def test_cached_reference_stores_each_answer_once(model_dir, lists, tmp_path):
    results = []
    for reference in ("frozen", "cached"):
        lit = module(model_dir, "adadpo")
        lit.reference_mode, lit.reference_cache = reference, tmp_path
        train(lit, grouped(lists, global_batch_size=12, micro_batch_size=6), max_epochs=2)
        results.append(weights(lit))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    (values,) = tmp_path.glob("*/values")
    (done,) = tmp_path.glob("*/done")
    assert done.stat().st_size == LISTS * ANSWERS
    assert values.stat().st_size < PAIRS * 2 * 12 * 8


def validated(model_dir, lists, folder, reference, **options):
    lit = module(model_dir, "adadpo")
    lit.reference_mode, lit.reference_cache = reference, folder
    # One step over all pairs, so that the policy is the same in each.
    dm = grouped(lists, val=str(lists), global_batch_size=PAIRS, **options)
    trainer = train(lit, dm, max_steps=1, callbacks=[PreferenceMetrics()])
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}


@pytest.mark.parametrize("reference", ["frozen", pytest.param("cached", marks=pytest.mark.slow)])
def test_validation_metrics_do_not_depend_on_batches_or_groups(model_dir, lists, tmp_path, reference):
    results = [
        validated(model_dir, lists, tmp_path, reference, **options)
        for options in (
            {"group": "never", "eval_batch_size": 1},
            {"eval_batch_size": 7},
            {"eval_max_tokens": 20},  # less than most pairs have
            {"max_tokens": 200},  # holds for both
        )
    ]
    assert results[0].keys() >= {"val/loss", "val/rewards/margins", "val/grad_balance/ratio"}
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-6)


def test_predictions_keep_the_order_of_the_dataset(model_dir, lists):
    """Pairs of a prompt that are far apart, too."""
    mixed = [
        {"prompt": prompt, "chosen": f"red {i}", "rejected": "blue"} for i in range(3) for prompt in ("one", "two")
    ]
    path = write_rows(lists.parent / "mixed.jsonl", mixed)
    found = []
    for options in ({"group": "never"}, {"eval_batch_size": 4}, {"eval_max_tokens": 40}):
        trainer = Trainer(**QUIET, enable_checkpointing=False, default_root_dir=lists.parent)
        batches = trainer.predict(module(model_dir, "dpo"), PreferenceDataModule(predict=str(path), **options))
        assert (len(batches) < len(mixed)) == ("group" not in options)
        assert torch.cat([batch["row_id"] for batch in batches]).tolist() == list(range(len(mixed)))
        found.append(torch.cat([batch["logps_chosen"] for batch in batches]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=0)
