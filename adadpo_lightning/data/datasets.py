"""The datasets of a datamodule: read, tokenized, split and checked when a stage first needs them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from adadpo_lightning import log
from adadpo_lightning.data.prepare import Prepared, prepare, report_table, split_by_prompt
from adadpo_lightning.data.prepared import column
from adadpo_lightning.data.validation import is_val
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adadpo_lightning.data.options import TokenizeOptions
    from adadpo_lightning.data.sources import SourceConfig


class PairSets:
    """Tokenized pairs by stage: ``train``, ``val`` (or ``val/<name>`` of each named set), ``test`` and ``predict``.

    Args:
        sources: Where each comes from; an empty list for none.
        options: Lengths and chat template.
        val_size: Number or share of the training pairs to hold out for validation.
        seed: Seed of the split and of source weights.
        on_bad_row: ``error`` or ``drop``.
        num_proc: Processes that tokenise.

    Raises:
        UserError: If an option is out of its range, or `val_size` contradicts the sources.
    """

    def __init__(
        self,
        sources: Mapping[str, list[SourceConfig]],
        options: TokenizeOptions,
        *,
        val_size: float,
        seed: int,
        on_bad_row: Literal["error", "drop"],
        num_proc: int | None,
    ) -> None:
        if on_bad_row not in ("error", "drop"):
            raise UserError("data.on_bad_row", f"expected error or drop, got {on_bad_row!r}")
        if not 0 <= val_size < math.inf:
            raise UserError("data.val_size", f"expected a number of pairs or a share, got {val_size}")
        if num_proc is not None and num_proc < 1:
            raise UserError("data.num_proc", f"expected at least 1, got {num_proc}")
        self.val_names = [name for name in sources if is_val(name)]
        if val_size and any(sources[name] for name in self.val_names):
            raise UserError("data.val_size", "is for runs without data.val, got both", "leave one of them out")
        self.sources = sources
        self.options = options
        self.val_size = val_size
        self.seed = seed
        self.on_bad_row = on_bad_row
        self.num_proc = num_proc
        self.prepared: dict[str, Prepared] = {}
        self._reported: set[str] = set()
        self._prepared_for: tuple[PreTrainedTokenizerBase, bool] | None = None

    def of_stage(self, stage: str) -> list[str]:
        """The datasets of ``fit``, ``validate``, ``test`` or ``predict``."""
        return {"fit": ["train", *self.val_names], "validate": self.val_names}.get(stage, [stage])

    def load(
        self, stage: str, tokenizer: PreTrainedTokenizerBase, *, with_rejected: bool, needs_rejected: bool
    ) -> None:
        """Prepare the datasets of a stage that are not prepared yet.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.
            tokenizer: The tokenizer of the pairs; if it changes, everything is prepared again.
            with_rejected: Whether to tokenise the rejected answers.
            needs_rejected: Whether a row without a rejected answer is an error.

        Raises:
            UserError: If the data cannot be read or do not fit the loss.
        """
        if self._prepared_for != (now := (tokenizer, with_rejected)):
            self.prepared, self._reported, self._prepared_for = {}, set(), now
        for name in self.of_stage(stage):
            if name not in self.prepared and (self.sources[name] or (name == "val" and self.val_size)):
                self._prepare(name, tokenizer, replace(self.options, with_rejected=with_rejected), needs_rejected)
        needed = self.of_stage(stage)[0]
        if needed not in self.prepared:
            raise UserError(f"data.{needed}", f"'{stage}' needs it, got null", "give a file, directory or hub id")

    def refuse_margins(self, stage: str) -> None:
        """Raise if a pair of the stage has a target margin.

        Raises:
            UserError: Names the dataset, and how many there are.
        """
        for name in set(self.of_stage(stage)) & set(self.prepared):
            pairs = self.prepared[name].pairs
            if count := int(np.count_nonzero(~np.isnan(column(pairs, "margin").astype(float)))):
                raise UserError(
                    f"data.{name.replace('/', '.')}",
                    f"{count} of {len(pairs)} rows have a target margin, and the loss is no function of a margin",
                    "remove the column margin, or train with a loss of one margin such as dpo",
                )

    def check_lists(self, stage: str) -> None:
        """Check that the pairs of the stage are chains of ranked lists, and count lists that are not whole.

        Raises:
            UserError: If ranked lists were made into other pairs than adjacent ones.
        """
        for name in self.of_stage(stage):
            if name not in self.prepared:
                continue
            prepared, field = self.prepared[name], f"data.{name.replace('/', '.')}"
            ranked = len(prepared.pairs) - prepared.pairs.data.column("chosen_index").null_count
            if ranked and self.options.lists.pairs != "adjacent":
                raise UserError(
                    "data.lists.pairs",
                    f"the loss compares all answers of a ranked list, got {self.options.lists.pairs}",
                    "set it to adjacent: each answer against the next one, which says the whole order",
                )
            chains = prepared.chains()
            prepared.report.notes |= {"lists of 2 answers": chains.of_two, "lists of more answers": chains.longer}
            if chains.split:
                log.warn(
                    f"{field}: {chains.split} ranked lists are in pieces, because pairs in them were not made (equal "
                    "scores, data.lists.min_gap) or dropped, or an answer was cut differently in two pairs; each piece "
                    "counts as a list of its own"
                )
            if not chains.longer:
                log.warn(f"{field}: no ranked list has more than two answers; there the loss is that of pairs")

    def report(self, stage: str) -> None:
        """Show the reports of a stage's datasets, each only once."""
        new = [name for name in self.of_stage(stage) if name in self.prepared and name not in self._reported]
        self._reported.update(new)
        if new:
            log.show(report_table([self.prepared[name].report for name in new]))

    def _prepare(
        self, name: str, tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions, needs_rejected: bool
    ) -> None:
        if not self.sources[name]:  # val, held out of train
            self._prepare("train", tokenizer, options, needs_rejected)
            return
        prepared = prepare(
            name, self.sources[name], tokenizer, options, on_bad_row=self.on_bad_row, num_proc=self.num_proc
        )
        if name == "train" and self.val_size:
            prepared, val = split_by_prompt(prepared, self.val_size, self.seed)
            self.prepared["val"] = self._checked("val", val, needs_rejected)
        self.prepared[name] = self._checked(name, prepared, needs_rejected)
        if is_val(name) and "train" in self.prepared:
            keys = [set(column(self.prepared[part].pairs, "prompt_key")) for part in ("train", name)]
            prepared.report.notes["prompts that train has too"] = len(keys[0] & keys[1])

    def _checked(self, name: str, prepared: Prepared, needs_rejected: bool) -> Prepared:
        prepared = prepared.with_passes(self.seed)
        missing = np.flatnonzero(prepared.counts()[2] == 0)
        if needs_rejected and len(missing):
            raise UserError(
                f"data.{name.replace('/', '.')}",
                f"{len(missing)} of {len(prepared.pairs)} rows have no rejected answer, and the loss compares two "
                f"(the first is {prepared.where(int(missing[0]))})",
                "give pairs, or train with the loss sft",
            )
        if name == "train" and not np.any(column(prepared.pairs, "weight") != 0):
            raise UserError("data.train", f"all {len(prepared.pairs)} pairs have weight 0: none would be trained on")
        return prepared
