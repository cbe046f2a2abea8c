"""Pairs that share prompts and answers: how they are found, and how the plan keeps them together."""

from collections import Counter

import numpy as np
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from adadpo_lightning.data.groups import Groups, deal_groups, group_pairs, split_groups
from adadpo_lightning.data.plan import StepPlan

# Pairs as (prompt, chosen, rejected), each a number that stands for a text of that length.
pairs = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(31, 60)), min_size=1, max_size=40)


def dataset(triples):
    def text(n):
        return [n] * n

    return Dataset.from_list(
        [
            {
                "prompt_ids": text(p),
                "chosen_ids": text(c),
                "rejected_ids": text(r),
                "chosen_mask": [],
                "rejected_mask": [],
            }
            for p, c, r in triples
        ]
    )


def tokens(triples):
    """Each prompt and each distinct answer once, counted with sets."""
    prompts = {p for p, _, _ in triples}
    return sum(prompts) + sum(answer for _, answer in {(p, a) for p, c, r in triples for a in (c, r)})


def groups_of(triples):
    """As `group_pairs` finds them, numbered independently."""
    seen, groups, answers = Counter(), {}, {}
    group = []
    for triple in triples:
        group.append(groups.setdefault((triple[0], seen[triple]), len(groups)))
        seen[triple] += 1
    answer = [[answers.setdefault((p, a), len(answers)) for a in (c, r)] for p, c, r in triples]
    sizes = np.array(triples)
    return Groups(np.array(group), np.array(answer), sizes[:, 0], sizes[:, 1:])


@settings(max_examples=15, deadline=None)
@given(triples=pairs)
def test_groups_are_found_by_content(triples):
    groups, expected = group_pairs(dataset(triples)), groups_of(triples)
    for name in ("group", "answer", "prompt_len", "answer_len"):
        assert getattr(groups, name).tolist() == getattr(expected, name).tolist()
    assert groups.shared == (len(set(groups.group)) < len(triples))
    assert groups.largest == max(Counter(groups.group.tolist()).values())


@given(triples=pairs)
def test_tokens_of_a_forward_pass(triples):
    groups = groups_of(triples)
    for piece in groups.pieces(np.arange(len(triples))):
        assert groups.tokens(piece) == tokens([triples[i] for i in piece])


def test_scored_positions_are_part_of_an_answer():
    rows = dataset([(2, 3, 4), (2, 3, 5)]).to_list()
    rows[1]["chosen_mask"] = [True, False, True]
    groups = group_pairs(Dataset.from_list(rows))
    assert groups.group.tolist() == [0, 0]
    assert groups.answer[0, 0] != groups.answer[1, 0]


def test_without_rejected_answers():
    groups = group_pairs(dataset([(2, 3, 40), (2, 3, 41)]), with_rejected=False)
    assert groups.answer.shape == (2, 1)
    assert groups.group.tolist() == [0, 1]  # the same text twice is a repetition


@given(triples=pairs, least=st.integers(1, 50), room=st.integers(0, 200))
def test_pieces_are_whole_groups_unless_too_few_or_too_long(triples, least, room):
    groups = groups_of(triples)
    rows = np.arange(len(triples))
    most = max(sum(triple) for triple in triples) + room
    pieces = split_groups(groups, rows, least, most)
    assert sorted(np.concatenate(pieces).tolist()) == rows.tolist()
    assert all(len(set(groups.group[piece])) == 1 for piece in pieces)
    assert all(groups.tokens(piece) <= most for piece in pieces)
    assert len(pieces) >= min(least, len(triples))
    whole = groups.pieces(rows)
    if len(whole) >= least and all(groups.tokens(piece) <= most for piece in whole):
        assert {tuple(p) for p in pieces} == {tuple(p) for p in whole}


@given(triples=pairs, most=st.integers(1, 8), spare=st.integers(0, 3))
def test_bins_hold_whole_groups_where_they_have_room(triples, most, spare):
    groups = groups_of(triples)
    rows = np.arange(len(triples))
    bins = -(-len(triples) // most) + spare
    shares = deal_groups(groups, rows, bins, most)
    assert len(shares) <= bins
    assert all(1 <= len(share) <= most for share in shares)
    assert sorted(np.concatenate(shares).tolist()) == rows.tolist()
    if bins >= len(groups.pieces(rows)):  # a bin for each group
        for piece in groups.pieces(rows):
            if len(piece) <= most:
                assert any(set(piece) <= set(share) for share in shares)


@given(
    triples=pairs,
    ranks=st.integers(1, 3),
    micro=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    room=st.one_of(st.none(), st.integers(0, 300)),
    seed=st.integers(0, 5),
    shuffle=st.booleans(),
)
def test_plan_covers_every_pair_in_any_split(triples, ranks, micro, accumulate, room, seed, shuffle):
    groups = groups_of(triples)
    lengths, chosen = np.array([sum(t) for t in triples]), np.array([t[1] for t in triples])
    size = ranks * micro * accumulate
    options = {"groups": groups, "seed": seed, "shuffle": shuffle}
    most = None if room is None else int(lengths.max()) + room
    plan = StepPlan(lengths, chosen, size, micro_batch_size=micro, max_tokens=most, ranks=ranks, **options)
    epoch = 1 if most is None else 0  # `max_tokens` holds in the epochs of the run
    shares = [list(plan.rank_batches(rank, epoch)) for rank in range(ranks)]
    assert {len(share) for share in shares} == {len(plan)}
    batches = [batch for share in shares for batch in share if not batch.filler]
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(triples)))
    alone = StepPlan(lengths, chosen, size, **options)
    for step in range(plan.steps):
        own = sorted(row for batch in batches if batch.step == step for row in batch.rows)
        assert own == sorted(alone.step_rows(alone.order(epoch), step).tolist())
        assert {b.step_pairs for b in batches if b.step == step} == {len(own)}
        assert {b.step_chosen_tokens for b in batches if b.step == step} == {chosen[own].sum()}
    for batch in batches:
        assert len(batch.rows) <= (micro if most is None else len(triples))
        assert most is None or groups.tokens(np.array(batch.rows)) <= most


def test_order_keeps_groups_together_and_whole_in_steps():
    """Eight groups of three pairs, steps of six pairs, two micro-batches of three: no group is ever split."""
    triples = [(p, 10 + k, 40 + p) for k in range(3) for p in range(1, 9)]
    groups = groups_of(triples)
    lengths = np.array([sum(t) for t in triples])
    plan = StepPlan(lengths, lengths, 6, micro_batch_size=3, groups=groups)
    batches = list(plan.rank_batches(0, 0))
    assert all(len(set(groups.group[list(batch.rows)])) == 1 for batch in batches)
    assert [b.rows for b in batches] != [b.rows for b in plan.rank_batches(0, 1)]


def test_identity_says_whether_pairs_are_grouped():
    triples = [(1, 2, 31), (1, 3, 32)]
    lengths = np.array([sum(t) for t in triples])
    grouped = StepPlan(lengths, lengths, 2, groups=groups_of(triples))
    alone = StepPlan(lengths, lengths, 2)
    assert (grouped.identity()["grouped"], alone.identity()["grouped"]) == (True, False)
