"""Maps each row of a source to one row of the tokenized dataset."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from adadpo_lightning.data.files import decode
from adadpo_lightning.data.formats import read_pair, rename_columns
from adadpo_lightning.data.schema import BadRow, PreferencePair
from adadpo_lightning.data.tokenize import PairTokenizer, one_text

if TYPE_CHECKING:
    from datasets import Features

# Raised by hand when what `tokenize_row` writes changes: datasets cached by an older version are then not used.
FORMAT_VERSION = 2
BLANK = "blank line"

_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
_COUNTS = ("prompt_len", "chosen_len", "rejected_len")
_TEXTS = ("prompt_key", "outcome", "detail", "cut")
_FLAGS = ("boundary_moved", "special_prompt", "special_answer", "rendered")
_NOTHING: dict[str, Any] = (
    {name: [] for name in _IDS}
    | dict.fromkeys(_COUNTS, 0)
    | dict.fromkeys(("weight", "margin"))
    | dict.fromkeys(_TEXTS, "")
    | dict.fromkeys(_FLAGS, False)
)
# Columns that the account of a dataset is made of; the pairs that are trained on do without them.
ACCOUNT = ("outcome", "detail", "cut", *_FLAGS)


def features() -> Features:
    """Columns of the tokenized dataset."""
    from datasets import Features, List, Value

    return Features(
        {"row": Value("int64")}
        | dict.fromkeys(_IDS, List(Value("int32")))
        | dict.fromkeys(_COUNTS, Value("int32"))
        | dict.fromkeys(("weight", "margin"), Value("float64"))
        | dict.fromkeys(_TEXTS, Value("string"))
        | dict.fromkeys(_FLAGS, Value("bool"))
    )


def tokenize_row(
    values: dict[str, Any], number: int, encoder: PairTokenizer, fmt: str, columns: dict[str, str] | None, is_json: bool
) -> dict[str, Any]:
    """Tokenize one row.

    Args:
        values: The row as `Rows` holds it.
        number: Its number in the source.
        encoder: Tokenises pairs.
        fmt: Name of its format.
        columns: The source's renaming of columns.
        is_json: Whether `values` holds JSON text.

    Returns:
        The columns of `features`. A row without a usable pair has its reason in ``outcome`` and no ids.
    """
    result: dict[str, Any] = {"row": number, **_NOTHING}
    try:
        row = decode(values, is_json=is_json)
        if row is None:
            return result | {"outcome": BLANK}
        pair = read_pair(rename_columns(row, columns), fmt)
        encoded = encoder(pair)
    except BadRow as error:
        return result | {"outcome": error.reason, "detail": _storable(str(error))}
    except RecursionError:
        return result | {"outcome": "nested too deep", "detail": "nested too deep: a value holds too many levels"}
    ids = {name: getattr(encoded, name) for name in _IDS}
    counts = {count: len(ids[name]) for count, name in zip(_COUNTS, _IDS, strict=True)}
    account = {"cut": encoded.cut, "boundary_moved": encoded.boundary_moved} | _special_flags(pair, encoder)
    key = hashlib.sha256(pair.prompt_key.encode()).hexdigest()[:16]
    return result | ids | counts | account | {"weight": pair.weight, "margin": pair.margin, "prompt_key": key}


def _special_flags(pair: PreferencePair, encoder: PairTokenizer) -> dict[str, bool]:
    """Whether prompt and answers contain special tokens, and whether the prompt is treated as already rendered."""
    texts = [one_text(value) for value in (pair.prompt, pair.chosen, pair.rejected)]
    held = [text is not None and encoder.special.holds(text) for text in texts]
    return {"special_prompt": held[0], "special_answer": any(held[1:]), "rendered": encoder.is_rendered(pair)}


def _storable(text: str) -> str:
    """Escape lone surrogates, which Arrow cannot store."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
