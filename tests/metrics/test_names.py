"""Logged names are written once."""

import ast
from pathlib import Path

import adadpo_lightning
from adadpo_lightning.metrics import names

PACKAGE = Path(adadpo_lightning.__file__).parent


def test_no_other_file_spells_a_logged_name():
    """Docstrings may, and text within a longer one; a lookup or a log call takes the constant."""
    known = {value for name, value in vars(names).items() if name.isupper() and "/" in value}
    staged = {f"{stage}/{name}" for stage in ("train", "val", "test") for name in known} | known
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.value}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "names.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in staged
    ]
    assert not found, found
