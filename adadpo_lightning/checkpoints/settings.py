"""Which options decide the numbers of a run, read from its module, datamodule and trainer.

How a resume treats an option is written beside the option: in the ``resume`` metadata of a dataclass field, or in the
``RESUME`` mapping of a class whose ``__init__`` takes it. An option without either is ``compared``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adadpo_lightning.losses.schedule import Schedule

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, LightningModule, Trainer

# compared: must be equal. ignored: may change between runs. by_content: names a file whose content is compared instead.
Treatment = Literal["compared", "ignored", "by_content"]
# The options of Lightning's Trainer that decide the numbers. Accumulation follows from the data's batch sizes.
LENGTH = ("max_epochs", "max_steps")
TRAINER = (
    *LENGTH,
    "precision",
    "limit_train_batches",
    "overfit_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
)
# What forms a micro-batch, which decides the numbers only where routers have a loss.
MICRO_BATCH = ("micro_batch_size", "max_tokens")
# Where objects group their options.
GROUPS = ("options", "batching", "sets")


def treatments(made: type) -> Iterator[tuple[str, Treatment]]:
    """Each option of a class, and how a resume treats it."""
    if is_dataclass(made):
        yield from ((f.name, f.metadata.get("resume", "compared")) for f in fields(made))
        return
    special: Mapping[str, Treatment] = getattr(made, "RESUME", {})
    variadic = (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
    for name, parameter in signature(made).parameters.items():
        if parameter.kind not in variadic:
            yield name, special.get(name, "compared")


def settings(trainer: Trainer, module: LightningModule, data: LightningDataModule | None) -> dict[str, Any]:
    """The compared options by section, ``model``, ``data`` and ``trainer``, as plain data named as in a config file.

    The global seed is not among them: order and splits of the data have a seed of their own, and new weights are drawn
    before the first step only. Nor is the length of the run where neither learning rate nor loss depends on it.
    """
    scheduler = getattr(module, "scheduler_config", None)
    scheduled_loss = getattr(getattr(module, "loss", None), "scheduled", False)
    any_length = scheduler is not None and not scheduler.depends_on_length and not scheduled_loss
    found = {
        "model": compared(module),
        "data": {} if data is None else compared(data),
        "trainer": {
            name: _limit(getattr(trainer, name, None)) for name in TRAINER if not (any_length and name in LENGTH)
        },
    }
    if getattr(module, "router_aux_loss_coef", 0.0):
        # Their loss is a mean over a micro-batch, so it depends on which tokens form one.
        found["model"]["policy"] |= _named(module.policy_config, ("layout",))
        found["data"] |= _named(data, MICRO_BATCH)
    return found


def _named(made: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: plain(value) for name in names for value in option(made, name)}


def with_defaults(
    recorded: Mapping[str, Any], module: LightningModule, data: LightningDataModule | None
) -> dict[str, Any]:
    """The options of a checkpoint, with the defaults of those that its version of the package did not have."""
    known = {"model": defaults(module), "data": {} if data is None else defaults(data)}
    return _filled(recorded, known)


def defaults(made: Any) -> dict[str, Any]:
    """The defaults of the compared options of an object, nested ones included; options without one are left out."""
    found: dict[str, Any] = {}
    for name, treatment in treatments(type(made)):
        if treatment != "compared":
            continue
        values = option(made, name)
        if values and _groups_options(values[0]):
            found[name] = defaults(values[0])
        elif (default := _default(type(made), name)) is not Parameter.empty:
            found[name] = plain(default)
    return found


def _default(made: type, name: str) -> Any:
    if not is_dataclass(made):
        return signature(made).parameters[name].default
    (field,) = (f for f in fields(made) if f.name == name)
    if field.default_factory is not MISSING:
        return field.default_factory()
    return Parameter.empty if field.default is MISSING else field.default


def _filled(recorded: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    filled = {**known, **recorded}
    for name, value in recorded.items():
        if isinstance(value, Mapping) and isinstance(known.get(name), Mapping):
            filled[name] = _filled(value, known[name])
    return filled


def _limit(value: Any) -> Any:
    """Lightning writes "no limit" as null before a run and as -1 in it."""
    return None if value == -1 else plain(value)


def compared(made: Any) -> dict[str, Any]:
    """The compared options of an object, nested ones included; one that a user's class does not keep is left out."""
    return _named(made, [name for name, treatment in treatments(type(made)) if treatment == "compared"])


def option(made: Any, name: str) -> list[Any]:
    """The value of an option, which objects keep under its name or in an object that groups several; else []."""
    holders = [made, *(getattr(made, group) for group in GROUPS if hasattr(made, group))]
    attributes = (f"{name}_config", f"{name}_mode", name)
    return [getattr(h, attribute) for attribute in attributes for h in holders if hasattr(h, attribute)][:1]


def plain(value: Any) -> Any:
    """An option's value as plain data: an options object by what is compared of it, others by class and options."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Schedule):
        return value.plain()
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (Sequence, set, frozenset)):
        return [plain(item) for item in value]
    if _groups_options(value):
        return compared(value)
    options = {name: plain(item) for name, item in vars(value).items() if not name.startswith("_")}
    return {"class_path": type(value).__qualname__, "init_args": options}


def _groups_options(value: Any) -> bool:
    return is_dataclass(value) and type(value).__name__.endswith(("Config", "Options"))
