"""The grid of a study: its cells, the order of its jobs, and the errors it finds before anything runs."""

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from adadpo_lightning.cli import main
from adadpo_lightning.cli.commands.study import study_of
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import available_losses
from adadpo_lightning.runs.lock import lock_directory
from adadpo_lightning.shipped import find_config
from adadpo_lightning.study import cell
from adadpo_lightning.study.cell import run_job
from adadpo_lightning.study.commands import fit_arguments
from adadpo_lightning.study.directory import fingerprint_of, result_path, save_study, status_of
from adadpo_lightning.study.grid import Arm, Job, JudgedPrompts, StudyConfig, cells_of, find_job, jobs_of
from adadpo_lightning.study.jobs import run_study, schedule
from adadpo_lightning.study.result_file import write_result
from adadpo_lightning.study.slurm import layers_of, write_slurm
from tests.support.cli import parsed


def study(tmp_path=None, **options):
    arms = {
        "dpo": Arm("dpo"),
        "adadpo": Arm("adadpo", twin_of="dpo"),
        "static": Arm("adadpo", control="static", coefficient_of="adadpo", betas=[0.1]),
        "ipo": Arm("ipo", strength="tau"),
    }
    grid = {"learning_rates": [1e-4, 5e-4], "betas": [0.1, 0.3], "seeds": [0, 1], "arms": arms}
    return StudyConfig(**{"output_dir": str(tmp_path), **grid, **options})


def test_cells_are_the_product_over_arms_grid_and_seeds():
    cells = list(cells_of(study()))
    assert len(cells) == 2 * (4 + 4 + 2 + 4)
    assert len({cell.name for cell in cells}) == len(cells)
    ipo = next(cell for cell in cells if cell.arm == "ipo")
    assert ipo.options == {"tau": 0.1}
    assert ipo.name == "ipo_lr0.0001_beta0.1_seed0"


@pytest.mark.parametrize(
    ("name", "jobs"),
    [
        ("embedded_grid", 345),
        ("embedded_twins", 183),
        ("paper_grid", 34),
        ("real_text", 6),
        ("league", 5 + 27 * 2 * 20 + 40),
        ("balance_questions", 5 + 20 * 20),
        ("sentiment/study", 7 * 2 * 3),
        ("judged_pairs/study", 3 * 3),
    ],
)
def test_shipped_studies_are_well_formed(name, jobs):
    shipped = study_of(*parsed("study", f"--config={find_config(f'study/{name}.yaml')}"))
    assert len(jobs_of(shipped)) == jobs


def test_the_league_has_every_pairwise_loss_and_its_twin_over_four_cells():
    league = study_of(*parsed("study", f"--config={find_config('study/league.yaml')}"))
    # pldpo is dpo over pairs, and sft compares nothing.
    pairwise = {key for key in available_losses() if key not in ("sft", "pldpo", "adapldpo")}
    ranked = {name: arm for name, arm in league.arms.items() if arm.control is None}
    assert set(ranked) == {arm.loss for arm in ranked.values()} == pairwise
    for name, arm in ranked.items():
        assert arm.twin_of == (None if name in pairwise and f"ada{name}" in pairwise else name.removeprefix("ada"))
        assert len(league.rates_of(name)) * len(league.strengths_of(name)) == 4
        if arm.twin_of is not None:
            assert league.strengths_of(name) == league.strengths_of(arm.twin_of)
            assert league.rates_of(name) == league.rates_of(arm.twin_of)


def test_a_loss_without_a_strength_has_one_cell_for_each_learning_rate():
    cells = list(cells_of(study(arms={"simper": Arm("simper", strength=None)})))
    assert [cell.name for cell in cells][:2] == ["simper_lr0.0001_beta0_seed0", "simper_lr0.0005_beta0_seed0"]
    assert (len(cells), cells[0].options) == (4, {})


def test_jobs_come_after_what_they_need():
    jobs = jobs_of(study())
    done = set()
    for job in jobs:
        assert done.issuperset(job.needs), job
        done.add(job.name)
    static = find_job(study(), "static_lr0.0005_beta0.1_seed1")
    assert static.needs == ("prepare_seed1", "adadpo_lr0.0005_beta0.1_seed1")
    assert [len(layer) for layer in layers_of(jobs, set())] == [2, 24, 4]


def test_preference_studies_prepare_nothing():
    jobs = jobs_of(study(task="preference", fit_configs=["base.yaml"]))
    assert not any(job.name.startswith("prepare") for job in jobs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": []}, "seeds: expected at least one"),
        ({"betas": [0.1, 0.1]}, "betas: expected each value once"),
        ({"arms": {"a": Arm("adasimp")}}, r"arms.a.loss: unknown loss 'adasimp'; did you mean 'adasimpo'"),
        ({"arms": {"a": Arm("dpo", options={"gama": 1})}}, "gama"),
        ({"arms": {"a": Arm("adadpo", twin_of="b")}}, "arms.a.twin_of: no other arm is called 'b'"),
        ({"arms": {"a/b": Arm("dpo")}}, "names directories"),
        ({"arms": {"a": Arm("simper")}}, "'simper' has no option 'beta'"),
        ({"arms": {"a": Arm("simper", strength=None, betas=[0.1])}}, "arms.a.betas: got .* strength is null"),
        ({"arms": {"a": Arm("dposhift", strength="lam", betas=[0.5, 1.5])}}, "lam"),
        ({"task": "preference"}, "fit_configs: task preference needs"),
    ],
)
def test_a_study_that_cannot_run_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        study(**options)


def test_a_coefficient_must_come_from_a_cell_that_is_run():
    arms = {"adadpo": Arm("adadpo", betas=[0.1]), "static": Arm("adadpo", coefficient_of="adadpo", betas=[0.3])}
    with pytest.raises(UserError, match=r"arms.static.coefficient_of: adadpo is not run at lr 0.0001, beta 0.3"):
        jobs_of(study(arms=arms))


def test_schedule_waits_for_needs_and_goes_on_after_a_failure():
    jobs = [Job("a", 0), Job("b", 0), Job("needs_a", 0, ("a",)), Job("needs_b", 0, ("b",)), Job("c", 0)]
    lock, running, most, order = threading.Lock(), set(), [], []

    def start(job):
        with lock:
            running.add(job.name)
            most.append(len(running))
            order.append(job.name)
        time.sleep(0.02)
        with lock:
            running.remove(job.name)
        return "broke" if job.name == "b" else None

    said = []
    left = schedule(jobs, set(), 2, start, lambda job, seconds, error: said.append((job.name, error)))
    assert [job.name for job in left] == ["b", "needs_b"]
    assert max(most) == 2
    assert order.index("needs_a") > order.index("a")
    assert sorted(said) == [("a", None), ("b", "broke"), ("c", None), ("needs_a", None)]


def test_a_saved_study_may_grow_but_not_change(tmp_path):
    save_study(study(tmp_path))
    save_study(study(tmp_path, seeds=[0, 1, 2]))
    with pytest.raises(UserError, match=r"fit_options: .* holds a study with {}"):
        save_study(study(tmp_path, fit_options={"data.max_length": 64}))
    with pytest.raises(UserError, match=r"arms.dpo: .* give it another name"):
        save_study(study(tmp_path, arms={"dpo": Arm("dpo", options={"label_smoothing": 0.1})}))


def test_the_slurm_script_starts_every_open_job_once_and_in_order(tmp_path):
    grid = study(tmp_path / "study")
    save_study(grid)
    script, *_ = write_slurm(grid, str(tmp_path / "submit.sh"))
    # Stand-ins: sbatch runs each task of the array at once, python writes down what it was asked for.
    stubs = {
        "sbatch": """for a in "$@"; do case $a in --array=1-*) n=${a#--array=1-};; --wrap=*) w=${a#--wrap=};; esac; done
for i in $(seq $n); do SLURM_ARRAY_TASK_ID=$i bash -c "$w"; done; echo 17; echo "$@" >> "$CALLS.sbatch" """,
        "srun": '"$@"',
        "python": 'echo "${@: -1}" >> "$CALLS"',
    }
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    subprocess.run(["bash", script], env=environment, check=True, capture_output=True)
    assert (tmp_path / "calls").read_text().split() == [job.name for job in jobs_of(grid)]
    first, *later = (tmp_path / "calls.sbatch").read_text().splitlines()
    assert "--dependency" not in first
    assert all("--dependency=afterany:17" in call for call in later)


def test_failed_jobs_are_reported_with_their_last_words_and_tried_again(tmp_path, capsys):
    # A preference study whose config does not exist: every cell fails in its own process.
    arms = {"dpo": Arm("dpo")}
    options = {"arms": arms, "betas": [0.1], "learning_rates": [1e-4], "seeds": [0]}
    grid = study(tmp_path, task="preference", fit_configs=["missing.yaml"], **options)
    save_study(grid)
    assert run_study(grid, 1) == 1
    assert "FAILED: exit 2: " in capsys.readouterr().out
    assert status_of(grid, jobs_of(grid)[0]) == "failed"
    assert "missing.yaml" in (tmp_path / "cells" / "dpo_lr0.0001_beta0.1_seed0" / "log.txt").read_text()


def test_learning_rates_equal_to_six_digits_are_two_cells():
    rates = [1.0000001e-4, 1.0000002e-4, 1e-4]
    names = {cell.name for cell in cells_of(study(learning_rates=rates, arms={"dpo": Arm("dpo")}, betas=[0.1]))}
    assert len(names) == 3 * 2
    assert len(jobs_of(study(learning_rates=rates, arms={"dpo": Arm("dpo")}, betas=[0.1]))) == 2 + 3 * 2


def preference(tmp_path, **options):
    grid = {"arms": {"dpo": Arm("dpo")}, "betas": [0.1], "learning_rates": [1e-4], "seeds": [0]}
    return study(tmp_path / "study", task="preference", fit_configs=[str(tmp_path / "fit.yaml")], **{**grid, **options})


def finish(grid, job):
    """Write what a finished job writes."""
    found = {"metrics": {"val/rewards/accuracies": 0.5}, "run": "run", "fingerprint": fingerprint_of(grid, job)}
    write_result(result_path(grid, job), {"status": "done", "error": None, "seconds": 1.0, **found})


def test_cells_of_changed_configs_or_data_are_not_mixed(tmp_path):
    """The same names, other contents: one epoch and three, or other pairs."""
    config, pairs = tmp_path / "fit.yaml", tmp_path / "pairs.jsonl"
    text = f"trainer: {{max_epochs: 1}}\ndata: {{train: {pairs}}}\n"
    config.write_text(text)
    pairs.write_text("{}\n")
    grid = preference(tmp_path)
    save_study(grid)
    finish(grid, jobs_of(grid)[0])
    config.write_text(f"# a comment\n{text}")
    save_study(preference(tmp_path, seeds=[0, 1]))
    config.write_text(text.replace("1", "3", 1))
    with pytest.raises(UserError, match=r"fit_configs\.1\.trainer\.max_epochs: 1 -> 3; restore them"):
        save_study(preference(tmp_path))
    config.write_text(text)
    pairs.write_text("{ }\n")
    with pytest.raises(UserError, match=r"shared\.files\.\S*pairs\.jsonl: \w{12} -> \w{12}"):
        save_study(preference(tmp_path))


def test_each_seed_may_have_pairs_of_its_own(tmp_path):
    (tmp_path / "fit.yaml").write_text("{}")
    for seed in (0, 1):
        (tmp_path / f"pairs_{seed}.jsonl").write_text("{}\n")
    options = {"fit_options": {"data.train": str(tmp_path / "pairs_{seed}.jsonl")}}
    grid = preference(tmp_path, seeds=[0], **options)
    save_study(grid)
    finish(grid, jobs_of(grid)[0])
    more = preference(tmp_path, seeds=[0, 1], **options)
    save_study(more)  # another seed's pairs are no change
    for each in cells_of(more):
        arguments = fit_arguments(more, each, each.options, tmp_path)
        assert f"--data.train={tmp_path}/pairs_{each.seed}.jsonl" in arguments
    (tmp_path / "pairs_1.jsonl").write_text("{ }\n")
    save_study(more)
    (tmp_path / "pairs_0.jsonl").write_text("{ }\n")
    with pytest.raises(UserError, match=r"job\.files\.\S*pairs_0\.jsonl: \w{12} -> \w{12}"):
        save_study(more)


@pytest.mark.parametrize(
    ("val", "options", "message"),
    [
        ("{helpful: a.jsonl, safety: b.jsonl}", "", "validation_set: got null; .* of data.val are: helpful, safety"),
        ("{helpful: a.jsonl}", "validation_set: safety", "validation_set: got 'safety'; .* of data.val are: helpful"),
        ("a.jsonl", "validation_set: safety", "validation_set: got 'safety'; .* of data.val are: without a name"),
        ("null", "", "fit_options: the cells have neither validation pairs nor an evaluation"),
        ("a.jsonl", "fit_options: {trainer.limit_val_batches: 0}", "neither validation pairs nor an evaluation"),
        ("null", "validation_set: safety", "validation_set: got 'safety'; the validation sets of data.val are: none"),
        ("a.jsonl", "fit_options: {data.max_lenght: 8}", "max_lenght.*did you mean --data.max_length"),
    ],
)
def test_a_study_that_fit_or_the_report_could_not_read_trains_nothing(tmp_path, capsys, val, options, message):
    (tmp_path / "fit.yaml").write_text(f"data: {{train: a.jsonl, val: {val}}}\n")
    arguments = [
        "study",
        f"--output_dir={tmp_path / 'study'}",
        "--task=preference",
        f"--fit_configs=[{tmp_path / 'fit.yaml'}]",
        "--arms={dpo: {loss: dpo}}",
        "--betas=[0.1]",
        "--learning_rates=[1e-4]",
        "--seeds=[0]",
    ]
    arguments += [f"--{option.replace(': ', '=', 1)}" for option in [options] if option]
    assert main(arguments) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "study").exists()


def test_an_arm_that_was_removed_and_comes_back_changed_is_refused(tmp_path):
    (tmp_path / "fit.yaml").write_text("{}")
    first = preference(tmp_path)
    save_study(first)
    finish(first, jobs_of(first)[0])
    save_study(preference(tmp_path, arms={"ipo": Arm("ipo", strength="tau")}))
    with pytest.raises(UserError, match=r"job\.training_seed: 0 -> 1"):
        save_study(preference(tmp_path, arms={"dpo": Arm("dpo", training_seed=1)}))


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"status": "done"}', '{"status": "done", "seconds": null}', "null"])
def test_a_result_that_was_cut_short_is_a_user_error(tmp_path, text):
    grid = study(tmp_path)
    path = result_path(grid, jobs_of(grid)[0])
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UserError, match=r"result.json: not the result of a job.* remove it; the job then runs again"):
        status_of(grid, jobs_of(grid)[0])
    with pytest.raises(UserError, match=r"result.json"):
        run_study(grid, 1)


@pytest.mark.parametrize("text", ["", "arms: [", "- 1", "arms: 3", "\0"])
def test_a_study_file_that_was_cut_short_is_a_user_error(tmp_path, text):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError, match=r"study.yaml: not .* remove it; it is written again"):
        save_study(study(tmp_path))


@pytest.mark.parametrize("text", ["", "arms: [", "- 1", "arms: 3"])
def test_a_config_of_a_study_that_was_cut_short_is_a_user_error(tmp_path, text, capsys):
    (tmp_path / "grid.yaml").write_text(text)
    assert main(["study", "--config", str(tmp_path / "grid.yaml")]) == 2
    assert "error: " in capsys.readouterr().err


def test_two_studies_in_one_directory_are_refused_by_host_and_process(tmp_path):
    grid = study(tmp_path)
    save_study(grid)
    with lock_directory(tmp_path, "output_dir"):
        with pytest.raises(UserError, match=rf"being written by process {os.getpid()} on \S+ since \S+; wait"):
            run_study(grid, 1)
        save_study(grid)  # unchanged: a report can be written while the study runs
        with pytest.raises(UserError, match="being written by process"):
            save_study(study(tmp_path, seeds=[0, 1, 2]))


def test_a_job_that_another_process_runs_is_not_run_twice(tmp_path):
    (tmp_path / "fit.yaml").write_text("{}")
    grid = preference(tmp_path)
    (job,) = jobs_of(grid)
    with (
        lock_directory(result_path(grid, job).parent, "job"),
        pytest.raises(UserError, match="being written by process"),
    ):
        next(run_job(grid, job))


def test_a_signal_stops_the_running_cells_and_leaves_them_open(tmp_path):
    (tmp_path / "fit.yaml").write_text("{}")
    grid = preference(tmp_path, seeds=[0, 1])
    save_study(grid)
    # The job starts a process of its own, as `generate` does, and neither must survive.
    script = f"echo $$ >> {tmp_path}/pids; sleep 60 & echo $! >> {tmp_path}/pids; wait"
    pids = tmp_path / "pids"

    def stop():
        while not (pids.exists() and len(pids.read_text().split()) == 4):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(SystemExit, match="143"):
        run_study(grid, 2, ["bash", "-c", script])
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert [status_of(grid, job) for job in jobs_of(grid)] == ["open", "open"]
    end = time.monotonic() + 10  # on a busy machine a process that was killed may not have been scheduled yet
    while left := [pid for pid in map(int, pids.read_text().split()) if is_alive(pid)]:
        assert time.monotonic() < end, left
        time.sleep(0.02)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"  # a zombie waits for init
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_cell_whose_judging_failed_once_recovers(tmp_path, monkeypatch):
    """Training is not repeated, and an export from an attempt that was killed is not in the way."""
    (tmp_path / "fit.yaml").write_text("{}")
    judged = JudgedPrompts(prompts="p", baseline="b", judge="exact")
    grid = preference(tmp_path, evaluation=judged)
    (job,) = jobs_of(grid)
    run_dir = result_path(grid, job).parent / "run"
    calls = []

    def fit(arguments):
        calls.append(arguments[0])
        assert not (run_dir / "export").exists()
        (run_dir / "export").mkdir(parents=True)
        (run_dir / "csv/version_0").mkdir(parents=True, exist_ok=True)
        (run_dir / "csv/version_0/metrics.csv").write_text("step,val/loss\n1,0.5\n")

    def broken(arguments):
        calls.append(arguments[0])
        raise SystemExit(3)

    def works(arguments):
        calls.append(arguments[0])
        (run_dir.parent / "evaluation.json").write_text('{"win_rate": 0.5}')

    (run_dir / "export").mkdir(parents=True)
    monkeypatch.setattr(cell, "run_in_a_process", broken)
    attempt = run_job(grid, job)
    fit(next(attempt))
    with pytest.raises(SystemExit, match="3"):
        next(attempt)
    monkeypatch.setattr(cell, "run_in_a_process", works)
    assert list(run_job(grid, job)) == []
    assert calls == ["fit", "generate", "generate", "evaluate"]
    assert status_of(grid, job) == "done"
