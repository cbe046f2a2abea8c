"""Every package that is imported is declared, bounded on both sides, and pinned inside its bounds."""

import ast
import re
import sys
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement

from scripts.lower_bounds import PYPROJECT, lower_bounds, requirements, tomllib

ROOT = PYPROJECT.parent
PROJECT = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
EXTRAS = list(PROJECT["optional-dependencies"])
# Not installed for tests: distributions of modules that only an extra has.
ELSEWHERE = {"vllm": {"vllm"}, "bitsandbytes": {"bitsandbytes"}, "ray": {"ray"}}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def imported():
    """From top-level module to a file that imports it."""
    found = {}
    for path in sorted((ROOT / "adadpo_lightning").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found.update((name.partition(".")[0], path.name) for name in names if name)
    return {
        n: f
        for n, f in found.items()
        if n not in sys.stdlib_module_names and n not in ("adadpo_lightning", "__future__")
    }


def test_every_import_is_declared():
    declared = {normal(r.name) for r in requirements(PROJECT, EXTRAS)}
    homes = packages_distributions()
    missing = {
        module: file
        for module, file in imported().items()
        if not {normal(d) for d in homes.get(module, ELSEWHERE.get(module, ()))} & declared
    }
    assert not missing


def test_every_dependency_is_imported():
    homes = packages_distributions()
    used = {normal(d) for module in imported() for d in homes.get(module, ELSEWHERE.get(module, ()))}
    unused = {normal(Requirement(line).name) for line in PROJECT["dependencies"]} - used
    assert not unused


def all_requirements():
    lines = [*PROJECT["dependencies"], *(line for lines in PROJECT["optional-dependencies"].values() for line in lines)]
    return sorted({line for line in lines if Requirement(line).name != PROJECT["name"]})


@pytest.mark.parametrize("line", all_requirements())
def test_bounds(line):
    """A lower bound, and an upper one that no version that was tried reaches."""
    requirement = Requirement(line)
    assert sorted(spec.operator for spec in requirement.specifier) == ["<", ">="]
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(), re.M))
    pinned = {normal(name): version for name, version in pins.items()}.get(normal(requirement.name))
    assert pinned is None or requirement.specifier.contains(pinned, prereleases=True)


def test_lower_bounds_follow_extras_of_extras():
    project = {
        "name": "own",
        "dependencies": ["a>=1.2,<2"],
        "optional-dependencies": {"x": ["own[y]", "b>=3,<4"], "y": ["c[fast]>=5.1,<6"]},
    }
    assert lower_bounds(project, ["x"]) == {"a": "1.2", "b": "3", "c": "5.1"}
    with pytest.raises(ValueError, match="d<2 has no lower bound"):
        lower_bounds({"name": "own", "dependencies": ["d<2"]}, [])
