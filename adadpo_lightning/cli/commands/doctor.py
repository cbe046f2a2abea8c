"""Is this installation, and this config, fit to train? What a first run would otherwise find out the slow way."""

from __future__ import annotations

import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Callback

from adadpo_lightning.cli.commands.estimate import run_estimate
from adadpo_lightning.cli.trainer import PreferenceCLI
from adadpo_lightning.data.plan import MicroBatch
from adadpo_lightning.errors import UserError
from adadpo_lightning.models.selfcheck import TOLERANCE
from adadpo_lightning.reference.cache import ReferenceCache, fill
from adadpo_lightning.reference.modes import starts_at_zero

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import Tensor

    from adadpo_lightning.training.module import PreferenceLitModule
    from adadpo_lightning.types import PreferenceBatch, StepOutput

PACKAGES = (
    "adadpo-lightning",
    "torch",
    "lightning",
    "transformers",
    "datasets",
    "jsonargparse",
    "peft",
    "scikit-learn",
)
# A loss of the step's own pairs: what is left of a difference is rounding.
LOSS_TOLERANCE = 1e-3
USAGE = """usage: python -m adadpo_lightning doctor [OPTIONS OF fit]

Versions and devices; with a config of fit also a check of the first step (does the loss start where policy and
reference agree, is the gradient finite, do cached and live reference agree) and the memory that a run would take.
Nothing is written but, for a cached reference, its cache."""
# One optimizer step that leaves nothing behind.
DRY_RUN = (
    "--trainer.max_steps=1",
    "--trainer.limit_val_batches=0",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    what: str
    detail: str
    status: Literal["ok", "info", "FAIL"] = "info"

    def __str__(self) -> str:
        """As the terminal shows it."""
        return f"{self.status:<4}  {self.what}: {self.detail}"


def run_doctor(args: Sequence[str]) -> None:
    """Print the diagnosis.

    Args:
        args: Options of ``fit``; none for versions and devices alone.

    Raises:
        UserError: If a check fails, or the config is wrong.
    """
    if any(arg in ("-h", "--help") for arg in args):
        print(USAGE)
        return
    _print([*versions(), *devices()])
    if not args:
        return
    findings = first_step(args)
    _print(findings)
    print("\nmemory of a run with this config (`estimate`)")
    run_estimate(args)
    failed = [finding.what for finding in findings if finding.status == "FAIL"]
    if failed:
        raise UserError("doctor", f"failed: {', '.join(failed)}")


def versions() -> list[Finding]:
    """Python and the packages that matter."""
    found = [Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    for name in PACKAGES:
        try:
            found.append(Finding(name, version(name)))
        except PackageNotFoundError:
            found.append(Finding(name, "not installed"))
    return found


def devices() -> list[Finding]:
    """What there is to compute on."""
    found = [Finding("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")]
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        found.append(Finding(f"cuda:{i}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"))
    return found if len(found) > 1 else [*found, Finding("cuda", "none")]


def first_step(args: Sequence[str]) -> list[Finding]:
    """Train one optimizer step in a temporary directory and look at it.

    Args:
        args: Options of ``fit``.
    """
    with tempfile.TemporaryDirectory() as folder:
        checkup = Checkup(Path(folder) / "cache")
        _DryRun.checkup = checkup
        _DryRun.run(["fit", *args, *DRY_RUN, f"--output_dir={folder}"])
        return checkup.findings()


class _DryRun(PreferenceCLI):
    """``fit`` with the checkup as a further callback."""

    checkup: Checkup

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        return super()._instantiate_trainer(config, [*callbacks, self.checkup])


@dataclass
class Checkup(Callback):
    """Watches the first optimizer step.

    Args:
        folder: Where the trial cache goes.
    """

    folder: Path
    outputs: list[StepOutput] = field(default_factory=list)
    shares: float = 0.0
    expected: float = 0.0
    gradient: float = 0.0
    cached: Finding | None = None
    seconds: float = 0.0
    _module: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Compare the cache with the live reference while the policy is untouched."""
        self._module = pl_module
        if pl_module.loss.needs_reference:
            self.cached = _cached_against_live(trainer, pl_module, self.folder)
        self.seconds = -time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: PreferenceBatch, batch_idx: int
    ) -> None:
        """Keep what the step gave, and what it would have given with the reference for a policy."""
        if batch.filler:
            return
        output: StepOutput = outputs["step"]
        self.outputs.append(output)
        self.shares += float(output.share)
        pairs = output.pairs
        if pairs.ref_chosen is not None and pairs.ref_rejected is not None:
            same = replace(pairs, chosen=pairs.ref_chosen, rejected=pairs.ref_rejected)
            expected = pl_module.loss(same).reduce(batch.step_pairs, batch.step_chosen_tokens)
            self.expected += float(expected)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        """The gradient's norm before clipping."""
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.gradient = float(torch.nn.utils.get_total_norm(gradients))

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """The step is over."""
        self.seconds += time.perf_counter()

    def findings(self) -> list[Finding]:
        """What was seen."""
        pairs = sum(len(output.pairs.chosen) for output in self.outputs)
        return [
            self._starting_loss(),
            *([] if self.cached is None else [self.cached]),
            Finding(
                "gradient of the first step",
                f"norm {self.gradient:.4g} over {pairs} pairs",
                "ok" if 0 < self.gradient < float("inf") else "FAIL",
            ),
            Finding("one step", f"{self.seconds:.1f} s, {_peak()}"),
        ]

    def _starting_loss(self) -> Finding:
        what = "loss at step 0"
        if not self._module.loss.needs_reference:
            return Finding(what, f"{self.shares:.4f}; the loss has no reference to agree with")
        ratios = [(o.pairs.chosen - o.pairs.ref_chosen).abs().max() for o in self.outputs]  # type: ignore[operator]  # there is one
        detail = (
            f"{self.shares:.4f}, and {self.expected:.4f} where policy and reference are the same (ln 2 for dpo); "
            f"largest log-ratio {max(float(ratio) for ratio in ratios):.2g}"
        )
        agrees = abs(self.shares - self.expected) < LOSS_TOLERANCE
        module = self._module
        if not agrees and not starts_at_zero(module.reference_mode, module.policy_config, module.reference_path):
            return Finding(what, f"{detail}; model.reference {module.reference_mode} is another model than the policy")
        return Finding(what, detail, "ok" if agrees else "FAIL")


def _cached_against_live(trainer: Trainer, module: PreferenceLitModule, folder: Path) -> Finding:
    """Write the first micro-batch to a trial cache, read it back, and compute its pairs live, one at a time."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning attaches it
    batches, plan = data.scoring_loader("train")
    first = next(batch for batch in plan if not batch.filler)
    _, chosen, rejected = data.prepared["train"].counts()
    dtype = next(module.built_policy.parameters()).dtype
    cache = ReferenceCache(folder, chosen, rejected, dtype)
    cache.create()

    def live(batch: PreferenceBatch) -> Tensor:
        with torch.no_grad():
            # Without a live reference it is the policy, which nothing has changed yet.
            reference = module.live_reference
            return module.built_policy(batch) if reference is None else reference(batch)

    with trainer.precision_plugin.forward_context():
        fill(cache, [first], batches.__getitem__, live, module.device)
        differences = [
            (cache.read([n]).to(module.device) - live(batches[_alone(first, n)].to(module.device))).abs().mean()
            for n in first.rows
        ]
    difference = max(float(value) for value in differences)
    return Finding(
        "cached against live reference",
        f"{difference:.2g} nats a token apart over {len(first.rows)} pairs",
        "ok" if difference <= TOLERANCE[dtype] else "FAIL",
    )


def _alone(batch: MicroBatch, number: int) -> MicroBatch:
    return replace(batch, rows=(number,))


def _peak() -> str:
    if torch.cuda.is_available():
        return f"peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU"
    # The kernel counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB of memory"


def _print(findings: Sequence[Finding]) -> None:
    print("\n".join(map(str, findings)), flush=True)
