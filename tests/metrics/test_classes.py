"""torchmetrics and pure functions against numpy, in any batches, and over two processes with uneven ones."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from adadpo_lightning import metrics as m
from adadpo_lightning.metrics import functional as f


def draw(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "chosen": rng.normal(size=count),
        "rejected": np.where(rng.random(count) < 0.2, 0.0, rng.normal(size=count)),
        "log_balance": rng.normal(size=count),
        "logps": -rng.exponential(5.0, count),
        "initial": -rng.exponential(5.0, count),
        "chosen_len": rng.integers(1, 50, count),
        "rejected_len": rng.integers(1, 50, count),
    }


# For each class: the columns it takes, and the definition in numpy.
CASES = {
    m.RewardAccuracy: (("chosen", "rejected"), lambda a, b: np.mean(a > b)),
    m.RewardMargin: (("chosen", "rejected"), lambda a, b: np.mean(a - b)),
    m.KLEstimate: (("logps", "initial"), lambda a, b: np.mean(np.exp(b - a) - 1 + a - b)),
    m.GradientBalance: (("log_balance",), lambda a: np.prod(np.exp(a)) ** (1 / len(a))),
    m.MarginLengthCorrelation: (
        ("chosen", "chosen_len", "rejected_len"),
        lambda a, b, c: np.corrcoef(a, b - c)[0, 1],
    ),
}
FUNCTIONS = {
    m.RewardAccuracy: f.reward_accuracy,
    m.RewardMargin: f.reward_margin,
    m.KLEstimate: f.kl_estimate,
    m.GradientBalance: f.gradient_balance,
    m.MarginLengthCorrelation: f.margin_length_correlation,
}


def columns(data, names, part=slice(None)):
    return [torch.tensor(data[name][part]) for name in names]


@pytest.mark.parametrize("cls", CASES, ids=lambda c: c.__name__)
@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5), seed=st.integers(0, 2**16))
def test_class_and_function_equal_numpy(cls, sizes, seed):
    names, oracle = CASES[cls]
    data = draw(sum(sizes), seed)
    metric, start = cls(), 0
    for size in sizes:
        metric.update(*columns(data, names, slice(start, start + size)))
        start += size
    expected = oracle(*(data[name] for name in names))
    if cls is m.MarginLengthCorrelation and np.isnan(expected):
        assert torch.isnan(metric.compute())
        return
    assert metric.compute().item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert FUNCTIONS[cls](*columns(data, names)).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_displacement_equals_numpy():
    data = draw(40)
    metric = m.LikelihoodDisplacement()
    for part in (slice(0, 7), slice(7, 40)):
        metric.update(*columns(data, ("logps", "initial"), part))
    drift = data["logps"] - data["initial"]
    expected = (drift.mean(), (drift < 0).mean())
    assert tuple(v.item() for v in metric.compute().values()) == pytest.approx(expected)
    actual = f.likelihood_displacement(*columns(data, ("logps", "initial")))
    assert tuple(v.item() for v in actual) == pytest.approx(expected)


def test_a_tie_is_no_success_and_equal_lengths_have_no_correlation():
    zeros = torch.zeros(4)
    assert f.reward_accuracy(zeros, zeros) == 0.0
    lengths = torch.full((4,), 7)
    assert torch.isnan(f.margin_length_correlation(torch.arange(4.0), lengths, lengths))


def _worker(rank, port, queue):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    gathers = []
    plain = dist.all_gather

    def counted(*args, **kwargs):
        gathers.append(1)
        return plain(*args, **kwargs)

    dist.all_gather = counted
    data, results = draw(11), {}
    for cls, (names, _) in CASES.items():
        metric = cls()
        # 3 pairs here and 8 there, in a different number of updates.
        for part in (slice(0, 3),) if rank == 0 else (slice(3, 4), slice(4, 11)):
            metric.update(*columns(data, names, part))
        gathers.clear()
        results[cls.__name__] = (metric.compute().item(), len(gathers))
    if rank == 0:
        queue.put(results)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.distributed
def test_two_processes_with_uneven_batches_and_a_bounded_sync():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_worker, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    results = queue.get(timeout=120)
    for process in processes:
        process.join(60)
    data = draw(11)
    for cls, (names, oracle) in CASES.items():
        value, gathers = results[cls.__name__]
        assert value == pytest.approx(oracle(*(data[name] for name in names)), rel=1e-9), cls
        # torchmetrics gathers the shape and then the one state.
        assert gathers <= 2
