"""The grid of a study: its cells, the order of its jobs, and the errors it finds before anything runs."""

import os
import subprocess
import threading
import time

import pytest

from adadpo_lightning.cli.commands.study import parse_study
from adadpo_lightning.errors import UserError
from adadpo_lightning.shipped import find_config
from adadpo_lightning.study.grid import Arm, Job, StudyConfig, cells_of, find_job, jobs_of
from adadpo_lightning.study.run import run_study, save_study, schedule, status_of
from adadpo_lightning.study.slurm import layers_of, write_slurm


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
    ("name", "jobs"), [("embedded_grid", 345), ("embedded_twins", 183), ("paper_grid", 34), ("real_text", 6)]
)
def test_shipped_studies_are_well_formed(name, jobs):
    shipped = parse_study([f"--config={find_config(f'study/{name}.yaml')}"])[0]
    assert len(jobs_of(shipped)) == jobs


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
