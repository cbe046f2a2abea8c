"""Read the curves of runs from TensorBoard event files or CSV logs."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adadpo_lightning.errors import UserError

EVENTS = "events.out.tfevents.*"
TABLE = "metrics.csv"
Points = list[tuple[int, float]]  # step and value; steps increase strictly


@dataclass(frozen=True)
class Curve:
    """One metric over a run.

    Args:
        steps: Optimizer steps, strictly increasing.
        values: Finite values of the metric at these steps.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        name: Unique name.
        curves: Non-empty curves by tag, such as ``train/loss``.
    """

    name: str
    curves: dict[str, Curve]


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Read runs from their TensorBoard event files, or from their CSV logs if there are none.

    Args:
        paths: Output directories of runs, or directories that hold several.

    Raises:
        UserError: If a path does not exist or holds no logs, a log cannot be read, or a run has logged no metric.
    """
    folders = list(dict.fromkeys(folder for path in paths for folder in run_folders(path)))
    return [Run(name, _curves(folder)) for name, folder in zip(short_names(folders), folders, strict=True)]


def run_folders(path: str) -> list[Path]:
    """Directories of the runs at or below `path`, sorted by name.

    Raises:
        UserError: If the directory does not exist or holds no logs.
    """
    root = Path(path).resolve()
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise UserError(path, f"expected the output directory of a run, found {found}", "check the path")
    folders = {_run_of(log.parent) for pattern in (EVENTS, TABLE) for log in root.rglob(pattern) if log.is_file()}
    if not folders:
        raise UserError(
            path,
            "holds no logs: neither TensorBoard event files nor csv/version_*/metrics.csv",
            "give the output_dir of a run that has logged",
        )
    return sorted(folders)


def _run_of(logs: Path) -> Path:
    """Directory of the run that wrote a log directory: <run>/tensorboard or <run>/csv/version_0."""
    if re.fullmatch(r"version_\d+", logs.name):
        logs = logs.parent
    return logs.parent if logs.name in ("tensorboard", "csv") else logs


def short_names(folders: Sequence[Path]) -> list[str]:
    """The shortest path endings that are unique.

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
        raise UserError(str(folder), "its logs hold no metric yet", "leave it out, or wait for its first step")
    return curves


def _curve(points: Points) -> Curve:
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    return Curve(tuple(step for step, _ in finite), tuple(value for _, value in finite))


def merge(points: Iterable[tuple[str, int, float]]) -> dict[str, Points]:
    """Merge the logs of a run and its resumes.

    A resume repeats the steps after its checkpoint, so that a metric may have several values at one step. The last one
    written is kept: it belongs to the run that continued.

    Args:
        points: Tag, step and value, in the order of writing.

    Returns:
        Points of each tag, sorted by step, without duplicates.

    Example:
        >>> merge([("loss", 1, 0.9), ("loss", 2, 0.8), ("loss", 2, 0.7), ("loss", 3, 0.6)])
        {'loss': [(1, 0.9), (2, 0.7), (3, 0.6)]}
    """
    kept: dict[str, dict[int, float]] = {}
    for tag, step, value in points:
        kept.setdefault(tag, {})[step] = value
    return {tag: sorted(values.items()) for tag, values in kept.items()}


def read_events(folder: Path) -> dict[str, Points]:
    """All scalars of a run's TensorBoard event files, merged by `merge`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def points() -> Iterator[tuple[str, int, float]]:
        for logs in sorted({file.parent for file in folder.rglob(EVENTS) if file.is_file()}):
            if _run_of(logs) != folder:
                continue
            events = EventAccumulator(str(logs), size_guidance={"scalars": 0})  # 0 keeps all
            try:
                events.Reload()
            except Exception as error:
                # Of many types: TensorFlow's own DataLossError, protobuf's, OSError.
                raise UserError(
                    str(logs), f"event files cannot be read: {_first_line(error)}", "remove them"
                ) from error
            for tag in events.Tags()["scalars"]:
                yield from ((tag, event.step, event.value) for event in events.Scalars(tag))

    return merge(points())


def read_tables(folder: Path) -> dict[str, Points]:
    """All metrics of a run's CSV logs (``csv/version_*/metrics.csv``), merged by `merge`; a resume adds a version.

    Values may be NaN or infinite. An incomplete last row of a killed run is skipped.

    Args:
        folder: Output directory of one run.

    Raises:
        UserError: If a file is not a CSV log.
    """
    files = [file for file in folder.rglob(TABLE) if file.is_file() and _run_of(file.parent) == folder]
    ordered = sorted(files, key=lambda file: int("0" + re.sub(r"\D", "", file.parent.name)))
    return merge(point for file in ordered for point in _table(file))


def _table(file: Path) -> Iterator[tuple[str, int, float]]:
    try:
        text = file.read_text(encoding="utf-8")
        rows = list(csv.DictReader(text.splitlines()))
        if rows and not text.endswith("\n"):
            rows.pop()
        for row in rows:
            yield from ((tag, int(row["step"]), float(value)) for tag, value in row.items() if value and "/" in tag)
    except KeyError:
        raise UserError(str(file), "has no column step", "give the output_dir of a run") from None
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(str(file), f"not a CSV log: {_first_line(error)}", "repair or remove the file") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def read_metrics(run: str | Path, names: Sequence[str]) -> dict[str, list[float]]:
    """Values of some metrics in the CSV logs of a run, sorted by step.

    Args:
        run: The run's output directory.
        names: Tags, such as ``val/rewards/accuracies``.

    Raises:
        UserError: If the run has no CSV log, or no value of a metric.
    """
    found = read_tables(Path(run))
    if not found:
        raise UserError(str(run), "holds no csv/version_*/metrics.csv", "keep a CSVLogger in trainer.logger")
    if missing := [name for name in names if name not in found]:
        raise UserError(str(run), f"its metrics.csv has no values of {', '.join(missing)}", "was the run cut short?")
    return {name: [value for _, value in found[name]] for name in names}


def val_stages_of(tags: Iterable[str]) -> list[str]:
    """The validation sets that tags belong to: ``val``, and ``val/<name>`` of each named set.

    Example:
        >>> val_stages_of(["train/loss", "val/helpful/loss", "val/helpful/kl/chosen", "val/safety/loss"])
        ['val/helpful', 'val/safety']
        >>> val_stages_of(["val/loss", "val/rewards/margins"])
        ['val']
    """
    found = {f"val/{tag.split('/')[1]}" for tag in tags if tag.startswith("val/") and tag.endswith("/loss")}
    named = sorted(found - {"val/loss"})
    return [*(["val"] if "val/loss" in found or not named else []), *named]


def last_metrics(run: str | Path) -> dict[str, float]:
    """The last value of each metric in the CSV logs of a run; empty without logs."""
    return {name: points[-1][1] for name, points in read_tables(Path(run)).items()}
