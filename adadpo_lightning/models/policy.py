"""The policy: a micro-batch to the log-probability of each scored token, in one forward of one module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from adadpo_lightning import log
from adadpo_lightning.compat import adapter_in_use, attention_of, start_fsdp_root
from adadpo_lightning.errors import UserError
from adadpo_lightning.models.activations import offloading
from adadpo_lightning.models.adapters import REFERENCE
from adadpo_lightning.models.attention import registry as attention
from adadpo_lightning.models.attention.layout import PackedLayout
from adadpo_lightning.models.logprobs import LogitTransform, token_logps
from adadpo_lightning.models.selfcheck import check_forward
from adadpo_lightning.models.sharding import decoder_blocks

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.models.loading import PolicyConfig
    from adadpo_lightning.types import PreferenceBatch


class PolicyModel(nn.Module):
    """A Hugging Face causal language model that answers a `PreferenceBatch` with token log-probabilities.

    The backbone runs without its head; the head is applied here, in chunks, to the hidden states of scored tokens only.
    All of it happens in this module's `forward`, because under sharding the head's weight is whole only there.

    Args:
        model: The causal language model, with or without peft adapters.
        config: Layout, attention and chunk size.
    """

    def __init__(self, model: Any, config: PolicyConfig) -> None:
        super().__init__()
        # transformers loads in eval mode, where gradient checkpointing is off; dropout is off anyway.
        self.model = model.train()
        self.head_chunk_size = config.head_chunk_size
        self.packed_attention = config.packed_attention
        self.offload_activations = config.offload_activations
        self.compiled = config.compile
        self.transform = logit_transform(self.causal_lm.config)
        self.layout: Literal["packed", "padded"] = choose_layout(config.layout, self.causal_lm)
        # Called in the backward pass with the batch and the gradient at each scored token's hidden state, (N, D).
        self.gradient_observer: Callable[[PreferenceBatch, Tensor], None] | None = None
        self.token_entropy = config.token_entropy
        self._entropies: Tensor | None = None
        self._plain_attention = attention_of(self.causal_lm.config)
        if self.layout == "packed":
            attention.register(opaque=config.compile)
            self.causal_lm.set_attn_implementation(attention.IMPLEMENTATION)
        if self.causal_lm.config.model_type not in attention.SERVED:
            check_forward(self)
        if config.compile:
            # Block by block: one graph serves all of them and all lengths, and the head's loop stays out of it.
            for block in decoder_blocks(self.causal_lm):
                block.compile(dynamic=True)

    @property
    def causal_lm(self) -> Any:
        """The model without its peft wrapper; adapters stay inside."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """Within this context the policy is its base model."""
        with adapter_in_use(self.model, None):
            yield

    @contextmanager
    def reference_adapter(self) -> Iterator[None]:
        """Within this context the policy computes with its frozen reference adapter."""
        with adapter_in_use(self.model, REFERENCE):
            yield

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within this context the model can be called without `forward`, also if it is sharded.

        What lies outside the blocks (embedding, norm, head) is whole then; blocks gather themselves when they run. All
        ranks have to enter, and to make the same calls.
        """
        from torch.distributed.fsdp import FSDPModule

        if not isinstance(self, FSDPModule):
            yield
            return
        # Else a block that runs before `forward` ever did would take itself for the root.
        start_fsdp_root(self)
        self.unshard()
        try:
            yield
        finally:
            self.reshard()

    @contextmanager
    def plain_attention(self) -> Iterator[Any]:
        """Within this context the model attends as transformers has it, for generation; gives the model itself."""
        current = attention_of(self.causal_lm.config)
        self.causal_lm.set_attn_implementation(self._plain_attention)
        try:
            with self.gathered():
                yield self.model
        finally:
            self.causal_lm.set_attn_implementation(current)

    def forward(self, batch: PreferenceBatch) -> Tensor:
        """Log-probability of each scored token in the batch's flat order, nats, shape (N,), float32 or wider."""
        hidden = self.hidden_states(batch).flatten(0, 1).index_select(0, batch.predict)
        if self.gradient_observer is not None and hidden.requires_grad:
            hook = partial(self.gradient_observer, batch)
            hidden.register_hook(hook)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self._logps(hidden, batch.targets)

    def take_entropies(self) -> Tensor | None:
        """Entropies of the last forward's predictions, nats, (N,), once; None if they were not asked for."""
        entropies, self._entropies = self._entropies, None
        return entropies

    def hidden_states(self, batch: PreferenceBatch) -> Tensor:
        """Last hidden states of the backbone, shape (rows, length, D)."""
        if batch.packed:
            layout = PackedLayout(batch.segments, self.packed_attention, batch.input_ids.device)
            options = {"position_ids": batch.position_ids, "packed": layout}
        else:
            # Its positions are those that a model counts by itself, and not every architecture takes any.
            options = {"attention_mask": batch.attention_mask}
        with offloading(self.offload_activations, batch.input_ids.device):
            output = self.causal_lm.base_model(input_ids=batch.input_ids, use_cache=False, **options)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _logps(self, hidden: Tensor, targets: Tensor) -> Tensor:
        head = self.causal_lm.get_output_embeddings()
        if type(head) is nn.Linear:
            if self.token_entropy:
                wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
                self._entropies = torch.empty(len(hidden), dtype=wide, device=hidden.device)
            return token_logps(
                hidden,
                head.weight,
                targets,
                bias=head.bias,
                chunk_size=self.head_chunk_size,
                transform=self.transform,
                entropies=self._entropies,
            )
        # A head with an adapter on it is no plain matrix: run the module itself, chunk by chunk.
        size = self.head_chunk_size
        chunks = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
        return torch.cat([checkpoint(self._module_logps, head, h, t, use_reentrant=False) for h, t in chunks])

    def _module_logps(self, head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = head(hidden)
        logits = self.transform.apply_(logits.double() if logits.dtype == torch.float64 else logits.float().clone())
        return logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


def choose_layout(asked: Literal["auto", "packed", "padded"], model: Any) -> Literal["packed", "padded"]:
    """Packed where the architecture can be served; ``auto`` falls back with a warning.

    Raises:
        UserError: If ``packed`` is asked for and can't be served.
    """
    if asked == "padded":
        return "padded"
    reason = attention.unserved_reason(model)
    if reason is None:
        return "packed"
    if asked == "packed":
        raise UserError("model.policy.layout", reason, "set it to padded or auto")
    log.warn(f"model.policy.layout: {reason}; running in the padded layout, which is slower")
    return "padded"


def logit_transform(config: Any) -> LogitTransform:
    """What the architecture does to its logits. The same name does not mean the same in all of them."""
    kind = config.model_type
    scale = 1.0
    if kind.startswith("cohere"):
        scale = config.logit_scale
    elif kind.startswith("granite"):
        scale = 1.0 / config.logits_scaling
    elif kind == "hyperclovax":
        scale = config.logits_scaling
    elif kind == "falcon_h1":
        scale = config.lm_head_multiplier
    cap = config.logits_soft_cap if kind == "recurrent_gemma" else getattr(config, "final_logit_softcapping", None)
    return LogitTransform(float(scale), cap)
