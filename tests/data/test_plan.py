import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adadpo_lightning.data.plan import StepPlan, deal
from adadpo_lightning.errors import UserError


def make(lengths, global_batch_size, **options):
    lengths = np.asarray(lengths)
    return StepPlan(lengths, np.maximum(lengths // 3, 1), global_batch_size, **options)


def epoch_of(plan, epoch=0, start=0):
    return [list(plan.rank_batches(rank, epoch, start)) for rank in range(plan.ranks)]


def by_step(batches):
    """Step to the set of its pairs."""
    steps = {}
    for batch in batches:
        if not batch.filler:
            steps.setdefault(batch.step, []).extend(batch.rows)
    return {step: sorted(rows) for step, rows in steps.items()}


lengths = st.lists(st.integers(3, 500), min_size=1, max_size=70)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))  # ranks, micro-batch, accumulation


@given(lengths=lengths, shape=shapes, seed=st.integers(0, 9), epoch=st.integers(0, 3), drop_last=st.booleans())
def test_every_pair_once_with_the_counts_of_its_step(lengths, shape, seed, epoch, drop_last):
    ranks, micro, accumulate = shape
    size = ranks * micro * accumulate
    if drop_last and len(lengths) < size:
        return
    plan = make(lengths, size, micro_batch_size=micro, ranks=ranks, seed=seed, drop_last=drop_last)
    shares = epoch_of(plan, epoch)
    batches = [batch for share in shares for batch in share]
    rows = [row for batch in batches if not batch.filler for row in batch.rows]
    kept = len(lengths) // size * size if drop_last else len(lengths)
    assert len(rows) == len(set(rows)) == kept
    assert {len(share) for share in shares} == {len(plan)}
    assert plan.accumulate == accumulate
    steps = by_step(batches)
    assert sorted(steps) == list(range(plan.steps))
    for step, members in steps.items():
        own = [[batch for batch in share if batch.step == step] for share in shares]
        assert len(members) == (size if step < plan.full_steps else len(lengths) % size)
        # Equally many on each rank; a full step takes exactly `accumulate`, the last as few as it can.
        expected = accumulate if step < plan.full_steps else -(-len(members) // (ranks * micro))
        assert {len(share) for share in own} == {expected}
        for batch in (batch for share in own for batch in share):
            assert batch.step_pairs == len(members)
            assert batch.step_chosen_tokens == plan.chosen_lengths[members].sum()
            assert 1 <= len(batch.rows) <= micro
            assert not batch.filler or (len(members) < ranks * expected and set(batch.rows) <= set(members))


@given(lengths=lengths, shape=shapes, seed=st.integers(0, 9))
def test_steps_do_not_depend_on_how_they_are_shared_out(lengths, shape, seed):
    ranks, micro, accumulate = shape
    size = ranks * micro * accumulate
    alone = make(lengths, size, seed=seed)
    shared = make(lengths, size, micro_batch_size=micro, ranks=ranks, seed=seed)
    by_tokens = make(lengths, size, max_tokens=max(lengths) * 2, ranks=ranks, seed=seed)
    expected = by_step(epoch_of(alone)[0])
    for plan in (shared, by_tokens):
        assert by_step(batch for share in epoch_of(plan) for batch in share) == expected


@given(lengths=lengths, shape=shapes, epochs=st.integers(1, 3), room=st.integers(0, 800))
def test_max_tokens(lengths, shape, epochs, room):
    ranks, micro, accumulate = shape
    most = max(lengths) + room
    plan = make(lengths, ranks * micro * accumulate, max_tokens=most, ranks=ranks, epochs=epochs)
    for epoch in range(epochs):
        shares = epoch_of(plan, epoch)
        assert {len(share) for share in shares} == {len(plan)}
        rows = [row for share in shares for batch in share if not batch.filler for row in batch.rows]
        assert sorted(rows) == list(range(len(lengths)))
        assert all(plan.lengths[list(batch.rows)].sum() <= most for share in shares for batch in share)
    if plan.full_steps:
        # One fewer would not do for some step.
        total = max(
            plan.lengths[plan.step_rows(plan.order(e), s)].sum() for e in range(epochs) for s in range(plan.full_steps)
        )
        assert plan.accumulate >= -(-total // (ranks * most))
        fewer = [
            deal(plan.lengths[rows], ranks * (plan.accumulate - 1))
            for e in range(epochs)
            for s in range(plan.steps)
            if len(rows := plan.step_rows(plan.order(e), s)) and plan.accumulate > 1
        ]
        orders = [plan.step_rows(plan.order(e), s) for e in range(epochs) for s in range(plan.steps)]
        assert plan.accumulate == 1 or any(
            plan.lengths[rows[share]].sum() > most
            for rows, shares in zip(orders, fewer, strict=True)
            for share in shares
            if share
        )


@given(lengths=lengths, shape=shapes, start=st.integers(0, 200), epoch=st.integers(0, 2))
def test_resume_is_the_rest_of_the_epoch(lengths, shape, start, epoch):
    ranks, micro, accumulate = shape
    plan = make(lengths, ranks * micro * accumulate, micro_batch_size=micro, ranks=ranks)
    assert epoch_of(plan, epoch, start) == [share[start:] for share in epoch_of(plan, epoch)]


def test_epochs_and_seeds_differ_and_repeat():
    lengths = np.arange(1, 41)
    orders = {(seed, epoch): make(lengths, 8, seed=seed).order(epoch).tolist() for seed in (0, 1) for epoch in (0, 1)}
    assert len({tuple(order) for order in orders.values()}) == 4
    assert make(lengths, 8, seed=1).order(1).tolist() == orders[1, 1]
    assert make(lengths, 8, shuffle=False).order(1).tolist() == list(range(40))


@given(lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=60), bins=st.integers(1, 12))
def test_deal_is_even(lengths, bins):
    """Graham's bound: sums differ by the longest item at most; no bin is empty while another has two items."""
    shares = deal(lengths, bins)
    assert sorted(item for share in shares for item in share) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in share) for share in shares]
    assert max(sums) - min(sums) <= max(lengths)
    assert sum(map(bool, shares)) == min(bins, len(lengths))


@given(lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=60), most=st.integers(1, 6))
@settings(max_examples=200)
def test_deal_with_full_bins_is_even(lengths, most):
    bins = -(-len(lengths) // most)
    shares = deal(lengths, bins, most)
    assert sorted(item for share in shares for item in share) == list(range(len(lengths)))
    assert max(map(len, shares)) <= most
    if len(lengths) == bins * most:
        sums = [sum(lengths[i] for i in share) for share in shares]
        assert max(sums) - min(sums) <= max(lengths)


def test_ranks_get_even_work_at_the_scale_of_a_real_run():
    rng = np.random.default_rng(0)
    plan = make(np.minimum(rng.lognormal(6, 0.6, 5_000).astype(int) + 10, 2048), 128, micro_batch_size=4, ranks=8)
    order = plan.order(0)
    ratios = []
    for step in range(plan.full_steps):
        loads = [sum(plan.lengths[list(b.rows)].sum() for b in share) for share in plan.step_batches(order, step)]
        ratios.append(max(loads) / np.mean(loads))
    # Random sharing out of the same steps makes 1.22 of it.
    assert np.mean(ratios) < 1.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"global_batch_size": 8, "micro_batch_size": 3},
            "8 pairs per step cannot be split evenly over 1 ranks x 3",
        ),
        ({"global_batch_size": 8, "ranks": 3}, "over 3 ranks x 1 pairs per micro-batch .*a multiple of 3"),
        ({"global_batch_size": 0}, "global_batch_size: expected at least 1, got 0"),
        ({"global_batch_size": 4, "micro_batch_size": 0}, "micro_batch_size: expected at least 1"),
        ({"global_batch_size": 4, "max_tokens": 8}, "max_tokens: pair 2 alone has 9 tokens .* more than 8"),
        ({"global_batch_size": 4, "drop_last": True}, r"3 pairs are too few for 4 per step \(drop_last=True\)"),
    ],
)
def test_bad_sizes(options, message):
    with pytest.raises(UserError, match=message):
        make([5, 7, 9], **options)
