"""Parts of `gpu.py` that show that a GPU computes the right thing and is never waited for.

    python benchmarks/gpu_checks.py sync --output sync.json [--rehearse]

A part writes what it has found after every case, and fails at its end if a case did.
"""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from gpu import ROOT
from gpu_case import ARCHITECTURES, Report, batch_of, run, small_policy


def logps_and_gradient(
    kind: str, dtype: str, backend: str, answers: int, report: Report
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and the gradient of a fixed sum of them, both in float64 on the host."""
    model = small_policy(kind, dtype, backend, report.rehearse).to(report.device)
    logps = model(batch_of(answers, model.layout, report.rehearse).to(report.device))
    weights = torch.linspace(-1.0, 1.0, len(logps), device=logps.device, dtype=logps.dtype)
    (logps * weights).sum().backward()
    gradient = torch.cat([p.grad.double().flatten().cpu() for p in model.parameters()])
    return logps.detach().double().cpu(), gradient


@dataclass(frozen=True, eq=False)
class Comparison:
    """Backends over one model and batch, against the padded layout in float64.

    Args:
        kind: Architecture.
        answers: Answers to each prompt.
        report: The part's report.
    """

    kind: str
    answers: int
    report: Report

    def distances(self, dtype: str, backend: str) -> dict[str, float]:
        """Relative error of log-probabilities and of the gradient."""
        found = logps_and_gradient(self.kind, dtype, backend, self.answers, self.report)
        pairs = zip(("logps", "gradient"), found, self.exact, strict=True)
        return {name: float((value - exact).norm() / exact.norm()) for name, value, exact in pairs}

    @cached_property
    def exact(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What every backend should give."""
        return logps_and_gradient(self.kind, "float64", "padded", self.answers, self.report)

    @cache  # noqa: B019  # a process has few of these
    def plain(self, dtype: str) -> dict[str, float]:
        """What the padded layout itself loses in a data type."""
        return self.distances(dtype, "padded")

    def check(self, dtype: str, backend: str) -> dict[str, float]:
        """The backend's distances, which may be twice the padded layout's."""
        found, plain = self.distances(dtype, backend), self.plain(dtype)
        floor, most = (1e-5, 1e-3) if dtype == "float32" else (1e-3, 0.1)
        assert max(plain.values()) <= most, f"the padded layout is no measure: {plain}, more than {most}"
        far = [name for name, value in found.items() if not value <= 2 * plain[name] + floor]
        assert not far, f"{far}: {found} is over twice the padded layout's {plain}"
        return {**found, **{f"{name} of the padded layout": value for name, value in plain.items()}}


def backends(report: Report) -> None:
    """Every backend that serves the case."""
    from adadpo_lightning.errors import UserError
    from adadpo_lightning.models.attention.registry import choose_backend

    names = ("segments", "tree") if report.rehearse else ("segments", "varlen", "flex")
    kinds = ("llama",) if report.rehearse else tuple(ARCHITECTURES)
    for kind, answers in product(kinds, (2, 4)):
        comparison = Comparison(kind, answers, report)
        for dtype, name in product(("float32", "bfloat16"), names):
            case = f"{kind}, {answers} answers, {dtype}, {name}"
            try:
                capped = "attn_logit_softcapping" in ARCHITECTURES[kind]
                choose_backend(name, report.device, getattr(torch, dtype), capped=capped)
            except UserError as reason:
                report.values[case] = f"not served: {reason}"
                continue
            report.case(case, partial(comparison.check, dtype, name))


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Raise where the host waits for the device; on a CPU nothing can."""
    if device != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def sync(report: Report) -> None:
    """Training steps with their optimizer's, in which nothing may wait; then a Trainer's, whose waits are named."""
    from adadpo_lightning.losses import build_loss
    from adadpo_lightning.metrics import WeightedMeans
    from adadpo_lightning.metrics.gradients import gradient_squares
    from adadpo_lightning.metrics.preference import gradient_statistics, step_statistics
    from adadpo_lightning.training.module import PreferenceLitModule
    from adadpo_lightning.training.optim import OptimizerConfig, build_optimizer

    def steps(loss: str, dtype: str, answers: int) -> str:
        policy = small_policy("llama", dtype, "auto", report.rehearse)
        module = PreferenceLitModule(policy_config(policy), build_loss(loss))
        module.policy = policy
        module.to(report.device)
        optimizer = build_optimizer(module, OptimizerConfig(lr=1e-5, fused=True))
        batch = batch_of(answers, policy.layout, report.rehearse)
        if not report.rehearse:
            batch = batch.pin_memory()
        means = WeightedMeans().to(report.device)
        squares: list[torch.Tensor] = []
        policy.gradient_observer = lambda given, gradient: squares.append(gradient_squares(given, gradient))

        def step() -> None:
            given = batch.to(report.device, non_blocking=True)
            if module.loss.needs_reference:
                given.ref_logps = torch.full(given.targets.shape, -4.0, device=report.device)
            share, output = module.step(given)
            share.backward()
            means.update(step_statistics(output, given, 0.1) | gradient_statistics(squares.pop(), given))
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        step()  # kernels and optimizer state are made here
        with no_waiting(report.device):
            step()
        assert means.compute()["loss"] > 0
        return "no wait"

    for loss in ("adadpo",) if report.rehearse else ("adadpo", "lddpo", "cpo", "wpo", "simpo"):
        for dtype in ("float32", "bfloat16"):
            for answers in (2, 4):
                report.case(f"{loss}, {dtype}, {answers} answers", partial(steps, loss, dtype, answers))
    report.case("waits per step of a Trainer", partial(trainer_waits, report))


def policy_config(policy: Any) -> Any:
    """A config for a module whose policy is already built."""
    from adadpo_lightning.models.loading import PolicyConfig

    return PolicyConfig(config=policy.causal_lm.config.to_dict(), tokenizer="unused")


# Code that may wait, and why: once a log line, or for a copy that was started a step before.
MAY_WAIT = ("metrics/aggregate.py", "metrics/preference.py", "callbacks/", "loggers/", "connectors/logger_connector")


def trainer_waits(report: Report) -> dict[str, Any]:
    """Waits of a run with the default callbacks by place in the code, without those of its first two steps.

    A place that is not among `MAY_WAIT` fails.
    """
    from lightning.pytorch import Callback, Trainer

    from adadpo_lightning.data.datamodule import PreferenceDataModule
    from adadpo_lightning.losses import build_loss
    from adadpo_lightning.models.loading import PolicyConfig
    from adadpo_lightning.training.module import PreferenceLitModule
    from tests.support.tiny import make_model_dir, make_rows, write_rows

    first, last = 2, 12

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            if not report.rehearse and trainer.global_step == first:
                torch.cuda.set_sync_debug_mode("warn")

        def on_train_end(self, *args: Any) -> None:
            if not report.rehearse:
                torch.cuda.set_sync_debug_mode("default")

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = make_model_dir(Path(folder) / "model", hidden=64)
        pairs = write_rows(Path(folder) / "pairs.jsonl", make_rows(4 * last))
        module = PreferenceLitModule(PolicyConfig(path=str(model)), build_loss("adadpo"))
        data = PreferenceDataModule(train=str(pairs), global_batch_size=4, micro_batch_size=2)
        trainer = Trainer(
            accelerator=report.device, devices=1, max_steps=last, log_every_n_steps=5, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder, callbacks=[Watch()], num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
    places = Counter(
        f"{Path(w.filename).as_posix().rpartition('site-packages/')[2].removeprefix(f'{ROOT}/')}:{w.lineno}"
        for w in caught
        if "synchronizing CUDA operation" in str(w.message)
    )
    unknown = [place for place in places if not any(name in place for name in MAY_WAIT)]
    print(f"waits: {dict(places)}")
    assert not unknown, f"waits at unexpected places: {unknown}; all: {dict(places)}"
    return {"steps": last - first, "places": dict(places)}


def main() -> None:
    """Run one part."""
    run({f.__name__: f for f in (sync, backends)}, str(__doc__))


if __name__ == "__main__":
    main()
