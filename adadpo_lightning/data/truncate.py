"""Truncate a tokenized pair to a maximum length."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from adadpo_lightning.data.schema import IDENTICAL, BadRow
from adadpo_lightning.types import EncodedPair

TOO_LONG = "longer than max_length"
PROMPT_TOO_LONG = "prompt too long"


def fit_length(
    pair: EncodedPair,
    max_length: int,
    max_prompt_length: int | None,
    truncation: Literal["drop", "keep_start", "keep_end"],
    bos_id: int | None,
) -> EncodedPair:
    """Truncate a pair according to `TokenizeOptions`.

    Raises:
        BadRow: If it cannot be cut to that length, or its answers are the same tokens afterwards.
    """
    prompt, answer = len(pair.prompt_ids), max(len(pair.chosen_ids), len(pair.rejected_ids))
    longest_prompt = max_prompt_length or max_length - 1
    if prompt > longest_prompt or prompt + answer > max_length:
        sizes = f"{prompt} prompt tokens and {answer} answer tokens, max_length {max_length}"
        if truncation == "drop":
            raise BadRow(TOO_LONG, sizes)
        if truncation == "keep_end":
            pair = _cut_prompt(pair, min(longest_prompt, max_length - answer), sizes, bos_id)
        elif prompt > longest_prompt:
            raise BadRow(PROMPT_TOO_LONG, f"{sizes}, longest prompt {longest_prompt}")
        else:
            room = max_length - prompt
            chosen, chosen_mask = _first(pair.chosen_ids, pair.chosen_mask, room)
            rejected, rejected_mask = _first(pair.rejected_ids, pair.rejected_mask, room)
            pair = replace(
                pair,
                chosen_ids=chosen,
                rejected_ids=rejected,
                chosen_mask=chosen_mask,
                rejected_mask=rejected_mask,
                cut="answer cut",
            )
    if pair.chosen_ids == pair.rejected_ids:
        raise BadRow(IDENTICAL, "as tokens, after the template and after cutting")
    return pair


def _first(ids: list[int], mask: list[bool], room: int) -> tuple[list[int], list[bool]]:
    """The first `room` tokens of an answer, without unscored ones at their end; its first token is scored."""
    if not mask:
        return ids[:room], []
    mask = mask[:room]
    while not mask[-1]:
        mask.pop()
    return ids[: len(mask)], [] if all(mask) else mask


def _cut_prompt(pair: EncodedPair, room: int, sizes: str, bos_id: int | None) -> EncodedPair:
    """Truncate the start of the prompt, but keep a BOS."""
    bos = pair.prompt_ids[: pair.prompt_ids[0] == bos_id]
    kept = room - len(bos)
    if kept < 1:
        raise BadRow(TOO_LONG, f"{sizes}: no room for a prompt")
    return replace(pair, prompt_ids=bos + pair.prompt_ids[-kept:], cut="prompt cut")
