"""One gradient for any split, order, layout and padding of the global batch: float64 to 1e-10, for every loss."""

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adadpo_lightning.data.collate import collate
from adadpo_lightning.losses import SFT, Mixture, available_losses, build_loss
from adadpo_lightning.models.loading import PolicyConfig
from adadpo_lightning.training.module import PreferenceLitModule
from adadpo_lightning.types import EncodedPair
from tests.models.attention.test_packed import with_exact_norms
from tests.support.losses import loss_keys


def make_pairs(seed=0, count=8):
    rng = random.Random(seed)

    def ids(most):
        return [rng.randrange(7, 30) for _ in range(rng.randint(1, most))]

    return [EncodedPair(ids(9), ids(12), ids(12), row, weight=rng.choice([None, 0.5, 2.0])) for row in range(count)]


@pytest.fixture(scope="module")
def modules(model_dir):
    """One module a layout; what is trained and the reference differ, so that no log-ratio is 0."""
    made = {}
    for layout in ("packed", "padded"):
        config = PolicyConfig(path=str(model_dir), dtype="float64", layout=layout)
        lit = PreferenceLitModule(config, build_loss("dpo"))
        lit.configure_model()
        with_exact_norms(lit.built_policy.causal_lm)
        with_exact_norms(lit._reference.model.causal_lm)
        torch.manual_seed(0)
        with torch.no_grad():
            for p in lit.parameters():
                p.add_(0.05 * torch.randn_like(p))
        made[layout] = lit
    return made


def gradient(lit, loss, micro_batches):
    """Summed over the micro-batches of one step, as training sums it."""
    lit.loss = loss
    lit.zero_grad()
    pairs = [pair for part in micro_batches for pair in part]
    counts = {"step_pairs": len(pairs), "step_chosen_tokens": sum(len(p.chosen_ids) for p in pairs)}
    for part in micro_batches:
        lit.step(collate(part, layout=lit.layout, pad_id=0, **counts))[0].backward()
    return torch.cat([p.grad.flatten() for p in lit.parameters()])


def split(pairs, size):
    return [pairs[i : i + size] for i in range(0, len(pairs), size)]


@pytest.mark.parametrize("key", [*loss_keys(), "mixture"])
def test_splits_orders_and_layouts(modules, key):
    loss = Mixture([build_loss("adadpo"), SFT()], [0.9, 0.1]) if key == "mixture" else build_loss(key)
    pairs = make_pairs()
    shuffled = random.Random(1).sample(pairs, len(pairs))
    expected = gradient(modules["packed"], loss, [pairs])
    assert expected.norm() > 1e-3
    others = {
        "8 x 1": (modules["packed"], split(pairs, 1)),
        "uneven": (modules["packed"], [pairs[:5], pairs[5:6], pairs[6:]]),
        "another order": (modules["packed"], [shuffled]),
        "padded": (modules["padded"], [pairs]),
        "padded, another order, 3 at a time": (modules["padded"], split(shuffled, 3)),
    }
    for name, (lit, parts) in others.items():
        difference = (gradient(lit, loss, parts) - expected).abs().max()
        assert difference <= 1e-10 * max(1.0, expected.abs().max()), name


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**16), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data())
def test_any_split_of_any_pairs(modules, seed, sizes, data):
    pairs = make_pairs(seed, sum(sizes))
    # Lists can't be split anywhere: tests/training/test_listwise_runs.py.
    losses = [loss for loss in map(build_loss, available_losses()) if not loss.needs_lists]
    loss = data.draw(st.sampled_from(losses))
    order = data.draw(st.permutations(pairs))
    parts, start = [], 0
    for size in sizes:
        parts.append(order[start : start + size])
        start += size
    layouts = data.draw(st.tuples(st.sampled_from(["packed", "padded"]), st.sampled_from(["packed", "padded"])))
    expected = gradient(modules[layouts[0]], loss, [pairs])
    actual = gradient(modules[layouts[1]], loss, parts)
    assert (actual - expected).abs().max() <= 1e-10 * max(1.0, expected.abs().max())
