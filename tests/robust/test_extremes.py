"""Values at the edge: answers of one token, log-probabilities of 0 and -1e6, any vocabulary, half precision."""

import pytest
import torch

from adadpo_lightning.losses import available_losses, build_loss
from adadpo_lightning.losses.testing import with_token_sums
from adadpo_lightning.models.logprobs import token_logps
from adadpo_lightning.types import PairLogps

LOSSES = [key for key in available_losses() if key != "sft"]
VALUES = {"zero": 0.0, "far": -1e6, "tiny": -1e-8}


@pytest.mark.parametrize("key", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("chosen", "rejected"), [("zero", "far"), ("far", "zero"), ("far", "far"), ("tiny", "tiny")])
def test_one_pair_of_one_token_answers_stays_finite(key, dtype, chosen, rejected):
    # The gradient of IPO's square is twice as large as its margin, and float16 ends at 65504.
    floor = -1e4 if dtype == torch.float16 else -1e6
    if dtype == torch.float16 and key.endswith("alphapo"):  # whose gradient is a power of the probability
        floor = -30.0
    logps = [torch.tensor([max(VALUES[name], floor)], dtype=dtype, requires_grad=True) for name in (chosen, rejected)]
    one = torch.ones(1, dtype=torch.long)
    reference = torch.full((1,), -1.0, dtype=dtype)
    loss = build_loss(key)
    found = loss(
        with_token_sums(PairLogps(*logps, one, one, *((reference, reference) if loss.needs_reference else ())))
    )
    total = found.per_pair.sum() + (0 if found.nll is None else found.nll.sum())
    assert total.isfinite()
    for gradient in torch.autograd.grad(total, logps, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


# These weigh the two answers differently by design, and some twins have nothing to balance there.
LOPSIDED = ("dposhift", "bdpo", "bpo", "minordpo", "adaminordpo", "apodown", "adaapodown")


@pytest.mark.parametrize("key", [key for key in LOSSES if key not in LOPSIDED])
def test_identical_answers_push_nowhere_in_sum(key):
    logps = torch.tensor([-12.0], dtype=torch.float64)
    chosen, rejected = logps.clone().requires_grad_(), logps.clone().requires_grad_()
    length = torch.tensor([7])
    loss = build_loss(key)
    references = (logps.clone(), logps.clone()) if loss.needs_reference else ()
    found = loss(with_token_sums(PairLogps(chosen, rejected, length, length, *references)))
    up, down = torch.autograd.grad(found.per_pair.sum(), [chosen, rejected])
    # The same answer on both sides: what one side gains the other loses.
    torch.testing.assert_close(up, -down)


@pytest.mark.parametrize("vocabulary", [256, 4096, 256_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_at_any_vocabulary(vocabulary, dtype):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 8, generator=draw).to(dtype)
    weight = (0.3 * torch.randn(vocabulary, 8, generator=draw)).to(dtype)
    targets = torch.randint(vocabulary, (5,), generator=draw)
    logps = token_logps(hidden, weight, targets, chunk_size=2)
    expected = (hidden.double() @ weight.double().T).log_softmax(-1)[torch.arange(5), targets]
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(logps.double(), expected, rtol=tolerance, atol=tolerance)
