"""The unit of stored win rates: no file is read 100 times too large or too small."""

import json

import pytest

from adadpo_lightning.errors import UserError
from adadpo_lightning.study.grid import Arm, StudyConfig, cells_of
from adadpo_lightning.study.result_file import metrics_in_fractions, read_result, write_result
from adadpo_lightning.study.results import read_results

JUDGED = {
    "win_rate": 61.0,
    "win_rate_se": 2.0,
    "length_controlled_win_rate": 58.0,
    "length_controlled_win_rate_no_difficulty": 57.0,
    "mean_length": 19.0,
    "val/rewards/accuracies": 0.7,
}


def stored(path, metrics, **more):
    """A result as it is found on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"status": "done", "seconds": 1.0, "run": "run", "metrics": metrics, **more}))
    return read_result(path)


def test_percent_of_an_earlier_version_is_converted_and_said(tmp_path, capsys):
    study = StudyConfig(str(tmp_path), [1e-3], [0.1], [0], {"dpo": Arm("dpo")})
    (cell,) = cells_of(study)
    path = tmp_path / "cells" / cell.name / "result.json"
    found = stored(path, JUDGED)
    row = read_results(study).table.iloc[0]
    assert row["wr"] == pytest.approx(61.0)
    assert row["lc"] == pytest.approx(58.0)
    assert row["accuracy"] == pytest.approx(70.0)
    assert row["length"] == 19.0
    assert "1 results in" in (said := capsys.readouterr().err)
    assert "win rates in percent: they are converted to fractions" in said
    assert metrics_in_fractions(path, found)["win_rate_se"] == pytest.approx(0.02)
    assert metrics_in_fractions(path, found)["length_controlled_win_rate_no_difficulty"] == pytest.approx(0.57)


def test_a_written_result_says_its_format_and_is_read_as_it_is(tmp_path):
    path = tmp_path / "result.json"
    metrics = {"win_rate": 0.61, "length_controlled_win_rate": 0.005}
    write_result(path, {"status": "done", "seconds": 1.0, "metrics": metrics, "fingerprint": {}})
    assert json.loads(path.read_text())["format"] == 2
    assert metrics_in_fractions(path, read_result(path)) == metrics


@pytest.mark.parametrize("rate", [61.0, 0.61])
def test_a_unit_that_cannot_be_told_is_refused(tmp_path, rate):
    path = tmp_path / "result.json"
    found = stored(path, {"win_rate": rate}, fingerprint={"shared": {}})
    with pytest.raises(UserError, match=r'result\.json: does not say .*add "format": 2 .* or remove the file'):
        metrics_in_fractions(path, found)
    said = {"format": 2} if rate < 1 else {"format": 1}
    assert metrics_in_fractions(path, found | said) == {"win_rate": pytest.approx(0.61)}


@pytest.mark.parametrize(("rate", "version"), [(61.0, 2), (161.0, 1), (-0.1, 2)])
def test_a_rate_that_is_no_share_is_refused(tmp_path, rate, version):
    path = tmp_path / "result.json"
    found = stored(path, {"win_rate": rate}, format=version)
    with pytest.raises(UserError, match=r"win_rate is .*, not in \[0, 1\]; remove it"):
        metrics_in_fractions(path, found)


def test_a_later_format_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has format 3, this version reads formats 1 and 2; upgrade"):
        stored(tmp_path / "result.json", {}, format=3)


def test_gold_and_logged_rates_have_always_been_fractions(tmp_path):
    path = tmp_path / "result.json"
    metrics = {"gold_win_rate": 0.6, "judge_win_rate_lc": 0.5}
    assert metrics_in_fractions(path, stored(path, metrics)) == metrics
