"""Pairs that share prompts and answers: the same log-probabilities, losses and gradients as pair by pair."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from adadpo_lightning.data.collate import collate
from adadpo_lightning.losses import available_losses, build_loss
from adadpo_lightning.metrics.gradients import gradient_squares
from adadpo_lightning.metrics.parameter_gradients import part_slopes, token_weights
from adadpo_lightning.models.loading import PolicyConfig
from adadpo_lightning.models.policy import PolicyModel
from adadpo_lightning.training.step import pair_logps
from adadpo_lightning.types import EncodedPair
from tests.models.attention.test_packed import with_exact_norms

# Two prompts. The first has four answers and all of their six pairs, one of them twice; the second has one pair, whose
# answers are equal in their tokens to two of the first's.
A, B, C, D = [8, 9, 2], [10, 11, 12, 13, 2], [14, 2], [15, 16, 17, 2]
FIRST, SECOND = [1, 3, 20, 21, 4], [1, 3, 22, 4]
PAIRS = [
    *(EncodedPair(FIRST, w, r, n) for n, (w, r) in enumerate([(A, B), (A, C), (A, D), (B, C), (B, D), (C, D)])),
    EncodedPair(SECOND, B, A, 6),
    EncodedPair(FIRST, A, B, 7),
]
COUNTS = {"pad_id": 0, "step_pairs": 8, "step_chosen_tokens": sum(len(p.chosen_ids) for p in PAIRS)}
BACKENDS = [("packed", "segments"), ("packed", "tree"), ("padded", "auto")]


@pytest.fixture(scope="module", params=BACKENDS, ids="-".join)
def policy(request, model_dir):
    layout, attention = request.param
    config = PolicyConfig(path=str(model_dir), dtype="float64", layout=layout, packed_attention=attention)
    return PolicyModel(with_exact_norms(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64)), config)


def inputs(policy, loss, batch):
    logps = policy(batch, log_collisions=loss.needs_collisions)
    collisions = policy.take_statistics().log_collisions
    return pair_logps(batch, logps, 0.9 * logps.detach(), tails=loss.needs_tails, log_collisions=collisions)


def step(policy, loss, pairs=PAIRS, *, share):
    """Loss, gradients of the weights, and squares of the hidden states' gradients."""
    seen = []
    policy.gradient_observer = lambda batch, gradient: seen.append(gradient_squares(batch, gradient))
    batch = collate(pairs, layout=policy.layout, share=share, **COUNTS)
    policy.zero_grad()
    x = inputs(policy, loss, batch)
    total = loss(x).reduce(batch.step_pairs, batch.step_chosen_tokens)
    total.backward()
    return total.detach(), {n: p.grad.clone() for n, p in policy.named_parameters()}, seen[0]


def test_each_prompt_and_each_answer_once(policy):
    batch = collate(PAIRS, layout=policy.layout, share=True, **COUNTS)
    assert batch.segments == ((5, 3, 5, 2, 4), (4, 5, 3))
    assert batch.answer_len.tolist() == [3, 5, 2, 5, 4, 3]
    assert batch.answers.tolist() == [0, 0, 0, 1, 1, 2, 3, 0, 1, 2, 4, 2, 4, 4, 5, 1]
    assert len(batch) == 8
    assert batch.input_ids.shape == ((1, 31) if policy.layout == "packed" else (6, 10))
    alone = collate(PAIRS, layout=policy.layout, share=False, **COUNTS)
    assert len(alone.segments) == 8
    for name in ("chosen_len", "rejected_len", "row_ids"):
        assert torch.equal(getattr(batch, name), getattr(alone, name))


@pytest.mark.parametrize("key", available_losses())
def test_same_gradient_as_pair_by_pair(policy, key):
    loss = build_loss(key)
    shared, alone = step(policy, loss, share=True), step(policy, loss, share=False)
    torch.testing.assert_close(shared[:2], alone[:2], rtol=1e-10, atol=1e-12)


def test_sides_of_the_gradient(policy):
    """Where no answer is on both sides, sharing only adds up what an answer gets from its pairs."""
    pairs = [EncodedPair(FIRST, A, B, 0), EncodedPair(FIRST, A, C, 1), EncodedPair(SECOND, D, C, 2)]
    loss = build_loss("dpo")
    chosen, rejected, prompt = step(policy, loss, pairs, share=True)[2].tolist()
    alone = step(policy, loss, pairs, share=False)[2].tolist()
    assert rejected == pytest.approx(alone[1], rel=1e-9)
    assert chosen > 1.5 * alone[0]  # A's two parts, of one direction, add up before they are squared
    assert prompt > alone[2]
    # An answer on both sides belongs to neither.
    both = [EncodedPair(FIRST, A, B, 0), EncodedPair(FIRST, B, C, 1)]
    chosen, rejected, _ = step(policy, loss, both, share=True)[2].tolist()
    alone = [step(policy, loss, [pair], share=False)[2].tolist() for pair in both]
    assert chosen == pytest.approx(alone[0][0], rel=1e-9)
    assert rejected == pytest.approx(alone[1][1], rel=1e-9)


@pytest.mark.parametrize("key", ["adadpo", "cpo", "lddpo"])
def test_parts_of_the_gradient_add_up(policy, key):
    loss = build_loss(key)
    batch = collate(PAIRS, layout=policy.layout, share=True, **COUNTS)
    policy.gradient_observer = None
    policy.zero_grad()
    logps = policy(batch)
    slopes = part_slopes(loss, inputs(policy, loss, batch), 8, COUNTS["step_chosen_tokens"])
    sum((token_weights(slope, part, batch) * logps).sum() for part, slope in slopes.items()).backward()
    expected = step(policy, loss, share=False)[1]
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)
