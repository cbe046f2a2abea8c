"""The arguments of a module as plain data in its checkpoints, and back."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadpo_lightning.checkpoints.integrity import damage
from adadpo_lightning.checkpoints.parts import mapped
from adadpo_lightning.checkpoints.shards import is_sharded
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import Mixture, PreferenceLoss
from adadpo_lightning.losses.registry import ENTRY_POINT_GROUP
from adadpo_lightning.losses.schedule import Schedule
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig
from adadpo_lightning.plugins import load_plugins
from adadpo_lightning.reference.sync import SyncOptions
from adadpo_lightning.training.optim import OptimizerConfig, SchedulerConfig
from adadpo_lightning.training.optimizer_class import ClassOptimizerConfig

if TYPE_CHECKING:
    from adadpo_lightning.training.module import PreferenceLitModule

Plain = dict[str, Any]


def describe_loss(loss: PreferenceLoss) -> Plain:
    """A loss as its class and arguments; the arguments are None where they are no plain data.

    Example:
        >>> from adadpo_lightning.losses import SimPO
        >>> describe_loss(SimPO())["class_path"]
        'adadpo_lightning.losses.simpo.SimPO'
    """
    arguments: Plain | None = None
    record: Any = loss
    if isinstance(loss, Mixture):
        weights = [_described(weight) for weight in loss.weights]
        arguments = {"losses": [describe_loss(part) for part in loss.losses], "weights": weights}
    elif is_dataclass(record):
        arguments = {f.name: _described(getattr(record, f.name)) for f in fields(record) if f.init}
        if not all(_is_plain(value) for value in arguments.values()):
            arguments = None
    kind = type(loss)
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}


def make_loss(described: Mapping[str, Any]) -> PreferenceLoss:
    """The loss that `describe_loss` described.

    A class is found among those that are imported already or that installed packages register. Nothing is imported by
    a name from the checkpoint, so that loading one runs no code of its author.

    Raises:
        UserError: If the class is not found or its arguments are not known.
    """
    load_plugins(ENTRY_POINT_GROUP)
    name, arguments = str(described["class_path"]), described["init_args"]
    kind = next((c for c in _subclasses(PreferenceLoss) if f"{c.__module__}.{c.__qualname__}" == name), None)
    if kind is None:
        raise UserError("loss", f"the checkpoint's loss is {name}, which is not imported", "import it, or pass loss=")
    if arguments is None:
        raise UserError("loss", f"the checkpoint does not hold the arguments of {name}", "pass loss=")
    made: Any = kind
    if issubclass(kind, Mixture):
        arguments = {**arguments, "losses": [make_loss(part) for part in arguments["losses"]]}
    loss: PreferenceLoss = made(**arguments)
    return loss


def make_optimizer(written: Mapping[str, Any]) -> OptimizerConfig | ClassOptimizerConfig:
    """The optimizer that a checkpoint names. Only torch's and those that are imported already: see `make_loss`.

    Raises:
        UserError: If another package's class is not imported.
    """
    if "class_path" not in written:
        return OptimizerConfig(**written)
    path = str(written["class_path"])
    module = path.rpartition(".")[0]
    if module not in sys.modules and not path.startswith(("torch.optim.", "adadpo_lightning.")):
        raise UserError(
            "optimizer", f"the checkpoint's optimizer is {path}, which is not imported", "import it, or pass optimizer="
        )
    return ClassOptimizerConfig(path, dict(written["init_args"]))


def describe(module: PreferenceLitModule) -> Plain:
    """All arguments of a module except its policy, which checkpoints describe by itself."""
    return {
        "loss": describe_loss(module.loss),
        "optimizer": asdict(module.optimizer_config),
        "scheduler": asdict(module.scheduler_config),
        "reference": module.reference_mode,
        "reference_path": module.reference_path,
        "sync": asdict(module.sync),
        "router_aux_loss_coef": module.router_aux_loss_coef,
    }


def arguments_of(record: Mapping[str, Any], overrides: Mapping[str, Any]) -> Plain:
    """The arguments of the module that wrote a checkpoint.

    Args:
        record: The checkpoint's entry of this package.
        overrides: Arguments to take in place of the checkpoint's.

    Raises:
        UserError: If an older version wrote the checkpoint and `overrides` has no loss, or the loss is not found.
    """
    policy = dict(record["policy"])
    policy["lora"] = None if policy["lora"] is None else LoraOptions(**policy["lora"])
    found: Plain = {"policy": PolicyConfig(**policy)}
    written = record.get("module")
    if written is not None:
        if "optimizer" not in overrides:
            found["optimizer"] = make_optimizer(written["optimizer"])
        found |= {
            "scheduler": SchedulerConfig(**written["scheduler"]),
            "reference": written["reference"],
            "reference_path": written["reference_path"],
            "sync": SyncOptions(**written["sync"]),
            # Checkpoints of earlier versions have none.
            "router_aux_loss_coef": written.get("router_aux_loss_coef", 0.0),
        }
        if "loss" not in overrides:
            found["loss"] = make_loss(written["loss"])
        elif "reference" not in overrides:
            found["reference"] = "auto"  # the other loss may need a reference, or none
    elif "loss" not in overrides:
        raise UserError(
            "loss",
            f"the checkpoint is of version {record['version']}, which wrote its loss as text alone: {record['loss']}",
            "pass loss=",
        )
    return found | dict(overrides)


def read(path: str | Path) -> Plain:
    """Read a checkpoint of one file, by torch's reader that executes nothing.

    Raises:
        UserError: If it is missing, damaged, sharded, or was not written by this package.
    """
    source = Path(path)
    if is_sharded(source):
        raise UserError(
            "checkpoint_path",
            f"{path} is sharded",
            "export it by `python -m adadpo_lightning export` and load the directory as PolicyConfig(path)",
        )
    if not source.is_file():
        raise UserError("checkpoint_path", f"file not found: {path}", "give a file of a run's checkpoints")
    if (reason := damage(source)) is not None:
        raise UserError("checkpoint_path", f"{path} is damaged: {reason}", "give another of the run's checkpoints")
    content: Plain = mapped(source)
    if "adadpo_lightning" not in content:
        raise UserError("checkpoint_path", f"{path} was not written by adadpo_lightning")
    return content


def load_weights(module: PreferenceLitModule, weights: Mapping[str, Any]) -> None:
    """Copy a checkpoint's weights into a module whose model is built.

    Raises:
        UserError: If a weight has no place, or one that is trained is missing.
    """
    missing, unexpected = module.load_state_dict(weights, strict=False)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    if unexpected or (lost := trained.intersection(missing)):
        what = f"without a place {sorted(unexpected)[:3]}" if unexpected else f"missing {sorted(lost)[:3]}"
        raise UserError("checkpoint_path", f"does not fit the policy: {what}", "pass the policy that it was trained as")


def _described(value: Any) -> Any:
    return value.plain() if isinstance(value, Schedule) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(inner) for name, inner in value.items())
    return value is None or isinstance(value, (str, int, float, bool))


def _subclasses(kind: type) -> Iterator[type]:
    children: list[type] = kind.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)
