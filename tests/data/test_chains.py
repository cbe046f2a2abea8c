"""Ranked lists as chains of pairs: found by their answers, never split by the plan."""

import numpy as np
import pytest

from adadpo_lightning.data.chains import find_chains
from adadpo_lightning.data.evaluation import eval_plan
from adadpo_lightning.data.groups import alone
from adadpo_lightning.data.plan import StepPlan

SIZES = [3, 1, 4, 2, 2, 1, 3, 5]  # pairs of each list


def members():
    return np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])


def lists_of(batch):
    """The lists of a micro-batch, each checked to be whole and in order."""
    found, rows = [], list(batch.rows)
    while rows:
        number = next(i for i, pairs in enumerate(members()) if pairs[0] == rows[0])
        assert rows[: SIZES[number]] == members()[number].tolist()
        rows = rows[SIZES[number] :]
        found.append(number)
    return found


@pytest.mark.parametrize("options", [{"micro_batch_size": 2}, {"max_tokens": 60}, {"micro_batch_size": 1, "ranks": 2}])
@pytest.mark.parametrize("size", [4, 6])
def test_no_list_is_split_and_each_is_there_once(options, size):
    lengths = np.array([10 * n for n in SIZES])
    plan = StepPlan(lengths, lengths, size, members=members(), epochs=2, **options)
    for epoch in range(2):
        batches = [b for rank in range(plan.ranks) for b in plan.rank_batches(rank, epoch)]
        seen = [number for b in batches if not b.filler for number in lists_of(b)]
        assert sorted(seen) == list(range(len(SIZES)))
        for step in range(plan.steps):
            own = [b for b in batches if b.step == step]
            pairs = sum(len(b.rows) for b in own if not b.filler)
            assert {b.step_pairs for b in own} == {pairs}
            assert {b.step_chosen_tokens for b in own} == {10 * pairs}
        if "max_tokens" in options:
            assert all(10 * len(b.rows) <= 60 for b in batches)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("most", [None, 60])
def test_evaluation_covers_each_list_once(ranks, most):
    lengths = np.array([10 * n for n in SIZES])
    lists = alone(lengths, np.zeros((len(lengths), 1), dtype=int))
    shares = eval_plan(lists, lengths, micro_batch_size=3, max_tokens=most, ranks=ranks, members=members())
    seen = [number for share in shares for b in share if not b.filler for number in lists_of(b)]
    assert sorted(seen) == list(range(len(SIZES)))
    assert {b.step_pairs for share in shares for b in share} == {sum(SIZES)}
    if most is not None:
        assert max(10 * len(b.rows) for share in shares for b in share) == most


def test_chains_end_where_row_or_answer_changes():
    row = np.array([0, 0, 0, 1, 1, 2, 2])
    answer = np.array([[0, 1], [1, 2], [3, 4], [5, 6], [6, 7], [7, 8], [8, 9]])
    chains = find_chains(row, answer)
    assert [m.tolist() for m in chains.members] == [[0, 1], [2], [3, 4], [5, 6]]
    assert chains.rest.tolist() == [1, 0, 0, 1, 0, 1, 0]
    assert (chains.split, chains.of_two, chains.longer) == (1, 1, 3)
    assert chains.total(np.arange(7)).tolist() == [1, 2, 7, 11]
