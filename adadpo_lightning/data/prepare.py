"""Sources to one tokenised dataset, with an account of what was dropped and cut."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from adadpo_lightning.compat import fingerprint_of
from adadpo_lightning.data.schema import IDENTICAL, BadRow, detect_format, read_pair, rename_columns
from adadpo_lightning.data.sources import Rows, SourceConfig, decode, load_rows
from adadpo_lightning.data.tokenize import TOO_LONG, PairTokenizer, TokenizeOptions
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from rich.table import Table
    from transformers import PreTrainedTokenizerBase

# Raised by hand when what `tokenize_row` writes changes: datasets cached by an older version are then not used.
FORMAT_VERSION = 1
BLANK = "blank line"
# No errors of the data: identical answers teach nothing, and length is the user's own bound.
ALWAYS_DROPPED = (IDENTICAL, TOO_LONG)
PROBED_ROWS = 16
# Below this, starting processes takes longer than tokenising.
ROWS_WORTH_A_PROCESS = 500


@dataclass
class DataReport:
    """What became of the rows of one dataset.

    Args:
        name: ``train``, ``val``, ...
        formats: Path to detected or forced format.
        rows: Rows read.
        dropped: Reason to number of rows.
        cut: What was cut to number of pairs.
        boundary_moved: Pairs whose answers begin before the tokenised prompt's end.
        notes: Further lines.
        pairs: Pairs left, repeats by a source's weight included.
        tokens: Mean and longest token count of prompts, chosen and rejected answers.
        chosen_longer: Share of pairs whose chosen answer has more tokens.
    """

    name: str
    formats: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    boundary_moved: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    pairs: int = 0
    tokens: dict[str, tuple[float, int]] = field(default_factory=dict)
    chosen_longer: float = math.nan

    def lines(self) -> list[tuple[str, str]]:
        """The account as (what, how many)."""
        return [
            *((f"{path}", f"{fmt} format") for path, fmt in self.formats.items()),
            *([("rows read", f"{self.rows:,}")] if self.rows else []),
            *((f"dropped: {reason}", f"{count:,}") for reason, count in sorted(self.dropped.items())),
            *((what, f"{count:,}") for what, count in sorted(self.cut.items())),
            *([("boundary inside a merged token", f"{self.boundary_moved:,}")] if self.boundary_moved else []),
            *((what, f"{count:,}") for what, count in self.notes.items()),
            ("pairs", f"{self.pairs:,}"),
            *(
                (f"tokens: {what}, mean / longest", f"{mean:.0f} / {most}")
                for what, (mean, most) in self.tokens.items()
            ),
            *([("chosen answer longer", f"{self.chosen_longer:.0%}")] if not math.isnan(self.chosen_longer) else []),
        ]


def report_table(reports: Sequence[DataReport]) -> Table:
    """All datasets in one table."""
    from rich.table import Table

    table = Table("data", title="Preference data")
    table.add_column("what", overflow="fold")
    table.add_column("count", justify="right", no_wrap=True)
    for report in reports:
        for i, (what, count) in enumerate(report.lines()):
            table.add_row("" if i else report.name, what, count)
        table.add_section()
    return table


@dataclass
class Prepared:
    """Tokenised pairs, and where they come from.

    Args:
        pairs: One row a pair: ids, their counts, weight, margin, ``row``, ``source`` and ``prompt_key``.
        report: What was dropped and cut.
        sources: Their configs.
        origins: For each source the number of its first row, and its rows.
    """

    pairs: Dataset
    report: DataReport
    sources: list[SourceConfig]
    origins: list[tuple[int, Rows]]

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Tokens of prompts, chosen and rejected answers, each of shape (pairs,)."""
        names = ["prompt_len", "chosen_len", "rejected_len"]
        columns = self.pairs.select_columns(names).with_format("numpy")[:]
        prompt, chosen, rejected = (np.asarray(columns[name], dtype=np.int64) for name in names)
        return prompt, chosen, rejected

    def where(self, pair: int) -> str:
        """File and row of a pair."""
        row = int(self.pairs[pair]["row"])
        first, rows = [origin for origin in self.origins if origin[0] <= row][-1]
        return rows.where(row - first)

    def select(self, which: NDArray[np.int64]) -> Prepared:
        """Some of the pairs."""
        return Prepared(self.pairs.select(which), self.report, self.sources, self.origins)

    def with_passes(self, seed: int) -> Prepared:
        """Take each source's pairs as often as its weight says, and complete the report."""
        source = np.asarray(self.pairs["source"])
        rng = np.random.default_rng(seed)
        taken = [take(np.flatnonzero(source == i), config.weight, rng) for i, config in enumerate(self.sources)]
        chosen_rows = np.concatenate(taken)
        result = self if np.array_equal(chosen_rows, np.arange(len(source))) else self.select(chosen_rows)
        _summarise(result)
        return result


def take(items: NDArray[np.int64], weight: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Each item ``floor(weight)`` times, and a random share of them once more.

    Example:
        >>> take(np.array([3, 4, 5, 6]), 1.5, np.random.default_rng(0)).tolist()
        [3, 4, 5, 6, 3, 5]
    """
    part = rng.permutation(len(items))[: round(weight % 1 * len(items))]
    return np.concatenate([np.tile(items, int(weight)), items[np.sort(part)]])


def _summarise(prepared: Prepared) -> None:
    prompt, chosen, rejected = prepared.counts()
    report = prepared.report
    report.pairs = len(chosen)
    if not report.pairs:
        raise UserError(
            f"data.{report.name}",
            f"no pair is left of {report.rows} rows; dropped: {dict(report.dropped) or 'none'}",
            "see the table of reasons; raise data.max_length or mend the data",
        )
    named = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    report.tokens = {name: (float(n.mean()), int(n.max())) for name, n in named.items() if n.any()}
    report.chosen_longer = float((chosen > rejected).mean()) if rejected.any() else math.nan


def prepare(
    name: str,
    sources: Sequence[SourceConfig],
    tokenizer: PreTrainedTokenizerBase,
    options: TokenizeOptions,
    *,
    on_bad_row: Literal["error", "drop"] = "error",
    num_proc: int | None = None,
) -> Prepared:
    """Load, read, tokenise and cut all rows of one dataset; source weights are not applied yet.

    Args:
        name: What it is for; only for the report.
        sources: Its sources.
        tokenizer: The policy's tokenizer.
        options: How to tokenise and cut.
        on_bad_row: Stop at the first unusable row, or drop and count it.
        num_proc: Processes to tokenise with.

    Raises:
        UserError: If a source cannot be read, or a row is unusable (with ``error``).
    """
    from datasets import concatenate_datasets

    encoder = PairTokenizer(tokenizer, options)
    report, parts, origins, first = DataReport(name), [], [], 0
    for number, source in enumerate(sources):
        rows = load_rows(source)
        fmt = source.format or _detected(rows, source)
        report.formats[source.path] = fmt
        tokenised = _tokenize(rows, source, encoder, fmt, num_proc)
        kept = _usable(tokenised, rows, report, on_bad_row)
        numbers = np.asarray(kept["row"], dtype=np.int64) + first
        kept = kept.remove_columns(["row", "outcome", "detail", "cut", "boundary_moved"])
        kept = kept.add_column("row", numbers).add_column("source", np.full(len(numbers), number))
        parts.append(kept)
        origins.append((first, rows))
        first += len(rows.table)
    return Prepared(concatenate_datasets(parts), report, list(sources), origins)


def split_by_prompt(prepared: Prepared, size: float, seed: int) -> tuple[Prepared, Prepared]:
    """Hold pairs out for validation so that no prompt is in both parts.

    Args:
        prepared: All pairs.
        size: Pairs (at least) to hold out, or their share if below 1.
        seed: Seed of the draw.

    Raises:
        UserError: If one of the parts would be empty.
    """
    total = len(prepared.pairs)
    wanted = round(size * total) if size < 1 else int(size)
    keys = np.asarray(prepared.pairs["prompt_key"])
    prompts, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(prompts))
    held_out = order[: int(np.searchsorted(np.cumsum(counts[order]), wanted)) + 1]
    is_val = np.isin(inverse, held_out)
    if wanted < 1 or is_val.all():
        raise UserError(
            "data.val_size",
            f"{size:g} leaves one part of {total} pairs with {len(prompts)} prompts empty",
            "choose another size or give data.val",
        )
    train, val = prepared.select(np.flatnonzero(~is_val)), prepared.select(np.flatnonzero(is_val))
    train.report.notes["held out for val"] = len(val.pairs)
    # Held-out pairs are counted once, whatever the weight of their source in training.
    val.report, val.sources = DataReport("val"), [SourceConfig(source.path) for source in prepared.sources]
    return train, val


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


def tokenize_row(
    values: dict[str, Any], number: int, encoder: PairTokenizer, fmt: str, columns: dict[str, str] | None, is_json: bool
) -> dict[str, Any]:
    """One row to the columns of the tokenised dataset; a bad row to its reason and no ids."""
    result: dict[str, Any] = {"row": number, **_NOTHING}
    try:
        row = decode(values, is_json=is_json)
        if row is None:
            return result | {"outcome": BLANK}
        pair = read_pair(rename_columns(row, columns), fmt)
        tokens = encoder(pair)
    except BadRow as error:
        return result | {"outcome": error.reason, "detail": str(error)}
    counts = {name: len(getattr(tokens, f"{name[:-4]}_ids")) for name in ("prompt_len", "chosen_len", "rejected_len")}
    key = hashlib.sha256(pair.prompt_key.encode()).hexdigest()[:16]
    return result | asdict(tokens) | counts | {"weight": pair.weight, "margin": pair.margin, "prompt_key": key}


_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
_COUNTS = ("prompt_len", "chosen_len", "rejected_len")
_TEXTS = ("prompt_key", "outcome", "detail", "cut")
_NOTHING: dict[str, Any] = (
    {name: [] for name in _IDS}
    | dict.fromkeys(_COUNTS, 0)
    | dict.fromkeys(("weight", "margin"))
    | dict.fromkeys(_TEXTS, "")
    | {"boundary_moved": False}
)


def _tokenize(rows: Rows, source: SourceConfig, encoder: PairTokenizer, fmt: str, num_proc: int | None) -> Dataset:
    from datasets import Features, List, Value

    features = Features(
        {"row": Value("int64"), "boundary_moved": Value("bool")}
        | dict.fromkeys(_IDS, List(Value("int32")))
        | dict.fromkeys(_COUNTS, Value("int32"))
        | dict.fromkeys(("weight", "margin"), Value("float64"))
        | dict.fromkeys(_TEXTS, Value("string"))
    )
    processes = min(num_proc or 1, len(rows.table) // ROWS_WORTH_A_PROCESS)
    return rows.table.map(
        tokenize_row,
        with_indices=True,
        fn_kwargs={"encoder": encoder, "fmt": fmt, "columns": source.columns, "is_json": rows.is_json},
        remove_columns=rows.table.column_names,
        features=features,
        num_proc=processes if processes > 1 else None,
        new_fingerprint=_fingerprint(rows, encoder, fmt, source),
        desc="Tokenising",
    )


def _fingerprint(rows: Rows, encoder: PairTokenizer, fmt: str, source: SourceConfig) -> str:
    """Key of the cached result, by content: a tokenizer object's own hash differs from process to process."""
    from datasets.fingerprint import Hasher

    tokenizer = encoder.tokenizer
    fast = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = fast.to_str() if fast is not None else sorted(tokenizer.get_vocab().items())
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template, type(tokenizer).__name__)
    parts = (
        FORMAT_VERSION,
        fingerprint_of(rows.table),
        vocabulary,
        special,
        asdict(encoder.options),
        fmt,
        source.columns,
    )
    return str(Hasher.hash(parts))


def _usable(tokenised: Dataset, rows: Rows, report: DataReport, on_bad_row: Literal["error", "drop"]) -> Dataset:
    outcomes = np.asarray(tokenised["outcome"])
    counts = Counter(outcomes.tolist())
    report.rows += len(outcomes) - counts.pop(BLANK, 0)
    counts.pop("", None)
    bad = np.flatnonzero(~np.isin(outcomes, ("", BLANK, *ALWAYS_DROPPED)))
    if on_bad_row == "error" and len(bad):
        more = f" (and {len(bad) - 1} more bad rows)" if len(bad) > 1 else ""
        raise UserError(
            rows.where(int(bad[0])),
            tokenised[int(bad[0])]["detail"] + more,
            "mend the data, or drop and count such rows with data.on_bad_row=drop",
        )
    report.dropped.update(counts)
    report.cut.update(cut for cut in tokenised["cut"] if cut)
    report.boundary_moved += int(np.sum(tokenised["boundary_moved"]))
    return tokenised.select(np.flatnonzero(outcomes == ""))
