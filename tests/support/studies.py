"""Small studies of a tiny model on a CPU, for tests that interrupt their cells."""

import json
import time

import yaml

from adadpo_lightning.study.directory import save_study, status_of
from adadpo_lightning.study.grid import Arm, StudyConfig, jobs_of
from tests.support.runs import UNCOMPARED, assert_same
from tests.support.tiny import make_rows, write_rows

LONG = {"fit_options": {"trainer.max_epochs": 12}}  # 36 steps, each with a checkpoint


def make(folder, root, model_dir, **grid):
    """A study of a tiny model that saves after every step."""
    pairs = write_rows(folder / "pairs.jsonl", make_rows(23))
    config = {
        "model": {"policy": {"path": str(model_dir)}, "loss": {"class_path": "DPO"}},
        "data": {"train": str(pairs), "val": str(pairs), "global_batch_size": 8, "max_length": 40},
        "checkpoint": {"every_n_train_steps": 1},
        "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "log_every_n_steps": 1},
    }
    (folder / "fit.yaml").write_text(yaml.safe_dump(config))
    options = {"learning_rates": [1e-2], "betas": [0.1], "seeds": [0], "arms": {"adadpo": Arm("adadpo")}, **grid}
    found = StudyConfig(
        str(root), task="preference", fit_configs=[str(folder / "fit.yaml")], keep_models=True, **options
    )
    save_study(found)
    return found


def results(study):
    """What the jobs wrote, without how long they took."""
    found = {}
    for path in study.root.glob("cells/*/result.json"):
        found[path.parent.name] = json.loads(path.read_text())
        del found[path.parent.name]["seconds"]
        found[path.parent.name]["metrics"] = {
            name: value for name, value in found[path.parent.name]["metrics"].items() if not name.endswith(UNCOMPARED)
        }
    return found


def first_checkpoint(study):
    """Wait for one of the study's first job, and return the process of that job."""
    folder, end = study.root / "cells" / jobs_of(study)[0].name, time.monotonic() + 120
    while not list(folder.glob("run/checkpoints/*.ckpt")):
        assert time.monotonic() < end, "no checkpoint within 120 s"
        time.sleep(0.02)
    return json.loads((folder / ".lock").read_text())["process"]


def assert_cells_are_the_same(study, expected, jobs=None):
    """The cells of `jobs`, or all, are done, with metrics, curves and weights of the expected ones, to the last bit."""
    here, there = results(study), results(expected)
    for job in jobs or jobs_of(study):
        assert status_of(study, job) == "done"
        assert here[job.name]["metrics"] == there[job.name]["metrics"]
        assert_same(*(each.root / "cells" / job.name / "run" for each in (study, expected)))
