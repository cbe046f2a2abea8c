"""The policy: maps a micro-batch to the log-probability of each scored token in one forward pass."""

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
from adadpo_lightning.models.adapters import REFERENCE, in_use
from adadpo_lightning.models.attention import registry as attention
from adadpo_lightning.models.attention.layout import PackedLayout
from adadpo_lightning.models.logprobs import LogitTransform, TokenStatistics, token_logps
from adadpo_lightning.models.routing import Routing, routed_blocks, routing
from adadpo_lightning.models.selfcheck import check_forward
from adadpo_lightning.models.sharding import decoder_blocks
from adadpo_lightning.models.tensor_parallel import own_rows

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.models.loading import PolicyConfig
    from adadpo_lightning.types import PreferenceBatch


class PolicyModel(nn.Module):
    """Wraps a Hugging Face causal language model to map a `PreferenceBatch` to token log-probabilities.

    The backbone runs without its head. The head is applied here, in chunks, to the hidden states of scored tokens only.
    Both run in this module's `forward`, because a sharded head weight is gathered only there.

    Args:
        model: The causal language model, with or without peft adapters.
        config: Layout, attention and chunk size.
    """

    def __init__(self, model: Any, config: PolicyConfig) -> None:
        super().__init__()
        # transformers loads in eval mode, which disables gradient checkpointing; dropout is disabled anyway.
        self.model = model.train()
        self.head_chunk_size = config.head_chunk_size
        self.packed_attention = config.packed_attention
        self.offload_activations = config.offload_activations
        self.compiled = config.compile
        self.transform = logit_transform(self.causal_lm.config)
        self.layout: Literal["packed", "padded"] = choose_layout(config.layout, self.causal_lm)
        # Called in the backward pass with the batch and the gradient at the hidden state of each scored token, (N, D).
        self.gradient_observer: Callable[[PreferenceBatch, Tensor], None] | None = None
        self.token_entropy = config.token_entropy
        self._statistics: TokenStatistics | None = None
        # Whether compiled code calls the hooks that record a router depends on what was compiled first.
        self.routed_blocks = () if config.compile else routed_blocks(self.causal_lm)
        self._routing: Routing | None = None
        self._plain_attention = attention_of(self.causal_lm.config)
        if self.layout == "packed":
            attention.register(opaque=config.compile)
            self.causal_lm.set_attn_implementation(attention.IMPLEMENTATION)
        if self.causal_lm.config.model_type not in attention.SERVED:
            check_forward(self)
        if config.compile:
            # Block by block: one graph serves all blocks and lengths, and excludes the loop over head chunks.
            for block in decoder_blocks(self.causal_lm):
                block.compile(dynamic=True)

    @property
    def causal_lm(self) -> Any:
        """The model without its peft wrapper; adapters remain active."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """Context in which the adapters are disabled."""
        with adapter_in_use(self.model, None):
            yield

    @contextmanager
    def reference_adapter(self) -> Iterator[None]:
        """Context in which the policy uses its frozen reference adapter."""
        with adapter_in_use(self.model, REFERENCE):
            yield

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Context in which a sharded model can also be called without `forward`.

        Weights outside the blocks (embedding, norm, head) are gathered; blocks gather their own when they run. All
        ranks must enter the context and make the same calls.
        """
        from torch.distributed.fsdp import FSDPModule

        if not isinstance(self, FSDPModule):
            yield
            return
        # Otherwise a block that runs before the first `forward` would consider itself the root.
        start_fsdp_root(self)
        self.unshard()
        try:
            yield
        finally:
            self.reshard()

    @contextmanager
    def plain_attention(self) -> Iterator[Any]:
        """Context in which the model uses the attention of transformers, for generation; yields the model."""
        current = attention_of(self.causal_lm.config)
        self.causal_lm.set_attn_implementation(self._plain_attention)
        try:
            with self.gathered():
                yield self.model
        finally:
            self.causal_lm.set_attn_implementation(current)

    def forward(self, batch: PreferenceBatch, *, log_collisions: bool = False, routes: bool = False) -> Tensor:
        """Log-probability of each scored token in the batch's flat order, nats, shape (N,), float32 or wider.

        Args:
            batch: The micro-batch.
            log_collisions: Whether `take_statistics` shall have them; they cost a pass over all logits.
            routes: Whether `take_routing` shall have what the routers of a mixture of experts did.
        """
        hidden = self.hidden_states(batch, routes=routes).flatten(0, 1).index_select(0, batch.predict)
        if self.gradient_observer is not None and hidden.requires_grad:
            hook = partial(self.gradient_observer, batch)
            hidden.register_hook(hook)  # type: ignore[no-untyped-call]  # untyped in torch
        return self._logps(hidden, batch.targets, log_collisions)

    def take_statistics(self) -> TokenStatistics:
        """Return and clear the statistics of the last forward pass."""
        statistics, self._statistics = self._statistics, None
        return statistics or TokenStatistics()

    def take_routing(self) -> Routing | None:
        """Return and clear what the routers did in the last forward pass with ``routes``; None without routers."""
        done, self._routing = self._routing, None
        return done

    def hidden_states(self, batch: PreferenceBatch, *, routes: bool = False) -> Tensor:
        """Last hidden states of the backbone, shape (rows, length, D)."""
        options: dict[str, Any]
        if batch.packed:
            layout = PackedLayout(batch.segments, self.packed_attention, batch.input_ids.device)
            options = {"position_ids": batch.position_ids, "packed": layout}
        else:
            # No position ids: models compute these positions themselves, and some architectures do not accept any.
            options = {"attention_mask": batch.attention_mask}
        if routes and self.routed_blocks:
            options["output_router_logits"] = True
        with offloading(self.offload_activations, batch.input_ids.device):
            output = self.causal_lm.base_model(input_ids=batch.input_ids, use_cache=False, **options)
        if routes and self.routed_blocks:
            self._routing = self._summed_routing(output.router_logits, batch.attention_mask)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _summed_routing(self, logits: tuple[Tensor, ...], mask: Tensor | None) -> Routing:
        if len(logits) != len(self.routed_blocks):
            raise RuntimeError(f"expected logits of {len(self.routed_blocks)} routers, got those of {len(logits)}")
        return routing(logits, self.causal_lm.num_experts_per_tok, mask)

    def _logps(self, hidden: Tensor, targets: Tensor, log_collisions: bool) -> Tensor:
        head = in_use(self.causal_lm.get_output_embeddings())
        plain = type(head) is nn.Linear
        statistics = self._statistics = TokenStatistics.empty(
            hidden, entropies=self.token_entropy and plain, log_collisions=log_collisions
        )
        if plain:
            weight, bias, shard = own_rows(head)
            return token_logps(
                hidden,
                weight,
                targets,
                bias=bias,
                chunk_size=self.head_chunk_size,
                transform=self.transform,
                statistics=statistics,
                shard=shard,
            )
        # A head with an adapter is more than one matrix: run the module itself, chunk by chunk.
        logps = []
        for start in range(0, max(len(hidden), 1), self.head_chunk_size):
            part = slice(start, start + self.head_chunk_size)
            arguments = head, hidden[part], targets[part], statistics, part
            logps.append(checkpoint(self._module_logps, *arguments, use_reentrant=False))
        return torch.cat(logps)

    def _module_logps(
        self, head: nn.Module, hidden: Tensor, targets: Tensor, statistics: TokenStatistics | None, part: slice
    ) -> Tensor:
        logits = head(hidden)
        logits = self.transform.apply_(logits.double() if logits.dtype == torch.float64 else logits.float().clone())
        norm = logits.logsumexp(-1, keepdim=True)
        if statistics is not None:
            statistics.write(part, (logits - norm).detach().exp_())
        return (logits.gather(1, targets[:, None]) - norm).squeeze(1)


def choose_layout(asked: Literal["auto", "packed", "padded"], model: Any) -> Literal["packed", "padded"]:
    """Choose the layout: packed if the architecture supports it; ``auto`` falls back to padded with a warning.

    Raises:
        UserError: If ``packed`` is requested but not supported.
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
    """The logit transform of an architecture. The same config key differs in meaning between architectures."""
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
