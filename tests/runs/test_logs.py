"""One reader of a run's CSV logs: resumes are merged, and what is not a log is an error."""

import math

import pytest

from adadpo_lightning.cli import main
from adadpo_lightning.errors import UserError
from adadpo_lightning.runs.logs import last_metrics, read_metrics, read_tables


def write(run, version, text):
    folder = run / "csv" / f"version_{version}"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(text)


def test_metrics_come_in_the_order_of_steps(tmp_path):
    folder = tmp_path / "csv" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,train/loss,val/loss\n0,0.7,\n1,,0.6\n2,0.5,\n3,,0.4\n")
    assert read_metrics(tmp_path, ["val/loss", "train/loss"]) == {"val/loss": [0.6, 0.4], "train/loss": [0.7, 0.5]}
    with pytest.raises(UserError, match="no values of val/accuracy; was the run cut short"):
        read_metrics(tmp_path, ["val/loss", "val/accuracy"])


@pytest.mark.parametrize("versions", [(0, 1), (9, 10)])
def test_rows_of_a_resume_replace_those_of_the_same_step(tmp_path, versions):
    first, second = versions
    write(tmp_path, second, "step,train/loss\n2,20.0\n3,30.0\n")  # written, and touched, first
    write(tmp_path, first, "step,train/loss,val/loss\n1,1.0,\n2,2.0,\n2,,0.5\n")
    assert read_tables(tmp_path) == {"train/loss": [(1, 1.0), (2, 20.0), (3, 30.0)], "val/loss": [(2, 0.5)]}
    assert last_metrics(tmp_path) == {"train/loss": 30.0, "val/loss": 0.5}


def test_a_row_that_a_kill_cut_short_is_left_out(tmp_path):
    write(tmp_path, 0, "step,train/loss\n1,1.0\n2,0.1")  # was it 0.1234?
    assert read_tables(tmp_path) == {"train/loss": [(1, 1.0)]}


def test_nan_is_a_value(tmp_path):
    write(tmp_path, 0, "step,val/loss\n1,0.5\n2,nan\n")
    assert math.isnan(last_metrics(tmp_path)["val/loss"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/b\n1\n", "has no column step"),
        ("step,train/loss\n1,low\n", "not a CSV log: could not convert"),
        ("step,train/loss\n1.5.2,1\n", "not a CSV log: invalid literal"),
        ("step,train/loss\n1,1,1\n", "not a CSV log"),
        (f"step,train/loss\n1,{'1' * 200_000}\n", "not a CSV log: field larger"),
    ],
)
def test_a_file_that_is_not_a_log_is_a_user_error(tmp_path, capsys, text, message):
    write(tmp_path, 0, text)
    with pytest.raises(UserError, match=message):
        read_tables(tmp_path)
    assert main(["plot", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_run_without_a_csv_log(tmp_path):
    with pytest.raises(UserError, match=r"holds no csv/version_\*/metrics.csv"):
        read_metrics(tmp_path, ["val/loss"])
    assert last_metrics(tmp_path) == {}


def test_odd_directories_are_user_errors(tmp_path, capsys):
    (tmp_path / "csv/version_0/metrics.csv").mkdir(parents=True)  # a directory of that name
    assert main(["plot", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "holds no logs" in capsys.readouterr().err
    (tmp_path / "events.out.tfevents.1").write_bytes(b"\x00\xffgarbage" * 20)
    assert main(["plot", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "error: " in capsys.readouterr().err
