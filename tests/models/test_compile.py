"""Compiled blocks: the numbers stay, and no new length is compiled for."""

import random
import shutil

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from adadpo_lightning.data.collate import collate
from adadpo_lightning.models.loading import PolicyConfig
from adadpo_lightning.models.policy import PolicyModel
from adadpo_lightning.types import EncodedPair


def random_batch(rng, count):
    def ids(most):
        return [rng.randrange(7, 30) for _ in range(rng.randint(1, most))]

    pairs = [EncodedPair(ids(20), ids(30), ids(30), row) for row in range(count)]
    return collate(pairs, layout="packed", pad_id=0, step_pairs=count, step_chosen_tokens=9)


def gradients(policy, batch):
    policy.zero_grad()
    logps = policy(batch)
    (logps * torch.arange(len(logps))).sum().backward()
    return logps.detach(), [p.grad.clone() for p in policy.parameters()]


def check(model_dir, tolerance):
    torch._dynamo.reset()
    plain, compiled = (
        PolicyModel(
            AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64),
            PolicyConfig(path=str(model_dir), dtype="float64", compile=flag),
        )
        for flag in (False, True)
    )
    rng = random.Random(0)
    graphs = []
    for count in (3, 1, 2, 4, 5, 1):
        batch = random_batch(rng, count)
        expected, actual = gradients(plain, batch), gradients(compiled, batch)
        torch.testing.assert_close(actual[0], expected[0], rtol=tolerance, atol=tolerance)
        for a, b in zip(actual[1], expected[1], strict=True):
            assert (a - b).norm() <= 10 * tolerance * b.norm()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    # A row with a single pair may be one more case; after that nothing is compiled any more.
    assert graphs[-1] == graphs[1]


def test_traced_once_for_all_lengths(model_dir, monkeypatch):
    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: plain(self, backend="aot_eager", **options))
    check(model_dir, 1e-10)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the CPU backend needs a C++ compiler")
def test_compiled_once_for_all_lengths(model_dir):
    # Norms are taken in float32 in any model, and fused kernels round elsewhere.
    check(model_dir, 1e-5)
