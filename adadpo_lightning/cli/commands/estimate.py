"""``estimate``: memory on each rank and work per step of a config of fit, before any device is used."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from adadpo_lightning.cli.trainer import PreferenceCLI
from adadpo_lightning.estimate.memory import estimate
from adadpo_lightning.estimate.report import report
from adadpo_lightning.estimate.shape import assumptions, longest_pairs, ranks_of, run_shape


class ParsedCLI(PreferenceCLI):
    """The ``fit`` command up to its module and datamodule: no trainer is made and nothing is written."""

    trainer_options: dict[str, Any]

    def before_instantiate_classes(self) -> None:
        """Nothing: no directory is touched."""

    def instantiate_classes(self) -> None:
        """Build module and datamodule from the config, and keep what it says of the trainer."""
        self.trainer_options = self._get(self.config, "trainer").as_dict()
        parsed = self.parser.instantiate(self.config)
        self.model, self.datamodule = self._get(parsed, "model"), self._get(parsed, "data")

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing."""


def run_estimate(args: Sequence[str]) -> None:
    """Print what a run would need.

    Args:
        args: Options of ``estimate``, and those of ``fit``.

    Raises:
        UserError: If there are no lengths.
    """
    own, rest = _parser().parse_known_args(list(args))
    cli = ParsedCLI.run(["fit", *rest])
    ranks = own.ranks or ranks_of(cli.trainer_options)
    notes = [] if own.ranks else assumptions(cli.trainer_options)
    lengths, source, epoch = longest_pairs(cli.model, cli.datamodule, own.lengths)
    shape = run_shape(cli.model, cli.datamodule, cli.trainer_options, ranks, lengths)
    batch = cli.datamodule.global_batch_size
    print("\n".join(report(shape, estimate(shape), source, own.device_gib, batch, epoch, notes)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adadpo_lightning estimate", description=__doc__)
    parser.add_argument("--ranks", type=int, help="devices of the run; default: trainer.devices x trainer.num_nodes")
    parser.add_argument("--device_gib", type=float, default=80.0, help="memory of a device, GiB (default 80)")
    parser.add_argument(
        "--lengths",
        type=_triple,
        metavar="PROMPT,CHOSEN,REJECTED",
        help="tokens of the longest pairs; default: read data.train and take its largest micro-batch",
    )
    return parser


def _triple(text: str) -> tuple[int, int, int]:
    prompt, chosen, rejected = (int(part) for part in text.split(","))
    return prompt, chosen, rejected
