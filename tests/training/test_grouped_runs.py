"""Runs over ranked lists: prompts and answers computed once, with the training of pair by pair."""

import pytest
import torch

from adadpo_lightning.data.lists import ListOptions
from adadpo_lightning.losses import build_loss
from tests.support.tiny import make_lists, write_rows
from tests.training.test_module import data, module, train, weights

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
