"""A loss of somebody else's, in one file of its own: its twin, command line and checks come with it."""

import gc
import importlib
import re
import sys
from pathlib import Path

import pytest

from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import (
    Adaptive,
    PreferenceLoss,
    adaptive_twin,
    available_losses,
    build_loss,
    loss_class,
)
from adadpo_lightning.losses import registry as registry_module
from adadpo_lightning.losses.testing import check_loss
from adadpo_lightning.plugins import load_plugins

README = Path(__file__).parents[2] / "README.md"
KNEE = '''
from __future__ import annotations

from dataclasses import dataclass

from adadpo_lightning.losses import ContrastiveLoss, log_ratios, register_loss


@register_loss("knee")
@dataclass(frozen=True)
class Knee(ContrastiveLoss):
    """Hinge with a margin of its own: ``relu(delta - beta (h_w - h_l))``.

    Args:
        beta: Scale of the log-ratio, above 0.
        delta: Margin from which on a pair has no loss.
    """

    beta: float = 0.1
    delta: float = 1.0
    formula = "relu(delta - {c}beta*h_w + beta*h_l)"
    needs_reference = True

    def variable(self, x):
        return log_ratios(x)

    def score(self, v):
        return self.beta * v

    def link(self, margin):
        return (self.delta - margin).relu()
'''


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty folder of packages; what is imported and registered from it is gone afterwards."""
    monkeypatch.setattr(registry_module, "_losses", dict(registry_module._losses))
    monkeypatch.syspath_prepend(str(tmp_path))
    load_plugins.cache_clear()
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]
    load_plugins.cache_clear()
    gc.collect()  # the command line finds classes by their base


@pytest.fixture
def knee(site):
    (site / "slic.py").write_text(KNEE, encoding="utf-8")
    return importlib.import_module("slic")


def declare(site, value, name="slic-losses"):
    """An installed package that declares one loss."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[adadpo_lightning.losses]\nknee = {value}\n", encoding="utf-8")


def test_by_key_and_by_class(knee):
    assert available_losses()[-2:] == ["knee", "adaknee"]
    assert isinstance(build_loss("knee", delta=2.0), knee.Knee)
    twin = build_loss("adaknee", delta=2.0, ceiling=1.5)
    assert isinstance(twin, knee.AdaKnee)
    assert isinstance(twin, Adaptive)
    assert adaptive_twin(knee.Knee) is knee.AdaKnee is loss_class("adaknee")
    assert knee.Knee.formula == "relu(delta - beta*h_w + beta*h_l)"
    assert knee.AdaKnee.formula == "relu(delta - c*beta*h_w + beta*h_l)"
    with pytest.raises(UserError, match="'adaknee' has no option 'gamma'"):
        build_loss("adaknee", gamma=1.0)


def test_a_twin_may_be_written_out(site):
    twin = """
from adadpo_lightning.losses import Adaptive

@register_loss("adaknee")
@dataclass(frozen=True)
class AdaKnee(Adaptive, Knee):
    "The balanced knee."
"""
    (site / "slic.py").write_text(KNEE.replace('("knee")', '("knee", twin=False)') + twin, encoding="utf-8")
    slic = importlib.import_module("slic")
    assert available_losses()[-2:] == ["knee", "adaknee"]
    assert adaptive_twin(slic.Knee) is slic.AdaKnee
    assert slic.AdaKnee.formula == "relu(delta - c*beta*h_w + beta*h_l)"
    assert slic.AdaKnee.__doc__.startswith("The balanced knee.\n\n    Args:\n        beta: ")
    assert "        ceiling: " in slic.AdaKnee.__doc__
    check_loss(build_loss("adaknee", ceiling=1.5))


@pytest.mark.usefixtures("knee")
def test_checks_run_over_both():
    for options in ({}, {"beta": 1.0}, {"delta": 0.0}):
        check_loss(build_loss("knee", **options))
        check_loss(build_loss("adaknee", **options))
        check_loss(build_loss("adaknee", space="policy", apply="gradient", **options))


@pytest.mark.parametrize("name", ["AdaKnee", "slic.AdaKnee"])
@pytest.mark.usefixtures("knee")
def test_twin_is_a_class_of_the_command_line(name):
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=PreferenceLoss)
    arguments = [f"--loss={name}", "--loss.delta=2", "--loss.ceiling=1.5", "--loss.space=policy", "--loss.floor=0.5"]
    loss = parser.instantiate(parser.parse_args(arguments)).loss
    assert loss == build_loss("adaknee", delta=2.0, ceiling=1.5, space="policy", floor=0.5)
    with pytest.raises(ArgumentError):
        parser.parse_args([f"--loss={name}", "--loss.space=probability"])
    with pytest.raises(ArgumentError):
        parser.parse_args([f"--loss={name}", "--loss.detla=2"])


@pytest.mark.parametrize("value", ["slic", "slic:Knee"])
def test_installed_package_is_found_by_its_entry_point(site, value):
    (site / "slic.py").write_text(KNEE, encoding="utf-8")
    assert "knee" not in registry_module._losses
    declare(site, value)
    assert {"knee", "adaknee"} <= set(available_losses())
    check_loss(build_loss("adaknee"))


def test_package_that_cannot_be_imported_is_named(site):
    (site / "slic.py").write_text("import no_such_module_anywhere\n", encoding="utf-8")
    declare(site, "slic", name="broken-losses")
    with pytest.raises(UserError) as error:
        build_loss("dpo")
    assert "entry point 'knee' of broken-losses" in str(error.value)
    assert "no_such_module_anywhere" in str(error.value)
    assert "uninstall" in str(error.value)


def test_package_that_takes_a_key_of_ours_is_named(site):
    (site / "slic.py").write_text(KNEE.replace('"knee"', '"dpo"'), encoding="utf-8")
    declare(site, "slic")
    with pytest.raises(UserError, match=r"of slic-losses.*'dpo'.*already used by adadpo_lightning\.losses\.dpo\.DPO"):
        available_losses()


def readme_block():
    """The Python block that follows the comment ``<!-- third-party-loss -->``."""
    text = README.read_text(encoding="utf-8")
    found = re.search(r"<!-- third-party-loss -->\s*```python\n(.*?)```", text, flags=re.DOTALL)
    assert found, "README.md has no Python block after <!-- third-party-loss -->"
    return found.group(1)


def test_readme_example_runs(site):
    block = readme_block()
    assert block.count("\n") < 25
    before = set(available_losses())
    (site / "readme_loss.py").write_text(block, encoding="utf-8")
    importlib.import_module("readme_loss")
    new = set(available_losses()) - before
    plain = [key for key in new if f"ada{key}" in new]
    assert len(plain) == 1
    assert len(new) == 2
    for key in new:
        check_loss(build_loss(key))
