"""What a careful engineer looks at before training on preference data; as numbers, in the terminal and as HTML."""

from __future__ import annotations

import html
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console, RenderableType
    from transformers import PreTrainedTokenizerBase

    from adadpo_lightning.data.prepare import Prepared

PARTS = ("prompt", "chosen", "rejected")
STYLES = {"prompt": "dim", "chosen": "green", "rejected": "red"}
BAR_WIDTH = 30
CSS = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left}
.bar{display:inline-block;height:.8em;background:#58a}
pre{white-space:pre-wrap;border-left:3px solid #ccc;padding-left:1rem}
.prompt{color:#777}.chosen{background:#cfc}.rejected{background:#fcc}li.hint{color:#a40}"""


@dataclass(frozen=True)
class Example:
    """One pair as the model sees it.

    Args:
        where: File and row.
        texts: Decoded prompt, chosen and rejected tokens, special tokens included; those of the answers are scored.
        tokens: Their counts.
    """

    where: str
    texts: dict[str, str]
    tokens: dict[str, int]


@dataclass(frozen=True)
class Inspection:
    """Findings on one dataset.

    Args:
        facts: What, and how much of it.
        hints: What to look into, in one sentence each.
        histograms: For prompt, chosen and rejected the (first, last, count) of tokens in each bin.
        examples: The first, the one of median length and the longest pair.
    """

    facts: list[tuple[str, str]]
    hints: list[str]
    histograms: dict[str, list[tuple[int, int, int]]]
    examples: list[Example]


def inspect_pairs(prepared: Prepared, tokenizer: PreTrainedTokenizerBase) -> Inspection:
    """Look at every pair of a prepared dataset.

    Args:
        prepared: Result of `prepare`, with its report completed by ``with_passes``.
        tokenizer: The tokenizer that it was prepared with.
    """
    lengths = dict(zip(PARTS, prepared.counts(), strict=True))
    seen = _scan(prepared, tokenizer)
    both = len(lengths["chosen"]) > 0 and bool(lengths["rejected"].any())
    facts = prepared.report.lines()
    if both:
        facts += _length_bias(lengths["chosen"], lengths["rejected"])
    facts += seen.facts(tokenizer)
    histograms = {name: histogram(values) for name, values in lengths.items() if values.any()}
    return Inspection(facts, _hints(prepared, lengths, seen), histograms, _examples(prepared, tokenizer, lengths))


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
            ("pairs that stand there before", f"{self.duplicates:,}"),
            ("pairs on a prompt that stands there before", f"{self.repeated_prompts:,}"),
            ("pairs that say the opposite of another", f"{self.conflicts:,}"),
        ]


def _scan(prepared: Prepared, tokenizer: PreTrainedTokenizerBase) -> _Seen:
    seen = _Seen(0, Counter(), Counter(), 0, 0, 0, 0)
    special = set(tokenizer.all_special_ids)
    prompts: set[str] = set()
    known: set[tuple[str, int, int]] = set()
    for row in prepared.pairs.with_format("numpy"):
        seen.pairs += 1
        prompt = row["prompt_ids"]
        if tokenizer.bos_token_id is not None:
            seen.bos[int((prompt == tokenizer.bos_token_id).sum())] += 1
        for ids in (row["chosen_ids"], row["rejected_ids"]):
            if len(ids):
                end = int(ids[-1])
                seen.endings[end] += 1
                seen.doubled_ends += end in special and int((ids == end).sum()) > 1
        key = str(row["prompt_key"])
        chosen, rejected = (hash(row[name].tobytes()) for name in ("chosen_ids", "rejected_ids"))
        seen.repeated_prompts += key in prompts
        seen.duplicates += (key, chosen, rejected) in known
        seen.conflicts += (key, rejected, chosen) in known
        prompts.add(key)
        known.add((key, chosen, rejected))
    return seen


def _length_bias(chosen: NDArray[np.int64], rejected: NDArray[np.int64]) -> list[tuple[str, str]]:
    difference = chosen - rejected
    return [
        ("rejected answer longer", f"{(difference < 0).mean():.0%}"),
        ("answers of equal length", f"{(difference == 0).mean():.0%}"),
        ("chosen minus rejected, mean tokens", f"{difference.mean():+.1f}"),
    ]


def _hints(prepared: Prepared, lengths: dict[str, NDArray[np.int64]], seen: _Seen) -> list[str]:
    report = prepared.report
    dropped, cut = report.dropped.total(), report.cut.total()
    uneven = lengths["chosen"] != lengths["rejected"]
    longer = float((lengths["chosen"] > lengths["rejected"])[uneven].mean()) if uneven.any() else 0.5
    checks = [
        (dropped > 0.05 * report.rows, f"{dropped:,} of {report.rows:,} rows are dropped"),
        (cut > 0.05 * seen.pairs, f"{cut:,} of {seen.pairs:,} pairs are cut: raise max_length?"),
        (
            lengths["rejected"].any() and abs(longer - 0.5) > 0.1,
            f"of unequal pairs the chosen answer is the longer one in {longer:.0%}: the policy will learn length",
        ),
        (
            any(n > 1 for n in seen.bos),
            "some prompts have more than one BOS: the template or the data write one too many",
        ),
        (seen.doubled_ends > 0, f"{seen.doubled_ends:,} answers have their terminator inside too"),
        (len(seen.endings) > 1 and not cut, "answers end in different ways: does the template end each turn?"),
        (report.boundary_moved > 0, f"{report.boundary_moved:,} pairs begin inside a token of their prompt"),
        (seen.duplicates > 0, f"{seen.duplicates:,} pairs are exact repeats"),
        (seen.conflicts > 0, f"{seen.conflicts:,} pairs prefer what another pair on the same prompt rejects"),
    ]
    return [hint for is_so, hint in checks if is_so]


def _examples(
    prepared: Prepared, tokenizer: PreTrainedTokenizerBase, lengths: dict[str, NDArray[np.int64]]
) -> list[Example]:
    order = np.argsort(sum(lengths.values()), kind="stable")
    examples = []
    for pair in dict.fromkeys((0, int(order[len(order) // 2]), int(order[-1]))):
        row: dict[str, Any] = prepared.pairs[pair]
        texts = {name: tokenizer.decode(row[f"{name}_ids"]) for name in PARTS if row[f"{name}_ids"]}
        examples.append(Example(prepared.where(pair), texts, {name: len(row[f"{name}_ids"]) for name in texts}))
    return examples


def print_inspection(found: Inspection, console: Console) -> None:
    """Show the findings in a terminal."""
    from rich.table import Table

    table = Table("what", "count", title="Preference data")
    for fact in found.facts:
        table.add_row(*fact)
    console.print(table)
    for name, bins in found.histograms.items():
        console.print(f"tokens: {name}")
        most = max(count for _, _, count in bins)
        for first, last, count in bins:
            console.print(
                f"  {f'{first}-{last}':>13} {'█' * round(BAR_WIDTH * count / most)} {count:,}", highlight=False
            )
    for example in found.examples:
        console.print(*_example_lines(example), sep="\n")
    for hint in found.hints:
        console.print(f"look at: {hint}", style="yellow", highlight=False)


def _example_lines(example: Example) -> list[RenderableType]:
    from rich.text import Text

    lines: list[RenderableType] = [Text(f"\n{example.where}", style="bold")]
    for name, text in example.texts.items():
        scored = "" if name == "prompt" else ", scored"
        lines.append(Text(f"{name}, {example.tokens[name]} tokens{scored}:"))
        lines.append(Text(text, style=STYLES[name]))
    return lines


def to_html(found: Inspection, title: str) -> str:
    """The findings as one page without scripts or outside resources."""
    rows = "".join(f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in found.facts)
    hints = "".join(f'<li class="hint">{html.escape(hint)}</li>' for hint in found.hints) or "<li>none</li>"
    charts = "".join(f"<h3>{name}</h3><table>{_bars(bins)}</table>" for name, bins in found.histograms.items())
    examples = "".join(_html_example(example) for example in found.examples)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{CSS}</style>'
        f"<h1>{html.escape(title)}</h1><h2>To look at</h2><ul>{hints}</ul><h2>Counts</h2><table>{rows}</table>"
        f"<h2>Tokens</h2>{charts}<h2>Examples</h2><p>Coloured tokens are scored.</p>{examples}</html>\n"
    )


def _bars(bins: list[tuple[int, int, int]]) -> str:
    most = max(count for _, _, count in bins)
    return "".join(
        f'<tr><td>{first}-{last}</td><td><span class="bar" style="width:{20 * count / most:.2f}rem"></span> '
        f"{count:,}</td></tr>"
        for first, last, count in bins
    )


def _html_example(example: Example) -> str:
    spans = "\n".join(f'<span class="{name}">{html.escape(text)}</span>' for name, text in example.texts.items())
    return f"<h3>{html.escape(example.where)}</h3><pre>{spans}</pre>"
