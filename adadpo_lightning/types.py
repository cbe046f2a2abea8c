"""The typed records that the packages of this project hand to each other.

Shapes: B pairs in a micro-batch, N scored answer tokens in it, T tokens in a packed row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PairLogps:
    """A preference loss's view of a micro-batch: summed log-probabilities, and lengths.

    Args:
        chosen: ``l_w``, log-probability of the chosen answer summed over its tokens, nats, shape (B,).
        rejected: ``l_l``, the same of the rejected answer, shape (B,).
        chosen_len: ``n_w``, scored tokens of the chosen answer (the end-of-turn token counts), int64, shape (B,).
        rejected_len: ``n_l``, the same of the rejected answer, shape (B,).
        ref_chosen: ``l0_w``, `chosen` under the frozen reference, shape (B,); None if the loss needs no reference.
        ref_rejected: ``l0_l``, `rejected` under the frozen reference, shape (B,).
        weight: Scales the pair's loss, shape (B,); None means 1.
        margin: Target margin added to the loss's own, in units of the score, shape (B,); None means 0.
        chosen_tail: The part of `chosen` beyond the first ``min(n_w, n_l)`` tokens, nats, shape (B,), 0 for the shorter
            answer; None unless the loss says that it `needs_tails`. So for the next three.
        rejected_tail: The same of `rejected`, shape (B,).
        ref_chosen_tail: The same of `ref_chosen`, shape (B,).
        ref_rejected_tail: The same of `ref_rejected`, shape (B,).
        chosen_log_collision: ``log sum_v p_v^2`` over the vocabulary under the policy, summed over the tokens of the
            chosen answer, nats, without gradient, shape (B,); None unless the loss says that it `needs_collisions`.
        rejected_log_collision: The same of the rejected answer, shape (B,).
        list_rest: Number of pairs that follow this one in its ranked list, int64, shape (B,). A list ``a > b > c`` is
            the pairs (a, b) and (b, c), one after the other, with 1 and 0. None: every pair is a list of its own.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_len: Tensor
    rejected_len: Tensor
    ref_chosen: Tensor | None = None
    ref_rejected: Tensor | None = None
    weight: Tensor | None = None
    margin: Tensor | None = None
    chosen_tail: Tensor | None = None
    rejected_tail: Tensor | None = None
    ref_chosen_tail: Tensor | None = None
    ref_rejected_tail: Tensor | None = None
    chosen_log_collision: Tensor | None = None
    rejected_log_collision: Tensor | None = None
    list_rest: Tensor | None = None

    def __post_init__(self) -> None:
        """Reject shapes that would broadcast silently, such as a weight of (B, 1)."""
        shapes = {f.name: tuple(v.shape) for f in fields(self) if (v := getattr(self, f.name)) is not None}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"PairLogps: expected one shape (B,) for all, got {shapes}")

    def in_float32(self) -> PairLogps:
        """Convert half-precision log-probabilities to float32; float32 and float64 are unchanged."""
        halves = (torch.float16, torch.bfloat16)
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.float() for k, v in values.items() if v is not None and v.dtype in halves})


@dataclass(frozen=True)
class LossOutput:
    """What a loss returns, per pair and not averaged (see `reduce`).

    Args:
        per_pair: Contrastive part of the loss, shape (B,); zeros for ``sft``.
        chosen_rewards: Implicit reward of the chosen answer, detached, shape (B,).
        rejected_rewards: Implicit reward of the rejected answer, detached, shape (B,).
        coefficient: The adaptive coefficient c on the chosen score, detached, shape (B,); ones for plain losses.
        nll: Weighted negative log-likelihood of the chosen answer, SUMMED over its tokens, shape (B,); to be
            divided by the chosen tokens of the global batch. None if the loss has no such term.
        log_balance: log of ``g_w / g_l`` in the loss's own space, detached, shape (B,); NaN where either gradient is 0,
            so that there is no ratio; None for ``sft``.
        log_balance_policy: The same in policy space per token, one definition for all losses; None for ``sft``.
        clipped: Whether the coefficient is at its ceiling, bool, shape (B,); None for plain losses.
        pair_weight: Weight that the loss itself gives the pair, detached, shape (B,); None if it gives none.
    """

    per_pair: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    coefficient: Tensor
    nll: Tensor | None = None
    log_balance: Tensor | None = None
    log_balance_policy: Tensor | None = None
    clipped: Tensor | None = None
    pair_weight: Tensor | None = None

    def reduce(self, pairs: int | Tensor, chosen_tokens: int | Tensor) -> Tensor:
        """The scalar loss: pair mean of the contrastive part plus token mean of the NLL part.

        Args:
            pairs: Pairs of the whole optimizer step, over all ranks and micro-batches.
            chosen_tokens: Scored chosen tokens of the whole optimizer step.

        Returns:
            This micro-batch's share of the step's loss, a scalar; the shares of a step sum to its loss.
        """
        total = self.per_pair.sum() / pairs
        return total if self.nll is None else total + self.nll.sum() / chosen_tokens


@dataclass(frozen=True)
class EncodedPair:
    """One tokenized pair, on the host.

    Args:
        prompt_ids: The prompt that both answers share; never empty.
        chosen_ids: Tokens of the chosen answer, including its terminator; never empty.
        rejected_ids: The same of the rejected answer; empty for rows with only a chosen answer (``sft``).
        row_id: Number of the row in its dataset, for error messages and the reference cache.
        chosen_index: Position of the chosen answer in its row's ranked list; None for a row that is a pair.
        rejected_index: The same of the rejected answer.
        weight: The row's loss weight, if its dataset has one.
        margin: The row's target margin, if its dataset has one.
        cut: What was cut off: ``""``, ``"answer cut"`` or ``"prompt cut"``.
        boundary_moved: Whether the answers begin before the tokenised prompt's end.
        chosen_mask: For each of `chosen_ids` whether it is scored; empty if all are. The first and the last one always
            are. Turns of the user and of tools inside an answer are not.
        rejected_mask: The same of `rejected_ids`.
        turns_rewritten: Whether the template renders a turn of an answer differently once others follow it.
        turns_unended: Whether the template renders a turn of an answer without a terminator.
        answer_changed: Whether the template leaves out or rewrites part of an answer.
        answer_prefixed: Whether it writes text of its own before an answer, which is scored with it.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    row_id: int = 0
    chosen_index: int | None = None
    rejected_index: int | None = None
    weight: float | None = None
    margin: float | None = None
    cut: str = ""
    boundary_moved: bool = False
    chosen_mask: list[bool] = field(default_factory=list)
    rejected_mask: list[bool] = field(default_factory=list)
    turns_rewritten: bool = False
    turns_unended: bool = False
    answer_changed: bool = False
    answer_prefixed: bool = False


@dataclass
class PreferenceBatch:
    """One micro-batch, in one of two layouts.

    Pairs with the same prompt form a group, which holds the prompt and each distinct answer once. There are A distinct
    answers: 2B if no pairs share any. ``packed``: one row (1, T) of ``[prompt | answer | answer | ...]`` per group
    without padding, where the positions of every answer continue those of the prompt; `segments` holds the boundaries.
    ``padded``: (A, L) rows of ``[prompt | answer | padding]`` with `attention_mask`; the plain reference layout.
    Batches without rejected answers (``sft``) have an empty answer in their place, which comes last and has no row.

    Both layouts list the scored tokens in the same flat order: the answers in order of appearance, first in the chosen
    ones of pairs 0..B-1, then in the rejected ones.

    Args:
        input_ids: Token ids, int64, (1, T) or (A, L).
        position_ids: Positions, int64, as `input_ids`.
        predict: For each scored token, the flat index into ``input_ids.view(-1)`` of the token that predicts it, (N,).
        targets: The scored token ids, (N,).
        answer_len: Scored tokens of each distinct answer, in flat order, int64, (A,).
        answer_group: Group of each distinct answer, an index into `segments`, int64, (A,).
        answers: The distinct answer of each side of each pair, chosen ones first, int64, (2B,).
        chosen_len: Scored tokens of each pair's chosen answer, int64, (B,).
        rejected_len: Scored tokens of each pair's rejected answer, int64, (B,).
        row_ids: Dataset row of each pair, int64, (B,). The pairs of a ranked list have the same.
        answer_ids: Positions of the chosen and the rejected answer in the ranked list of that row, int64, (B, 2); 0 and
            1 for a row that is a pair.
        side_tokens: Scored tokens of both sides of all pairs, on the host.
        step_pairs: Pairs of the optimizer step this micro-batch belongs to, over all ranks and micro-batches.
        step_chosen_tokens: Scored chosen tokens of that step.
        segments: ``(prompt, answer, answer, ...)`` token counts of each group, on the host; offsets of the packed
            layout. They include tokens of an answer that are not scored.
        attention_mask: 1 for tokens, 0 for padding, (A, L); None when packed.
        weight: Per-pair loss weight, float32, (B,), or None.
        margin: Per-pair target margin, float32, (B,), or None.
        ref_logps: Cached reference log-probability of each scored token, (N,), or None.
        list_rest: See `PairLogps.list_rest`, (B,); None unless the loss says that it `needs_lists`.
        filler: True if the micro-batch only keeps ranks synchronised and contributes nothing.
    """

    input_ids: Tensor
    position_ids: Tensor
    predict: Tensor
    targets: Tensor
    answer_len: Tensor
    answer_group: Tensor
    answers: Tensor
    chosen_len: Tensor
    rejected_len: Tensor
    row_ids: Tensor
    answer_ids: Tensor
    side_tokens: int
    step_pairs: int
    step_chosen_tokens: int
    segments: tuple[tuple[int, ...], ...]
    attention_mask: Tensor | None = None
    weight: Tensor | None = None
    margin: Tensor | None = None
    ref_logps: Tensor | None = None
    list_rest: Tensor | None = None
    filler: bool = False

    def __len__(self) -> int:
        """Number of pairs, B."""
        return len(self.row_ids)

    @property
    def packed(self) -> bool:
        """Whether this is the packed layout."""
        return self.attention_mask is None

    def tokens_of_sides(self) -> Tensor:
        """Index in flat order of each scored token of each side: chosen answers of all pairs, then the rejected ones.

        Shape (S,), S the sum of all lengths of both sides: an answer of several pairs is listed for each of them.
        """
        lengths = torch.cat([self.chosen_len, self.rejected_len])
        shift = (self.answer_len.cumsum(0) - self.answer_len)[self.answers] - (lengths.cumsum(0) - lengths)
        # With `output_size` nothing waits for the device.
        shift = shift.repeat_interleave(lengths, output_size=self.side_tokens)
        return torch.arange(self.side_tokens, device=shift.device) + shift

    def in_tail(self) -> Tensor:
        """Whether each token of `tokens_of_sides` is beyond the first ``min(n_w, n_l)`` of its answer, bool, (S,)."""
        lengths = torch.cat([self.chosen_len, self.rejected_len])
        shared = torch.minimum(self.chosen_len, self.rejected_len).repeat(2)
        start = (lengths.cumsum(0) - lengths + shared).repeat_interleave(lengths, output_size=self.side_tokens)
        return torch.arange(self.side_tokens, device=start.device) >= start

    def _map(self, change: str, *args: object, **kwargs: object) -> PreferenceBatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: getattr(v, change)(*args, **kwargs) if torch.is_tensor(v) else v for k, v in values.items()}
        return PreferenceBatch(**moved)

    def to(self, *args: object, **kwargs: object) -> PreferenceBatch:
        """Move every tensor, as `torch.Tensor.to` does; called by Lightning."""
        return self._map("to", *args, **kwargs)

    def pin_memory(self) -> PreferenceBatch:
        """Pin every tensor, so that its copy to a GPU can overlap; called by the DataLoader."""
        return self._map("pin_memory")


@dataclass(frozen=True)
class StepOutput:
    """What the step of one micro-batch passes to callbacks, all of it detached.

    Args:
        pairs: Input of the loss.
        loss: Output of the loss.
        share: The micro-batch's share of the optimizer step's loss, a scalar: the shares of a step sum to its loss.
        kl: Per answer the sum over tokens of ``exp(-d) - 1 + d``, d the per-token log-ratio to the reference, nats,
            shape (2B,), chosen answers first; None without a reference. An estimate of KL(policy to reference) on the
            data's tokens, which the policy did not draw.
        entropy: Per answer the sum over tokens of the policy's entropy, nats, shape (2B,), chosen answers first; None
            if it was not requested.
        loss_options: The numbers that the loss's schedules had in this step, by option; empty without schedules.
        aux_loss: Load-balancing loss of the micro-batch's routers, a scalar, without its coefficient; None for a model
            without routers. So for `expert_tokens`.
        aux_coefficient: Coefficient of `aux_loss` in `share`.
        expert_tokens: Tokens that each expert of each layer with a router got, (layers, experts).
    """

    pairs: PairLogps
    loss: LossOutput
    share: Tensor
    kl: Tensor | None = None
    entropy: Tensor | None = None
    loss_options: Mapping[str, float] = field(default_factory=dict)
    aux_loss: Tensor | None = None
    aux_coefficient: float = 0.0
    expert_tokens: Tensor | None = None


@dataclass(frozen=True)
class ModuleNeeds:
    """Everything that a datamodule must know about the module it provides batches for.

    Args:
        tokenizer: The policy's tokenizer.
        rejected: Whether the loss reads the rejected answers.
        layout: Gives the layout of the batches. A function, because it is known only when the model is built; the
            datamodule asks when it makes its first loader.
        margins: Whether the loss can use target margins.
        lists: Whether the loss needs whole ranked lists.
    """

    tokenizer: PreTrainedTokenizerBase
    rejected: bool
    layout: Callable[[], Literal["packed", "padded"]]
    margins: bool = True
    lists: bool = False
