"""What a careful engineer looks at before training on preference data, as numbers and examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadpo_lightning.data.schema import BadRow
from adadpo_lightning.data.template import render
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from adadpo_lightning.data.prepare import Prepared

PARTS = ("prompt", "chosen", "rejected")


class Piece(NamedTuple):
    """The text of a token, or of several tokens that only together make a character.

    Args:
        text: The text.
        special: Whether it is a special token.
        scored: Whether it is scored.
    """

    text: str
    special: bool
    scored: bool = True


@dataclass(frozen=True)
class Example:
    """One pair as the model sees it.

    Args:
        where: File and row.
        texts: Decoded prompt, chosen and rejected tokens, special tokens included.
        tokens: Their counts.
        scored: Number of scored tokens of each answer.
        pieces: The same texts token by token.
    """

    where: str
    texts: dict[str, str]
    tokens: dict[str, int]
    scored: dict[str, int]
    pieces: dict[str, list[Piece]]


@dataclass(frozen=True)
class Inspection:
    """Findings on one dataset.

    Args:
        facts: What, and how much of it.
        hints: What to look into, in one sentence each.
        histograms: For prompt, chosen and rejected the (first, last, count) of tokens in each bin.
        examples: The first pair, and others from short to the longest.
    """

    facts: list[tuple[str, str]]
    hints: list[str]
    histograms: dict[str, list[tuple[int, int, int]]]
    examples: list[Example]


def inspect_pairs(prepared: Prepared, tokenizer: PreTrainedTokenizerBase, examples: int = 3) -> Inspection:
    """Look at every pair of a prepared dataset.

    Args:
        prepared: Result of `prepare`, with its report completed by ``with_passes``.
        tokenizer: The tokenizer that it was prepared with.
        examples: How many pairs to show.

    Raises:
        UserError: If `examples` is negative.
    """
    if examples < 0:
        raise UserError("examples", f"expected 0 or more, got {examples}")
    lengths = dict(zip(PARTS, prepared.counts(), strict=True))
    seen = _scan(prepared, tokenizer)
    # What the policy learns to write; the turns of users and tools in between are of no length that it chooses.
    scored = prepared.scored()
    facts = prepared.report.lines()
    if scored[1].any():
        facts += _length_bias(*scored)
    facts += seen.facts(tokenizer)
    histograms = {name: histogram(values) for name, values in lengths.items() if values.any()}
    shown = _examples(prepared, tokenizer, lengths, examples)
    return Inspection(facts, _hints(prepared, scored, seen), histograms, shown)


def histogram(lengths: NDArray[np.int64], bins: int = 12) -> list[tuple[int, int, int]]:
    """Counts in bins of equal width, whole tokens each, the last one up to the longest.

    Example:
        >>> histogram(np.array([1, 2, 2, 5, 6]), bins=3)
        [(1, 2, 3), (3, 4, 0), (5, 6, 2)]
    """
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // bins)
    counts = np.bincount((lengths - low) // width)
    return [(low + i * width, min(high, low + (i + 1) * width - 1), int(n)) for i, n in enumerate(counts)]


@dataclass
class _Seen:
    """What one pass over the pairs has counted."""

    pairs: int
    bos: Counter[int]
    extra_bos: int
    endings: Counter[int]
    doubled_ends: int
    duplicates: int
    repeated_prompts: int
    conflicts: int

    def facts(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
        answers = sum(self.endings.values())
        return [
            *((f"prompts with {n} BOS", f"{count:,}") for n, count in sorted(self.bos.items())),
            *(
                (f"answers that end with {tokenizer.decode([token])!r}", f"{count / answers:.1%}")
                for token, count in self.endings.most_common(3)
            ),
            ("answers with their terminator inside too", f"{self.doubled_ends:,}"),
            ("duplicate pairs", f"{self.duplicates:,}"),
            ("pairs on a duplicate prompt", f"{self.repeated_prompts:,}"),
            ("pairs that prefer what another rejects", f"{self.conflicts:,}"),
        ]


def _scan(prepared: Prepared, tokenizer: PreTrainedTokenizerBase) -> _Seen:
    seen = _Seen(0, Counter(), 0, Counter(), 0, 0, 0, 0)
    opens_turns = bos_opens_turns(tokenizer)
    special = set(tokenizer.all_special_ids)
    prompts: set[str] = set()
    known: set[tuple[str, int, int]] = set()
    for row in prepared.pairs.with_format("numpy"):
        seen.pairs += 1
        prompt = row["prompt_ids"]
        if tokenizer.bos_token_id is not None:
            is_bos = prompt == tokenizer.bos_token_id
            seen.bos[int(is_bos.sum())] += 1
            seen.extra_bos += bool(is_bos[:2].sum() == 2 or (is_bos.sum() > 1 and not opens_turns))
        for side in ("chosen", "rejected"):
            if len(ids := row[f"{side}_ids"]):
                end = int(ids[-1])
                seen.endings[end] += 1
                seen.doubled_ends += end in special and _ends_inside(ids == end, row[f"{side}_mask"], row)
        key = str(row["prompt_key"])
        chosen, rejected = (hash(row[name].tobytes()) for name in ("chosen_ids", "rejected_ids"))
        seen.repeated_prompts += key in prompts
        seen.duplicates += (key, chosen, rejected) in known
        seen.conflicts += (key, rejected, chosen) in known
        prompts.add(key)
        known.add((key, chosen, rejected))
    return seen


def _ends_inside(is_end: NDArray[np.bool_], mask: NDArray[np.bool_], row: dict[str, Any]) -> bool:
    """Whether an answer has more terminators than scored turns."""
    if not len(mask):
        # Where all of several turns is scored, the number of turns is not known.
        return not row["several_turns"] and int(is_end.sum()) > 1
    scored = mask.astype(bool)
    turns = int(scored[0]) + int((scored[1:] & ~scored[:-1]).sum())
    return int(is_end[scored].sum()) > turns


def _length_bias(chosen: NDArray[np.int64], rejected: NDArray[np.int64]) -> list[tuple[str, str]]:
    difference = chosen - rejected
    return [
        ("rejected answer longer", f"{(difference < 0).mean():.0%}"),
        ("answers of equal length", f"{(difference == 0).mean():.0%}"),
        ("chosen minus rejected, mean tokens", f"{difference.mean():+.1f}"),
    ]


def _hints(prepared: Prepared, scored: tuple[NDArray[np.int64], NDArray[np.int64]], seen: _Seen) -> list[str]:
    report = prepared.report
    dropped, cut = report.dropped.total(), report.cut.total()
    first = f", such as {report.first_bad}" if report.first_bad else ""
    chosen, rejected = scored
    uneven = chosen != rejected
    longer = float((chosen > rejected)[uneven].mean()) if uneven.any() else 0.5
    checks = [
        (dropped > 0.05 * report.rows, f"{dropped:,} of {report.rows:,} rows are dropped{first}"),
        (cut > 0.05 * seen.pairs, f"{cut:,} of {seen.pairs:,} pairs are cut: raise max_length?"),
        (
            bool(rejected.any()) and abs(longer - 0.5) > 0.1,
            f"of unequal pairs the chosen answer is the longer one in {longer:.0%}: the policy will learn length",
        ),
        (
            seen.extra_bos > 0,
            f"{seen.extra_bos:,} prompts have more than one BOS: the template or the data write one too many",
        ),
        (seen.doubled_ends > 0, f"{seen.doubled_ends:,} answers have their terminator inside too"),
        (len(seen.endings) > 1 and not cut, "answers end in different ways: does the template end each turn?"),
        (report.boundary_moved > 0, f"{report.boundary_moved:,} pairs begin inside a token of their prompt"),
        (seen.duplicates > 0, f"{seen.duplicates:,} pairs are exact duplicates"),
        (seen.conflicts > 0, f"{seen.conflicts:,} pairs prefer what another pair on the same prompt rejects"),
    ]
    return [hint for is_so, hint in checks if is_so]


def bos_opens_turns(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template begins every turn with the BOS token, as ChatML does where the two are one."""
    asked = [{"role": "user", "content": "a"}]
    answered = [*asked, {"role": "assistant", "content": "a"}, *asked]
    if not tokenizer.chat_template or not tokenizer.bos_token:
        return False
    try:
        texts = [render(tokenizer, turns, None, {}, add_generation_prompt=False) for turns in (asked, answered)]
    except BadRow:
        return False
    once, thrice = (text.count(tokenizer.bos_token) for text in texts)
    return thrice > once


def _examples(
    prepared: Prepared, tokenizer: PreTrainedTokenizerBase, lengths: dict[str, NDArray[np.int64]], count: int
) -> list[Example]:
    order = np.argsort(sum(lengths.values()), kind="stable")
    ranks = np.linspace(0, len(order) - 1, max(count, 1)).round().astype(int)[1:]
    examples = []
    for pair in list(dict.fromkeys((0, *map(int, order[ranks]))))[:count]:
        row: dict[str, Any] = prepared.pairs[pair]
        ids = {name: row[f"{name}_ids"] for name in PARTS if row[f"{name}_ids"]}
        texts = {name: tokenizer.decode(part) for name, part in ids.items()}
        pieces = {name: pieces_of(tokenizer, part, row.get(f"{name}_mask")) for name, part in ids.items()}
        counts = {name: len(part) for name, part in ids.items()}
        scored = {name: row[f"{name}_scored"] for name in ids if name != "prompt"}
        examples.append(Example(prepared.where(pair), texts, counts, scored, pieces))
    return examples


def pieces_of(tokenizer: PreTrainedTokenizerBase, ids: list[int], mask: Sequence[bool] | None = None) -> list[Piece]:
    """The text of each token in its place; tokens of one character come together. Without a mask all are scored."""
    special = set(tokenizer.all_special_ids)
    pieces: list[Piece] = []
    before: list[int] = []
    group: list[int] = []
    for number, token in enumerate(ids):
        group.append(token)
        # After the token before it, because a decoder may treat the first token in its own way.
        text = tokenizer.decode(before + group)[len(tokenizer.decode(before)) :]
        if text.endswith("\ufffd") and len(group) < 8 and number + 1 < len(ids):
            continue
        pieces.append(Piece(text, token in special, bool(mask[number]) if mask else True))
        before, group = [token], []
    return pieces
