"""Memory on each rank and work per step of a config of fit, as a table, before any device is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adadpo_lightning.cli.fit_options import add_fit_options
from adadpo_lightning.cli.parser import instantiate
from adadpo_lightning.cli.trainer import quiet_libraries, set_seed
from adadpo_lightning.estimate.memory import estimate
from adadpo_lightning.estimate.report import report
from adadpo_lightning.estimate.shape import assumptions, longest_pairs, ranks_of, run_shape

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``fit`` and those of the estimate."""
    add_fit_options(parser)
    ranks = "devices of the run (default: trainer.devices x trainer.num_nodes)"
    parser.add_argument("--ranks", type=int | None, default=None, help=ranks)
    parser.add_argument("--device_gib", type=float, default=80.0, help="memory of a device, GiB")
    parser.add_argument(
        "--lengths",
        type=_triple,
        metavar="PROMPT,CHOSEN,REJECTED",
        help="tokens of the longest pairs (default: read data.train and use its largest micro-batch)",
    )


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Print what the run would need."""
    print_estimate(config, parser, config.ranks, config.device_gib, config.lengths)


def print_estimate(
    config: Namespace,
    parser: ArgumentParser,
    ranks: int | None = None,
    device_gib: float = 80.0,
    lengths: tuple[int, int, int] | None = None,
) -> None:
    """Print what a run would need. Nothing is written, and no Trainer is built.

    Args:
        config: A parsed config of ``fit``.
        parser: The parser that read it.
        ranks: Number of devices; None reads it from the Trainer's options.
        device_gib: Memory of a device, GiB.
        lengths: Tokens of prompt, chosen and rejected answer; None reads the training data.

    Raises:
        UserError: If there are no lengths.
    """
    quiet_libraries()
    set_seed(config)
    trainer = config.trainer.as_dict()
    built = instantiate(parser, config)
    pairs, source, epoch = longest_pairs(built.model, built.data, lengths)
    shape = run_shape(built.model, built.data, trainer, ranks or ranks_of(trainer), pairs)
    notes = [] if ranks else assumptions(trainer)
    print("\n".join(report(shape, estimate(shape), source, device_gib, built.data.global_batch_size, epoch, notes)))


def _triple(given: str | tuple[int, int, int]) -> tuple[int, int, int]:
    """Jsonargparse validates what it has parsed by parsing it again."""
    prompt, chosen, rejected = (int(part) for part in (given.split(",") if isinstance(given, str) else given))
    return prompt, chosen, rejected
