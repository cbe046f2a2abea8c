"""Chunked log-probabilities against torch's own log-softmax over all logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adadpo_lightning.models.logprobs import LogitTransform, TokenStatistics, VocabularyShard, token_logps
from tests.support.ranks import on_ranks

TRANSFORMS = [LogitTransform(), LogitTransform(0.3), LogitTransform(softcap=2.0), LogitTransform(3.0, 1.5)]


def make(n, d=6, v=11, dtype=torch.float64, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    targets = torch.randint(0, v, (n,), generator=generator)
    return normal(n, d), normal(v, d), normal(v) if bias else None, targets


def plain(hidden, weight, bias, targets, transform):
    logits = torch.nn.functional.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return logits.log_softmax(-1)[torch.arange(len(targets)), targets]


def logps_and_grads(function, inputs, upstream):
    leaves = [x for x in inputs if x is not None]
    logps = function()
    return logps.detach(), torch.autograd.grad(logps, leaves, upstream)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("bias", [True, False])
@settings(max_examples=10, deadline=None)
@given(n=st.integers(1, 17), chunk=st.integers(1, 20))
def test_equals_plain_log_softmax(transform, bias, n, chunk):
    hidden, weight, b, targets = make(n, bias=bias)
    upstream = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs = (hidden, weight, b)
    actual = logps_and_grads(
        lambda: token_logps(hidden, weight, targets, bias=b, chunk_size=chunk, transform=transform), inputs, upstream
    )
    expected = logps_and_grads(lambda: plain(hidden, weight, b, targets, transform), inputs, upstream)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_gradcheck(transform):
    hidden, weight, bias, targets = make(5)
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_logps(h, w, targets, bias=b, chunk_size=2, transform=transform), (hidden, weight, bias)
    )


@pytest.mark.parametrize("chunk", [3, 64])
def test_halves_are_widened(chunk):
    """bfloat16: no further from the exact result than torch's own path, and a float32 result."""
    hidden, weight, _, targets = make(40, d=32, v=50, dtype=torch.bfloat16, bias=False)
    upstream = torch.randn(40, generator=torch.Generator().manual_seed(1))
    exact_inputs = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    exact, exact_grads = logps_and_grads(
        lambda: plain(*exact_inputs, None, targets, LogitTransform()), exact_inputs, upstream.double()
    )
    ours, our_grads = logps_and_grads(
        lambda: token_logps(hidden, weight, targets, chunk_size=chunk), (hidden, weight), upstream
    )
    torchs, torch_grads = logps_and_grads(
        lambda: plain(hidden, weight, None, targets, LogitTransform()), (hidden, weight), upstream
    )
    assert ours.dtype == torch.float32
    assert our_grads[1].dtype == torch.bfloat16
    assert (ours - exact).norm() <= 1.05 * (torchs - exact).norm()
    for mine, theirs, true in zip(our_grads, torch_grads, exact_grads, strict=True):
        assert (mine - true).norm() <= 1.2 * (theirs - true).norm()


def test_weight_gradient_is_summed_wide_over_chunks():
    """4,096 equal small terms: a bfloat16 sum would stop growing at 256 of them."""
    hidden = torch.ones(4096, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    logps = token_logps(hidden, weight, torch.zeros(4096, dtype=torch.long), chunk_size=1)
    logps.sum().backward()
    torch.testing.assert_close(weight.grad.float(), torch.tensor([[2048.0], [-2048.0]]))


def test_only_what_needs_a_gradient_gets_one():
    hidden, weight, bias, targets = make(6)
    token_logps(hidden, weight.detach(), targets, bias=bias.detach(), chunk_size=4).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    hidden, weight, _, targets = make(6)
    token_logps(hidden.detach(), weight, targets, chunk_size=4).sum().backward()
    assert hidden.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_frozen_head_gives_the_same_gradient(transform, dtype):
    """Formed in the forward pass and scaled in the backward pass, with the same log-probabilities."""
    hidden, weight, bias, targets = make(9, dtype=dtype)
    upstream = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    upstream = upstream.to(torch.promote_types(dtype, torch.float32))

    def run(weight, bias):
        logps = token_logps(hidden, weight, targets, bias=bias, chunk_size=4, transform=transform)
        return logps, torch.autograd.grad(logps, hidden, upstream)[0]

    trained, frozen = run(weight, bias), run(weight.detach(), bias.detach())
    torch.testing.assert_close(frozen[0], trained[0], rtol=0, atol=0)
    rounding = 1e-14 if dtype == torch.float64 else 1e-2
    torch.testing.assert_close(frozen[1], trained[1], rtol=rounding, atol=rounding)


def test_frozen_head_computes_its_logits_once():
    from torch.utils.flop_counter import FlopCounterMode

    hidden, weight, _, targets = make(12, bias=False)
    with FlopCounterMode(display=False) as counter:
        token_logps(hidden, weight.detach(), targets, chunk_size=3).sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 12 * weight.numel())


@pytest.mark.parametrize("frozen", [False, True])
def test_backward_twice_over_one_graph(frozen):
    """The last chunk is kept for the first backward pass and computed again for the second."""
    hidden, weight, _, targets = make(6, bias=False)
    leaves = (hidden,) if frozen else (hidden, weight)
    total = token_logps(hidden, weight.detach() if frozen else weight, targets, chunk_size=4).sum()
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    second = torch.autograd.grad(total, leaves)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_a_large_vocabulary_is_summed_without_losing_digits():
    """Torch's own float32 kernel on the CPU is off by 6e-7 and 5e-6 of the norm here."""
    torch.manual_seed(0)
    hidden, weight, targets = 1.5 * torch.randn(5, 4), torch.randn(131072, 4), torch.arange(5)

    def run(dtype):
        head = weight.to(dtype, copy=True).requires_grad_()
        logps = token_logps(hidden.to(dtype), head, targets, chunk_size=2)
        logps.sum().backward()
        return logps.detach(), head.grad

    for found, exact in zip(run(torch.float32), run(torch.float64), strict=True):
        assert (found - exact).norm() < 3e-7 * exact.norm()


def test_no_tokens():
    hidden, weight, bias, targets = make(0)
    logps = token_logps(hidden, weight, targets, bias=bias)
    assert logps.shape == (0,)
    logps.sum().backward()
    assert not weight.grad.any()


def test_same_with_and_without_grad():
    """The reference runs without: rewards at step 0 must be exactly 0."""
    hidden, weight, _, targets = make(9, bias=False, dtype=torch.float32)
    with torch.no_grad():
        reference = token_logps(hidden, weight, targets, chunk_size=4)
    assert torch.equal(reference, token_logps(hidden, weight, targets, chunk_size=4))


def test_autocast_uses_its_type():
    hidden, weight, _, targets = make(9, bias=False, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = token_logps(hidden, weight, targets, chunk_size=4)
    expected = token_logps(hidden.bfloat16(), weight.bfloat16(), targets, chunk_size=4)
    assert logps.dtype == torch.float32
    assert torch.equal(logps, expected)
    logps.sum().backward()
    assert weight.grad.dtype == torch.float32


def test_never_more_than_a_chunk_of_logits():
    """Largest tensor that any operation makes, forward and backward, in elements."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for x in result if isinstance(result, tuple | list) else (result,):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel())
            return result

    hidden, weight, _, targets = make(64, d=4, v=100, bias=False, dtype=torch.float32)
    with Watch():
        token_logps(hidden, weight, targets, chunk_size=8).sum().backward()
    assert largest == 8 * 100


@pytest.mark.distributed
def test_a_head_split_by_vocabulary_equals_the_whole_one(tmp_path):
    """11 tokens over two ranks, 6 and 5, in chunks: values, gradients and statistics against torch's log-softmax."""
    cases = [(transform, bias, chunk) for transform in TRANSFORMS for bias in (True, False) for chunk in (3, 64)]
    upstream = torch.randn(13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    starts = (0, 6, 11)

    def on_one(rank):
        results = []
        for transform, bias, chunk in cases:
            hidden, weight, b, targets = make(13, bias=bias)
            mine = slice(starts[rank], starts[rank + 1])
            inputs = [hidden, *(x.detach()[mine].requires_grad_() for x in (weight, b) if x is not None)]
            statistics = TokenStatistics.empty(hidden, entropies=True, log_collisions=True)
            logps = token_logps(
                inputs[0],
                inputs[1],
                targets,
                bias=inputs[2] if bias else None,
                chunk_size=chunk,
                transform=transform,
                statistics=statistics,
                shard=VocabularyShard(mine.start, torch.distributed.group.WORLD),
            )
            gradients = torch.autograd.grad(logps, inputs, upstream)
            results.append((logps.detach(), gradients, statistics.entropies, statistics.log_collisions))
        return results

    ranks = on_ranks(2, on_one, tmp_path)
    for (transform, bias, _), *results in zip(cases, *ranks, strict=True):
        hidden, weight, b, targets = make(13, bias=bias)
        logps, grads = logps_and_grads(
            lambda h=hidden, w=weight, b=b, t=targets, how=transform: plain(h, w, b, t, how),
            (hidden, weight, b),
            upstream,
        )
        every = torch.stack([plain(hidden, weight, b, torch.full((13,), v), transform) for v in range(11)], 1).detach()
        for rank, (own, gradients, entropies, collisions) in enumerate(results):
            mine = slice(starts[rank], starts[rank + 1])
            torch.testing.assert_close(own, logps, rtol=1e-12, atol=1e-12)
            expected = (grads[0], *(x[mine] for x in grads[1:]))
            torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(entropies, -(every.exp() * every).sum(1), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(collisions, every.exp().square().sum(1).log(), rtol=1e-12, atol=1e-12)
