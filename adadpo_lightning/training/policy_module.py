"""A LightningModule that holds a policy and its reference: building both, generation and export."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import LightningModule
from torch.distributed.fsdp import FSDPModule

from adadpo_lightning import log
from adadpo_lightning.checkpoints.export import export_policy, with_template
from adadpo_lightning.checkpoints.record import training_tokenizer
from adadpo_lightning.errors import UserError
from adadpo_lightning.models.build import build_policy
from adadpo_lightning.models.loading import PolicyConfig, load_tokenizer
from adadpo_lightning.reference.live import FrozenReference, build_reference
from adadpo_lightning.reference.modes import ReferenceMode, reference_note, uses_reference_adapter
from adadpo_lightning.strategies.capabilities import sharding_of

if TYPE_CHECKING:
    from adadpo_lightning.generation.options import SamplingOptions
    from adadpo_lightning.models.policy import PolicyModel
    from adadpo_lightning.models.sharding import Sharding
    from adadpo_lightning.reference.live import Reference


class PolicyModule(LightningModule):
    """A policy and its reference, built when they are first needed.

    Args:
        policy: Which model, and how to load it.
        reference_mode: What yields the reference log-probabilities.
        reference_path: The reference model, for those modes that read one.
    """

    def __init__(self, policy: PolicyConfig, reference_mode: ReferenceMode, reference_path: str | None) -> None:
        super().__init__()
        self.policy_config = policy
        self.reference_mode = reference_mode
        self.reference_path = reference_path
        self.policy: PolicyModel | None = None
        self._reference: Reference | None = None
        self._reference_is_built = False
        self._recorded_kwargs: dict[str, Any] | None = None
        # A LoRA checkpoint holds what is trained and not the base model.
        self.strict_loading = policy.lora is None

    @cached_property
    def tokenizer(self) -> Any:
        """The policy's tokenizer."""
        return load_tokenizer(self.policy_config)

    @property
    def chat_template_kwargs(self) -> dict[str, Any] | None:
        """Variables of the chat template that the training pairs are rendered with, or were for a loaded checkpoint."""
        options = getattr(getattr(self._trainer, "datamodule", None), "options", None)
        return getattr(options, "chat_template_kwargs", self._recorded_kwargs)

    @property
    def layout(self) -> Literal["packed", "padded"]:
        """The layout in which the policy wants its batches; known once the model is built."""
        layout: Literal["packed", "padded"] = self.built_policy.layout
        return layout

    @property
    def saves_frozen_weights(self) -> bool:
        """Whether checkpoints must hold weights that have no gradient: those of a reference that moves."""
        return self.reference_mode == "synced"

    @property
    def built_policy(self) -> PolicyModel:
        """The policy, once it is loaded."""
        if self.policy is None:
            raise RuntimeError("the model is not built yet: call configure_model first, as Lightning's Trainer does")
        return self.policy

    @property
    def live_reference(self) -> Reference | None:
        """The reference model in memory; None without one, and where its log-probabilities come with the batches."""
        return self._reference

    def configure_model(self) -> None:
        """Load the policy and, where the loss needs one, the reference. Lightning calls this on every rank."""
        sharding = sharding_of(self.trainer.strategy, self.reference_mode) if self._trainer is not None else None
        if self.policy is None:
            self._build_policy(sharding)
        elif sharding is not None and not isinstance(self.policy, FSDPModule):
            raise UserError(
                "trainer.strategy",
                "the model is already whole in memory and this strategy shards it while it is loaded",
                "make a new module, and pass a checkpoint as ckpt_path= to the trainer",
            )
        if not self._reference_is_built:
            self._build_reference(sharding)

    def _build_policy(self, sharding: Sharding | None = None) -> None:
        beside = uses_reference_adapter(self.reference_mode, self.policy_config, self.reference_path)
        self.policy = build_policy(self.policy_config, self.tokenizer, sharding, reference_adapter=beside)

    def _build_reference(self, sharding: Sharding | None = None) -> None:
        if note := reference_note(self.reference_mode, self.policy_config, self.reference_path):
            log.warn(f"model.reference: {note}")
        # A reference is not a child module: frozen weights belong neither in checkpoints nor in the optimizer.
        self._reference = build_reference(
            self.reference_mode,
            self.built_policy,
            self.policy_config,
            self.tokenizer,
            sharding,
            path=self.reference_path,
        )
        if self.reference_mode == "synced" and isinstance(self._reference, FrozenReference):
            self.synced_reference = self._reference.model  # a child: a resumed run needs what it has become
        self._reference_is_built = True

    def generate(
        self,
        prompts: Sequence[str | list[dict[str, Any]]],
        options: SamplingOptions | None = None,
        *,
        system: str | None = None,
    ) -> list[str]:
        """Answer prompts with the policy as it is now, rendered as those of the training pairs.

        `answer_prompts` has more options.

        Args:
            prompts: Texts (each a user message where the tokenizer has a chat template) or conversations.
            options: How to sample; None uses the defaults.
            system: System prompt.

        Returns:
            One answer for each prompt.

        Raises:
            UserError: If there are no prompts, or one leaves no room for an answer.
        """
        from adadpo_lightning.generation.answers import answer_prompts

        if self.policy is None:
            self.configure_model()
        synced = isinstance(self.policy, FSDPModule)
        answers = answer_prompts(
            self.built_policy,
            with_template(self.tokenizer, training_tokenizer(self).chat_template),
            prompts,
            options,
            system=system,
            chat_template_kwargs=self.chat_template_kwargs,
            synced=synced,
        )
        return [answer.response for (answer,) in answers]

    def save_pretrained(self, path: str | Path, *, merge: bool = False) -> None:
        """Write the policy as a Hugging Face directory: weights or adapters, config, tokenizer and chat template.

        As the command ``export``, but from memory. All ranks call it, and the first one writes.

        Args:
            path: Directory to write; must not exist or be empty.
            merge: Merge adapters into the base model. The policy is left as it was, for which it is copied.

        Raises:
            UserError: If the directory is not empty, or the model is sharded and would have to be whole.
        """
        if self.policy is None:
            self.configure_model()
        policy = self.built_policy
        if merge and self.policy_config.lora is not None and not isinstance(policy, FSDPModule):
            policy = deepcopy(policy)
        write = self._trainer is None or self.trainer.is_global_zero
        tokenizer = with_template(self.tokenizer, training_tokenizer(self).chat_template)
        export_policy(policy, tokenizer, path, merge=merge, write=write)
