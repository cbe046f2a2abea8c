"""Two real processes with gloo equal one: weights and metrics, with accumulation and an uneven last batch."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch

from tests.support.moe import make_moe_dir
from tests.support.tiny import make_rows, write_rows


def fit(out, model_dir, pairs_file, val, loss, processes, micro_batch_size, *options):
    """Train through the command line, in processes of its own."""
    args = [
        "fit",
        f"--model.policy.path={model_dir}",
        "--model.policy.dtype=float64",
        f"--model.loss={loss}",
        "--model.optimizer.lr=1e-2",
        f"--data.train={pairs_file}",
        f"--data.val={val}",
        "--data.global_batch_size=8",
        f"--data.micro_batch_size={micro_batch_size}",
        "--data.eval_batch_size=3",
        "--data.max_length=40",
        "--trainer.accelerator=cpu",
        f"--trainer.devices={processes}",
        f"--trainer.strategy={'ddp' if processes > 1 else 'auto'}",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        f"--output_dir={out}",
        *options,
    ]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *launcher, "-m", "adadpo_lightning", *args]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    weights = torch.load(out / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    with (out / "csv/version_0/metrics.csv").open() as file:
        return weights, list(csv.DictReader(file))


def column(rows, name):
    return [float(row[name]) for row in rows if row[name]]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("loss", "sets"),
    [
        pytest.param("dpo", {"many": 7, "one": 1}, id="dpo", marks=pytest.mark.slow),
        pytest.param("adacpo", {}, id="adacpo"),
    ],
)
def test_two_processes_equal_one(tmp_path, model_dir, pairs_file, loss, sets):
    # Named sets of an odd number of pairs, and of fewer pairs than processes.
    files = {name: str(write_rows(tmp_path / f"{name}.jsonl", make_rows(n, seed=n))) for name, n in sets.items()}
    val = json.dumps(files) if files else pairs_file
    one, rows_of_one = fit(tmp_path / "one", model_dir, pairs_file, val, loss, 1, 4)
    two, rows_of_two = fit(tmp_path / "two", model_dir, pairs_file, val, loss, 2, 2)
    assert one.keys() == two.keys()
    for name, value in one.items():
        # float64; AdamW divides by the root of tiny moments, which magnifies rounding.
        torch.testing.assert_close(two[name], value, rtol=1e-7, atol=1e-8)
    for stage in ("train", *([f"val/{name}" for name in sets] or ["val"])):
        names = ["loss", "rewards/margins", "rewards/accuracies", "grad_balance/ratio", "logps/chosen"]
        names += ["nll_loss"] if loss == "adacpo" else ["displacement/chosen", "kl/chosen"]
        names += ["grad_norm/chosen", "grad_norm/rejected", "grad_norm/prompt"] if stage == "train" else []
        for name in names:
            tag = f"{stage}/{name}"
            assert column(rows_of_two, tag) == pytest.approx(column(rows_of_one, tag), rel=1e-5, abs=1e-6)
            assert len(column(rows_of_one, tag)) == (5 if stage == "train" else 1)


@pytest.mark.distributed
@pytest.mark.slow
def test_the_routers_loss_of_two_processes_equals_one_with_the_same_micro_batches(tmp_path):
    """It is the mean of the micro-batches' own: the same ones in both, of which one process takes twice as many."""
    model = make_moe_dir(tmp_path / "experts")
    # Full steps: five pairs are other micro-batches on two ranks than on one.
    pairs_file = write_rows(tmp_path / "even.jsonl", make_rows(32))
    options = ["--model.router_aux_loss_coef=0.1", "--data.eval_batch_size=1"]
    one, rows_of_one = fit(tmp_path / "one", model, pairs_file, pairs_file, "adasimpo", 1, 2, *options)
    two, rows_of_two = fit(tmp_path / "two", model, pairs_file, pairs_file, "adasimpo", 2, 2, *options)
    for name, value in one.items():
        # Routers compute in float32; a step is 1e-2.
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5)
    layers = [f"train/moe/layer_0{n}/{measure}" for n in range(3) for measure in ("max_load", "entropy")]
    for tag in ["train/loss", "train/aux_loss", "val/loss", "val/aux_loss", *layers]:
        assert column(rows_of_two, tag) == pytest.approx(column(rows_of_one, tag), rel=1e-5, abs=1e-6)
        assert len(column(rows_of_one, tag)) == (1 if tag.startswith("val") else 4)
