"""Where reference log-probabilities come from: a frozen copy, or the policy with its adapter off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import torch

from adadpo_lightning.models.build import build_policy

if TYPE_CHECKING:
    from typing import Any

    from torch import Tensor

    from adadpo_lightning.models.loading import PolicyConfig
    from adadpo_lightning.models.policy import PolicyModel
    from adadpo_lightning.models.sharding import Sharding
    from adadpo_lightning.types import PreferenceBatch


ReferenceMode = Literal["none", "frozen", "adapter_off", "cached"]


class Reference(Protocol):
    """Anything that gives reference log-probabilities."""

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        """Log-probability of each scored token of the batch under the reference, nats, shape (N,), no gradient."""


class FrozenReference:
    """A second model of the same weights as the policy at step 0.

    Loaded by the same config and so of the same dtype, it follows the policy's device at its first use: then the very
    same computation gives rewards of exactly 0 at step 0.

    Args:
        model: The copy; its parameters are frozen here.
        policy: The model to follow.
    """

    def __init__(self, model: PolicyModel, policy: PolicyModel) -> None:
        self.model = model.eval().requires_grad_(False)
        self.policy = policy
        self._placed = False

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        """See `Reference`."""
        if not self._placed:
            # Not the dtype: `to` would round the rotary embedding's buffers, which stay float32 in any model.
            self.model.to(next(self.policy.parameters()).device)
            self._placed = True
        with torch.no_grad():
            logps: Tensor = self.model(batch)
        return logps


class AdapterOffReference:
    """The policy itself with its adapters switched off: no second model in memory.

    Args:
        policy: A policy with adapters.
    """

    def __init__(self, policy: PolicyModel) -> None:
        self.policy = policy

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        """See `Reference`."""
        with torch.no_grad(), self.policy.adapter_off():
            logps: Tensor = self.policy(batch)
        return logps


def build_reference(
    mode: ReferenceMode,
    policy: PolicyModel,
    config: PolicyConfig,
    tokenizer: Any = None,
    sharding: Sharding | None = None,
) -> Reference | None:
    """Make the reference of a policy.

    Args:
        mode: ``none``, ``frozen`` (a copy, adapter included if there is one), ``adapter_off``, or ``cached``: none to
            keep, its numbers come with the batches.
        policy: The policy as it is before training.
        config: What the policy was loaded by.
        tokenizer: Its tokenizer, for the same checks.
        sharding: How to shard a copy; None keeps it whole.
    """
    if mode in ("none", "cached"):
        return None
    if mode == "adapter_off":
        return AdapterOffReference(policy)
    return FrozenReference(build_policy(config, tokenizer, sharding, frozen=True), policy)
