"""Compiled blocks: the numbers stay, and no new length is compiled for."""

import random
import shutil
from itertools import combinations

import pytest
import torch
from transformers import AutoModelForCausalLM

from adadpo_lightning.data.collate import collate
from adadpo_lightning.models.loading import PolicyConfig
from adadpo_lightning.models.policy import PolicyModel
from adadpo_lightning.types import EncodedPair

# Answers of a prompt, by its number of pairs.
ANSWERS = {1: 2, 2: 3, 3: 3, 6: 4}


def random_batch(rng, groups, pairs_each=1):
    """Groups that share a prompt, each with its pairs over the answers; lengths are random."""

    def ids(most):
        return [rng.randrange(7, 30) for _ in range(rng.randint(1, most))]

    pairs = []
    for _ in range(groups):
        prompt, answers = ids(20), [[number, *ids(30)] for number in range(7, 7 + ANSWERS[pairs_each])]
        pairs += [EncodedPair(prompt, chosen, rejected) for chosen, rejected in combinations(answers, 2)][:pairs_each]
    return collate(pairs, layout="packed", pad_id=0, step_pairs=len(pairs), step_chosen_tokens=9, share=True)


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

    def compare(groups, pairs_each):
        batch = random_batch(rng, groups, pairs_each)
        expected, actual = gradients(plain, batch), gradients(compiled, batch)
        torch.testing.assert_close(actual[0], expected[0], rtol=tolerance, atol=tolerance)
        for a, b in zip(actual[1], expected[1], strict=True):
            assert (a - b).norm() <= 10 * tolerance * b.norm()

    with pytest.raises(RuntimeError, match="recompile"), torch.compiler.set_stance("fail_on_recompile"):
        compare(3, 1)  # the blocks are compiled at all
    # A row with a single pair may be one more case; after that nothing is compiled any more.
    for groups in (3, 1):
        compare(groups, 1)
    with torch.compiler.set_stance("fail_on_recompile"):
        for shape in ((2, 1), (4, 1), (1, 1), (1, 2), (2, 3), (1, 6), (3, 6), (5, 1)):
            compare(*shape)


@pytest.mark.slow
def test_traced_once_for_all_lengths(model_dir, monkeypatch):
    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: plain(self, backend="aot_eager", **options))
    check(model_dir, 1e-10)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the CPU backend needs a C++ compiler")
def test_compiled_once_for_all_lengths(model_dir):
    # Norms are taken in float32 in any model, and fused kernels round elsewhere.
    check(model_dir, 1e-5)
