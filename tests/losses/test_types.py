"""Losses and their twins are classes that a static type checker knows, keyword by keyword."""

import subprocess
import sys
from pathlib import Path

import pytest

import adadpo_lightning.losses as losses

ROOT = Path(__file__).parents[2]
GOOD = """
from adadpo_lightning.losses import DPO, AdaDPO, Adaptive, AdaSimPO, adaptive_twin

loss: DPO = AdaDPO(beta=0.1, ceiling=1.5)
balanced: Adaptive = AdaSimPO(gamma_beta_ratio=0.3, space="policy")
beta: float = AdaDPO(0.1, floor=0.5).beta
twin: type[Adaptive] = adaptive_twin(DPO)
"""
BAD = {
    "AdaDPO(cieling=1.5)": 'Unexpected keyword argument "cieling" for "AdaDPO"',
    "AdaDPO(beta='high')": 'Argument "beta" to "AdaDPO" has incompatible type "str"',
    "AdaORPO(space='odds')": 'Argument "space" to "AdaORPO" has incompatible type',
    "AdaIPO().beta": '"AdaIPO" has no attribute "beta"',
    "DPO(ceiling=2.0)": 'Unexpected keyword argument "ceiling" for "DPO"',
}


@pytest.mark.slow  # mypy reads torch's types
def test_mypy_checks_the_options_of_twins(tmp_path):
    pytest.importorskip("mypy")
    snippet = tmp_path / "snippet.py"
    head = GOOD + "from adadpo_lightning.losses import AdaIPO, AdaORPO\n"
    snippet.write_text(head + "\n".join(BAD) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", snippet]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    errors = [line.partition(":")[2] for line in result.stdout.splitlines() if ": error: " in line]
    first = head.count("\n") + 1
    for number, (line, message) in enumerate(zip(errors, BAD.values(), strict=True), start=first):
        assert line.startswith(f"{number}: error: {message}"), result.stdout


def test_every_public_class_is_exported():
    found = {
        name
        for name, value in vars(losses).items()
        if isinstance(value, type) and value.__module__.startswith("adadpo_lightning.losses.")
    }
    assert found <= set(losses.__all__)
