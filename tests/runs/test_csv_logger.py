"""The CSV log loses no row: not to a kill, not to a column that comes later, not to a resume."""

import csv
import math
import os
import signal
import subprocess
import sys
import time
import tracemalloc

import pytest
import torch

from adadpo_lightning.runs.csv_logger import AppendingCSVLogger
from adadpo_lightning.runs.logs import read_tables
from adadpo_lightning.runs.table import Table


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_a_row_is_in_the_file_when_it_is_logged(tmp_path):
    logger = AppendingCSVLogger(str(tmp_path))
    for step in range(3):
        logger.log_metrics({"train/loss": torch.tensor(0.5 * step), "epoch": 0}, step)
        assert read_tables(tmp_path)["train/loss"] == [(s, 0.5 * s) for s in range(step + 1)]
    assert logger.log_dir == str(tmp_path / "csv/version_0")


def test_later_columns_keep_earlier_rows(tmp_path):
    logger = AppendingCSVLogger(str(tmp_path))
    logger.log_metrics({"train/loss": 1.0}, 0)
    logger.log_metrics({"val/loss": math.nan, "a,b": 2.0}, 0)
    logger.log_metrics({"train/loss": 3.0, "val/loss": 4.0}, 1)
    assert rows(tmp_path / "csv/version_0") == [
        {"step": "0", "train/loss": "1.0"},
        {"step": "0", "val/loss": "nan", "a,b": "2.0"},
        {"step": "1", "train/loss": "3.0", "val/loss": "4.0"},
    ]
    assert sorted(path.name for path in (tmp_path / "csv/version_0").iterdir()) == ["metrics.csv"]


def test_numbers_keep_every_bit(tmp_path):
    values = [0.1 + 0.2, 1e-300, torch.tensor(1 / 3).item(), -0.0]
    logger = AppendingCSVLogger(str(tmp_path))
    for step, value in enumerate(values):
        logger.log_metrics({"train/x": value}, step)
    assert [value for _, value in read_tables(tmp_path)["train/x"]] == values


def test_a_resume_appends_without_duplicates(tmp_path, capsys):
    first = AppendingCSVLogger(str(tmp_path), resume=True)
    for step in range(5):
        first.log_metrics({"train/loss": float(step), "epoch": 0}, step)
        if step in (1, 3):
            first.log_metrics({"val/loss": 10.0 * step, "epoch": 0}, step)
    second = AppendingCSVLogger(str(tmp_path), resume=True)  # from the checkpoint after the validation at step 3
    second.log_metrics({"train/loss": 30.5, "epoch": 0}, 3)
    second.log_metrics({"train/other": 1.0, "epoch": 0}, 4)
    folder = tmp_path / "csv/version_0"
    steps = [(row["step"], *sorted(set(row) - {"step", "epoch"})) for row in rows(folder)]
    assert len(steps) == len(set(steps))
    assert read_tables(tmp_path) == {
        "train/loss": [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.5)],
        "val/loss": [(1, 10.0), (3, 30.0)],
        "train/other": [(4, 1.0)],
    }
    assert {tuple(row) for row in csv.reader((folder / "replaced.csv").open())} >= {
        ("3", "train/loss", "3.0"),
        ("4", "train/loss", "4.0"),
    }
    assert "2 rows of step 3 or later are written again; see replaced.csv" in capsys.readouterr().err


def test_a_validation_that_is_repeated_replaces_the_old_one(tmp_path):
    first = AppendingCSVLogger(str(tmp_path), resume=True)
    first.log_metrics({"train/loss": 1.0}, 2)
    first.log_metrics({"val/loss": 2.0}, 2)
    second = AppendingCSVLogger(str(tmp_path), resume=True)
    second.log_metrics({"train/loss": 1.5}, 2)
    second.log_metrics({"val/loss": 2.5}, 2)
    assert [set(row) - {"step"} for row in rows(tmp_path / "csv/version_0")] == [{"train/loss"}, {"val/loss"}]
    assert read_tables(tmp_path) == {"train/loss": [(2, 1.5)], "val/loss": [(2, 2.5)]}


def test_without_resume_a_new_version_is_written(tmp_path):
    for value in (1.0, 2.0):
        AppendingCSVLogger(str(tmp_path)).log_metrics({"val/loss": value}, 0)
    assert rows(tmp_path / "csv/version_0") == [{"step": "0", "val/loss": "1.0"}]
    assert rows(tmp_path / "csv/version_1") == [{"step": "0", "val/loss": "2.0"}]
    with pytest.raises(FileExistsError):
        Table(tmp_path / "csv/version_0/metrics.csv", continued=False)


def test_a_resume_continues_the_latest_version(tmp_path):
    for version in (0, 10, 9):
        (tmp_path / f"csv/version_{version}").mkdir(parents=True)
    assert AppendingCSVLogger(str(tmp_path), resume=True).version == 10
    assert AppendingCSVLogger(str(tmp_path)).version == 11


def test_an_incomplete_last_row_is_removed_by_the_resume(tmp_path):
    folder = tmp_path / "csv/version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,train/loss\n0,1.0\n1,0.12")  # was it 0.1234?
    AppendingCSVLogger(str(tmp_path), resume=True).log_metrics({"train/loss": 0.1234}, 1)
    assert (folder / "metrics.csv").read_text() == "step,train/loss\n0,1.0\n1,0.1234\n"


WRITER = """
import sys
from adadpo_lightning.runs.table import Table
from pathlib import Path
table = Table(Path(sys.argv[1]), continued=False)
for step in range(1_000_000):
    table.append(step, {"train/loss": step / 7, **({f"val/{step // 50}": 1.0} if step % 50 == 0 else {})})
    print(step, flush=True)
"""


def test_a_kill_loses_no_row(tmp_path):
    """A new column comes every 50 rows, so that kills fall into rewrites too."""
    for attempt in range(4):
        file = tmp_path / str(attempt) / "csv" / "version_0" / "metrics.csv"
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(0.1 + 0.07 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        said = process.stdout.read().split()
        process.wait()
        last = int(said[-1]) if said else 0
        found = read_tables(tmp_path / str(attempt))["train/loss"]
        assert [step for step, _ in found[: last + 1]] == list(range(last + 1))
        assert len(found) <= last + 2


def test_rows_are_not_kept_in_memory(tmp_path):
    table = Table(tmp_path / "metrics.csv", continued=False)
    table.append(0, {"loss": 0.0})
    tracemalloc.start()
    try:
        for step in range(1, 1000):
            table.append(step, {"loss": step / 7})
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 50_000
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1001
    table.append(1000, {"loss": 0.5, "new": 1.0})
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert (lines[0], lines[2], lines[-1], len(lines)) == ("loss,step,new", f"{1 / 7},1,", "0.5,1000,1.0", 1002)
