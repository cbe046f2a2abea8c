"""Read the curves of runs back from TensorBoard event files or CSV logs."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adadpo_lightning.errors import UserError

EVENTS = "events.out.tfevents.*"
TABLE = "metrics.csv"


@dataclass(frozen=True)
class Curve:
    """One metric over a run.

    Args:
        steps: Optimizer steps, rising.
        values: The metric at these steps, finite.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        name: What tells it from the others.
        curves: By tag, such as ``train/loss``; none is empty.
    """

    name: str
    curves: dict[str, Curve]


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Read runs, each from its TensorBoard event files, or from its CSV logs where it has none.

    Args:
        paths: Output directories of runs, or directories that hold several.

    Raises:
        UserError: If a path does not exist or holds no logs, or a run has logged no metric.
    """
    folders = list(dict.fromkeys(folder for path in paths for folder in run_folders(path)))
    return [Run(name, _curves(folder)) for name, folder in zip(short_names(folders), folders, strict=True)]


def run_folders(path: str) -> list[Path]:
    """The directories of the runs at or below `path`, in order of name.

    Raises:
        UserError: If there is no such directory, or no logs in it.
    """
    root = Path(path).resolve()
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise UserError(path, f"expected the output directory of a run, found {found}", "check the path")
    folders = {_run_of(log.parent) for pattern in (EVENTS, TABLE) for log in root.rglob(pattern)}
    if not folders:
        raise UserError(
            path,
            "holds no logs: neither TensorBoard event files nor csv/version_*/metrics.csv",
            "give the output_dir of a run that has logged",
        )
    # Who names a logger's own directory means the run that it is in.
    return sorted(folders)


def _run_of(logs: Path) -> Path:
    """The run's directory, of the directory of one of its logs: <run>/tensorboard or <run>/csv/version_0."""
    if re.fullmatch(r"version_\d+", logs.name):
        logs = logs.parent
    return logs.parent if logs.name in ("tensorboard", "csv") else logs


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart.

    Example:
        >>> short_names([Path("runs/a/dpo"), Path("runs/b/dpo")]), short_names([Path("runs/dpo")])
        (['a/dpo', 'b/dpo'], ['dpo'])
    """
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def _curves(folder: Path) -> dict[str, Curve]:
    points = read_events(folder) or read_tables(folder)
    curves = {tag: curve for tag, values in points.items() if (curve := _curve(values)).steps}
    if not curves:
        raise UserError(str(folder), "has logs but no metric in them yet", "leave it out, or wait for its first step")
    return curves


def _curve(points: Iterable[tuple[int, float]]) -> Curve:
    """A resumed run may have logged a step twice: the later one counts."""
    kept = sorted({step: value for step, value in points if math.isfinite(value)}.items())
    return Curve(tuple(step for step, _ in kept), tuple(value for _, value in kept))


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars of a run's event files, in the order in which they were written."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: dict[str, list[tuple[int, float]]] = {}
    for logs in sorted({file.parent for file in folder.rglob(EVENTS)}):
        if _run_of(logs) != folder:
            continue
        events = EventAccumulator(str(logs), size_guidance={"scalars": 0})  # 0 keeps all
        events.Reload()
        for tag in events.Tags()["scalars"]:
            points.setdefault(tag, []).extend((e.step, e.value) for e in events.Scalars(tag))
    return points


def read_tables(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All metrics of a run's CSV logs; each resume has a version of its own."""
    files = [file for file in folder.rglob(TABLE) if _run_of(file.parent) == folder]
    points: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(files, key=lambda file: int("0" + re.sub(r"\D", "", file.parent.name))):
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                for tag, value in row.items():
                    if "/" in tag and value:
                        points.setdefault(tag, []).append((int(row["step"]), float(value)))
    return points
