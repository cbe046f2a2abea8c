"""The benchmark scripts fit the package: they import, and every name that they take from it exists."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parent.parent / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_imports(script, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.delitem(sys.modules, script.stem, raising=False)
    module, text = importlib.import_module(script.stem), script.read_text(encoding="utf-8")
    assert callable(getattr(module, "main", None)) == ("__main__" in text)  # the others are helpers
    # Most imports are inside functions, so that --help is fast.
    taken = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("adadpo_lightning")
        for alias in node.names
    ]
    missing = [f"{module}.{name}" for module, name in taken if not hasattr(importlib.import_module(module), name)]
    assert not missing
