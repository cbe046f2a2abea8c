"""Collate pairs into a micro-batch, packed or padded; see `PreferenceBatch` for both layouts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
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
    share: bool = False,
) -> PreferenceBatch:
    """Collate the pairs of one micro-batch.

    Args:
        pairs: At least one pair; either all or none of them have a rejected answer.
        layout: ``packed`` (no padding, each prompt once) or ``padded`` (one row per answer).
        pad_id: Token id for padding.
        step_pairs: Number of pairs in the full optimizer step.
        step_chosen_tokens: Number of scored chosen tokens in the full optimizer step.
        filler: Whether the micro-batch contributes nothing to loss and metrics.
        share: Whether pairs with the same prompt share it and their equal answers.
    """
    found = _Distinct(share)
    chosen = [found.add(n, "chosen", p.prompt_ids, p.chosen_ids, p.chosen_mask) for n, p in enumerate(pairs)]
    rejected = [found.add(n, "rejected", p.prompt_ids, p.rejected_ids, p.rejected_mask) for n, p in enumerate(pairs)]
    input_ids, position_ids, predict, mask = (_packed if layout == "packed" else _padded)(found, pad_id)
    answer_len = torch.tensor([len(answer.scored) for answer in found.answers])
    answers = torch.tensor(chosen + rejected)
    return PreferenceBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        predict=torch.tensor(predict),
        targets=torch.tensor([answer.ids[k] for answer in found.answers for k in answer.scored]),
        answer_len=answer_len,
        answer_group=torch.tensor([answer.group for answer in found.answers]),
        answers=answers,
        chosen_len=answer_len[answers[: len(pairs)]],
        rejected_len=answer_len[answers[len(pairs) :]],
        row_ids=torch.tensor([p.row_id for p in pairs]),
        answer_ids=torch.tensor([_answer_ids(p) for p in pairs]),
        side_tokens=sum(len(found.answers[number].scored) for number in chosen + rejected),
        step_pairs=step_pairs,
        step_chosen_tokens=step_chosen_tokens,
        segments=tuple((len(prompt), *(len(a.ids) for a in own)) for prompt, own in found.groups()),
        attention_mask=mask,
        weight=_column([p.weight for p in pairs], missing=1.0),
        margin=_column([p.margin for p in pairs], missing=0.0),
        filler=filler,
    )


@dataclass
class _Answer:
    """A distinct answer: its group, its tokens, the positions of its scored ones, and the tokens that predict them."""

    group: int
    ids: list[int]
    scored: Sequence[int]
    predict: list[int] = field(default_factory=list)


class _Distinct:
    """The distinct prompts and answers of a micro-batch, in order of appearance; all of them if pairs share nothing."""

    def __init__(self, share: bool) -> None:
        self.share = share
        self.prompts: list[list[int]] = []
        self.answers: list[_Answer] = []
        self._group: dict[Hashable, int] = {}
        self._answer: dict[Hashable, int] = {}

    def add(self, pair: int, side: str, prompt: list[int], ids: list[int], mask: list[bool]) -> int:
        """The number of an answer of a pair, which is added if it is new."""
        group = self._group.setdefault(tuple(prompt) if self.share else pair, len(self.prompts))
        if group == len(self.prompts):
            self.prompts.append(prompt)
        key = (group, tuple(ids), tuple(mask)) if self.share else (pair, side)
        number = self._answer.setdefault(key, len(self.answers))
        if number == len(self.answers):
            scored = [k for k, counts in enumerate(mask) if counts] if mask else range(len(ids))
            self.answers.append(_Answer(group, ids, scored))
        return number

    def groups(self) -> list[tuple[list[int], list[_Answer]]]:
        """Each prompt with its answers."""
        own: list[list[_Answer]] = [[] for _ in self.prompts]
        for answer in self.answers:
            own[answer.group].append(answer)
        return list(zip(self.prompts, own, strict=True))


def _answer_ids(pair: EncodedPair) -> tuple[int, int]:
    return pair.chosen_index or 0, 1 if pair.rejected_index is None else pair.rejected_index


def _column(values: list[float | None], missing: float) -> Tensor | None:
    if all(value is None for value in values):
        return None
    return torch.tensor([missing if value is None else value for value in values], dtype=torch.float32)


def _packed(found: _Distinct, pad_id: int) -> tuple[Tensor, Tensor, list[int], None]:
    ids: list[int] = []
    positions: list[int] = []
    for prompt, answers in found.groups():
        n = len(prompt)
        ids += prompt
        positions += range(n)
        last = len(ids) - 1  # the prompt's last token predicts the first token of each answer
        for answer in answers:
            before = len(ids) - 1
            answer.predict = [before + k if k else last for k in answer.scored]
            ids += answer.ids
            positions += range(n, n + len(answer.ids))
    predict = [index for answer in found.answers for index in answer.predict]
    return torch.tensor([ids]), torch.tensor([positions]), predict, None


def _padded(found: _Distinct, pad_id: int) -> tuple[Tensor, Tensor, list[int], Tensor]:
    answers = [answer for answer in found.answers if answer.ids]
    rows = [found.prompts[answer.group] + answer.ids for answer in answers]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    starts = accumulate([longest] * (len(rows) - 1), initial=0)
    predict = [
        start + len(found.prompts[answer.group]) - 1 + k
        for start, answer in zip(starts, answers, strict=True)
        for k in answer.scored
    ]
    positions = torch.arange(longest).expand(len(rows), longest).contiguous()
    return ids, positions, predict, mask
