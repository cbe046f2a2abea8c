"""Print the oldest versions that pyproject.toml allows, as constraints for pip: ``lower_bounds.py [EXTRA ...]``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def requirements(project: dict[str, Any], extras: Iterable[str]) -> Iterator[Requirement]:
    """The direct dependencies and those of `extras`; an extra may name others of the same project."""
    waiting, seen = list(project["dependencies"]), set(extras)
    for extra in seen.copy():
        waiting += project["optional-dependencies"][extra]
    while waiting:
        requirement = Requirement(waiting.pop(0))
        if requirement.name != project["name"]:
            yield requirement
            continue
        for extra in requirement.extras - seen:
            seen.add(extra)
            waiting += project["optional-dependencies"][extra]


def lower_bounds(project: dict[str, Any], extras: Iterable[str]) -> dict[str, str]:
    """For each dependency the version after its ``>=``.

    Raises:
        ValueError: If a dependency has none.
    """
    bounds = {}
    for requirement in requirements(project, extras):
        lowest = [spec.version for spec in requirement.specifier if spec.operator == ">="]
        if len(lowest) != 1:
            raise ValueError(f"{requirement} has no lower bound")
        bounds[requirement.name] = lowest[0]
    return bounds


if __name__ == "__main__":
    parsed = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    for name, version in sorted(lower_bounds(parsed, sys.argv[1:]).items()):
        print(f"{name}=={version}")
