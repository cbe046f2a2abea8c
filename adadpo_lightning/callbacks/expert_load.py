"""How evenly the routers of a mixture of experts spread the tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback

from adadpo_lightning.compat import accumulating, ends_logged_step
from adadpo_lightning.data.position import sharing
from adadpo_lightning.metrics import names
from adadpo_lightning.metrics.experts import load_entropy, max_load
from adadpo_lightning.ranks import total

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor

    from adadpo_lightning.types import PreferenceBatch


class ExpertLoad(Callback):
    """Logs ``train/moe/layer_03/max_load`` and ``.../entropy`` for each layer with a router; nothing for other models.

    ``max_load`` is the number of tokens of the busiest expert over the mean of all experts: 1 is even. ``entropy`` is
    that of the experts' shares, 1 if they are equal and 0 if one expert gets all tokens. Both are over all tokens that
    all ranks have computed since the last log line, at ``trainer.log_every_n_steps``; a shared prompt counts as often
    as it is computed. Nothing waits for the device in between. With ``model.policy.compile`` nothing is logged.
    """

    def __init__(self) -> None:
        self._tokens: Tensor | None = None  # (layers, experts), of this rank
        self._at_last_step: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """Tokens of all ranks since the last log line, as of the last optimizer step; every rank must call it."""
        return {} if self._at_last_step is None else {"tokens": total(self._at_last_step).cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the tokens, so that the first log line of a resumed run includes all of them."""
        self._at_last_step = state_dict.get("tokens")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the tokens of a checkpoint; they are of all ranks, so only one of those with different data does."""
        if self._at_last_step is not None:
            restored = self._at_last_step.to(pl_module.device)
            self._tokens = self._at_last_step = restored * 0 if sharing(trainer)[1] else restored

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PreferenceBatch, batch_idx: int
    ) -> None:
        """Add the micro-batch; log at the steps at which Lightning writes."""
        if not outputs or outputs["step"].expert_tokens is None:  # the step was skipped, or there are no experts
            return
        # float64: float32 would lose counts from 2 ** 24 tokens on.
        tokens = outputs["step"].expert_tokens.to(torch.float64) * (not batch.filler)
        self._tokens = tokens if self._tokens is None else self._tokens + tokens
        if ends_logged_step(trainer):
            self._log(pl_module)
        if not accumulating(trainer):
            self._at_last_step = self._tokens

    def _log(self, module: LightningModule) -> None:
        if self._tokens is None:
            return
        tokens, self._tokens = total(self._tokens), None
        measures = torch.stack([max_load(tokens), load_entropy(tokens)]).tolist()
        policy: Any = module.built_policy
        logged = {
            names.train(names.expert_load(layer, measure)): value
            for measure, values in zip(("max_load", "entropy"), measures, strict=True)
            for layer, value in zip(policy.routed_blocks, values, strict=True)
        }
        # The values are of all ranks, so Lightning must not reduce them again.
        module.log_dict(logged, on_step=True, on_epoch=False, batch_size=1)
