"""Turns sources into one tokenized dataset, with a report of dropped and truncated pairs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from adadpo_lightning import fingerprint
from adadpo_lightning.data.cache import cache_folder, writing
from adadpo_lightning.data.encoding import ACCOUNT, BLANK, FORMAT_VERSION, features, tokenize_rows
from adadpo_lightning.data.formats import detect_format, read_pair, rename_columns
from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.pipeline import CHUNK
from adadpo_lightning.data.prepared import Prepared, column, split_by_prompt
from adadpo_lightning.data.report import DataReport, report_table
from adadpo_lightning.data.schema import IDENTICAL, NO_PAIR, BadRow, PreferencePair, RankedList
from adadpo_lightning.data.sources import Rows, SourceConfig, load_rows
from adadpo_lightning.data.tokenize import PairTokenizer
from adadpo_lightning.data.truncate import TOO_LONG
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

__all__ = ["DataReport", "Prepared", "prepare", "report_table", "split_by_prompt"]

# Not treated as errors: identical answers have no training signal, and the user sets the length limit.
ALWAYS_DROPPED = (IDENTICAL, TOO_LONG, NO_PAIR)
# Number of rows for detecting the format, and for deciding how special tokens are read.
PROBED_ROWS = 16
SAMPLED_ROWS = 1000
LIST_COUNTS = {
    "ranked_lists": "ranked lists",
    "ties": "pairs not made, equal scores",
    "narrow": "pairs not made, below data.lists.min_gap",
}
# Several calls of the tokenizer, so that they overlap with the work on other rows; bounds the memory.
ROWS_PER_BATCH = 4 * CHUNK
# Below this, starting processes takes longer than tokenizing.
ROWS_WORTH_A_PROCESS = 500


def prepare(
    name: str,
    sources: Sequence[SourceConfig],
    tokenizer: PreTrainedTokenizerBase,
    options: TokenizeOptions,
    *,
    on_bad_row: Literal["error", "drop"] = "error",
    num_proc: int | None = None,
) -> Prepared:
    """Load, parse, tokenize and truncate all rows of one dataset; source weights are not applied yet.

    Args:
        name: Name of the dataset in the report.
        sources: Sources of the dataset.
        tokenizer: The policy's tokenizer.
        options: Options of tokenization and truncation.
        on_bad_row: Stop at the first unusable row, or drop and count it.
        num_proc: Number of processes that tokenize.

    Raises:
        UserError: If a source cannot be read, or a row is unusable (with ``error``).
    """
    from datasets import concatenate_datasets

    undecided = PairTokenizer(tokenizer, options)
    report, parts, origins, first = DataReport(name), [], [], 0
    for number, source in enumerate(sources):
        rows = load_rows(source)
        fmt = source.format or _detected(rows, source)
        report.formats[source.path] = fmt
        if len(rows.parts) > 1:
            report.note(f"files of {source.path}", len(rows.parts))
        encoder = undecided.reads(undecided.decide(list(_pairs(rows.sample(SAMPLED_ROWS), source, fmt))))
        encoder.warn_if_rendered(source.path)
        tokenised = _tokenize(rows, source, encoder, fmt, num_proc)
        kept = _usable(tokenised, rows, encoder, report, on_bad_row)
        numbers = column(tokenised, "row") + first
        pairs = tokenised.remove_columns(["row", *ACCOUNT])
        pairs = pairs.add_column("row", numbers).add_column("source", np.full(len(numbers), number))
        # Selected last: adding a column to a selection would copy all of it.
        parts.append(pairs.select(kept))
        origins.append((first, rows))
        first += len(rows.table)
    return Prepared(concatenate_datasets(parts), report, list(sources), origins)


def _detected(rows: Rows, source: SourceConfig) -> str:
    found = []
    problem: BadRow | None = None
    for row in rows.head(PROBED_ROWS):
        try:
            found.append(rename_columns(row, source.columns))
        except BadRow as error:
            problem = problem or error
    if problem is not None and not found:
        raise UserError(source.path, str(problem), "correct the source's columns option")
    return detect_format(found, source.path)


def _pairs(rows: Iterable[dict[str, Any]], source: SourceConfig, fmt: str) -> Iterable[PreferencePair | RankedList]:
    for row in rows:
        try:
            yield read_pair(rename_columns(row, source.columns), fmt)
        except (BadRow, RecursionError):
            continue


def _tokenize(rows: Rows, source: SourceConfig, encoder: PairTokenizer, fmt: str, num_proc: int | None) -> Dataset:
    processes = min(num_proc or 1, len(rows.table) // ROWS_WORTH_A_PROCESS)
    key = _fingerprint(rows, encoder, fmt, source)
    with writing():
        return rows.table.map(
            tokenize_rows,
            batched=True,
            batch_size=ROWS_PER_BATCH,
            with_indices=True,
            fn_kwargs={
                "encoder": encoder,
                "fmt": fmt,
                "columns": source.columns,
                "is_json": rows.is_json,
                "starter": os.getpid(),
            },
            remove_columns=rows.table.column_names,
            features=features(),
            num_proc=processes if processes > 1 else None,
            new_fingerprint=key,
            # In the cache folder: by default `map` writes next to the user's Arrow files.
            cache_file_name=str(cache_folder() / f"pairs-{key}.arrow"),
            desc="Tokenizing",
        )


def _fingerprint(rows: Rows, encoder: PairTokenizer, fmt: str, source: SourceConfig) -> str:
    """Key of the cached result, a hash of its inputs."""
    settings = (asdict(encoder.options), asdict(encoder.reading), fmt, source.columns)
    parts = (FORMAT_VERSION, rows.key, fingerprint.of_tokenizer(encoder.tokenizer), settings)
    return fingerprint.of_data(parts)


def _usable(
    tokenised: Dataset,
    rows: Rows,
    encoder: PairTokenizer,
    report: DataReport,
    on_bad_row: Literal["error", "drop"],
) -> NDArray[np.int64]:
    """Complete the report, and give the numbers of the usable pairs."""
    outcomes, numbers = column(tokenised, "outcome"), column(tokenised, "row")
    counts = Counter(outcomes.tolist())
    # The pairs of a ranked list are on one row.
    report.rows += len(np.unique(numbers)) - counts.pop(BLANK, 0)
    counts.pop("", None)
    usual = ("", BLANK, *ALWAYS_DROPPED)
    bad = np.flatnonzero([outcome not in usual for outcome in outcomes])
    if on_bad_row == "error" and len(bad):
        more = f" (and {len(bad) - 1} more bad rows)" if len(bad) > 1 else ""
        raise UserError(
            rows.where(int(numbers[bad[0]])),
            tokenised[int(bad[0])]["detail"] + more,
            "fix the data, or set data.on_bad_row=drop to drop and count such rows",
        )
    report.dropped.update(counts)
    if len(bad) and not report.first_bad:
        report.first_bad = f"{rows.where(int(numbers[bad[0]]))}: {tokenised[int(bad[0])]['detail']}"
    report.cut.update(cut for cut in column(tokenised, "cut") if cut)
    report.boundary_moved += int(column(tokenised, "boundary_moved").sum())
    reading = encoder.reading
    for text, parsed in (("prompt", reading.prompts), ("answer", reading.answers)):
        how = "tokens" if parsed else "text"
        report.note(f"special tokens in {text}s, read as {how}", int(column(tokenised, f"special_{text}").sum()))
    for name, what in LIST_COUNTS.items():
        report.note(what, int(column(tokenised, name).sum()))
    scored = "every token scored" if encoder.options.score == "all" else "the assistant's scored"
    for flag, what in (
        ("several_turns", f"answers of several turns, {scored}"),
        ("shared_turns", "turns that both answers begin with, read as prompt"),
        ("earlier_turns", "one conversation, of whose assistant turns only the last is scored"),
        ("turns_rewritten", "turns that the template renders differently once others follow"),
        ("turns_unended", "turns that the template renders without a terminator"),
        ("answer_changed", "answers of which the template leaves out or rewrites a part"),
        ("answer_prefixed", "answers before which the template writes text of its own, scored too"),
        ("kwargs_own", "chat_template_kwargs of the row"),
        ("kwargs_override", "chat_template_kwargs of the row that replace a value of the option"),
        ("kwargs_unused", "chat_template_kwargs of the row, unused: no template is rendered"),
        ("tools_unwritten", "tools or tool calls before the answers that the chat template does not write"),
    ):
        report.note(what, int(column(tokenised, flag).sum()))
    if encoder.options.chat == "auto" and encoder.uses_template:
        report.note("prompts rendered already, not rendered again", int(column(tokenised, "rendered").sum()))
    kept = np.flatnonzero(outcomes == "")
    # Columns of these names may have another meaning in the data.
    weights, margins = (column(tokenised, name)[kept].astype(float) for name in ("weight", "margin"))
    report.note("pairs whose loss the column weight scales", int((~np.isnan(weights) & (weights != 1)).sum()))
    report.note("pairs with a target margin, from the column margin", int((~np.isnan(margins) & (margins != 0)).sum()))
    return kept
