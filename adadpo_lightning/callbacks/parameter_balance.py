"""Gradients in parameter space: norms and directions of the chosen and the rejected part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from lightning.pytorch import Callback
from torch import nn

from adadpo_lightning import log
from adadpo_lightning.compat import steps_logged
from adadpo_lightning.data.position import sharing
from adadpo_lightning.errors import UserError
from adadpo_lightning.metrics.parameter_gradients import inner_products, part_norms, part_slopes, token_weights
from adadpo_lightning.models.sharding import decoder_blocks
from adadpo_lightning.ranks import total
from adadpo_lightning.strategies.capabilities import shards_parameters, shows_gradients

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor

    from adadpo_lightning.models.policy import PolicyModel
    from adadpo_lightning.training.module import PreferenceLitModule
    from adadpo_lightning.types import PreferenceBatch


class ParameterGradientBalance(Callback):
    """Logs norms, ratio and cosine of the chosen and the rejected part of the gradient, every n optimizer steps.

    The chosen part is the gradient of the contrastive loss through the chosen answers' log-probabilities, the rejected
    part the gradient through the rejected ones. Together with the NLL part, if the loss has one, they sum to the full
    gradient. They are measured before the step, on the first micro-batch of each rank, with one forward and one
    backward pass per part. They are per pair (per chosen token for the NLL part) of these micro-batches, not of the
    full step.

    Logs ``train/grad_norm/params_{chosen,rejected,ratio,cosine}`` and ``params_nll``, and the same for each group of
    parameters: ``.../embeddings``, ``.../layer_00`` etc. and ``.../head`` (the rest: final norm and output matrix; a
    matrix tied to the embedding counts as embedding). With LoRA only adapter parameters count. A ratio or cosine of
    zeros is omitted.

    Training results stay identical bit by bit. A measurement temporarily needs memory for two more gradients.

    Args:
        every_n_steps: Number of optimizer steps between measurements; the first is at step 0.

    Raises:
        UserError: If `every_n_steps` is below 1, or the strategy hides the parameters' gradients.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise UserError("ParameterGradientBalance.every_n_steps", f"expected at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._previous: float | None = None
        self._seconds = 0.0
        self._cost_said = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reject strategies whose gradients cannot be read per parameter."""
        if not shows_gradients(trainer.strategy):
            raise UserError(
                "trainer.callbacks",
                f"ParameterGradientBalance cannot read gradients under {type(trainer.strategy).__name__}",
                "use a single device, ddp or adadpo_lightning.strategies.FSDP2, or remove the callback",
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PreferenceBatch, batch_idx: int
    ) -> None:
        """Measure at the first micro-batch of a step, when no gradient has been accumulated yet."""
        if batch_idx % trainer.accumulate_grad_batches or trainer.global_step % self.every_n_steps:
            return
        start = _now(pl_module.device)
        products = measure(trainer, cast("PreferenceLitModule", pl_module), batch)
        metrics = {f"train/{name}": value for name, value in part_norms(products).items()}
        if metrics:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=steps_logged(trainer))
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        self._say_cost(start, _now(pl_module.device))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the cost if there was only one measurement."""
        if self._previous is not None and not self._cost_said:
            log.info(f"ParameterGradientBalance took {self._seconds:.2g} s, once in this run.")

    def _say_cost(self, start: float, end: float) -> None:
        self._seconds = end - start
        # At the second measurement: the first includes warm-up, and an interval needs two.
        if self._previous is not None and not self._cost_said:
            self._cost_said = True
            share = self._seconds / (end - self._previous)
            log.info(
                f"ParameterGradientBalance takes {self._seconds:.2g} s every {self.every_n_steps} steps, {share:.1%} "
                "of the training time; raise every_n_steps to lower it."
            )
        self._previous = end


def measure(trainer: Trainer, module: PreferenceLitModule, batch: PreferenceBatch) -> dict[str, dict[str, float]]:
    """Inner products of the parts' gradients, in each group of parameters.

    Args:
        trainer: Trainer whose strategy determines how gradients are combined over ranks; all ranks must call this.
        module: Module at whose weights the gradients are computed.
        batch: This rank's micro-batch, on its device.

    Returns:
        For each group: ``chosen``, ``rejected`` and ``nll``, the squared norms of the parts that the loss has, and
        ``cross``, the inner product of chosen and rejected. Empty if every rank's micro-batch is a filler.
    """
    policy = module.built_policy
    with _unobserved(policy):
        groups = parameter_groups(policy)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            _, output = module.step(batch)
        counts = torch.stack([torch.ones_like(batch.chosen_len), batch.chosen_len]).sum(1)
        pairs, tokens = total(counts * 0 if batch.filler else counts).tolist()
        if not pairs:
            return {}
        slopes = part_slopes(module.current_loss(), output.pairs, pairs, tokens)

        def gradient(part: str) -> list[Tensor]:
            weights = token_weights(slopes[part], part, batch)
            return _gradient(trainer, module, batch, weights * 0 if batch.filler else weights, groups)

        return _products(list(slopes), gradient, groups)


def parameter_groups(policy: PolicyModel) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters by location: ``embeddings``, ``layer_00`` etc., and ``head`` for the rest."""
    blocks = decoder_blocks(policy.causal_lm)
    owner = {id(p): f"layer_{i:02d}" for i, block in enumerate(blocks) for p in block.parameters()}
    lookups = [m for m in policy.modules() if isinstance(m, nn.Embedding)] + [policy.causal_lm.get_input_embeddings()]
    for parameter in (p for module in lookups for p in module.parameters()):
        owner.setdefault(id(parameter), "embeddings")
    groups: dict[str, list[nn.Parameter]] = {}
    for parameter in policy.parameters():
        if parameter.requires_grad:
            groups.setdefault(owner.get(id(parameter), "head"), []).append(parameter)
    return groups


def _gradient(
    trainer: Trainer,
    module: PreferenceLitModule,
    batch: PreferenceBatch,
    weights: Tensor,
    groups: Mapping[str, Sequence[nn.Parameter]],
) -> list[Tensor]:
    """Gradient of ``sum(weights * logps)`` over all ranks' micro-batches, for the parameters or this rank's shards."""
    parameters = [p for group in groups.values() for p in group]
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scale = 1.0 if scaler is None else scaler.get_scale()  # small float16 gradients would underflow without it
    # Each part needs its own graph: compiled blocks and gathered weights are freed after a backward pass.
    # The module draws the same dropout masks in each pass over a micro-batch.
    with trainer.precision_plugin.forward_context():
        logps = module(batch)
    weights = weights.to(logps.dtype) * scale
    if shards_parameters(trainer.strategy):
        # Only the hooks of `backward` write the gradients of shards, and they average over ranks.
        gradients = _by_backward(logps, weights * sharing(trainer)[0], parameters)
    else:
        # Not `backward`, which would trigger DDP's reducer.
        gradients = list(torch.autograd.grad(logps, parameters, weights, materialize_grads=True))
        for i, gradient in enumerate(gradients):
            gradients[i] = total(gradient)
    return gradients if scaler is None else [gradient / scale for gradient in gradients]


def _by_backward(logps: Tensor, weights: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The gradients that `backward` writes to ``.grad``; the previous ``.grad`` is restored afterwards."""
    before = [p.grad for p in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        logps.backward(weights)  # type: ignore[no-untyped-call]  # untyped in torch
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


def _products(
    parts: Sequence[str], gradient: Callable[[str], list[Tensor]], groups: Mapping[str, Sequence[nn.Parameter]]
) -> dict[str, dict[str, float]]:
    sums: dict[str, Tensor] = {}
    kept: dict[str, list[Tensor]] = {}
    for part in parts:
        found = gradient(part)
        sums[part] = inner_products(found, found, groups)
        if part == "chosen":
            kept[part] = found
        elif part == "rejected":
            sums["cross"] = inner_products(kept.pop("chosen"), found, groups)
        del found
    table = {name: values.tolist() for name, values in sums.items()}
    return {group: {name: table[name][i] for name in table} for i, group in enumerate(groups)}


@contextmanager
def _unobserved(policy: PolicyModel) -> Iterator[None]:
    """Disable the hook for ``grad_norm/chosen`` etc., which would mistake these passes for training."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(policy, FSDPModule):
        policy.reshard()  # after a forward pass without backward, as in validation, some weights are still gathered
    observer, policy.gradient_observer = policy.gradient_observer, None
    try:
        yield
    finally:
        policy.gradient_observer = observer


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
