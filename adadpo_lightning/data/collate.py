"""Collate pairs into a micro-batch, packed or padded; see `PreferenceBatch` for both layouts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from adadpo_lightning.types import EncodedPair, PreferenceBatch


def collate(
    pairs: Sequence[EncodedPair],
    *,
    layout: Literal["packed", "padded"],
    pad_id: int,
    step_pairs: int,
    step_chosen_tokens: int,
    filler: bool = False,
) -> PreferenceBatch:
    """Collate the pairs of one micro-batch.

    Args:
        pairs: At least one pair; either all or none of them have a rejected answer.
        layout: ``packed`` (no padding, each prompt once) or ``padded`` (one row per answer).
        pad_id: Token id for padding.
        step_pairs: Number of pairs in the full optimizer step.
        step_chosen_tokens: Number of scored chosen tokens in the full optimizer step.
        filler: Whether the micro-batch contributes nothing to loss and metrics.
    """
    lay_out = _packed if layout == "packed" else _padded
    input_ids, position_ids, predict, mask = lay_out(pairs, pad_id)
    chosen = [_scored(p.chosen_ids, p.chosen_mask) for p in pairs]
    rejected = [_scored(p.rejected_ids, p.rejected_mask) for p in pairs]
    targets = [p.chosen_ids[k] for p, kept in zip(pairs, chosen, strict=True) for k in kept]
    targets += [p.rejected_ids[k] for p, kept in zip(pairs, rejected, strict=True) for k in kept]
    return PreferenceBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        predict=predict,
        targets=torch.tensor(targets),
        chosen_len=torch.tensor([len(kept) for kept in chosen]),
        rejected_len=torch.tensor([len(kept) for kept in rejected]),
        row_ids=torch.tensor([p.row_id for p in pairs]),
        answer_ids=torch.tensor([_answer_ids(p) for p in pairs]),
        step_pairs=step_pairs,
        step_chosen_tokens=step_chosen_tokens,
        segments=tuple((len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)) for p in pairs),
        scored_chosen=sum(map(len, chosen)),
        attention_mask=mask,
        weight=_column([p.weight for p in pairs], missing=1.0),
        margin=_column([p.margin for p in pairs], missing=0.0),
        filler=filler,
    )


def _answer_ids(pair: EncodedPair) -> tuple[int, int]:
    return pair.chosen_index or 0, 1 if pair.rejected_index is None else pair.rejected_index


def _column(values: list[float | None], missing: float) -> Tensor | None:
    if all(value is None for value in values):
        return None
    return torch.tensor([missing if value is None else value for value in values], dtype=torch.float32)


def _scored(ids: list[int], mask: list[bool]) -> Sequence[int]:
    """Positions of the scored tokens of an answer."""
    return [k for k, scored in enumerate(mask) if scored] if mask else range(len(ids))


def _packed(pairs: Sequence[EncodedPair], pad_id: int) -> tuple[Tensor, Tensor, Tensor, None]:
    ids: list[int] = []
    positions: list[int] = []
    chosen_predict: list[int] = []
    rejected_predict: list[int] = []
    for pair in pairs:
        start, n = len(ids), len(pair.prompt_ids)
        n_chosen, n_rejected = len(pair.chosen_ids), len(pair.rejected_ids)
        ids += pair.prompt_ids + pair.chosen_ids + pair.rejected_ids
        positions += [*range(n + n_chosen), *range(n, n + n_rejected)]
        # The prompt's last token predicts the first token of both answers.
        last = start + n - 1
        chosen_predict += [last + k for k in _scored(pair.chosen_ids, pair.chosen_mask)]
        before = start + n + n_chosen - 1
        rejected_predict += [before + k if k else last for k in _scored(pair.rejected_ids, pair.rejected_mask)]
    predict = torch.tensor(chosen_predict + rejected_predict)
    return torch.tensor([ids]), torch.tensor([positions]), predict, None


def _padded(pairs: Sequence[EncodedPair], pad_id: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sides = [[(p.chosen_ids, p.chosen_mask) for p in pairs]]
    if pairs[0].rejected_ids:
        sides.append([(p.rejected_ids, p.rejected_mask) for p in pairs])
    prompts = [p.prompt_ids for p in pairs] * len(sides)
    answers = [answer for side in sides for answer in side]
    rows = [prompt + ids for prompt, (ids, _) in zip(prompts, answers, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    starts = accumulate([longest] * (len(rows) - 1), initial=0)
    predict = [
        start + len(prompt) - 1 + k
        for start, prompt, answer in zip(starts, prompts, answers, strict=True)
        for k in _scored(*answer)
    ]
    positions = torch.arange(longest).expand(len(rows), longest).contiguous()
    return ids, positions, torch.tensor(predict), mask
