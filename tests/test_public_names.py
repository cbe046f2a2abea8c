"""The package's front door: every public name is there, and importing it alone loads nothing heavy."""

import subprocess
import sys

import pytest

import adadpo_lightning


@pytest.mark.parametrize("name", adadpo_lightning.__all__)
def test_public_names_resolve(name):
    assert getattr(adadpo_lightning, name) is not None


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = adadpo_lightning.nosuch


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, adadpo_lightning; print([m for m in ('torch', 'lightning', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
