"""``result.json``: what a finished or failed job writes, its format, and how older files are read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from adadpo_lightning.errors import UserError

# 1, which was not written into the file: rates of `evaluate` in percent. 2: all rates are fractions.
FORMAT = 2
# Rates of `evaluate`; their standard errors, `<name>_se`, have the same unit.
JUDGED_RATES = ("win_rate", "discrete_win_rate", "length_controlled_win_rate")


def read_result(path: Path) -> dict[str, Any]:
    """Read what a job has written.

    Raises:
        UserError: If the file is cut short, is not a result, or has a format of a later version.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        result = {"status": str(found["status"]), "seconds": float(found["seconds"]), "run": "run", "metrics": {}}
        result |= {name: value for name, value in found.items() if name not in result or value is not None}
        _check_types(result)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"not the result of a job: {type(error).__name__}: {error}"
        raise UserError(str(path), problem, "remove it; the job then runs again") from error
    if result.get("format", FORMAT) not in (1, FORMAT):
        problem = f"has format {result['format']}, this version reads formats 1 and {FORMAT}"
        raise UserError(str(path), problem, "upgrade adadpo-lightning, or remove it; the job then runs again")
    return result


def _check_types(result: dict[str, Any]) -> None:
    """Whether each entry has the type that readers take for granted.

    Raises:
        ValueError: Naming the first that does not.
    """
    if result["status"] not in ("done", "failed"):
        raise ValueError(f"status is {result['status']!r}")
    for name, kind in (("run", str), ("metrics", dict), ("fingerprint", dict)):
        if not isinstance(result.get(name, kind()), kind):
            raise ValueError(f"{name} is {result[name]!r}")
    if not isinstance(result.get("fingerprint", {}).get("shared", {}), dict):
        raise ValueError("fingerprint.shared is no mapping")
    for name, value in result["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"metrics.{name} is {value!r}, not a number")
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            raise ValueError(f"metrics.{name} is larger than any float")


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result and its format so that a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps({"format": FORMAT, **result}, indent=1), encoding="utf-8")
    unfinished.replace(path)


def metrics_in_fractions(path: Path, result: dict[str, Any]) -> dict[str, float]:
    """The metrics of a finished job, all rates in [0, 1]; rates of a file of format 1 are divided by 100.

    Args:
        path: Where the result was read from.
        result: What `read_result` returned.

    Raises:
        UserError: If the file does not tell the unit of its rates, or a rate is not in [0, 1].
    """
    metrics: dict[str, float] = dict(result["metrics"])
    rates = [name for name in metrics if name.startswith(JUDGED_RATES)]
    if not rates:
        return metrics
    if "format" not in result and "fingerprint" in result:
        raise UserError(
            str(path),
            f"does not say whether {rates[0]} = {metrics[rates[0]]:g} is a fraction or percent",
            f'add "format": {FORMAT} if its rates are fractions, "format": 1 if they are percent, or remove the file: '
            "the job then runs again",
        )
    if result.get("format", 1) == 1:
        metrics |= {name: metrics[name] / 100 for name in rates}
    for name in rates:
        if not name.endswith("_se") and (metrics[name] < 0 or metrics[name] > 1):
            raise UserError(
                str(path), f"{name} is {metrics[name]:g}, not in [0, 1]", "remove it; the job then runs again"
            )
    return metrics
