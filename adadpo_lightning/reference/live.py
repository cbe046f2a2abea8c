"""Live references: a second model, or the policy with a different adapter or none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch

from adadpo_lightning import log
from adadpo_lightning.data.tokenizer import read_tokenizer
from adadpo_lightning.errors import UserError
from adadpo_lightning.models.build import build_policy
from adadpo_lightning.reference.modes import uses_reference_adapter

if TYPE_CHECKING:
    from typing import Any

    from torch import Tensor

    from adadpo_lightning.models.loading import PolicyConfig
    from adadpo_lightning.models.policy import PolicyModel
    from adadpo_lightning.models.sharding import Sharding
    from adadpo_lightning.reference.modes import ReferenceMode
    from adadpo_lightning.types import PreferenceBatch


class Reference(Protocol):
    """Interface of reference log-probabilities."""

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        """Log-probability of each scored token of the batch under the reference, nats, shape (N,), no gradient."""


class FrozenReference:
    """A second model: a copy of the policy at step 0, or a different model.

    On first use it moves to the policy's device, and to float64 if the policy was converted to it. A copy is loaded
    with the policy's config, so that rewards are exactly 0 at step 0.

    Args:
        model: The second model; its parameters are frozen.
        policy: The policy, whose device and float64 are used.
    """

    def __init__(self, model: PolicyModel, policy: PolicyModel) -> None:
        self.model = model.eval().requires_grad_(False)
        self.policy = policy
        self._placed = False

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        """See `Reference`."""
        if not self._placed:
            first = next(self.policy.parameters())
            # Not the dtype: `to` would round the buffers of rotary embeddings, which must stay float32.
            self.model.to(first.device)
            if first.dtype == torch.float64:  # `trainer.precision: 64-true` converts the policy, which is not loaded so
                self.model.double()
            self._placed = True
        with torch.no_grad():
            logps: Tensor = self.model(batch)
        return logps


class AdapterOffReference:
    """The policy with its adapters disabled; no second model in memory.

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


class AdapterReference:
    """The policy with a frozen second adapter instead of the trained one; no second base model in memory.

    Args:
        policy: A policy built with ``reference_adapter=True``.
    """

    def __init__(self, policy: PolicyModel) -> None:
        self.policy = policy

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        """See `Reference`."""
        with torch.no_grad(), self.policy.reference_adapter():
            logps: Tensor = self.policy(batch)
        return logps


def build_reference(
    mode: ReferenceMode,
    policy: PolicyModel,
    config: PolicyConfig,
    tokenizer: Any = None,
    sharding: Sharding | None = None,
    *,
    path: str | None = None,
) -> Reference | None:
    """Build the reference of a policy.

    Args:
        mode: Source of the reference log-probabilities; see `adadpo_lightning.reference.modes`. ``cached`` and
            ``none`` have no live reference.
        policy: The policy before training.
        config: Config that the policy was loaded with.
        tokenizer: Tokenizer of the policy, to check the vocabulary.
        sharding: How to shard a second model; None does not shard it.
        path: Directory or hub id of the reference, for the mode ``path``.

    Raises:
        UserError: If the second model cannot be loaded or its vocabulary differs.
    """
    if mode in ("none", "cached"):
        return None
    if mode == "adapter_off":
        return AdapterOffReference(policy)
    if uses_reference_adapter(mode, config):
        return AdapterReference(policy)
    if mode == "path":
        check_same_vocabulary(str(path), tokenizer)
        config = replace(config, path=path, gguf_file=None, config=None, revision=None, lora=None)
    return FrozenReference(build_policy(config, tokenizer, sharding, frozen=True), policy)


def check_same_vocabulary(path: str, tokenizer: Any) -> None:
    """Check that policy and reference share a vocabulary. A reference without a tokenizer is accepted with a warning.

    Raises:
        UserError: If the reference's tokenizer lacks a token of the policy or assigns it a different id.
    """
    try:
        own = read_tokenizer(path, field="model.reference_path")
    except UserError:
        log.warn(f"model.reference_path: {path} has no tokenizer; assuming the vocabulary of the policy")
        return
    vocabulary, theirs = tokenizer.get_vocab(), own.get_vocab()
    differ = [token for token, number in vocabulary.items() if theirs.get(token) != number]
    if differ:
        raise UserError(
            "model.reference_path",
            f"expected the vocabulary of the policy's tokenizer; in {path}, {len(differ)} of {len(vocabulary)} "
            f"tokens are missing or have different ids, for example {sorted(differ)[:3]}",
            "use a model of the same family",
        )
