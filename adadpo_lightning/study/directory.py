"""A study on disk: ``study.yaml``, and for each job a result with a fingerprint of its inputs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from adadpo_lightning import fingerprint, log
from adadpo_lightning.errors import UserError
from adadpo_lightning.runs.lock import lock_directory
from adadpo_lightning.shipped import find_config
from adadpo_lightning.study.grid import as_document, at_seed, jobs_of
from adadpo_lightning.study.result_file import read_result

if TYPE_CHECKING:
    from adadpo_lightning.study.grid import Job, StudyConfig

SAVED = "study.yaml"
RESULT = "result.json"
FIXED = ("task", "embedded", "fit_options", "evaluation")  # must not change between calls
OF_ARM = ("loss", "options", "strength", "coefficient_of", "training_seed")


def result_path(study: StudyConfig, job: Job) -> Path:
    """Path of the result of a job."""
    folder = "cells" if job.cell is not None else "seeds"
    return study.root / folder / job.name / RESULT


def status_of(study: StudyConfig, job: Job) -> str:
    """``done``, ``failed`` or ``open``.

    Raises:
        UserError: If the result cannot be read.
    """
    path = result_path(study, job)
    return str(read_result(path)["status"]) if path.is_file() else "open"


def save_study(study: StudyConfig, *, write: bool = True) -> Path:
    """Write ``study.yaml``, after checking that the directory holds the same study or a part of it.

    Args:
        study: The study.
        write: False only checks.

    Raises:
        UserError: If the directory holds results of another task, other training or other configs, ``study.yaml``
            cannot be read, or another process runs the study.
    """
    path, document = study.root / SAVED, as_document(study)
    saved = _read_study(path) if path.exists() else None
    if saved is not None:
        _check_saved(study, saved, document)
    check_results(study)
    if write and saved != document:
        with lock_directory(study.root, "output_dir"):
            path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def _read_study(path: Path) -> dict[str, Any]:
    try:
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problem = f"not valid YAML: {' '.join(str(error).split())}"
        raise UserError(str(path), problem, "remove it; it is written again") from error
    arms = saved.get("arms", {}) if isinstance(saved, dict) else None
    if not isinstance(arms, dict) or not all(isinstance(arm, dict) for arm in arms.values()):
        raise UserError(str(path), "not a study: empty, truncated or overwritten", "remove it; it is written again")
    found: dict[str, Any] = saved
    return found


def _check_saved(study: StudyConfig, saved: dict[str, Any], document: dict[str, Any]) -> None:
    for name in FIXED:
        if saved.get(name) != document[name]:
            raise UserError(
                name,
                f"{study.root} holds a study with {saved.get(name)}, got {document[name]}",
                "their cells cannot be compared: choose another output_dir",
            )
    for name, arm in saved.get("arms", {}).items():
        now = document["arms"].get(name)
        if now is not None and any(now[key] != arm.get(key) for key in OF_ARM):
            raise UserError(f"arms.{name}", f"{study.root} holds cells of {arm}, got {now}", "give it another name")


def fingerprint_of(study: StudyConfig, job: Job, shared: dict[str, Any] | None = None) -> dict[str, Any]:
    """Inputs of a job: the contents of configs, data and models, not their names.

    Args:
        study: The study.
        job: One of its jobs.
        shared: Result of `shared_fingerprint`, if already known.
    """
    if job.cell is None:
        own: dict[str, Any] = {"seed": job.seed}
    else:
        arm = asdict(study.arms[job.cell.arm])
        own = {"seed": job.seed, "lr": job.cell.lr, "beta": job.cell.beta, **{key: arm[key] for key in OF_ARM}}
        texts = _texts([study.fit_options, asdict(study.evaluation) if study.evaluation else None])
        if of_seed := _content_of_files(at_seed(text, job.seed) for text in texts if "{seed}" in text):
            own["files"] = of_seed
    return {"shared": shared_fingerprint(study) if shared is None else shared, "job": plain(own)}


def shared_fingerprint(study: StudyConfig) -> dict[str, Any]:
    """The part of the fingerprint that all jobs share.

    Raises:
        UserError: If a config is not valid YAML.
    """
    if study.task == "embedded":
        shipped = [str(find_config(name)) for name in ("quickstart.yaml", "quickstart_warmup.yaml")]
        names = [*(study.fit_configs or shipped[:1]), shipped[1]]
    else:
        names = study.fit_configs or []
    evaluation = asdict(study.evaluation) if study.evaluation else None
    found = {"task": study.task, "evaluation": evaluation, **content_of(names, study.fit_options, evaluation)}
    if study.task == "embedded":
        found["embedded"] = asdict(study.embedded)
    as_json: dict[str, Any] = plain(found)
    return as_json


def content_of(fit_configs: Sequence[str], fit_options: Mapping[str, Any], beside: Any = None) -> dict[str, Any]:
    """What ``fit`` runs depend on: configs, options, and the content of every file that they or `beside` name.

    Raises:
        UserError: If a config is not valid YAML.
    """
    configs = [_config(name) for name in fit_configs]
    paths = {text for text in _texts([configs, fit_options, beside]) if text not in fit_configs}
    return {
        "numerics": fingerprint.NUMERICS_VERSION,
        "fit_configs": {str(number): config for number, config in enumerate(configs, start=1)},
        "fit_options": fit_options,
        "files": _content_of_files(paths),
    }


def _content_of_files(texts: Iterable[str]) -> dict[str, Any]:
    return {text: found for text in sorted(texts) if (found := fingerprint.of_path(text)) is not None}


def plain(value: Any) -> Any:
    """Round trip through JSON, so that stored and new fingerprints compare equal."""
    return json.loads(json.dumps(value, default=str))


def _config(name: str) -> Any:
    path = Path(name)
    if not path.is_file():
        return None  # `fit` reports it under the name that the user gave
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(name, f"not valid YAML: {' '.join(str(error).split())}", "fix the file") from error


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            if name != "output_dir":
                yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def check_results(study: StudyConfig) -> None:
    """Check that finished jobs ran with the current configs and data of the study.

    Raises:
        UserError: If one did not; the error lists the differences.
    """
    unmarked, shared = 0, None
    for job in jobs_of(study):
        path = result_path(study, job)
        if not path.is_file() or (result := read_result(path))["status"] != "done":
            continue
        if "fingerprint" not in result:
            unmarked += 1
            continue
        shared = shared_fingerprint(study) if shared is None else shared
        if found := fingerprint.differences(result["fingerprint"], fingerprint_of(study, job, shared)):
            raise UserError(
                str(path.parent),
                f"ran with other settings: {'; '.join(found[:5])}{'; ...' if len(found) > 5 else ''}",
                "restore them, remove the directory to run it again, or choose another output_dir",
            )
    if unmarked:
        log.warn(f"{unmarked} results were written by an earlier version: their configs and data cannot be compared")
