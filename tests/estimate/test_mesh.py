"""The mesh that is recommended, against sums by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adadpo_lightning.data.plan import StepPlan
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
    monkeypatch.setattr(mesh, "measured", lambda run: SIZES)


def test_of_those_that_fit_the_one_that_sends_least_time(sizes):
    roomy = Cluster(nodes=2, gpus=4, gib=80, inside=100, between=1)
    found = {str(m): m for m in mesh.meshes(RUN, roomy)}
    assert list(found) == ["DDP 8", "HSDP 4 x 2", "HSDP 2 x 4", "FSDP2 8"]
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
    assert "no mesh fits: FSDP2 8 needs least" in "\n".join(mesh.mesh_report(RUN, replace(tight, gib=1)))


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
