"""Two ranks stop together when one of them gets a signal, and go on to the same last bit."""

import os
import subprocess
import sys

import pytest

from tests.support.runs import PAIRS, assert_same, curves
from tests.support.tiny import make_rows, write_rows

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.mark.distributed
@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.strategy=ddp"],
        pytest.param(
            [
                "--trainer.strategy=ddp",
                "--model.policy.lora.r=2",
                "--model.policy.lora.target_modules=[q_proj,v_proj]",
                "--model.policy.lora.dropout=0.3",
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [
                "--trainer.strategy=adadpo_lightning.strategies.FSDP2",
                "--trainer.strategy.param_dtype=null",
                "--trainer.strategy.reduce_dtype=null",
                "--trainer.inference_mode=false",
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["ddp", "dropout", "fsdp2"],
)
def test_a_signal_to_one_rank_stops_both_and_the_run_goes_on_exactly(tmp_path, model_dir, options):
    pairs = write_rows(tmp_path / "pairs.jsonl", make_rows(PAIRS))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "tests.support.two_ranks", str(tmp_path), str(model_dir), str(pairs), *options]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stderr.count("SIGTERM: saved ") == 2  # once each time, by rank zero
    if "ddp" in options[0]:
        assert_same(tmp_path / "stopped", tmp_path / "whole")
    else:
        assert curves(tmp_path / "stopped") == curves(tmp_path / "whole")
