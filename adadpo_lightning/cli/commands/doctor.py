"""Check the installation and, with a config of fit, its first step: rewards, gradient, time and memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadpo_lightning.cli.commands.estimate import run_estimate
from adadpo_lightning.cli.trainer import PreferenceCLI
from adadpo_lightning.errors import UserError
from adadpo_lightning.estimate.findings import Finding, devices, versions
from adadpo_lightning.estimate.probe import Probe

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

USAGE = """usage: python -m adadpo_lightning doctor [OPTIONS OF fit]

Versions and devices; with a config of fit also a check of its first step (are rewards 0 where policy and reference are
the same, is the gradient finite, do cached and live reference agree), the time and the memory of a micro-batch of the
shortest and one of the longest pairs, and what follows for a step and an epoch. Nothing is written."""
# A run that leaves nothing behind; the probe stops it before its first step.
DRY_RUN = (
    "--trainer.limit_val_batches=0",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)


def run_doctor(args: Sequence[str]) -> None:
    """Print the diagnosis, each finding as it is made.

    Args:
        args: Options of ``fit``; none for versions and devices alone.

    Raises:
        UserError: If a check fails, or the config is wrong.
    """
    if any(arg in ("-h", "--help") for arg in args):
        print(USAGE)
        return
    for finding in (*versions(), *devices()):
        show(finding)
    if not args:
        return
    findings = first_step(args, show)
    print("\nmemory of a run with this config (`estimate`)", flush=True)
    run_estimate(args)
    failed = [finding.what for finding in findings if finding.status == "FAIL"]
    if failed:
        raise UserError("doctor", f"failed: {', '.join(failed)}")


def show(finding: Finding) -> None:
    """Print a finding at once."""
    print(finding, flush=True)


def first_step(args: Sequence[str], report: Callable[[Finding], None] = show) -> list[Finding]:
    """Probe the run of a config in a temporary directory.

    Args:
        args: Options of ``fit``.
        report: Called with each finding.
    """
    with tempfile.TemporaryDirectory() as folder:
        _DryRun.probe = Probe(Path(folder) / "cache", report)
        _DryRun.run(["fit", *args, *DRY_RUN, f"--output_dir={folder}"])
        return _DryRun.probe.findings


class _DryRun(PreferenceCLI):
    """``fit`` with the probe as a further callback."""

    probe: Probe

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        return super()._instantiate_trainer(config, [*callbacks, self.probe])
