"""Builds the plans of micro-batches from tokenized pairs and batch sizes, for training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from adadpo_lightning import log
from adadpo_lightning.data.evaluation import eval_plan
from adadpo_lightning.data.groups import alone
from adadpo_lightning.data.plan import MicroBatch, StepPlan
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adadpo_lightning.data.prepare import Prepared


LARGEST = 2**31  # counts of pairs are converted to tensors and must not overflow


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
    eval_max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Check the options before any data is read."""
        if self.group not in ("auto", "never"):
            raise UserError("data.group", f"expected auto or never, got {self.group!r}")
        for name in ("global_batch_size", "micro_batch_size", "eval_batch_size"):
            if not 1 <= getattr(self, name) < LARGEST:
                raise UserError(f"data.{name}", f"expected at least 1, and less than 2**31, got {getattr(self, name)}")
        for name in ("max_tokens", "eval_max_tokens"):
            if (tokens := getattr(self, name)) is not None and tokens < 1:
                raise UserError(f"data.{name}", f"expected at least 1, got {tokens}")
        if self.seed < 0:
            raise UserError("data.seed", f"expected 0 or more, got {self.seed}")


def training_plan(
    train: Prepared,
    options: BatchOptions,
    *,
    ranks: int,
    epochs: int,
    with_rejected: bool = True,
    lists: bool = False,
) -> StepPlan:
    """The plan of all optimizer steps.

    Args:
        train: The training pairs.
        options: Batch sizes and order.
        ranks: Number of data-parallel ranks.
        epochs: Number of epochs of the run; matters only with `max_tokens`.
        with_rejected: Whether rejected answers are computed.
        lists: Whether to keep ranked lists whole; sizes are then numbers of lists.

    Raises:
        UserError: If the sizes are inconsistent, or a single pair exceeds `max_tokens`.
    """
    items = _items(train, options, lists=lists)
    longest = int(items.lengths.argmax())
    if options.max_tokens is not None and items.lengths[longest] > options.max_tokens:
        what, first = ("pair", longest) if items.members is None else ("ranked list", int(items.members[longest][0]))
        raise UserError(
            "data.max_tokens",
            f"the {what} at {train.where(first)} alone has {items.lengths[longest]} tokens, more than "
            f"{options.max_tokens}",
            "raise it or lower data.max_length",
        )
    groups = None if lists else train.groups(options.group, with_rejected=with_rejected)
    if groups is not None and not groups.shared:
        groups = None
    if groups is not None and options.max_tokens is None and options.micro_batch_size < groups.largest:
        log.info(
            f"data.micro_batch_size: {options.micro_batch_size} pair(s) per forward pass split groups of up to "
            f"{groups.largest} pairs that share a prompt; raise it or set data.max_tokens to compute more of them once"
        )
    return StepPlan(
        items.lengths,
        items.chosen,
        global_batch_size=options.global_batch_size,
        micro_batch_size=options.micro_batch_size,
        max_tokens=options.max_tokens,
        ranks=ranks,
        seed=options.seed,
        shuffle=options.shuffle,
        drop_last=options.drop_last,
        epochs=epochs,
        groups=groups,
        members=items.members,
    )


def evaluation_plan(
    pairs: Prepared,
    options: BatchOptions,
    *,
    ranks: int,
    rank: int,
    with_rejected: bool = True,
    in_order: bool = False,
    lists: bool = False,
) -> list[MicroBatch]:
    """One rank's micro-batches of a dataset, covering each pair once over all ranks.

    Args:
        pairs: The dataset.
        options: Batch sizes.
        ranks: Number of data-parallel ranks.
        rank: Index of this rank.
        with_rejected: Whether rejected answers are computed.
        in_order: Keep the dataset's order, also where it separates pairs that share a prompt.
        lists: Whether to keep ranked lists whole, in the dataset's order; sizes are then numbers of lists.
    """
    items, most = _items(pairs, options, lists=lists), options.eval_max_tokens
    # A list is one item, with all of its tokens; lists share nothing with each other in the plan.
    nothing = np.zeros((len(items.lengths), 1), dtype=np.int64)
    groups = alone(items.lengths, nothing) if lists else pairs.groups(options.group, with_rejected=with_rejected)
    longer = 0 if most is None else int((groups.pair_tokens > most).sum())
    if longer:
        longest = int(groups.pair_tokens.argmax())
        what, first = ("pairs", longest) if items.members is None else ("lists", int(items.members[longest][0]))
        log.info(
            f"data.eval_max_tokens: {longer} of {len(groups.group)} {what} have more than {most} tokens, each is alone "
            f"in a forward pass; the longest, {groups.pair_tokens[longest]} tokens, is at {pairs.where(first)}"
        )
    return eval_plan(
        groups,
        items.chosen,
        micro_batch_size=options.eval_batch_size,
        max_tokens=most,
        ranks=ranks,
        in_order=in_order,
        members=items.members,
    )[rank]


def scoring_plan(
    pairs: Prepared,
    options: BatchOptions,
    *,
    ranks: int,
    rank: int,
    train: StepPlan | None = None,
    with_rejected: bool = True,
    in_order: bool = False,
    lists: bool = False,
) -> list[MicroBatch]:
    """One rank's micro-batches for scoring each pair once.

    Args:
        pairs: The dataset.
        options: Batch sizes.
        ranks: Number of data-parallel ranks.
        rank: Index of this rank.
        train: The training plan, if this is the training set. The micro-batches of its first epoch are used, because
            batching affects rounding.
        with_rejected: Whether rejected answers are computed.
        in_order: As in `evaluation_plan`.
        lists: Whether to keep ranked lists whole.
    """
    how = {"with_rejected": with_rejected, "in_order": in_order, "lists": lists}
    # Pairs that `drop_last` excludes from the epoch are scored, too.
    rest = evaluation_plan(pairs, options, ranks=ranks, rank=rank, **how) if train is None or train.drop_last else []
    if train is None:
        return rest
    return [*train.rank_batches(rank, 0, 0), *rest]


class _Items(NamedTuple):
    """What a plan distributes: pairs, or whole ranked lists, with their tokens and scored chosen tokens."""

    lengths: NDArray[np.int64]
    chosen: NDArray[np.int64]
    members: list[NDArray[np.int64]] | None


def _items(pairs: Prepared, options: BatchOptions, *, lists: bool) -> _Items:
    prompt, chosen, rejected = pairs.counts()
    scored = pairs.scored()[0]
    if not lists:
        return _Items(prompt + chosen + rejected, scored, None)
    chains = pairs.chains()
    first = chains.starts
    if options.group == "auto":
        lengths = prompt[first] + chosen[first] + chains.total(rejected)
    else:
        lengths = chains.total(prompt + chosen + rejected)
    return _Items(lengths, chains.total(scored), chains.members)
