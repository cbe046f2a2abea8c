"""Builds the plans of micro-batches from tokenized pairs and batch sizes, for training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from adadpo_lightning import log
from adadpo_lightning.data.plan import MicroBatch, StepPlan, eval_plan
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from adadpo_lightning.data.prepare import Prepared


@dataclass(frozen=True)
class BatchOptions:
    """Batch sizes and order; see `PreferenceDataModule` for each option.

    Raises:
        UserError: If a size is below 1.
    """

    global_batch_size: int
    micro_batch_size: int
    max_tokens: int | None
    eval_batch_size: int
    seed: int
    shuffle: bool
    drop_last: bool
    group: Literal["auto", "never"] = "auto"

    def __post_init__(self) -> None:
        """Check the options before any data is read."""
        if self.group not in ("auto", "never"):
            raise UserError("data.group", f"expected auto or never, got {self.group!r}")
        for name in ("global_batch_size", "micro_batch_size", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name}", f"expected at least 1, got {getattr(self, name)}")


def training_plan(
    train: Prepared, options: BatchOptions, *, ranks: int, epochs: int, with_rejected: bool = True
) -> StepPlan:
    """The plan of all optimizer steps.

    Args:
        train: The training pairs.
        options: Batch sizes and order.
        ranks: Number of data-parallel ranks.
        epochs: Number of epochs of the run; matters only with `max_tokens`.
        with_rejected: Whether rejected answers are computed.

    Raises:
        UserError: If the sizes are inconsistent, or a single pair exceeds `max_tokens`.
    """
    prompt, chosen, rejected = train.counts()
    lengths = prompt + chosen + rejected
    longest = int(lengths.argmax())
    if options.max_tokens is not None and lengths[longest] > options.max_tokens:
        raise UserError(
            "data.max_tokens",
            f"the pair at {train.where(longest)} alone has {lengths[longest]} tokens, more than {options.max_tokens}",
            "raise it or lower data.max_length",
        )
    groups = train.groups(options.group, with_rejected=with_rejected)
    if groups.shared and options.max_tokens is None and options.micro_batch_size < groups.largest:
        log.info(
            f"data.micro_batch_size: {options.micro_batch_size} pair(s) per forward pass split groups of up to "
            f"{groups.largest} pairs that share a prompt; raise it or set data.max_tokens to compute more of them once"
        )
    return StepPlan(
        lengths,
        train.scored()[0],
        global_batch_size=options.global_batch_size,
        micro_batch_size=options.micro_batch_size,
        max_tokens=options.max_tokens,
        ranks=ranks,
        seed=options.seed,
        shuffle=options.shuffle,
        drop_last=options.drop_last,
        epochs=epochs,
        groups=groups if groups.shared else None,
    )


def evaluation_plan(pairs: Prepared, options: BatchOptions, *, ranks: int, rank: int) -> list[MicroBatch]:
    """One rank's micro-batches of a dataset, covering each pair once over all ranks."""
    prompt, chosen, rejected = pairs.counts()
    lengths = prompt + chosen + rejected
    return eval_plan(lengths, pairs.scored()[0], micro_batch_size=options.eval_batch_size, ranks=ranks)[rank]


def scoring_plan(
    pairs: Prepared, options: BatchOptions, *, ranks: int, rank: int, train: StepPlan | None = None
) -> list[MicroBatch]:
    """One rank's micro-batches for scoring each pair once.

    Args:
        pairs: The dataset.
        options: Batch sizes.
        ranks: Number of data-parallel ranks.
        rank: Index of this rank.
        train: The training plan, if this is the training set. The micro-batches of its first epoch are used, because
            batching affects rounding.
    """
    each_once = evaluation_plan(pairs, options, ranks=ranks, rank=rank)
    if train is None:
        return each_once
    # Pairs that `drop_last` excludes from the epoch are scored, too.
    rest = each_once if train.drop_last else []
    return [*train.rank_batches(rank, 0, 0), *rest]
