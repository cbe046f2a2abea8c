"""A study on Ray: what is asked of the cluster, and with the real Ray the same results, a killed worker, a stop."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from adadpo_lightning.cli import main
from adadpo_lightning.errors import UserError
from adadpo_lightning.runs.lock import lock_directory, wait_for_lock
from adadpo_lightning.study.grid import Arm
from adadpo_lightning.study.jobs import run_study
from adadpo_lightning.study.ray_tasks import ray_tasks, side_by_side
from tests.support.studies import LONG, assert_cells_are_the_same, first_checkpoint, make, results


def node(alive=True, **resources):
    return {"Alive": alive, "Resources": {name: float(value) for name, value in resources.items()}}


def test_jobs_side_by_side_are_counted_node_by_node():
    nodes = [node(CPU=8, GPU=4), node(CPU=2, GPU=4), node(CPU=64), node(alive=False, CPU=64, GPU=8)]
    assert side_by_side(nodes, {}) == 8 + 2 + 64
    assert side_by_side(nodes, {"num_cpus": 3}) == 2 + 0 + 21
    assert side_by_side(nodes, {"num_gpus": 2}) == 2 + 2
    assert side_by_side(nodes, {"num_gpus": 0.5, "num_cpus": 0}) == 8 + 8
    with pytest.raises(UserError, match=r"ray_options: no node can run a job with {'CPU': 1, 'GPU': 8}"):
        side_by_side(nodes, {"num_gpus": 8})  # eight in all, but on two nodes


def test_without_ray_nothing_is_written_and_the_error_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    options = ["--arms={dpo: {loss: dpo}}", "--betas=[0.1]", "--learning_rates=[1e-4]", "--seeds=[0]"]
    assert main(["study", f"--output_dir={tmp_path / 'study'}", "--ray=local", *options]) == 2
    assert re.search(r"ray: needs the package ray; pip install 'adadpo-lightning\[ray\]'", capsys.readouterr().err)
    assert not (tmp_path / "study").exists()


def test_a_successor_waits_until_the_lock_is_free(tmp_path):
    wait_for_lock(tmp_path, 5)
    holder = "import sys; from adadpo_lightning.runs.lock import lock_directory\n"
    holder += f"with lock_directory({str(tmp_path)!r}, 'x'): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        wait_for_lock(tmp_path, 0.01)  # gives up; whoever locks it then says who holds it
        with pytest.raises(UserError, match=f"process {process.pid}"), lock_directory(tmp_path, "x"):
            pass
        timer = threading.Timer(0.3, process.stdin.close)
        timer.start()
        wait_for_lock(tmp_path, 30)
        with lock_directory(tmp_path, "x"):
            assert timer.finished.is_set()


@pytest.fixture
def ray(monkeypatch):
    # Its workers inherit both: one thread, as the runs without Ray have.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    return pytest.importorskip("ray")


def files(study):
    """Names of all files; those of TensorBoard without time and process."""
    names = (str(path.relative_to(study.root)) for path in study.root.rglob("*") if path.is_file())
    return sorted(name.partition(".tfevents.")[0] for name in names)


@pytest.mark.slow
def test_ray_runs_the_same_cells_with_the_same_results_and_files(tmp_path, model_dir, ray, capsys):
    arms = {"adadpo": Arm("adadpo"), "static": Arm("adadpo", coefficient_of="adadpo"), "broken": Arm("dpop")}
    grid = {"arms": arms, "fit_options": {"trainer.max_epochs": 1}}
    here, there = (make(tmp_path, tmp_path / name, model_dir, **grid) for name in ("here", "there"))
    for study in (here, there):  # one cell fails: its directory of checkpoints is a file
        run = study.root / "cells" / "broken_lr0.01_beta0.1_seed0" / "run"
        run.mkdir(parents=True)
        (run / "checkpoints").write_text("")
    assert run_study(here, 1) == 1
    with ray_tasks(there, "local", {}) as (runner, most):
        assert most == ray.cluster_resources()["CPU"]
        assert run_study(there, 2, runner=runner) == 1
    assert not ray.is_initialized()
    assert results(there).keys() == results(here).keys()
    assert {name: found["status"] for name, found in results(there).items()} == {
        "adadpo_lr0.01_beta0.1_seed0": "done",
        "static_lr0.01_beta0.1_seed0": "done",
        "broken_lr0.01_beta0.1_seed0": "failed",
    }
    for name, found in results(here).items():
        other = results(there)[name]
        assert other["error"] == (found["error"] and found["error"].replace(str(here.root), str(there.root)))
        assert other["metrics"] == found["metrics"]
    assert files(there) == files(here)
    assert "FAILED: exit 2" in capsys.readouterr().out


def parent_of(process):
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, model_dir):
    folder = tmp_path_factory.mktemp("undisturbed")
    study = make(folder, folder / "study", model_dir, **LONG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        assert run_study(study, 1) == 0
    return folder, study


@pytest.mark.slow
def test_a_cell_whose_worker_is_killed_resumes_and_ends_the_same(tmp_path, model_dir, ray, undisturbed):
    study = make(undisturbed[0], tmp_path / "study", model_dir, **LONG)
    killed = []

    def kill():
        worker = parent_of(first_checkpoint(study))
        killed.append(Path(f"/proc/{worker}/cmdline").read_bytes())
        os.kill(worker, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with ray_tasks(study, "local", {}) as (runner, _):
        assert run_study(study, 1, runner=runner) == 0
    thread.join()
    assert b"run_here" in killed[0]
    (log,) = study.root.glob("cells/*/log.txt")
    assert re.search(r"[Rr]esum", log.read_text())
    assert_cells_are_the_same(study, undisturbed[1])
