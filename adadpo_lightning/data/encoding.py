"""Maps the rows of a source to those of the tokenized dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from adadpo_lightning.data.files import decode
from adadpo_lightning.data.formats import read_pair, rename_columns
from adadpo_lightning.data.lists import best, expand
from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.pipeline import encode
from adadpo_lightning.data.rendering import one_text
from adadpo_lightning.data.schema import NO_PAIR, TOO_DEEP, BadRow, PreferencePair, RankedList
from adadpo_lightning.data.tokenize import PairTokenizer
from adadpo_lightning.parent import end_with

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Features

    from adadpo_lightning.types import EncodedPair

# Raised by hand when what `tokenize_rows` writes changes: datasets cached by an older version are then not used.
FORMAT_VERSION = 7
BLANK = "blank line"

_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
_MASKS = ("chosen_mask", "rejected_mask")
_COUNTS = ("prompt_len", "chosen_len", "rejected_len")
_INDICES = ("chosen_index", "rejected_index")
# Counts of a ranked list, on the first of its pairs.
_LISTS = ("ranked_lists", "ties", "narrow")
_SCORED = ("chosen_scored", "rejected_scored")
_TEXTS = ("prompt_key", "outcome", "detail", "cut")
_FLAGS = (
    "boundary_moved",
    "special_prompt",
    "special_answer",
    "rendered",
    "several_turns",
    "shared_turns",
    "turns_rewritten",
    "turns_unended",
    "answer_changed",
    "answer_prefixed",
    "earlier_turns",
    "kwargs_own",
    "kwargs_override",
    "kwargs_unused",
    "tools_unwritten",
)
_NOTHING: dict[str, Any] = (
    {name: [] for name in (*_IDS, *_MASKS)}
    | dict.fromkeys((*_COUNTS, *_SCORED, *_LISTS), 0)
    | dict.fromkeys(("weight", "margin", *_INDICES))
    | dict.fromkeys(_TEXTS, "")
    | dict.fromkeys(_FLAGS, False)
)
# Columns that the account of a dataset is made of; the pairs that are trained on do without them.
ACCOUNT = ("outcome", "detail", "cut", *_LISTS, *(flag for flag in _FLAGS if flag != "several_turns"))


def features() -> Features:
    """Columns of the tokenized dataset."""
    from datasets import Features, List, Value

    return Features(
        {"row": Value("int64")}
        | dict.fromkeys(_IDS, List(Value("int32")))
        | dict.fromkeys(_MASKS, List(Value("bool")))
        | dict.fromkeys((*_COUNTS, *_SCORED, *_LISTS, *_INDICES), Value("int32"))
        | dict.fromkeys(("weight", "margin"), Value("float64"))
        | dict.fromkeys(_TEXTS, Value("string"))
        | dict.fromkeys(_FLAGS, Value("bool"))
    )


def tokenize_rows(
    values: dict[str, list[Any]],
    numbers: list[int],
    encoder: PairTokenizer,
    fmt: str,
    columns: dict[str, str] | None,
    is_json: bool,
    starter: int,
) -> pa.Table:
    """Tokenize a batch of rows.

    Args:
        values: Columns as `Rows` holds them.
        numbers: The number of each row in the source.
        encoder: Tokenizes pairs.
        fmt: Name of their format.
        columns: The source's renaming of columns.
        is_json: Whether `values` holds JSON text.
        starter: The process whose end is to end this one, if it is a worker of it.

    Returns:
        The columns of `features`, once for each row or each pair of a ranked list. A row or pair that is not usable
        has its reason in ``outcome`` and no ids.
    """
    end_with(starter)
    rows = (dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True))
    origins: list[dict[str, int]] = []

    def read() -> Iterator[PreferencePair | BadRow]:
        for number, row in zip(numbers, rows, strict=True):
            made, counts = _pairs_of(_read(row, fmt, columns, is_json), encoder.options)
            origins.append({"row": number, **counts})
            origins.extend({"row": number} for _ in made[1:])
            yield from made

    results = [_result(outcome, encoder) for outcome in encode(encoder, read())]
    return _table([result | origin for result, origin in zip(results, origins, strict=True)])


def _pairs_of(
    read: PreferencePair | RankedList | BadRow, options: TokenizeOptions
) -> tuple[Sequence[PreferencePair | BadRow], dict[str, int]]:
    """The pairs of a row, at least one or why there is none, and what is counted of a ranked list."""
    if not isinstance(read, RankedList):
        return [read], {}
    if not options.with_rejected:
        return [best(read)], {"ranked_lists": 1}
    try:
        made = expand(read, options.lists)
    except BadRow as error:
        return [error], {}
    counts = {"ranked_lists": 1, "ties": made.ties, "narrow": made.narrow}
    return made.pairs or [BadRow(NO_PAIR)], counts


def _read(
    values: dict[str, Any], fmt: str, columns: dict[str, str] | None, is_json: bool
) -> PreferencePair | RankedList | BadRow:
    try:
        row = decode(values, is_json=is_json)
        return BadRow(BLANK) if row is None else read_pair(rename_columns(row, columns), fmt)
    except BadRow as error:
        return error
    except RecursionError:
        return TOO_DEEP


def _result(outcome: tuple[PreferencePair, EncodedPair] | BadRow, encoder: PairTokenizer) -> dict[str, Any]:
    if isinstance(outcome, BadRow):
        return _NOTHING | {"outcome": outcome.reason, "detail": _storable(str(outcome))}
    pair, encoded = outcome
    ids = {name: getattr(encoded, name) for name in (*_IDS, *_MASKS)}
    counts = {count: len(ids[name]) for count, name in zip(_COUNTS, _IDS, strict=True)}
    scored = zip(_SCORED, _MASKS, _COUNTS[1:], strict=True)
    counts |= {count: sum(ids[mask]) if ids[mask] else counts[whole] for count, mask, whole in scored}
    account = {"cut": encoded.cut, "boundary_moved": encoded.boundary_moved}
    account |= _special_flags(pair, encoder) | _turn_flags(pair, encoded) | _kwargs_flags(pair, encoder)
    indices = dict(zip(_INDICES, pair.answer_indices or (None, None), strict=True))
    key = hashlib.sha256(pair.prompt_key.encode()).hexdigest()[:16]
    return (
        _NOTHING | ids | counts | account | indices | {"weight": pair.weight, "margin": pair.margin, "prompt_key": key}
    )


def _table(results: list[dict[str, Any]]) -> pa.Table:
    """The results in Arrow's form; the ids go there through numpy, which is many times faster than by Python lists."""
    import pyarrow as pa

    columns: dict[str, pa.Array] = {}
    for field in features().arrow_schema:
        values = [result[field.name] for result in results]
        columns[field.name] = _lists(values) if field.name in _IDS else pa.array(values, field.type)
    return pa.table(columns)


def _lists(values: list[list[int]]) -> pa.Array:
    import pyarrow as pa

    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    flat = np.fromiter(chain.from_iterable(values), np.int32, offsets[-1])
    return pa.ListArray.from_arrays(offsets, flat)


def _special_flags(pair: PreferencePair, encoder: PairTokenizer) -> dict[str, bool]:
    """Whether prompt and answers contain special tokens, and whether the prompt is treated as already rendered."""
    texts = [one_text(value) for value in (pair.prompt, pair.chosen, pair.rejected)]
    held = [text is not None and encoder.special.holds(text) for text in texts]
    return {"special_prompt": held[0], "special_answer": any(held[1:]), "rendered": encoder.is_rendered(pair)}


def _turn_flags(pair: PreferencePair, encoded: EncodedPair) -> dict[str, bool]:
    """What is counted of conversations, among it the rows that can be read in two ways."""
    earlier = isinstance(pair.prompt, list) and any(message["role"] == "assistant" for message in pair.prompt)
    return {
        "several_turns": isinstance(pair.chosen, list) or isinstance(pair.rejected, list),
        "shared_turns": pair.shared_turns,
        "turns_rewritten": encoded.turns_rewritten,
        "turns_unended": encoded.turns_unended,
        "answer_changed": encoded.answer_changed,
        "answer_prefixed": encoded.answer_prefixed,
        "earlier_turns": earlier and pair.rejected is None,
    }


def _kwargs_flags(pair: PreferencePair, encoder: PairTokenizer) -> dict[str, bool]:
    """Whether a row has variables of the chat template, or changes those of the option; what it has for nothing."""
    own, option = pair.chat_template_kwargs or {}, encoder.options.chat_template_kwargs or {}
    used = not encoder.joins(pair)
    return {
        "kwargs_own": bool(own) and used,
        "kwargs_override": used and any(name in option and option[name] != value for name, value in own.items()),
        "kwargs_unused": bool(own) and not used,
        "tools_unwritten": encoder.ignores_tools(pair),
    }


def _storable(text: str) -> str:
    """Escape lone surrogates, which Arrow cannot store."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
