"""Tokenized pairs with their report: selection, source weights, and the split by prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from adadpo_lightning.data.chains import Chains, find_chains
from adadpo_lightning.data.groups import Groups, alone, group_pairs
from adadpo_lightning.data.report import DataReport
from adadpo_lightning.data.sources import Rows, SourceConfig
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray


@dataclass
class Prepared:
    """Tokenized pairs and their origin.

    Args:
        pairs: One row per pair: ids, masks, their counts, weight, margin, ``row``, ``source`` and ``prompt_key``. Pairs
            that a ranked list was made into share their ``row``; ``chosen_index`` and ``rejected_index`` are the
            positions of their answers in it, null for a row that is a pair.
        report: Report of dropped and truncated pairs.
        sources: Configs of the sources.
        origins: For each source, the index of its first row, and its rows.
    """

    pairs: Dataset
    report: DataReport
    sources: list[SourceConfig]
    origins: list[tuple[int, Rows]]
    _groups: dict[tuple[str, bool], Groups] = field(default_factory=dict, init=False, repr=False)
    _chains: Chains | None = field(default=None, init=False, repr=False)

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Number of tokens of prompts, chosen and rejected answers, each of shape (pairs,)."""
        prompt, chosen, rejected = self._columns("prompt_len", "chosen_len", "rejected_len")
        return prompt, chosen, rejected

    def scored(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Number of scored tokens of chosen and rejected answers, each of shape (pairs,)."""
        chosen, rejected = self._columns("chosen_scored", "rejected_scored")
        return chosen, rejected

    def _columns(self, *names: str) -> Iterator[NDArray[np.int64]]:
        columns = self.pairs.select_columns(list(names)).with_format("numpy")[:]
        return (np.asarray(columns[name], dtype=np.int64) for name in names)

    def groups(self, how: Literal["auto", "never"], *, with_rejected: bool = True) -> Groups:
        """The pairs by prompt, to compute shared prompts and answers once.

        Args:
            how: ``auto`` finds pairs with the same prompt; ``never`` takes every pair alone.
            with_rejected: Whether rejected answers are computed.
        """
        key = (how, with_rejected)
        if key not in self._groups:
            # Texts that differ are not worth a look at their tokens.
            texts = set(column(self.pairs, "prompt_key")) if how == "auto" else ()
            if how == "auto" and len(texts) < len(self.pairs):
                self._groups[key] = group_pairs(self.pairs, with_rejected=with_rejected)
            else:
                prompt, *answers = self.counts()
                self._groups[key] = alone(prompt, np.stack(answers if with_rejected else answers[:1], axis=1))
        return self._groups[key]

    def chains(self) -> Chains:
        """The pairs by ranked list."""
        if self._chains is None:
            self._chains = find_chains(column(self.pairs, "row"), self.groups("auto").answer)
        return self._chains

    def where(self, pair: int) -> str:
        """File and row of a pair, and the positions of its answers in a ranked list, counted from 1."""
        values = self.pairs.select_columns(["row", "chosen_index", "rejected_index"])[pair]
        row, answers = int(values["row"]), [values["chosen_index"], values["rejected_index"]]
        first, rows = [origin for origin in self.origins if origin[0] <= row][-1]
        listed = " over ".join(str(answer + 1) for answer in answers if answer is not None)
        return rows.where(row - first) + (f", answer {listed}" if listed else "")

    def select(self, which: NDArray[np.int64]) -> Prepared:
        """A subset of the pairs."""
        return Prepared(self.pairs.select(which), self.report, self.sources, self.origins)

    def with_passes(self, seed: int) -> Prepared:
        """Repeat or subsample the pairs of each source according to its weight, and complete the report.

        Raises:
            UserError: If no pair is left.
        """
        source = column(self.pairs, "source")
        rng = np.random.default_rng(seed)
        taken = [take(np.flatnonzero(source == i), config.weight, rng) for i, config in enumerate(self.sources)]
        chosen_rows = np.concatenate(taken)
        result = self if np.array_equal(chosen_rows, np.arange(len(source))) else self.select(chosen_rows)
        result.summarise()
        return result

    def summarise(self) -> None:
        """Complete the report with the statistics of the remaining pairs.

        Raises:
            UserError: If no pair is left.
        """
        prompt, chosen, rejected = self.counts()
        report = self.report
        report.pairs = len(chosen)
        if not report.pairs:
            first = f"; {report.first_bad}" if report.first_bad else ""
            raise UserError(
                f"data.{report.name.replace('/', '.')}",
                f"no pair is left of {report.rows} rows; dropped: {dict(report.dropped) or 'none'}{first}",
                "raise data.max_length or fix the data",
            )
        named = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        report.tokens = {name: (float(n.mean()), int(n.max())) for name, n in named.items() if n.any()}
        for (name, whole), scored in zip(list(named.items())[1:], self.scored(), strict=True):
            if (scored != whole).any():
                report.tokens[f"{name}, scored"] = (float(scored.mean()), int(scored.max()))
        chosen, rejected = self.scored()
        report.chosen_longer = float((chosen > rejected).mean()) if rejected.any() else math.nan


def column(table: Dataset, name: str) -> NDArray[Any]:
    """A column as an array, read at once; by its index a dataset reads it row by row."""
    values: NDArray[Any] = table.select_columns([name]).with_format("arrow")[:][name].to_numpy()
    return values


def take(items: NDArray[np.int64], weight: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Each item ``floor(weight)`` times, and a random fraction of them once more.

    Example:
        >>> take(np.array([3, 4, 5, 6]), 1.5, np.random.default_rng(0)).tolist()
        [3, 4, 5, 6, 3, 5]
    """
    part = rng.permutation(len(items))[: round(weight % 1 * len(items))]
    return np.concatenate([np.tile(items, int(weight)), items[np.sort(part)]])


def split_by_prompt(prepared: Prepared, size: float, seed: int) -> tuple[Prepared, Prepared]:
    """Hold out pairs for validation, without sharing prompts between the parts.

    Args:
        prepared: All pairs.
        size: Minimum number of pairs to hold out, or their fraction if below 1.
        seed: Random seed of the selection.

    Raises:
        UserError: If one of the parts would be empty.
    """
    total = len(prepared.pairs)
    wanted = round(size * total) if size < 1 else int(size)
    keys = column(prepared.pairs, "prompt_key").astype(str)
    prompts, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(prompts))
    held_out = order[: int(np.searchsorted(np.cumsum(counts[order]), wanted)) + 1]
    is_val = np.isin(inverse, held_out)
    if wanted < 1 or is_val.all():
        raise UserError(
            "data.val_size",
            f"{size:g} leaves one part of {total} pairs with {len(prompts)} prompts empty",
            "choose a different size or set data.val",
        )
    train, val = prepared.select(np.flatnonzero(~is_val)), prepared.select(np.flatnonzero(is_val))
    train.report.notes["held out for val"] = len(val.pairs)
    # Held-out pairs count once, regardless of the weight of their source in training.
    val.report, val.sources = DataReport("val"), [SourceConfig(source.path) for source in prepared.sources]
    return train, val
