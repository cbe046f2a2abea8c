"""Validation sets: one, ``val``, or several with names, ``val/<name>`` each, in the order of the config."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields

from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.errors import UserError
from adadpo_lightning.metrics import names

Sources = str | SourceConfig | list[str | SourceConfig]
NamedSources = dict[str, Sources]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# First parts of metric names: a set of that name would be taken for a metric of a single set.
_METRICS = {str(value).partition("/")[0] for name, value in vars(names).items() if name.isupper()}

# Logged of prompts that belong to no set.
_OF_PROMPTS = {
    names.GENERATION_LENGTH,
    names.GENERATION_EOS_RATE,
    names.GENERATION_REFERENCE_LOGPS,
    names.KL_POLICY,
    names.KL_POLICY_STDERR,
}


def listed(sources: Sources | None) -> list[SourceConfig]:
    """Sources as a list of configs."""
    items: Sequence[str | SourceConfig | None] = sources if isinstance(sources, list) else [sources]
    return [SourceConfig(path=item) if isinstance(item, str) else item for item in items if item is not None]


def validation_sources(val: Sources | NamedSources | None) -> dict[str, list[SourceConfig]]:
    """The sources of each validation set, by stage.

    Raises:
        UserError: If a name cannot be part of a metric's name, or a named set has no source.

    Example:
        >>> list(validation_sources("val.jsonl")), list(validation_sources({"helpful": "a.jsonl", "safety": "b.jsonl"}))
        (['val'], ['val/helpful', 'val/safety'])
    """
    if not isinstance(val, Mapping):
        return {"val": listed(val)}
    return {f"val/{name}": sources for name, sources in named_sources(val, "data.val").items()}


def named_sources(sets: NamedSources, field: str) -> dict[str, list[SourceConfig]]:
    """The sources of each named set.

    Args:
        sets: Sources by name.
        field: The option, for errors.

    Raises:
        UserError: As `validation_sources`.
    """
    if not sets:
        raise UserError(field, "expected at least one named set, got none", "leave it out, or give a path")
    options = {each.name for each in fields(SourceConfig)}
    for name, sources in sets.items():
        if name in options:
            raise UserError(field, f"{name!r} is an option of a source, not the name of a set", "rename the set")
        if not _NAME.fullmatch(name) or name in _METRICS:
            raise UserError(
                field,
                f"{name!r} cannot name a validation set: it is part of metric names such as val/<name>/loss",
                f"use letters, digits, - and _, and none of {', '.join(sorted(_METRICS))}",
            )
        if not listed(sources):
            raise UserError(f"{field}.{name}", "expected a file, directory or hub id, got null")
    return {name: listed(sources) for name, sources in sets.items()}


def is_val(stage: str) -> bool:
    """Whether a stage is a validation set."""
    return stage == "val" or stage.startswith("val/")


def check_monitor(monitor: str | None, stages: Sequence[str], field: str) -> None:
    """Reject a monitored metric of a validation set that there is not.

    Args:
        monitor: Name of the metric.
        stages: The validation sets of the run.
        field: What monitors it, for the error.

    Raises:
        UserError: With the names of the sets.
    """
    if monitor is None or not monitor.startswith("val/") or not stages:
        return
    tag = monitor.removeprefix("val/")
    first, _, metric = tag.partition("/")
    of_no_set = f"val/{first}" not in stages and tag not in _OF_PROMPTS and {first, metric.partition("/")[0]} & _METRICS
    if stages != ["val"] and (of_no_set or (f"val/{first}" in stages and not metric)):
        known = ", ".join(f"{stage}/..." for stage in stages)
        meant = f"{stages[0]}/{names.LOSS if first not in _METRICS else tag}"
        raise UserError(
            field, f"{monitor!r} is not logged: with named validation sets there are {known}", f"for example {meant}"
        )
    if stages == ["val"] and metric and first not in _METRICS and metric.partition("/")[0] in _METRICS:
        raise UserError(
            field,
            f"{monitor!r} is not logged: the validation pairs have no name, or not {first!r}",
            f"monitor val/{metric}, or name the set: data.val: {{{first}: ...}}",
        )
