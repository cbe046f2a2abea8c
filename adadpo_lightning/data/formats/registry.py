"""Row formats by name: each says which rows it matches, and reads one of them.

A new format is one file with one function under `register_format`: in this folder, or in a package that declares it
under the entry-point group ``adadpo_lightning.formats``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from adadpo_lightning.data.formats.fields import is_blank, number_of, template_kwargs_of, text_of, tools_of
from adadpo_lightning.data.schema import IDENTICAL, Answer, BadRow, PreferencePair, RankedList, Row, check_text
from adadpo_lightning.errors import UserError, did_you_mean
from adadpo_lightning.plugins import load_plugins

ENTRY_POINT_GROUP = "adadpo_lightning.formats"


class RowFormat(NamedTuple):
    """A shape of rows: a predicate on a row, and a function that reads the prompt and the answers of one."""

    matches: Callable[[Row], bool]
    read: Callable[[Row], PreferencePair | RankedList]


FORMATS: dict[str, RowFormat] = {}


def register_format(
    name: str, matches: Callable[[Row], bool]
) -> Callable[[Callable[[Row], PreferencePair | RankedList]], Any]:
    """Add a dataset format; the ones registered first are tried first.

    Args:
        name: What users write as ``format``.
        matches: Whether a row has this shape.

    Example:
        >>> @register_format("example", lambda row: "question" in row)
        ... def example(row):
        ...     return PreferencePair(row["question"], row["good"], row["bad"])
        >>> read_pair({"question": "2+2?", "good": "4", "bad": "5"}, "example").chosen
        '4'
        >>> _ = FORMATS.pop("example")
    """

    def add(read: Callable[[Row], PreferencePair | RankedList]) -> Callable[[Row], PreferencePair | RankedList]:
        FORMATS[name] = RowFormat(matches, read)
        return read

    return add


def check_format(name: str, field: str) -> None:
    """Refuse the name of an unknown format.

    Raises:
        UserError: Naming `field`.
    """
    load_plugins(ENTRY_POINT_GROUP)
    if name not in FORMATS:
        raise UserError(field, f"unknown format {name!r}", did_you_mean(name, FORMATS))


def detect_format(rows: Iterable[Row], where: str) -> str:
    """Name of the format that reads most of the given rows, or if none can be read, that most rows match.

    Of two formats with as many, it is the one registered first. A row that only a wider format matches, because it is
    damaged, does not decide for the others.

    Raises:
        UserError: If no row has any; lists the columns found.
    """
    load_plugins(ENTRY_POINT_GROUP)
    rows = list(rows)
    matching = {name: [row for row in rows if fmt.matches(row)] for name, fmt in FORMATS.items()}
    best = max(FORMATS, key=lambda name: (sum(_readable(row, name) for row in matching[name]), len(matching[name])))
    if matching[best]:
        return best
    columns = sorted({name for row in rows for name in row})
    raise UserError(
        where,
        "missing columns: expected prompt, chosen and rejected (or chosen and rejected as whole conversations; or for "
        "sft prompt and chosen, or messages; for ranked lists prompt, responses, and scores or ranks), found "
        f"{', '.join(columns) or 'none'}",
        "map them with the source's columns option, such as {prompt: question, chosen: good, rejected: bad}",
    )


def _readable(row: Row, fmt: str) -> bool:
    try:
        read_pair(row, fmt)
    except (BadRow, RecursionError):
        return False
    return True


def rename_columns(row: Row, columns: Mapping[str, str] | None) -> Row:
    """Apply a mapping from this package's column names to the dataset's.

    Raises:
        BadRow: If a column that it names is missing.

    Example:
        >>> rename_columns({"question": "2+2?", "id": 7}, {"prompt": "question"})
        {'id': 7, 'prompt': '2+2?'}
    """
    if not columns:
        return row
    for theirs in columns.values():
        if theirs not in row:
            raise BadRow("missing column", f"there is no column {theirs!r}; {did_you_mean(theirs, row)}")
    taken = set(columns.values())
    return {k: v for k, v in row.items() if k not in taken} | {ours: row[theirs] for ours, theirs in columns.items()}


def read_pair(row: Row, fmt: str) -> PreferencePair | RankedList:
    r"""Read one row: a pair, or the ranked list that pairs are made from.

    Args:
        row: Column names (``prompt``, ``chosen``, ...) to values.
        fmt: One of `FORMATS`.

    Raises:
        BadRow: If the row holds no usable pair.

    Example:
        >>> asked = "\n\nHuman: Hi\n\nAssistant: "
        >>> pair = read_pair({"chosen": asked + "Hello!", "rejected": asked + "Go."}, "hh")
        >>> pair.prompt, pair.chosen["content"]
        ([{'role': 'user', 'content': 'Hi'}], 'Hello!')
    """
    pair = FORMATS[fmt].read(row)
    answers: Mapping[str, Answer | None]
    if isinstance(pair, RankedList):
        answers = {f"answer {number}": answer for number, answer in enumerate(pair.answers, start=1)}
        if len(pair.answers) != len(pair.scores) or not answers:
            raise BadRow("uneven lists", f"{len(answers)} answers and {len(pair.scores)} scores")
    else:
        answers = {"chosen": pair.chosen, "rejected": pair.rejected}
        if pair.chosen == pair.rejected:
            raise BadRow(IDENTICAL)
    for name, answer in answers.items():
        if is_blank(answer):
            raise BadRow("empty answer", f"{name} has no text")
    if not pair.prompt:
        raise BadRow("empty prompt")
    system = row.get("system")
    check_text([pair.prompt, *pair.answers, system, row.get("tools"), row.get("chat_template_kwargs")])
    if system and not isinstance(pair.prompt, str) and pair.prompt[0]["role"] == "system":
        raise BadRow("two system prompts", "one in the system column and one in the messages")
    return replace(
        pair,
        system=text_of(system, "system") if system else None,
        tools=tools_of(row.get("tools")),
        chat_template_kwargs=template_kwargs_of(row.get("chat_template_kwargs")),
        weight=number_of(row, "weight", least=0.0),
        margin=number_of(row, "margin"),
    )
