"""Canaries: each names one thing that `adadpo_lightning.estimate.compat` takes from torch without a promise."""

import inspect
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from adadpo_lightning.compat import without_memory
from adadpo_lightning.estimate import compat
from adadpo_lightning.estimate.traffic import Sent

WIDTH, RANKS = 64, 8
NUMBERS = WIDTH * WIDTH


def test_every_touch_has_a_canary():
    touches = {
        name
        for name, f in vars(compat).items()
        if inspect.isfunction(f) and f.__module__ == compat.__name__ and not name.startswith("_")
    }
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert touches <= tests, sorted(touches - tests)


def test_importing_it_costs_nothing():
    code = "import sys, adadpo_lightning.estimate.compat; print({'torch', 'lightning'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_fake_ranks():
    with compat.fake_ranks(1000):
        assert (dist.get_world_size(), dist.get_rank()) == (1000, 0)
        tensor = torch.ones(2)
        dist.all_reduce(tensor)
    assert not dist.is_initialized()


def stepped(context, width=WIDTH):
    """Memory by kind after a step of a fused optimizer over a layer that is sharded over fake ranks, and its peak."""
    with compat.fake_ranks(RANKS):
        mesh = init_device_mesh("cpu", (RANKS,))
        with without_memory(), context():
            layer = fully_shard(nn.Linear(width, width, bias=False), mesh=mesh)
            optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
            other = torch.zeros(5)
            tracker = compat.memory_tracker(layer, optimizer, (other,))
            with tracker:
                layer(torch.ones(1, width)).sum().backward()
                optimizer.step()
            assert all(
                compat.held(tracker, kind) == size
                for kind, size in compat.by_kind(tracker.get_tracker_snapshot()).items()
            )
            snapshots = [tracker.get_tracker_snapshot(which) for which in ("current", "peak")]
            return [compat.by_kind(snapshot) for snapshot in snapshots]


def test_memory_tracker():
    now, _ = stepped(compat.global_shapes_uncounted)
    shard = 4 * NUMBERS // RANKS
    assert now["weights"] == now["gradients"] == shard
    assert now["optimizer"] == pytest.approx(2 * shard, abs=8)  # and the step's number
    assert now["reference"] == 20
    assert now["gathered weights"] == 0


def test_global_shapes_uncounted():
    from contextlib import nullcontext

    shard = 4 * NUMBERS // RANKS
    _, peak = stepped(compat.global_shapes_uncounted)
    assert peak["optimizer"] <= 2 * shard + 8
    # Without it torch counts whole tensors in the optimizer. If this fails, torch tells them apart by itself now.
    _, counted = stepped(nullcontext, 2 * WIDTH)  # a size whose shapes DTensor does not know yet
    assert counted["optimizer"] > 4 * 8 * shard


def test_meshes_with_ranks():
    from torch._subclasses.fake_tensor import DynamicOutputShapeException
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    def split_and_sharded(mesh):
        layer = parallelize_module(nn.Linear(WIDTH, WIDTH), mesh["split"], ColwiseParallel(), src_data_rank=None)
        return fully_shard(layer, mesh=mesh["shard"])

    with compat.fake_ranks(RANKS):
        mesh = init_device_mesh("cpu", (RANKS // 2, 2), mesh_dim_names=("shard", "split"))
        with without_memory(), compat.meshes_with_ranks():
            assert split_and_sharded(mesh).weight.to_local().shape == (WIDTH // RANKS, WIDTH)
        # If this fails, torch makes such a mesh by itself now.
        with pytest.raises(DynamicOutputShapeException), without_memory():
            split_and_sharded(mesh)


def test_by_kind():
    from torch.distributed._tools.fsdp2_mem_tracker import _FSDPRefType

    assert {kind.value for kind in _FSDPRefType} == set(compat.KINDS)
    snapshot = {torch.device("cpu"): {_FSDPRefType.ACT: 3, _FSDPRefType.OPT: 4, "Total": 7}}
    found = compat.by_kind(snapshot)
    assert (found["activations"], found["optimizer"], sum(found.values())) == (3, 4, 7)


def test_held():
    now, _ = stepped(compat.global_shapes_uncounted)  # compares them
    assert now["weights"] > 0


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.sent = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.sent.append(compat.collective(func, args, result))
        return result


def test_collective():
    from torch.distributed import _functional_collectives as functional

    everyone = tuple(range(RANKS))
    with compat.fake_ranks(RANKS):
        pair = dist.new_group([0, 4])
        whole, part = torch.zeros(16), torch.zeros(2)
        with Seen() as seen:
            dist.all_gather_into_tensor(whole, part)
            dist.reduce_scatter_tensor(part, whole)
            dist.all_reduce(whole, group=pair)
            dist.broadcast(whole, 0)
            dist.barrier()
            functional.all_reduce(part, "sum", dist.group.WORLD)
            functional.all_gather_tensor(part, 0, dist.group.WORLD)
    assert [one for one in seen.sent if one is not None] == [
        Sent("all-gather", everyone, 64),
        Sent("reduce-scatter", everyone, 64),
        Sent("all-reduce", (0, 4), 64),
        Sent("broadcast", everyone, 64),
        Sent("all-reduce", everyone, 8),
        Sent("all-gather", everyone, 64),
    ]
