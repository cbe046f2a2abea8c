"""Sources to tokenised datasets, with an account of what was dropped and cut."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from adadpo_lightning.data.schema import BadRow, detect_format, read_pair, rename_columns
from adadpo_lightning.data.sources import SourceConfig, load_rows
from adadpo_lightning.data.tokenize import TokenizeOptions, check_tokenizer, tokenize_pair
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.table import Table
    from transformers import PreTrainedTokenizerBase

# Raised by hand when what `tokenize_row` writes changes: datasets cached by an older version are then not used.
FORMAT_VERSION = 1
# Pairs that are no error of the data: identical answers teach nothing, and length is the user's own bound.
ALWAYS_DROPPED = ("identical answers", "too long", "answer too long")


@dataclass
class DataReport:
    """What became of the rows of one dataset.

    Args:
        name: ``train``, ``val``, ...
        formats: Path to detected or forced format.
        rows: Rows read.
        kept: Pairs left.
        dropped: Reason to number of rows.
        cut: What was cut to number of rows.
        boundary_moved: Pairs whose answers begin before the tokenised prompt's end.
        tokens: Tokens of all kept pairs (prompt once).
        chosen_longer: Share of pairs whose chosen answer has more tokens.
    """

    name: str
    formats: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    boundary_moved: int = 0
    tokens: int = 0
    chosen_longer: float = math.nan

    def lines(self) -> list[tuple[str, str]]:
        """The account as (what, how many)."""
        formats = ", ".join(f"{path}: {fmt}" for path, fmt in self.formats.items())
        return [
            ("format", formats),
            ("rows read", str(self.rows)),
            *((f"dropped: {reason}", str(count)) for reason, count in sorted(self.dropped.items())),
            *((what, str(count)) for what, count in sorted(self.cut.items()) if what),
            ("boundary moved", str(self.boundary_moved)),
            ("pairs kept", str(self.kept)),
            ("tokens", f"{self.tokens:,}"),
            ("chosen longer", f"{self.chosen_longer:.0%}"),
        ]


def report_table(reports: Sequence[DataReport]) -> Table:
    """All datasets in one table."""
    from rich.table import Table

    table = Table("data", "what", "count", title="Preference data")
    for report in reports:
        for what, count in report.lines():
            table.add_row(report.name, what, count)
        table.add_section()
    return table


def tokenize_row(
    row: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    options: TokenizeOptions,
    fmt: str,
    columns: dict[str, str] | None,
) -> dict[str, Any]:
    """One row to the columns of the tokenised dataset; a bad row to its reason and no ids."""
    result: dict[str, Any] = {
        "prompt_ids": [],
        "chosen_ids": [],
        "rejected_ids": [],
        "weight": None,
        "margin": None,
        "prompt_key": "",
        "bad": "",
        "detail": "",
        "cut": "",
        "boundary_moved": False,
    }
    try:
        pair = read_pair(rename_columns(row, columns), fmt)
        tokens = tokenize_pair(pair, tokenizer, options)
    except BadRow as error:
        return result | {"bad": error.reason, "detail": str(error)}
    return result | asdict(tokens) | {"weight": pair.weight, "margin": pair.margin, "prompt_key": repr(pair.prompt)}


def prepare(
    name: str,
    sources: Sequence[SourceConfig],
    tokenizer: PreTrainedTokenizerBase,
    options: TokenizeOptions,
    *,
    on_bad_row: Literal["error", "drop"] = "error",
    seed: int = 0,
    num_proc: int | None = None,
) -> tuple[Dataset, DataReport]:
    """Load, read, tokenise and cut all rows of one dataset.

    Args:
        name: What it is for; only for the report.
        sources: Its sources.
        tokenizer: The policy's tokenizer.
        options: How to tokenise and cut.
        on_bad_row: Stop at the first unusable row, or drop and count it.
        seed: Seed of the halves that source weights draw.
        num_proc: Processes to tokenise with.

    Raises:
        UserError: If a row is unusable (with ``error``) or no pair is left.
    """
    from datasets import concatenate_datasets

    check_tokenizer(tokenizer, options)
    report = DataReport(name)
    parts = []
    for source in sources:
        tokenised = _tokenize_source(source, tokenizer, options, report, num_proc)
        kept = _without_bad_rows(tokenised, source, report, on_bad_row)
        parts.append(_weighted(kept, source.weight, seed))
    dataset = concatenate_datasets(parts)
    if len(dataset) == 0:
        raise UserError(f"data.{name}", f"no pair is left of {report.rows} rows; dropped: {dict(report.dropped)}")
    prompts, chosen, rejected = lengths(dataset)
    report.kept, report.tokens = len(dataset), int((prompts + chosen + rejected).sum())
    report.chosen_longer = float((chosen > rejected).mean()) if rejected.any() else math.nan
    return dataset, report


def lengths(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token counts of prompts, chosen and rejected answers, each int64 of shape (pairs,)."""
    import pyarrow.compute as pc

    table = dataset.with_format("arrow")[:]
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    counts = [pc.list_value_length(table[name]).to_numpy().astype(np.int64) for name in columns]
    return counts[0], counts[1], counts[2]


def split_by_prompt(dataset: Dataset, size: int | float, seed: int) -> tuple[Dataset, Dataset]:
    """Hold pairs out for validation so that no prompt is in both parts.

    Args:
        dataset: Tokenised pairs.
        size: Pairs (at least) to hold out, or their share if below 1.
        seed: Seed of the draw.

    Raises:
        UserError: If one of the parts would be empty.
    """
    wanted = round(size * len(dataset)) if size < 1 else int(size)
    keys = np.asarray(dataset["prompt_key"])
    names, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    taken = order[: int(np.searchsorted(np.cumsum(counts[order]), wanted)) + 1]
    held_out = np.isin(inverse, taken)
    if wanted < 1 or held_out.all():
        raise UserError(
            "data.val_size",
            f"{size} leaves an empty part of {len(dataset)} pairs with {len(names)} prompts",
            "choose another size or give data.val",
        )
    return dataset.select(np.flatnonzero(~held_out)), dataset.select(np.flatnonzero(held_out))


def _tokenize_source(
    source: SourceConfig,
    tokenizer: PreTrainedTokenizerBase,
    options: TokenizeOptions,
    report: DataReport,
    num_proc: int | None,
) -> Dataset:
    rows = load_rows(source)
    fmt = source.format or detect_format(rename_columns(rows[0], source.columns))
    report.formats[source.path] = fmt
    report.rows += len(rows)
    arguments = {"tokenizer": tokenizer, "options": options, "fmt": fmt, "columns": source.columns}
    return rows.map(
        tokenize_row,
        fn_kwargs=arguments,
        remove_columns=rows.column_names,
        features=_features(),
        num_proc=num_proc if num_proc and num_proc > 1 and len(rows) >= 1000 else None,
        new_fingerprint=_fingerprint(rows, tokenizer, options, fmt, source),
        desc=f"Tokenising {report.name}",
    )


def _features() -> Any:
    from datasets import Features, List, Value

    ids, text = List(Value("int32")), Value("string")
    numbers = dict.fromkeys(("weight", "margin"), Value("float32"))
    texts = dict.fromkeys(("prompt_key", "bad", "detail", "cut"), text)
    lists = dict.fromkeys(("prompt_ids", "chosen_ids", "rejected_ids"), ids)
    return Features(lists | numbers | texts | {"boundary_moved": Value("bool")})


def _fingerprint(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions, fmt: str, source: SourceConfig
) -> str:
    """Key of the cached result, by content: a tokenizer's own hash differs from process to process."""
    from datasets.fingerprint import Hasher

    fast = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = fast.to_str() if fast is not None else sorted(tokenizer.get_vocab().items())
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template, str(type(tokenizer)))
    parts = (FORMAT_VERSION, rows._fingerprint, vocabulary, special, asdict(options), fmt, source.columns)
    return str(Hasher.hash(parts))


def _without_bad_rows(
    dataset: Dataset, source: SourceConfig, report: DataReport, on_bad_row: Literal["error", "drop"]
) -> Dataset:
    reasons = np.asarray(dataset["bad"])
    report.dropped.update(reason for reason in reasons.tolist() if reason)
    report.cut.update(dataset["cut"])
    report.boundary_moved += int(np.sum(dataset["boundary_moved"]))
    if on_bad_row == "error":
        for row in np.flatnonzero(reasons != ""):
            if reasons[row] not in ALWAYS_DROPPED:
                raise UserError(
                    source.location(int(row)),
                    dataset[int(row)]["detail"],
                    "mend the row, or set data.on_bad_row to drop",
                )
    return dataset.select(np.flatnonzero(reasons == ""))


def _weighted(dataset: Dataset, weight: float, seed: int) -> Dataset:
    """`weight` copies of the rows; the part of a copy is a random one."""
    if weight == 1.0 or len(dataset) == 0:
        return dataset
    whole, part = divmod(weight, 1.0)
    order = np.random.default_rng(seed).permutation(len(dataset))[: round(part * len(dataset))]
    rows = np.concatenate([np.tile(np.arange(len(dataset)), int(whole)), np.sort(order)])
    return dataset.select(rows)
