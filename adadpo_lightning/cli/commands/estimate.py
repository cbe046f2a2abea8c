"""Memory on each rank and work per step of a config of fit, as a table, before any device is used.

With ``--cluster`` also every mesh of that cluster, what it needs and sends, and which one to take. With
``--simulate`` the run's own step on rank 0 of all ranks, in this process, over tensors without memory: what it holds
and sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adadpo_lightning.cli.fit_options import add_fit_options
from adadpo_lightning.cli.parser import instantiate
from adadpo_lightning.cli.trainer import quiet_libraries, set_seed
from adadpo_lightning.errors import UserError
from adadpo_lightning.estimate.memory import estimate
from adadpo_lightning.estimate.mesh import mesh_report
from adadpo_lightning.estimate.report import report, simulation_report
from adadpo_lightning.estimate.shape import (
    assumptions,
    longest_pairs,
    optimizer_assumption,
    ranks_of,
    run_shape,
    strategy_options,
)
from adadpo_lightning.estimate.simulate import simulate
from adadpo_lightning.estimate.traffic import Cluster

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
    parser.add_argument(
        "--cluster",
        type=_cluster,
        metavar="nodes=N,gpus=N,...",
        help="recommend a mesh for a cluster, in place of --ranks and --device_gib: nodes, gpus per node, gib of a "
        "GPU, inside and between (GB/s of a GPU within its node and to others), tflops, utilisation; defaults: H100",
    )
    parser.add_argument("--simulate", type=bool, default=False, help="run the step of rank 0 over fake tensors (FSDP2)")


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Print what the run would need."""
    print_estimate(
        config,
        parser,
        config.ranks,
        config.device_gib,
        config.lengths,
        cluster=config.cluster,
        simulated=config.simulate,
    )


def print_estimate(
    config: Namespace,
    parser: ArgumentParser,
    ranks: int | None = None,
    device_gib: float = 80.0,
    lengths: tuple[int, int, int] | None = None,
    *,
    cluster: Cluster | None = None,
    simulated: bool = False,
) -> None:
    """Print what a run would need. Nothing is written, and no Trainer is built.

    Args:
        config: A parsed config of ``fit``.
        parser: The parser that read it.
        ranks: Number of devices; None reads it from the Trainer's options.
        device_gib: Memory of a device, GiB.
        lengths: Tokens of prompt, chosen and rejected answer; None reads the training data.
        cluster: Cluster to recommend a mesh for; it determines `ranks` and `device_gib`.
        simulated: Also simulate the step.

    Raises:
        UserError: If there are no lengths, or the run cannot be simulated.
    """
    if cluster is not None:
        if ranks is not None and ranks != cluster.ranks:
            raise UserError(
                "ranks", f"{ranks} contradicts the {cluster.ranks} GPUs of --cluster", "leave one of them out"
            )
        ranks, device_gib = cluster.ranks, cluster.gib
    quiet_libraries()
    set_seed(config)
    trainer = config.trainer.as_dict()
    built = instantiate(parser, config)
    pairs, source, epoch = longest_pairs(built.model, built.data, lengths)
    shape = run_shape(built.model, built.data, trainer, ranks or ranks_of(trainer), pairs)
    if simulated:
        options = strategy_options(trainer)  # before any time is spent
    notes = [*([] if ranks else assumptions(trainer)), *optimizer_assumption(built.model)]
    result = estimate(shape)
    print("\n".join(report(shape, result, source, device_gib, built.data.global_batch_size, epoch, notes)))
    if cluster is not None:
        print("\n".join(mesh_report(shape, cluster)))
    if simulated:
        clip = trainer.get("gradient_clip_val")
        found = simulate(built.model, options, shape.ranks, shape.lengths, shape.accumulation, clip)
        print("\n".join(simulation_report(found, result, shape.ranks, cluster)))


def _cluster(given: str | Cluster) -> Cluster:
    """Jsonargparse validates what it has parsed by parsing it again."""
    if isinstance(given, Cluster):
        return given
    values: dict[str, Any] = {}
    for part in given.split(","):
        name, _, value = part.partition("=")
        if name not in Cluster.__dataclass_fields__:
            raise ValueError(f"{name!r} is not one of {', '.join(Cluster.__dataclass_fields__)}")
        values[name] = int(value) if name in ("nodes", "gpus") else float(value)
    return Cluster(**values)


def _triple(given: str | tuple[int, int, int]) -> tuple[int, int, int]:
    """Jsonargparse validates what it has parsed by parsing it again."""
    prompt, chosen, rejected = (int(part) for part in (given.split(",") if isinstance(given, str) else given))
    return prompt, chosen, rejected
