"""A slow rank is named, by four gloo processes that wait for each other in every step."""

import logging
import os
import time
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from adadpo_lightning.callbacks import RunCheckpoint, Stragglers
from adadpo_lightning.callbacks.forward_timer import ForwardTimer
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import build_loss
from adadpo_lightning.metrics.slow_ranks import slowness
from adadpo_lightning.models.loading import PolicyConfig
from adadpo_lightning.strategies import FSDP2
from adadpo_lightning.training.module import PreferenceLitModule
from tests.support.ranks import on_ranks
from tests.support.tiny import make_rows, write_rows

RANKS, SLOW = 4, 2
METRIC = "train/slowest_rank_over_median"
# Sleeping ranks do not compete for the cores of the machine that runs this test.
NORMAL_S, SLOW_S = 0.02, 0.08


class Sleeps(Callback):
    """Each block sleeps inside a linear layer; sleeps of the first step count as warm-up."""

    def __init__(self, seconds):
        self.seconds = seconds

    def on_fit_start(self, trainer, pl_module):
        for name, module in pl_module.built_policy.named_modules():
            if name.endswith("up_proj"):
                module.forward = self.slowed(module.forward)

    def slowed(self, forward):
        def run(x):
            time.sleep(self.seconds)
            return forward(x)

        return run


class Logged(Callback):
    """The last value of the metric; None if it was never logged."""

    value = None

    def on_train_end(self, trainer, pl_module):
        if METRIC in trainer.callback_metrics:
            self.value = float(trainer.callback_metrics[METRIC])


def fit(folder, model_dir, seconds, *, strategy="auto", devices=1, stragglers=(), ckpt_path=None, steps=12):
    """Train, and return the warnings about ranks and what was logged."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("adadpo_lightning").addHandler(handler)
    logged = Logged()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_steps=steps,
        log_every_n_steps=6,
        logger=False,
        callbacks=[
            Sleeps(seconds),
            *stragglers,
            logged,
            RunCheckpoint(
                folder / "run", "step{step}", every_n_train_steps=6, save_top_k=-1, auto_insert_metric_name=False
            ),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        use_distributed_sampler=False,
        default_root_dir=folder / "run",
    )
    module = PreferenceLitModule(PolicyConfig(path=str(model_dir)), build_loss("simpo"))
    data = PreferenceDataModule(
        train=str(folder / "pairs.jsonl"), global_batch_size=8, micro_batch_size=1, max_length=40
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.built_policy.modules())
    return {"named": [line for line in lines if line.startswith("rank ")], "logged": logged.value, "hooks": hooks}


def on_four(tmp_path, model_dir, slow_s, make_strategy, **options):
    """What each of four processes returns; one of them sleeps longer in its forward pass."""

    def train(rank):
        torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "GROUP_RANK": 0}
        torchrun |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
        os.environ.update({name: str(value) for name, value in torchrun.items()})
        seconds = slow_s if rank == SLOW else NORMAL_S
        with patch("socket.gethostname", lambda: f"gpu-{rank}"):
            return fit(tmp_path, model_dir, seconds, strategy=make_strategy(), devices=RANKS, **options)

    write_rows(tmp_path / "pairs.jsonl", make_rows(96))
    return on_ranks(RANKS, train, tmp_path)


def check_named(results, ranks, intervals=2):
    """Rank zero names these ranks at each interval, and no other rank says anything."""
    named = results[0]["named"]
    assert [line.split(" takes")[0] for line in named] == [f"rank {r} (host gpu-{r})" for r in ranks] * intervals
    assert [result["named"] for result in results[1:]] == [[]] * (RANKS - 1)


@pytest.mark.slow
@pytest.mark.distributed
def test_ddp_names_the_slow_rank(tmp_path, model_dir):
    results = on_four(tmp_path, model_dir, SLOW_S, lambda: "ddp")
    check_named(results, [SLOW])
    for result in results:  # the same number on all ranks, also where nothing is said
        assert result["logged"] == results[0]["logged"]
        assert 1.5 < result["logged"] < 4.2


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    "make",
    [FSDP2, lambda: FSDP2(replicas=2), lambda: FSDP2(tensor_parallel_size=2)],
    ids=["fsdp2", "hsdp", "tp"],
)
def test_sharded_names_the_slow_rank(tmp_path, model_dir, make):
    results = on_four(tmp_path, model_dir, SLOW_S, make)
    check_named(results, [SLOW])  # with tensor parallelism not the other rank of its group either
    assert 1.5 < results[0]["logged"] < 4.2


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    "make", [lambda: "ddp", FSDP2, lambda: FSDP2(tensor_parallel_size=2)], ids=["ddp", "fsdp2", "tp"]
)
def test_none_is_named_where_all_are_equal(tmp_path, model_dir, make):
    results = on_four(tmp_path, model_dir, NORMAL_S, make)
    assert [result["named"] for result in results] == [[]] * RANKS
    assert 1 <= results[0]["logged"] < 1.4


@pytest.mark.slow
@pytest.mark.distributed
def test_a_resumed_run_names_it_too(tmp_path, model_dir):
    on_four(tmp_path, model_dir, NORMAL_S, lambda: "ddp")
    checkpoint = tmp_path / "run/step6.ckpt"
    (tmp_path / "store").unlink()
    results = on_four(tmp_path, model_dir, SLOW_S, lambda: "ddp", ckpt_path=checkpoint)
    check_named(results, [SLOW], intervals=1)
    assert results[0]["logged"] > 1.5


@pytest.mark.slow
@pytest.mark.distributed
def test_null_measures_nothing(tmp_path, model_dir):
    results = on_four(tmp_path, model_dir, SLOW_S, lambda: "ddp", stragglers=[Stragglers(None)])
    assert results == [{"named": [], "logged": None, "hooks": 0}] * RANKS


def test_one_device_has_no_hook_and_no_clock(tmp_path, model_dir):
    write_rows(tmp_path / "pairs.jsonl", make_rows(16))
    with patch("adadpo_lightning.callbacks.stragglers.ForwardTimer", side_effect=AssertionError):
        result = fit(tmp_path, model_dir, 0.0, steps=2)
    assert (result["named"], result["logged"], result["hooks"]) == ([], None, 0)


def test_the_timer_keeps_the_last_passes_and_only_what_was_started():
    module = nn.Linear(2, 2)
    forward = module.forward
    module.forward = lambda x: (time.sleep(0.01), forward(x))[1]
    timer = ForwardTimer([module], torch.device("cpu"), 3)
    x = torch.zeros(1, 2)
    for positions in (1, 2, 3, 4):
        timer.start(positions)
        module(x)
        timer.stop()
        module(x)  # as a block that the backward pass computes again
    seconds, positions = timer.totals()
    assert (len(timer), positions) == (3, 9)
    assert 0.03 <= seconds < 0.06
    timer.close()
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_the_hooks_run_inside_of_those_that_communicate():
    module, waited = nn.Linear(2, 2), []
    module.register_forward_pre_hook(lambda *_: (time.sleep(0.1), waited.append(0))[1])
    module.register_forward_hook(lambda *_: (time.sleep(0.1), waited.append(1))[1])
    timer = ForwardTimer([module], torch.device("cpu"), 1)
    timer.start(1)
    module(torch.zeros(1, 2))
    assert waited == [0, 1]
    assert timer.totals()[0] < 0.05


@pytest.mark.parametrize(
    ("seconds", "positions", "expected"),
    [
        ([1, 2], [5, 5], [1, 2]),  # of two, the faster is the measure
        ([1, 1, 3, 1], [5, 5, 15, 5], [1, 1, 1, 1]),  # has more to compute
        ([1, 1, 1, 1], [9, 9, 1, 9], [1, 1, 1, 1]),  # has less to compute: dear, but not late
        ([2, 2, 4, 2], [10, 10, 12, 10], [1, 1, 4 / 12 / 0.2, 1]),
    ],
)
def test_slow_is_late_and_dear(seconds, positions, expected):
    assert slowness(seconds, positions) == pytest.approx(expected)


@pytest.mark.parametrize("factor", [1, 0.5, -2, float("nan")])
def test_a_factor_must_be_above_one(factor):
    with pytest.raises(UserError, match=r"Stragglers.factor"):
        Stragglers(factor)
