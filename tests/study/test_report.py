"""What a study's report counts and says: against numbers computed by hand, scipy, planted effects and planted nulls."""

import csv
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from adadpo_lightning.errors import UserError
from adadpo_lightning.shipped import find_config
from adadpo_lightning.study.comparisons import best_point, effect, effect_of_best, twin_pairs
from adadpo_lightning.study.directory import fingerprint_of
from adadpo_lightning.study.grid import Arm, EmbeddedTaskConfig, StudyConfig, cells_of, jobs_of
from adadpo_lightning.study.report import render, write_report
from adadpo_lightning.study.results import measures_of, read_results, read_table
from adadpo_lightning.study.statistics import count_wins, sign_flip, t_interval

ARMS = {
    "dpo": Arm("dpo"),
    "adadpo": Arm("adadpo", twin_of="dpo"),
    "static": Arm("adadpo", control="static", coefficient_of="adadpo"),
    "null": Arm("dpo", control="noise", training_seed=1),
}


def make_study(root, seeds=(0, 1, 2, 3), shift=None, paper=None, skip=(), failed=()):
    """A study directory whose LC of each cell is its seed's level, plus the arm's shift, plus a little noise."""
    study = StudyConfig(
        output_dir=str(root),
        learning_rates=[1e-4, 1e-3],
        betas=[0.1, 0.3],
        seeds=list(seeds),
        arms=ARMS,
        paper=paper or {},
    )
    draw = np.random.default_rng(0)
    for cell in cells_of(study):
        if cell.name in skip:
            continue
        folder = root / "cells" / cell.name
        logs = folder / "run/csv/version_0"
        logs.mkdir(parents=True)
        lc = 0.5 + 0.01 * cell.seed + 0.1 * (cell.lr == 1e-3) + (shift or {}).get(cell.arm, 0.0)
        metrics = {
            "judge_win_rate_lc": lc + 0.002 * draw.standard_normal(),
            "judge_win_rate": lc + 0.02,
            "gold_win_rate": 0.5 + 0.01 * draw.standard_normal(),
            "kl": 1.0 + draw.random(),
            "val/rewards/accuracies": 0.7,
        }
        result = {"status": "done", "error": None, "seconds": 30.0, "run": "run", "metrics": metrics}
        if cell.name in failed:
            result = {"status": "failed", "error": "exit 1", "seconds": 0.0, "run": "run", "metrics": {}}
        (folder / "result.json").write_text(json.dumps(result))
        with (logs / "metrics.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["step", "train/grad_balance/ratio", "train/rewards/margins"])
            table.writerows([step, 1.0 - 0.001 * step, 0.1 * step] for step in range(0, 12, 4))
    return study


def lc_of(results, arm, point, seed):
    return results.table.loc[(arm, *point, seed), "lc"]


def test_t_interval_is_scipys():
    values = np.random.default_rng(1).normal(size=7)
    mean, low, high = t_interval(list(values))
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert mean == pytest.approx(values.mean())
    assert all(math.isnan(end) for end in t_interval([1.0])[1:])


@pytest.mark.parametrize("count", [2, 4, 7])
def test_sign_flip_is_scipys_permutation_test(count):
    values = np.random.default_rng(count).normal(0.5, 1.0, count)
    expected = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    by_hand = np.mean(
        [abs(np.dot(s, values)) >= abs(values.sum()) - 1e-12 for s in itertools.product((1, -1), repeat=count)]
    )
    assert sign_flip(list(values)) == pytest.approx(by_hand)
    assert sign_flip(list(values)) == pytest.approx(expected)


def test_counts_have_clopper_pearson_intervals():
    found = count_wins([1.0] * 13 + [-1.0] * 3)
    assert (found.wins, found.cells) == (13, 16)
    assert found.low == pytest.approx(stats.beta.ppf(0.025, 13, 4))
    assert found.high == pytest.approx(stats.beta.ppf(0.975, 14, 3))


def test_win_rates_are_percent_whoever_wrote_them():
    assert measures_of({"judge_win_rate": 0.61, "judge_win_rate_lc": 0.58})["lc_wr"] == pytest.approx(-3.0)
    assert measures_of({"win_rate": 0.61, "length_controlled_win_rate": 0.58})["lc"] == pytest.approx(58.0)


def test_effects_are_paired_by_cell_and_averaged_by_seed(tmp_path):
    results = read_results(make_study(tmp_path, shift={"adadpo": 0.03}))
    found = effect(results, "adadpo", "dpo", "lc")
    by_hand = [
        np.mean(
            [
                lc_of(results, "adadpo", p, seed) - lc_of(results, "dpo", p, seed)
                for p in itertools.product((1e-4, 1e-3), (0.1, 0.3))
            ]
        )
        for seed in range(4)
    ]
    assert found.by_seed == pytest.approx(by_hand)
    assert found.mean == pytest.approx(3.0, abs=0.3)
    assert found.separated
    assert found.cells == 4
    null = effect(results, "null", "dpo", "lc")
    assert not null.separated
    assert best_point(results, "dpo", "lc")[0] == 1e-3
    assert effect_of_best(results, "adadpo", "dpo", "lc").mean == pytest.approx(3.0, abs=0.6)


def test_the_report_finds_a_planted_effect_and_says_a_planted_null(tmp_path):
    study = make_study(
        tmp_path / "study",
        shift={"adadpo": 0.03, "static": 0.03},
        paper={"share of cells with higher LC": "13/16 (81 %)"},
    )
    text = write_report(study, tmp_path / "report").read_text()
    assert re.search(r"\*\*adadpo - dpo\*\* \(twin\), LC: \+(2\.[89]|3\.[012]) points", text)
    assert "adadpo is higher." in text
    assert "the data do not show that adapting to each pair is what helps" in text
    null = next(line for line in text.splitlines() if line.startswith("- **null - dpo** (noise), LC"))
    assert "do not separate it from zero" in null
    row = next(line for line in text.splitlines() if line.startswith("| share of cells with higher LC"))
    assert row.split("|")[2].strip().startswith("4/4 (100 %)")
    assert row.split("|")[-2].strip() == "13/16 (81 %)"
    assert "paper (8B, not ours)" in text
    for line in text.splitlines():
        if line.startswith("!["):
            name = line.rpartition("(")[2].rstrip(")")
            assert (tmp_path / "report" / name).stat().st_size > 5000
    rows = list(csv.DictReader((tmp_path / "report/results.csv").open()))
    assert len(rows) == 4 * 4 * 4
    assert {row["arm"] for row in rows} == set(ARMS)


def test_failed_and_missing_cells_are_left_out_of_both_sides(tmp_path):
    lost, gone = "adadpo_lr0.001_beta0.3_seed1", "dpo_lr0.0001_beta0.1_seed2"
    study = make_study(tmp_path / "study", failed=(lost,), skip=(gone,))
    results = read_results(study)
    assert results.failed == [lost]
    assert results.missing == [gone]
    found = effect(results, "adadpo", "dpo", "lc")
    points = [p for p in itertools.product((1e-4, 1e-3), (0.1, 0.3)) if p != (1e-3, 0.3)]
    expected = np.mean([lc_of(results, "adadpo", p, 1) - lc_of(results, "dpo", p, 1) for p in points])
    assert found.by_seed[1] == pytest.approx(expected)
    text = write_report(study, tmp_path / "report").read_text()
    assert "62 runs done, 1 failed, 1 missing" in text
    assert f"Failed: {lost}." in text


def test_one_seed_has_no_interval(tmp_path):
    study = make_study(tmp_path / "study", seeds=(0,))
    text = write_report(study, tmp_path / "report").read_text()
    assert "with one seed, which says nothing about its error" in text
    assert "nan" not in text


def test_a_study_without_results_or_twins(tmp_path):
    study = make_study(tmp_path / "study", skip=[cell.name for cell in cells_of(make_study(tmp_path / "names"))])
    with pytest.raises(UserError, match="no cell of the study is finished"):
        read_results(study)
    plain = make_study(tmp_path / "plain")
    only = StudyConfig(
        output_dir=plain.output_dir,
        learning_rates=plain.learning_rates,
        betas=plain.betas,
        seeds=plain.seeds,
        arms={"dpo": ARMS["dpo"]},
    )
    assert twin_pairs(only, read_results(only)) == []
    assert "## All cells" in write_report(only, tmp_path / "report").read_text()


def test_without_a_judge_the_validation_pairs_speak(tmp_path):
    study = make_study(tmp_path / "study")
    for path in (tmp_path / "study").glob("cells/*/result.json"):
        result = json.loads(path.read_text())
        kept = {name: value for name, value in result["metrics"].items() if name.startswith("val/")}
        path.write_text(json.dumps({**result, "metrics": kept}))
    text = write_report(study, tmp_path / "report").read_text()
    assert "**adadpo - dpo** (twin), reward accuracy: +0.0 points" in text
    assert "Clopper-Pearson" not in text


def numbers(line):
    return [float(text) for text in re.findall(r"[-+]?\d+\.?\d*(?:e-?\d+)?", line)]


@pytest.mark.parametrize("name", ["embedded_grid", "embedded_twins", "real_text"])
def test_committed_results_give_the_figures_of_the_committed_reports(name):
    """Every sentence and every table cell again, from six digits a value."""
    config = yaml.safe_load(find_config(f"study/{name}.yaml").read_text())
    arms = {arm: Arm(**options) for arm, options in config.pop("arms").items()}
    sizes = config.pop("embedded", None)
    study = StudyConfig(**config, arms=arms, **({"embedded": EmbeddedTaskConfig(**sizes)} if sizes else {}))
    folder = Path("docs/study") / name
    committed = (folder / "report.md").read_text().splitlines()
    lines = render(study, read_table(folder / "results.csv"), {}).splitlines()
    wanted = [line for line in committed[4:] if line.startswith(("|", "- ", "## "))]
    found = [line for line in lines[4:] if line.startswith(("|", "- ", "## "))]
    assert len(found) == len(wanted) > 15
    assert found[0] == wanted[0]
    # The file has the arms by name, the report in the order of the study: compare what is not the same in both.
    new, old = sorted(set(found) - set(wanted)), sorted(line for line in set(wanted) - set(found) if "---" not in line)
    new = [line for line in new if "---" not in line]
    assert len(new) == len(old) <= 0.05 * len(found)
    for one, other in zip(new, old, strict=True):
        # Six digits may round a last digit the other way, or tip a seed whose difference is 0.
        assert re.sub(r"[-+]?[\d.]+", "#", one) == re.sub(r"[-+]?[\d.]+", "#", other)
        assert numbers(one) == pytest.approx(numbers(other), abs=1.001)


def test_cells_of_different_configs_are_not_reported_together(tmp_path):
    study = make_study(tmp_path)
    for number, job in enumerate(jobs_of(study)[-2:]):
        path = tmp_path / "cells" / job.name / "result.json"
        made_under = fingerprint_of(study, job)
        made_under["shared"]["fit_configs"]["1"]["trainer"]["max_epochs"] = 1 + 2 * number
        path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": made_under}))
    with pytest.raises(UserError, match=r"different settings: fit_configs\.1\.trainer\.max_epochs: 1 -> 3"):
        read_results(study)


def test_a_study_without_any_measure_has_a_report(tmp_path):
    study = make_study(tmp_path / "study")
    for path in (tmp_path / "study").glob("cells/*/result.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "metrics": {"val/loss": 0.5}}))
    text = write_report(study, tmp_path / "report").read_text()
    assert "no cell has this measure" in text
    assert "nan" not in text
    assert "| dpo | 0.0001 | 0.1 | 4 |" in text
