"""Losses whose pairs have a gradient on one side only: runs log what there is and nothing else."""

import csv
import math

from adadpo_lightning.cli import main
from tests.support.tiny import make_rows, write_rows


def test_a_run_logs_a_ratio_only_where_there_is_one(model_dir, tmp_path):
    """At step 0 of bpo both gradients exist. Later each pair has one, and the ratio of step 0 must not be repeated."""
    pairs = write_rows(tmp_path / "pairs.jsonl", make_rows(12))
    command = ["fit", f"--model.policy.path={model_dir}", f"--data.train={pairs}", "--model.loss=bpo"]
    command += ["--data.global_batch_size=4", "--data.max_length=40", "--trainer.accelerator=cpu"]
    command += ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1", "--model.optimizer.lr=1e-3"]
    command += ["--model.scheduler.warmup_ratio=0", f"--output_dir={tmp_path / 'out'}"]
    assert main(command) == 0
    with next((tmp_path / "out/csv").rglob("metrics.csv")).open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    for name in ("train/grad_balance/ratio", "train/grad_balance/ratio_policy"):
        first, *later = [float(row[name]) for row in rows]
        assert 0 < first < math.inf
        assert len(later) == 2
        assert all(math.isnan(ratio) for ratio in later)
    assert all(math.isfinite(float(row["train/rewards/margins"])) for row in rows)
