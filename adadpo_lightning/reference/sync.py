"""A reference that follows the policy: TR-DPO, arXiv 2404.09656, equations 2 and 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.models.adapters import paired_adapters
from adadpo_lightning.models.shards import local

if TYPE_CHECKING:
    from adadpo_lightning.models.loading import PolicyConfig
    from adadpo_lightning.models.policy import PolicyModel


@dataclass
class SyncOptions:
    """Updates of a ``synced`` reference.

    Args:
        alpha: Weight of the policy in ``ref <- alpha * policy + (1 - alpha) * ref``, in (0, 1]; 1 copies the policy.
        every_n_steps: Number of optimizer steps between updates.
    """

    alpha: float = 0.6
    every_n_steps: int = 512

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 < self.alpha <= 1:
            raise UserError("model.sync.alpha", f"expected a number in (0, 1], got {self.alpha}", "the paper uses 0.6")
        if self.every_n_steps < 1:
            raise UserError("model.sync.every_n_steps", f"expected at least 1, got {self.every_n_steps}")

    def check(self, policy: PolicyConfig) -> None:
        """Reject mixing of adapters: the mean of two low-rank products is not the product of their mean factors.

        Raises:
            UserError: For a policy with LoRA and an `alpha` below 1.
        """
        if policy.lora is not None and self.alpha != 1:
            raise UserError(
                "model.sync.alpha",
                f"a policy with LoRA can only be copied (alpha 1), got {self.alpha}: "
                "the mixture of two adapters is not an adapter of the same rank",
                "set it to 1, or train the full model",
            )

    def due(self, step: int) -> bool:
        """Whether the reference is updated after this optimizer step, counted from 1."""
        return step % self.every_n_steps == 0


def sync(policy: PolicyModel, reference: PolicyModel | None, alpha: float) -> None:
    """Update the reference towards the policy, in place.

    Args:
        policy: The policy, sharded or not.
        reference: Its frozen copy, sharded identically; None updates the policy's reference adapter.
        alpha: Weight of the policy.
    """
    pairs = (
        paired_adapters(policy.model)
        if reference is None
        else zip(policy.parameters(), reference.parameters(), strict=True)
    )
    with torch.no_grad():
        for new, old in pairs:
            local(old).lerp_(local(new).to(old.device), alpha)
