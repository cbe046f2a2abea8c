"""The mesh that is recommended, against sums by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adadpo_lightning.data.plan import StepPlan
from adadpo_lightning.errors import UserError
from adadpo_lightning.estimate import mesh
from adadpo_lightning.estimate.architecture import Measured
from adadpo_lightning.estimate.balance import imbalance
from adadpo_lightning.estimate.memory import RunShape
from adadpo_lightning.estimate.traffic import Cluster, Sent, traffic, wire_bytes
from adadpo_lightning.models.loading import PolicyConfig

GB, GIB = 10**9, 2**30
# 1e9 float32 weights, a fifth of them outside of four blocks.
SIZES = Measured(
    weights=4 * GB,
    outside=GB * 4 // 5,
    trained=4 * GB,
    stored=4,
    parameters=GB,
    trainable=GB,
    blocks=4,
    block_activations=GIB,
    other_activations=GIB,
    block_input=GIB // 8,
    head=GIB,
    logits=GIB // 4,
    flops=1e15,
)
RUN = RunShape(
    PolicyConfig(config={"model_type": "llama"}, tokenizer="none"),
    [(1, 1, 1)],
    ranks=8,
    shards=8,
    gathered_dtype=torch.bfloat16,
    reduced_dtype=torch.float32,
    accumulation=3,
)


def test_traffic_by_hand():
    assert traffic(SIZES, RUN) == [
        Sent("all-gather", tuple(range(8)), 3 * (2 * 1_600_000_000 + 400_000_000)),
        Sent("reduce-scatter", tuple(range(8)), 3 * 4 * GB),
    ]
    gathered, scattered, summed = traffic(SIZES, replace(RUN, shards=4, reference="frozen"))
    assert gathered == Sent("all-gather", (0, 1, 2, 3), 3 * (2 * 1_600_000_000 + 400_000_000 + 2 * GB))
    assert scattered.ranks == (0, 1, 2, 3)
    assert summed == Sent("all-reduce", (0, 4), 3 * GB)
    assert traffic(SIZES, replace(RUN, shards=1)) == [Sent("all-reduce", tuple(range(8)), 4 * GB)]
    assert traffic(SIZES, replace(RUN, shards=1, ranks=1)) == []


# Half of it: what one of two ranks has, and sends to the other.
HALF = replace(
    SIZES,
    weights=2 * GB,
    outside=GB * 2 // 5,
    trained=2 * GB,
    block_activations=GIB // 2,
    head=GIB // 2,
    logits=GIB // 8,
    forward={"all-reduce": 7 * GB, "all-gather": 10},
    both={"all-reduce": 20 * GB, "all-gather": 10},
)
SPLIT = replace(RUN, shards=4, tensor=2)


def test_traffic_of_tensor_parallelism_by_hand():
    gathered, scattered, summed, small = traffic(HALF, replace(SPLIT, reference="frozen"))
    assert gathered == Sent("all-gather", (0, 2, 4, 6), 3 * (2 * 800_000_000 + 200_000_000 + GB))
    assert scattered == Sent("reduce-scatter", (0, 2, 4, 6), 3 * 2 * GB)
    assert summed == Sent("all-reduce", (0, 1), 3 * 27 * GB)
    assert small == Sent("all-gather", (0, 1), 3 * 20)
    assert traffic(HALF, replace(SPLIT, ranks=2, shards=1))[0] == Sent("all-reduce", (0, 1), 3 * 20 * GB)


def test_time_by_hand():
    cluster = Cluster(nodes=2, gpus=4, inside=100, between=10)
    inside = Sent("all-gather", (0, 1, 2, 3), 4 * GB)
    assert wire_bytes(inside) == 3 * GB
    assert cluster.seconds(inside) == pytest.approx(0.03)
    # Two GPUs that are not on one node have a card each; all eight have four cards per node between them.
    assert cluster.seconds(Sent("all-reduce", (0, 4), GB)) == pytest.approx(0.1)
    assert cluster.seconds(Sent("all-gather", tuple(range(8)), 8 * GB)) == pytest.approx(7 / 40)
    assert cluster.crosses(Sent("all-reduce", (0, 4), GB))
    assert not cluster.crosses(inside)


@pytest.fixture
def sizes(monkeypatch):
    def known(run):
        if run.tensor > 2:
            raise UserError("tensor_parallel_size", f"3 heads over {run.tensor}")
        return SIZES if run.tensor == 1 else HALF

    monkeypatch.setattr(mesh, "measured", known)


def test_of_those_that_fit_the_one_whose_step_takes_least_time(sizes):
    roomy = Cluster(nodes=2, gpus=4, gib=80, inside=100, between=1)
    listed, impossible = mesh.meshes(RUN, roomy)
    found = {str(m): m for m in listed}
    assert list(found) == ["DDP 8", "HSDP 4 x 2", "HSDP 2 x 4", "FSDP2 8", "TP 2 x FSDP2 4"]
    assert impossible == ["mesh with TP 4: tensor_parallel_size: 3 heads over 4"]
    sharded = [found[name] for name in ("HSDP 4 x 2", "HSDP 2 x 4", "FSDP2 8")]
    assert [m.gib for m in sharded] == sorted((m.gib for m in sharded), reverse=True)
    assert (found["FSDP2 8"].inside, found["FSDP2 8"].between) == (0, 7 / 8 * 22.8 * GB)
    assert (found["HSDP 2 x 4"].inside, found["HSDP 2 x 4"].between) == pytest.approx((3 / 4 * 22.8 * GB, 3 * GB))
    assert found["HSDP 2 x 4"].sending == pytest.approx(0.171 + 3)
    assert str(mesh.best(list(found.values()), roomy)) == "DDP 8"
    tight = replace(roomy, gib=1.01 / 0.9 * found["HSDP 2 x 4"].gib)
    chosen = mesh.best(list(found.values()), tight)
    assert str(chosen) == "HSDP 2 x 4"
    report = "\n".join(mesh.mesh_report(RUN, tight))
    assert (
        "recommended: HSDP 2 x 4 (--config configs/strategy/fsdp2.yaml --trainer.strategy.init_args.replicas 2)"
        in report
    )
    assert "no mesh with TP 4: tensor_parallel_size: 3 heads over 4" in report
    assert "no mesh fits: TP 2 x FSDP2 4 needs least" in "\n".join(mesh.mesh_report(RUN, replace(tight, gib=1)))


def test_tensor_parallelism_where_nothing_else_fits_or_there_are_fewer_micro_batches(sizes):
    cluster = Cluster(nodes=2, gpus=4, inside=100, between=10, tflops=1000, utilisation=1)
    found = {str(m): m for m in mesh.meshes(RUN, cluster)[0]}
    split, whole = found["TP 2 x FSDP2 4"], found["FSDP2 8"]
    # 24 micro-batches a step on 4 groups of two ranks; three passes of 1e15 each.
    assert split.computing == whole.computing == pytest.approx(3 * 3 * 1e15 / 1e15)
    assert split.waiting == pytest.approx(6 * 20 / 100)  # of which a rank of two sends as much as there is
    # (0, 2, 4, 6) has two GPUs a node, each with a card of 10 GB/s.
    assert split.sending == pytest.approx(6 * 3 / 4 * (1.8 + 2) / 20)
    assert split.step == split.waiting + split.computing
    assert split.gib < whole.gib
    tight = replace(cluster, gib=1.01 / 0.9 * split.gib)
    report = "\n".join(mesh.mesh_report(RUN, tight))
    assert "recommended: TP 2 x FSDP2 4 (--config configs/strategy/tp_fsdp2.yaml" in report
    assert "strategy.init_args.tensor_parallel_size 2)" in report
    assert f"FSDP2 8 would take 9.00 s (computing 9.00 s, sending {whole.sending:.2f} s), but needs" in report
    assert "nothing fits without TP: FSDP2 8 needs least" in report
    found, impossible = mesh.meshes(replace(RUN, micro_batches=4), cluster)
    assert [(str(m), m.computing) for m in found] == [("TP 2 x FSDP2 4", pytest.approx(3 / 2))]
    assert impossible[0] == "mesh with ranks of their own: 8 groups share 4 micro-batches a step"


def test_offloading_excludes_tensor_parallelism(sizes):
    found, impossible = mesh.meshes(replace(RUN, cpu_offload=True), Cluster(nodes=2, gpus=2))
    assert all(m.tensor == 1 for m in found)
    assert "cpu_offload: is not supported with tensor parallelism" in impossible[0]


@pytest.mark.parametrize(("split", "pairs"), [({"micro_batch_size": 4}, 4), ({"max_tokens": 4096}, 4)])
def test_64_ranks_with_4_micro_batches_are_even(split, pairs):
    path = Path(__file__).parents[2] / "benchmarks" / "real_lengths.json"
    known = np.array(json.loads(path.read_text())["lengths"])
    drawn = known[np.random.default_rng(1).integers(len(known), size=3 * 64 * 4 * pairs)]
    tokens = drawn.sum(1)
    plan = StepPlan(tokens, drawn[:, 1], 64 * 4 * pairs, ranks=64, **split)
    assert plan.accumulate == 4
    found = imbalance(plan, tokens.astype(float), range(3))
    assert found.by_step <= found.in_lockstep + 1e-9 < 0.03


def test_imbalance_by_hand():
    lengths = np.array([8, 2, 4, 2])
    plan = StepPlan(lengths, np.ones(4, dtype=np.int64), 4, ranks=2, shuffle=False)
    assert [[batch.rows for batch in rank] for rank in plan.step_batches(plan.order(0), 0)] == [
        [(0,), (3,)],
        [(2,), (1,)],
    ]
    found = imbalance(plan, lengths.astype(float), [0])
    assert found.by_step == pytest.approx(10 / 8 - 1)
    assert found.in_lockstep == pytest.approx((8 + 2) / 8 - 1)
    quadratic = imbalance(plan, lengths.astype(float) ** 2, [0])
    assert quadratic.by_step == pytest.approx(68 / 44 - 1)
