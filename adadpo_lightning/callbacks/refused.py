"""Lightning callbacks that have no effect, or a wrong one, in preference training."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)

from adadpo_lightning.compat import keep_equal_weights
from adadpo_lightning.errors import UserError
from adadpo_lightning.strategies.capabilities import hides_gradients, shards_parameters

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from adadpo_lightning.training.module import PreferenceLitModule

# For each class: the reason, and what to use instead.
REFUSED: dict[type[Callback], tuple[str, str]] = {
    StochasticWeightAveraging: (
        "copies the module before its weights are loaded, so it would average nothing; it also averages once an epoch "
        "and replaces the learning-rate schedule",
        "use lightning.pytorch.callbacks.EMAWeightAveraging or WeightAveraging, which average optimizer steps",
    ),
    BaseFinetuning: (
        "freezes parts of the module before its weights are loaded, so it would freeze nothing",
        "set model.policy.lora to train adapters alone",
    ),
    ModelPruning: (
        "looks for weights before they are loaded, and would rename those of checkpoints and exports",
        "prune the exported model",
    ),
    LearningRateFinder: (
        "raises the rate within one run whose loss does not compare over so few pairs, and sets an attribute of the "
        "module that nothing reads",
        "compare short runs with several values of model.optimizer.lr, for example with the command study",
    ),
    BatchSizeFinder: (
        "changes the batch size of loaders, which the step plan decides here",
        "let the command doctor measure a step, and set data.micro_batch_size or data.max_tokens",
    ),
}
AVERAGED = "use float32 weights, with trainer.precision bf16-mixed for the speed of bfloat16"


def refuse_unsupported(trainer: Trainer, module: PreferenceLitModule) -> None:
    """Reject callbacks that would not work, before training.

    Raises:
        UserError: Naming the callback and a replacement.
    """
    for callback in _callbacks(trainer):
        for kind, (reason, remedy) in REFUSED.items():
            if isinstance(callback, kind):
                raise UserError("trainer.callbacks", f"{type(callback).__name__} {reason}", remedy)
        if isinstance(callback, WeightAveraging):
            _check_averaging(trainer, module, type(callback).__name__)
            keep_equal_weights(callback)


def _check_averaging(trainer: Trainer, module: PreferenceLitModule, name: str) -> None:
    if shards_parameters(trainer.strategy) or hides_gradients(trainer.strategy):
        raise UserError(
            "trainer.callbacks", f"{name} copies the module whole, which a strategy that shards it cannot", "use ddp"
        )
    if module.reference_mode == "synced":
        raise UserError(
            "trainer.callbacks",
            f"{name} would average the reference too, which follows the policy already",
            "set model.reference to another mode, or remove the callback",
        )
    lora = module.policy_config.lora
    if lora is not None and lora.quantize is not None:
        raise UserError(
            "trainer.callbacks", f"{name} cannot average weights of 4 bits", "set model.policy.lora.quantize to null"
        )


def refuse_rounded_average(trainer: Trainer, module: PreferenceLitModule) -> None:
    """Reject averages in 16 bits, once the weights are loaded: a step's share is less than their rounding.

    Raises:
        UserError: Naming the callback and the type of the weights.
    """
    for callback in _callbacks(trainer):
        if isinstance(callback, WeightAveraging):
            trained = {p.dtype for p in module.parameters() if p.requires_grad}
            for dtype in trained & {torch.bfloat16, torch.float16}:
                short = str(dtype).removeprefix("torch.")
                raise UserError(
                    "trainer.callbacks",
                    f"{type(callback).__name__} of {short} weights would round away what each step adds",
                    AVERAGED,
                )


def _callbacks(trainer: Trainer) -> list[Callback]:
    return cast("list[Callback]", trainer.callbacks)  # type: ignore[attr-defined]  # set in the trainer's connector
