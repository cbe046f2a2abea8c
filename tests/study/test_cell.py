"""A whole small study: seeds prepared, cells trained by `fit`, judged, and not run again."""

import json
import sys
from dataclasses import replace

import pytest
import yaml

from adadpo_lightning.cli import main
from adadpo_lightning.errors import UserError
from adadpo_lightning.runs.logs import read_metrics
from adadpo_lightning.study.cell import COEFFICIENT, judge_responses, last_values, run_job
from adadpo_lightning.study.commands import fit_arguments, run_program
from adadpo_lightning.study.directory import save_study, status_of
from adadpo_lightning.study.forked import Forked, is_available
from adadpo_lightning.study.grid import Arm, Cell, EmbeddedTaskConfig, JudgedPrompts, StudyConfig, jobs_of
from adadpo_lightning.study.jobs import run_study
from tests.evaluation.test_judges import classifier_dir
from tests.support.tiny import make_rows, write_rows


def run(job):
    for arguments in job:
        assert main(arguments) == 0


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    arms = {
        "dpo": Arm("dpo"),
        "adadpo": Arm("adadpo", twin_of="dpo"),
        "static": Arm("adadpo", control="static", coefficient_of="adadpo"),
        "null": Arm("dpo", control="null", training_seed=1),
    }
    study = StudyConfig(
        output_dir=str(root),
        learning_rates=[1e-3],
        betas=[0.1],
        seeds=[3],
        arms=arms,
        embedded=EmbeddedTaskConfig(corpus_size=256, warmup_steps=20, prompts=64, heldout_prompts=32),
        fit_options={"trainer.log_every_n_steps": 1},
    )
    for job in jobs_of(study):
        run(run_job(study, job))
    return study


def result(study, arm):
    return json.loads((study.root / "cells" / f"{arm}_lr0.001_beta0.1_seed3" / "result.json").read_text())


def logged_coefficients(study, arm):
    run = study.root / "cells" / f"{arm}_lr0.001_beta0.1_seed3" / "run"
    return read_metrics(run, [COEFFICIENT])[COEFFICIENT]


def test_every_job_is_done_and_says_what_it_measured(study):
    assert {status_of(study, job) for job in jobs_of(study)} == {"done"}
    found = result(study, "adadpo")
    assert found["cell"]["options"] == {"beta": 0.1}
    assert {"gold_win_rate", "judge_win_rate_lc", "kl", "val/rewards/accuracies"} <= found["metrics"].keys()
    assert 0 <= found["metrics"]["gold_win_rate"] <= 1


def test_arms_start_from_the_same_model_and_see_the_same_pairs(study):
    def first(arm, name):
        return read_metrics(study.root / "cells" / f"{arm}_lr0.001_beta0.1_seed3" / "run", [name])[name][0]

    # At the first step policy and reference are the same: only another order of pairs changes the log-probabilities.
    assert first("dpo", "train/logps/chosen") == pytest.approx(first("adadpo", "train/logps/chosen"), rel=1e-6)
    assert first("dpo", "train/logps/chosen") != pytest.approx(first("null", "train/logps/chosen"), rel=1e-6)


def test_static_takes_the_mean_coefficient_of_the_adaptive_run(study):
    values = logged_coefficients(study, "adadpo")
    options = result(study, "static")["cell"]["options"]
    assert options["floor"] == options["ceiling"] == pytest.approx(sum(values) / len(values))
    coefficients = logged_coefficients(study, "static")
    assert coefficients == pytest.approx([options["floor"]] * len(coefficients))


def test_one_reference_cache_serves_all_cells(study):
    caches = [path for path in (study.root / "reference_cache").iterdir() if path.is_dir()]
    assert len(caches) == 2  # training and validation pairs


@pytest.mark.skipif(not is_available(), reason="needs a fork server")
def test_forked_processes_give_the_same_results(study, tmp_path):
    arms = {"dpo": study.arms["dpo"]}
    again = replace(study, output_dir=str(tmp_path), arms=arms)
    save_study(again)
    assert run_study(again, 1, runner=Forked()) == 0
    assert result(again, "dpo")["metrics"] == result(study, "dpo")["metrics"]


def test_models_are_not_kept_unless_asked(study):
    assert not list(study.root.glob("cells/*/run/export"))


def test_a_preference_study_builds_the_fit_command_of_its_configs(tmp_path):
    study = StudyConfig(
        output_dir=str(tmp_path),
        task="preference",
        fit_configs=["base.yaml", "data.yaml"],
        fit_options={"data.max_length": 512, "trainer.precision": "bf16-mixed"},
        learning_rates=[5e-7],
        betas=[2.0],
        seeds=[1],
        arms={"simpo": Arm("adasimpo", options={"space": "policy"})},
    )
    cell = Cell("simpo", "adasimpo", 5e-7, 2.0, 1, {"space": "policy", "beta": 2.0})
    arguments = fit_arguments(study, cell, cell.options, tmp_path / "run")
    assert arguments[1:3] == ["--config=base.yaml", "--config=data.yaml"]
    assert "--model.loss=AdaSimPO" in arguments
    assert "--model.loss.space=policy" in arguments
    assert "--auto_resume=true" in arguments
    assert "--trainer.precision=bf16-mixed" in arguments
    assert not any(argument.startswith("--model.reference") for argument in arguments)  # simpo has none


def test_a_run_without_a_csv_log_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"holds no csv/version"):
        last_values(tmp_path)


def test_a_study_reads_the_validation_set_that_it_names(tmp_path):
    logs = tmp_path / "csv" / "version_0"
    logs.mkdir(parents=True)
    (logs / "metrics.csv").write_text("step,val/a/loss,val/a/rewards/margins,val/b/loss\n3,0.5,1.5,0.7\n")
    found = last_values(tmp_path, "a")
    assert (found["val/loss"], found["val/rewards/margins"], found["val/b/loss"]) == (0.5, 1.5, 0.7)
    for name in (None, "c"):
        with pytest.raises(UserError, match=r"validation_set: .*the validation sets of .* are: a, b"):
            last_values(tmp_path, name)


def test_an_annotator_runs_between_answers_and_win_rates(tmp_path, monkeypatch):
    evaluation = JudgedPrompts(
        prompts="alpaca_eval.json",
        judge="annotations",
        generate={"format": "alpaca_eval", "temperature": 0.9},
        annotate=["{python}", "annotator", "{responses}", "--into", "{folder}/judged", "--draw={seed}"],
        evaluate={"annotations": "{folder}/judged/annotations.json", "penalty": "l1_cv", "bootstrap": 0},
    )
    study = StudyConfig(
        output_dir=str(tmp_path),
        task="preference",
        fit_configs=["base.yaml"],
        evaluation=evaluation,
        learning_rates=[1e-3],
        betas=[0.1],
        seeds=[7],
        arms={"adadpo": Arm("adadpo")},
    )
    (job,) = jobs_of(study)
    folder, calls = tmp_path / "cells" / job.name, []

    def run(arguments):
        calls.append(arguments)
        (folder / "evaluation.json").write_text('{"length_controlled_win_rate": 0.5, "judge": "annotations"}')

    folder.mkdir(parents=True)
    monkeypatch.setattr("adadpo_lightning.study.cell.run_in_a_process", run)
    monkeypatch.setattr("adadpo_lightning.study.cell.run_program", run)
    assert judge_responses(study, job.cell, folder) == {"length_controlled_win_rate": 0.5}
    generate, annotate, evaluate = calls
    answers = folder / "responses.json"  # AlpacaEval reads a list only from a file of this kind
    assert {f"--output={answers}", f"--generator={job.name}", "--seed=7", "--temperature=0.9"} <= set(generate)
    assert annotate == [sys.executable, "annotator", str(answers), "--into", f"{folder}/judged", "--draw=7"]
    assert evaluate[1:] == [
        "--judge=annotations",
        f"--output={folder / 'evaluation.json'}",
        f"--annotations={folder}/judged/annotations.json",
        "--penalty=l1_cv",
        "--bootstrap=0",
    ]


def test_a_missing_annotator_and_a_missing_opponent_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"evaluation.annotate: /no/such/program: No such file"):
        run_program(["/no/such/program"])
    with pytest.raises(SystemExit, match="3"):
        run_program([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(UserError, match=r"evaluation.baseline: got null; name the responses"):
        JudgedPrompts(prompts="p", judge="length")


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_a_preference_study_trains_answers_and_is_judged(tmp_path, model_dir, monkeypatch, lora):
    """Your own model and data: fit, then `generate` and `evaluate` in processes of their own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pairs = write_rows(tmp_path / "pairs.jsonl", make_rows(12))
    config = {
        "model": {"policy": {"path": str(model_dir), "lora": lora}, "loss": {"class_path": "DPO"}},
        "data": {"train": str(pairs), "val": str(pairs), "global_batch_size": 4, "max_length": 40},
        "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
    }
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    classifier_dir(tmp_path / "judge", 1)
    evaluation = JudgedPrompts(
        prompts=str(pairs),
        baseline=str(pairs),
        judge="reward_model",
        judge_options={"model": str(tmp_path / "judge"), "device": "cpu"},
        generate={"max_new_tokens": 5, "device": "cpu"},
        evaluate={"bootstrap": 0},
    )
    study = StudyConfig(
        output_dir=str(tmp_path / "study"),
        task="preference",
        fit_configs=[str(tmp_path / "fit.yaml")],
        evaluation=evaluation,
        learning_rates=[1e-3],
        betas=[0.1],
        seeds=[0],
        arms={"adadpo": Arm("adadpo")},
    )
    (job,) = jobs_of(study)
    run(run_job(study, job))
    found = json.loads((tmp_path / "study/cells" / job.name / "result.json").read_text())
    assert found["status"] == "done"
    assert found["metrics"]["n"] == 12
    assert 0 <= found["metrics"]["win_rate"] <= 1
    assert "val/rewards/accuracies" in found["metrics"]
    assert len((tmp_path / "study/cells" / job.name / "responses.jsonl").read_text().splitlines()) == 12
