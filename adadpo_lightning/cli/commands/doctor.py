"""Check the installation and, with a config of fit, its first step: rewards, gradient, time and memory.

Without options: versions and devices. With a config of ``fit`` also its first step (are rewards 0 where policy and
reference are the same, is the gradient finite, do cached and live reference agree), the time and the memory of a
micro-batch of the shortest and one of the longest pairs, and what follows for a step and an epoch. Nothing is written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadpo_lightning.cli.commands.estimate import print_estimate
from adadpo_lightning.cli.fit_options import add_fit_options
from adadpo_lightning.cli.trainer import run_method
from adadpo_lightning.errors import UserError
from adadpo_lightning.estimate.findings import Finding, devices, versions
from adadpo_lightning.estimate.probe import Probe

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

# A run that leaves nothing behind; the probe stops it before its first step.
DRY_RUN: dict[str, Any] = {
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``fit``."""
    add_fit_options(parser)


def run_without_arguments() -> None:
    """Print versions and devices."""
    for finding in (*versions(), *devices()):
        show(finding)


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Print the diagnosis, each finding as it is made.

    Raises:
        UserError: If a check fails, or the config is wrong.
    """
    run_without_arguments()
    findings = first_step(config, parser, show)
    print("\nmemory of a run with this config (`estimate`)", flush=True)
    print_estimate(config, parser)
    failed = [finding.what for finding in findings if finding.status == "FAIL"]
    if failed:
        raise UserError("doctor", f"failed: {', '.join(failed)}")


def show(finding: Finding) -> None:
    """Print a finding at once."""
    print(finding, flush=True)


def first_step(config: Namespace, parser: ArgumentParser, report: Callable[[Finding], None] = show) -> list[Finding]:
    """Probe the run of a config in a temporary directory.

    Args:
        config: A parsed config of ``fit``; it is not changed.
        parser: The parser that read it.
        report: Called with each finding.
    """
    with tempfile.TemporaryDirectory() as folder:
        probe = Probe(Path(folder) / "cache", report)
        dry = config.clone()
        dry.output_dir = dry.trainer.default_root_dir = folder
        for name, value in DRY_RUN.items():
            dry.trainer[name] = value
        run_method("fit", dry, parser, [probe])
        return probe.findings
