"""A callback that probes a run with a few micro-batches and stops it before its first step.

It checks that the rewards are 0 at step 0, that the gradient is finite, and that a cached reference agrees with a live
one. It measures time and memory on a micro-batch of the shortest and one of the longest pairs, and extrapolates to a
step and an epoch.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback

from adadpo_lightning.compat import loss_scale
from adadpo_lightning.data.loader import MicroBatches
from adadpo_lightning.data.plan import MicroBatch
from adadpo_lightning.estimate.extrapolate import Rows, duration, fit_line, sizes_of
from adadpo_lightning.estimate.findings import Finding
from adadpo_lightning.metrics.gradients import gradient_norm
from adadpo_lightning.models.selfcheck import TOLERANCE
from adadpo_lightning.reference.cache import ReferenceCache, fill
from adadpo_lightning.reference.modes import source_of, starts_at_zero

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import Tensor

    from adadpo_lightning.data.plan import StepPlan
    from adadpo_lightning.training.module import PreferenceLitModule
    from adadpo_lightning.types import PreferenceBatch, StepOutput

# Losses of the same pairs differ by rounding only.
LOSS_TOLERANCE = 1e-3
# Nats per token between policy and reference with the same weights.
RATIO_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
GIB = 2**30


@dataclass
class Measurement:
    """Cost of one micro-batch.

    Args:
        tokens: Its tokens: prompts and both answers.
        seconds: Time of its forward and backward pass.
        peak: Peak bytes so far, on the GPU or in the process.
    """

    tokens: int
    seconds: float
    peak: int


@dataclass
class Probe(Callback):
    """Probes a run in `on_train_start`, reports each finding immediately, and stops the run.

    Args:
        folder: Directory for a trial cache of the reference; nothing else is written.
        report: Called with each finding.
        budget: Time limit of the measurements in seconds; a micro-batch that would exceed it is extrapolated.
    """

    folder: Path
    report: Callable[[Finding], None] = print
    budget: float = 25.0
    findings: list[Finding] = field(default_factory=list)

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Use a live reference if the run would first fill a cache over all pairs."""
        if pl_module.reference_mode == "cached":
            pl_module.reference_mode = source_of(pl_module.policy_config, pl_module.reference_path)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Run the checks before policy and optimizer change."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning attaches it
        plan, pairs = data.plan, data.prepared["train"].pairs
        batches = MicroBatches(
            pairs,
            layout=pl_module.layout,
            pad_id=0,
            with_rejected=bool(pl_module.loss.needs_rejected),
            share=plan.groups is not None,
        )
        sizes = sizes_of(plan)
        self._check(trainer, pl_module, plan, batches, sizes.shortest)
        self._measure(trainer, pl_module, plan, batches, [sizes.shortest, sizes.middle, sizes.longest])
        trainer.should_stop = True
        trainer.fit_loop.min_epochs = 0
        trainer.fit_loop.epoch_loop.min_steps = None

    def _say(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.report(finding)

    def _check(
        self, trainer: Trainer, module: PreferenceLitModule, plan: StepPlan, batches: MicroBatches, rows: Rows
    ) -> None:
        output, norm = forward_backward(trainer, module, batch_of(batches, rows, plan).to(module.device))
        self._say(starting_loss(trainer, module, output, batch_of(batches, rows, plan)))
        if module.loss.needs_reference:
            self._say(cached_against_live(trainer, module, batches, rows, plan, self.folder))
        self._say(gradient_finding(norm, len(rows)))

    def _measure(
        self, trainer: Trainer, module: PreferenceLitModule, plan: StepPlan, batches: MicroBatches, sizes: list[Rows]
    ) -> None:
        """Measure the shortest and the longest, or the medium if the longest would take too long."""
        shortest, middle, longest = sizes
        begun, update, measured = time.perf_counter(), 0.0, [self._time(trainer, module, plan, batches, shortest)]
        update = _update_seconds(trainer)
        measured[0].peak = peak_bytes()  # including the optimizer state, as in every later step
        for rows in (longest, middle):
            tokens = plan.tokens(np.array(rows))
            expected = measured[0].seconds * tokens / measured[0].tokens
            if time.perf_counter() - begun + expected <= self.budget:
                measured.append(self._time(trainer, module, plan, batches, rows))
                break
        self._extrapolate(plan, measured, update, plan.tokens(np.array(longest)))

    def _time(
        self, trainer: Trainer, module: PreferenceLitModule, plan: StepPlan, batches: MicroBatches, rows: Rows
    ) -> Measurement:
        batch = batch_of(batches, rows, plan).to(module.device)
        begun = _now()
        forward_backward(trainer, module, batch)
        found = Measurement(plan.tokens(np.array(rows)), _now() - begun, peak_bytes())
        pairs = f"{len(rows)} pair{'s' if len(rows) > 1 else ''}"
        self._say(Finding("micro-batch", f"{pairs}, {found.tokens} tokens: {found.seconds:.2f} s forward and backward"))
        return found

    def _extrapolate(self, plan: StepPlan, measured: list[Measurement], update: float, longest: int) -> None:
        tokens = [each.tokens for each in measured]
        line = fit_line(tokens, [each.seconds for each in measured])
        found = duration(plan, line, update)
        self._say(
            Finding(
                "a step",
                f"about {shown(found.step)}: {plan.accumulate} micro-batches on each of {plan.ranks} rank(s), "
                f"{update:.2f} s for the optimizer",
            )
        )
        self._say(Finding("an epoch", f"about {shown(found.epoch)}: {plan.steps} steps"))
        peak, note = float(measured[-1].peak), "measured"
        if tokens[-1] < longest:
            note = f"extrapolated from {tokens[-1]} to {longest} tokens"
            if len(measured) > 1:
                growth = (measured[-1].peak - measured[0].peak) / max(1, tokens[-1] - tokens[0])
                peak += max(0.0, growth) * (longest - tokens[-1])
            else:
                note = f"measured with {tokens[-1]} tokens; the longest have {longest}"
        where = "on the GPU" if torch.cuda.is_available() else "of memory in this process"
        self._say(Finding("peak", f"{peak / GIB:.2f} GiB {where}, {note}"))


def batch_of(batches: MicroBatches, rows: Rows, plan: StepPlan) -> PreferenceBatch:
    """A micro-batch that is a complete step."""
    chosen = int(plan.chosen_lengths[list(rows)].sum())
    return batches[MicroBatch(rows=rows, step=0, step_pairs=len(rows), step_chosen_tokens=chosen)]


def forward_backward(trainer: Trainer, module: PreferenceLitModule, batch: PreferenceBatch) -> tuple[StepOutput, float]:
    """One training step without the update.

    Returns:
        The step output that callbacks read, and the gradient norm over all ranks.
    """
    optimizer = trainer.optimizers[0]
    optimizer.zero_grad(set_to_none=True)
    with trainer.precision_plugin.train_step_context():
        share, output = module.step(batch)
    trainer.strategy.backward(share, optimizer)
    scale = loss_scale(trainer.precision_plugin.scaler) if hasattr(trainer.precision_plugin, "scaler") else None
    return output, float(gradient_norm(module.parameters())) / (1.0 if scale is None else float(scale))


def _update_seconds(trainer: Trainer) -> float:
    """Time of one optimizer step, after a first one that creates the optimizer state."""
    seconds = 0.0
    for _ in range(2):
        begun = _now()
        trainer.optimizers[0].step()
        seconds = _now() - begun
    return seconds


def starting_loss(trainer: Trainer, module: PreferenceLitModule, output: StepOutput, batch: PreferenceBatch) -> Finding:
    """Check that rewards are 0 at step 0 and that the loss has the corresponding value."""
    what, pairs = "loss at step 0", output.pairs
    if pairs.ref_chosen is None or pairs.ref_rejected is None:
        return Finding(what, f"{float(output.share):.4f}; the loss has no reference to agree with")
    same = replace(pairs, chosen=pairs.ref_chosen, rejected=pairs.ref_rejected)
    expected = float(module.current_loss()(same).reduce(batch.step_pairs, batch.step_chosen_tokens))
    ratios = torch.cat([pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected])
    lengths = torch.cat([pairs.chosen_len, pairs.rejected_len]).clamp(min=1)
    per_token = float((ratios / lengths).abs().max())
    detail = (
        f"{float(output.share):.4f}, and {expected:.4f} where policy and reference are the same (ln 2 for dpo); "
        f"largest log-ratio {float(ratios.abs().max()):.2g}"
    )
    half = "bf16" in str(trainer.precision) or "16-mixed" in str(trainer.precision)
    dtype = torch.bfloat16 if half else next(module.built_policy.parameters()).dtype
    agrees = abs(float(output.share) - expected) < LOSS_TOLERANCE and per_token <= RATIO_TOLERANCE[dtype]
    if not agrees and not starts_at_zero(module.reference_mode, module.policy_config, module.reference_path):
        return Finding(what, f"{detail}; model.reference {module.reference_mode} is another model than the policy")
    return Finding(what, detail, "ok" if agrees else "FAIL")


def gradient_finding(norm: float, pairs: int) -> Finding:
    """Check that a gradient is finite and not 0."""
    detail = f"norm {norm:.4g} over {pairs} pairs"
    return Finding("gradient of the first step", detail, "ok" if 0 < norm < float("inf") else "FAIL")


def cached_against_live(
    trainer: Trainer, module: PreferenceLitModule, batches: MicroBatches, rows: Rows, plan: StepPlan, folder: Path
) -> Finding:
    """Compare a micro-batch, written to a trial cache and read back, with its pairs computed live one at a time."""
    alone = copy(batches)
    alone.share = False
    numbers = tuple(range(len(rows)))
    lengths = batch_of(alone, rows, plan).answer_len.numpy().reshape(-1, len(rows)).T
    dtype = next(module.built_policy.parameters()).dtype
    cache = ReferenceCache(folder, np.arange(lengths.size).reshape(lengths.shape), lengths, dtype)
    cache.create()

    def collated(micro_batch: MicroBatch) -> PreferenceBatch:
        return batch_of(alone, tuple(rows[number] for number in micro_batch.rows), plan)

    def live(batch: PreferenceBatch) -> Tensor:
        with torch.no_grad():
            # Without a live reference, the unchanged policy is the reference.
            reference = module.live_reference
            return module.built_policy(batch) if reference is None else reference(batch)

    whole = MicroBatch(rows=numbers, step=0, step_pairs=len(rows), step_chosen_tokens=int(lengths[:, 0].sum()))
    with trainer.precision_plugin.forward_context():
        fill(cache, [whole], collated, live, module.device)
        singles = [collated(replace(whole, rows=(number,))).to(module.device) for number in numbers]
        differences = [
            (cache.read([number]).to(module.device) - live(batch)).abs().mean()
            for number, batch in zip(numbers, singles, strict=True)
        ]
    difference = max(float(value) for value in differences)
    return Finding(
        "cached against live reference",
        f"{difference:.2g} nats a token apart over {len(rows)} pairs",
        "ok" if difference <= TOLERANCE[dtype] else "FAIL",
    )


def peak_bytes() -> int:
    """Peak memory so far, on the GPU or, without one, of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def shown(seconds: float) -> str:
    """A duration as text.

    Example:
        >>> shown(0.5), shown(90), shown(7200)
        ('0.50 s', '1.5 min', '2.0 h')
    """
    if seconds < 60:
        return f"{seconds:.2f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
