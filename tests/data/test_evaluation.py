"""Micro-batches of evaluation: each pair once, full, with the pairs of a prompt together."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adadpo_lightning.data.evaluation import eval_plan
from adadpo_lightning.data.groups import alone
from tests.data.test_groups import groups_of, pairs, tokens


def rows_of(shares):
    """The pairs of each real micro-batch, in the order in which the ranks take them."""
    turns = [batch for turn in zip(*shares, strict=True) for batch in turn]
    return [list(batch.rows) for batch in turns if not batch.filler]


@given(triples=pairs, micro=st.integers(1, 5), most=st.none() | st.integers(30, 300), ranks=st.integers(1, 4))
def test_each_pair_once(triples, micro, most, ranks):
    scored = np.arange(1, len(triples) + 1)
    for in_order in (False, True):
        options = {"micro_batch_size": micro, "max_tokens": most, "ranks": ranks, "in_order": in_order}
        shares = eval_plan(groups_of(triples), scored, **options)
        assert len({len(share) for share in shares}) == 1
        batches = [batch for share in shares for batch in share]
        assert all((b.step, b.step_pairs, b.step_chosen_tokens) == (0, len(triples), scored.sum()) for b in batches)
        rows = rows_of(shares)
        assert len(batches) - len(rows) < ranks
        flat = [row for batch in rows for row in batch]
        assert sorted(flat) == list(range(len(triples)))
        if in_order:
            assert flat == sorted(flat)
        if most is None:
            assert [len(batch) for batch in rows[:-1]] == [micro] * (len(rows) - 1)


@given(triples=pairs, most=st.integers(30, 300))
def test_micro_batches_are_full_and_hold_whole_groups(triples, most):
    groups = groups_of(triples)
    rows = rows_of(eval_plan(groups, np.ones(len(triples)), max_tokens=most))
    # Repetitions of a pair are in separate groups; a batch that holds both still computes them once.
    assert all(len(batch) == 1 or tokens([triples[i] for i in batch]) <= most for batch in rows)
    members = Counter(groups.group.tolist())
    held = [Counter(groups.group[batch].tolist()) for batch in rows]
    for group, count in members.items():
        if groups.tokens(np.flatnonzero(groups.group == group)) <= most:
            assert [batch[group] for batch in held if batch[group]] == [count]

    def load(batch):
        return sum(groups.tokens(np.array(batch)[groups.group[batch] == g]) for g in set(groups.group[batch]))

    for batch, following in pairwise(rows):
        # What comes next had no room, or is the rest of a group that no batch can hold.
        group = groups.group[following[0]]
        whole = groups.tokens(np.flatnonzero(groups.group == group))
        assert load(batch) + whole > most or group in groups.group[batch]


def test_lengths_of_a_real_run_fill_their_micro_batches():
    rng = np.random.default_rng(0)
    answers = np.minimum(rng.lognormal(5.3, 0.6, (5_000, 2)).astype(int) + 10, 1024)
    groups = alone(np.minimum(rng.lognormal(4.8, 0.7, 5_000).astype(int) + 10, 1024), answers)
    rows = rows_of(eval_plan(groups, answers[:, 0], max_tokens=8192))
    filled = [groups.tokens(np.array(batch)) / 8192 for batch in rows[:-1]]
    assert np.mean(filled) > 0.95
    assert max(filled) <= 1


def test_ranks_get_even_work():
    rng = np.random.default_rng(1)
    answers = rng.integers(50, 800, (2_000, 2))
    groups = alone(np.full(2_000, 100), answers)
    shares = eval_plan(groups, answers[:, 0], max_tokens=8192, ranks=8)
    loads = [sum(groups.tokens(np.array(batch.rows)) for batch in share) for share in shares]
    assert max(loads) / np.mean(loads) < 1.05


@pytest.mark.parametrize("in_order", [False, True])
def test_pairs_of_a_prompt_that_are_far_apart(in_order):
    triples = [(9, 3, 31), (8, 3, 31), (9, 4, 31)]
    rows = rows_of(eval_plan(groups_of(triples), np.ones(3), micro_batch_size=2, in_order=in_order))
    assert rows == ([[0, 1], [2]] if in_order else [[0, 2], [1]])
