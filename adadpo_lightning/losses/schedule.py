"""Options of a loss that change over a run: constant, linear or cosine in the optimizer step.

A schedule takes the place of a number in a loss. `PreferenceLoss.at` replaces it by the number of a step, so that the
losses themselves compute with numbers alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from adadpo_lightning.errors import UserError

# The type of an option for classes whose annotations the command line resolves (those of a module without
# `from __future__ import annotations`): a number or the mapping that `Schedule.parse` reads.
if TYPE_CHECKING:
    Number = float
else:
    Number = float | dict[str, Any]

KEYS = ("from", "to", "schedule")
SHAPES = ("linear", "cosine")
# Conditions on several options at once, such as floor <= ceiling, are checked at this many steps over a run.
_CHECKS = 16

L = TypeVar("L")
Check = Callable[[Any], None]


@dataclass(frozen=True)
class Schedule:
    """A number that changes over the optimizer steps of a run; in a config ``{from: 0.1, to: 0.01, schedule: linear}``.

    Step s of T has ``start + (end - start) * w(s / T)``, where s counts the steps taken before it: the first step has
    `start`, and the model after the last one `end`. That is the convention of learning-rate schedules, and DPO-Shift's
    (arXiv 2502.07599) for its lambda.

    Args:
        start: Value at the first step; ``from`` in a config.
        end: Value after the last step; ``to`` in a config.
        shape: ``linear``: w(t) = t. ``cosine``: w(t) = (1 - cos(pi t)) / 2. ``schedule`` in a config.

    Raises:
        UserError: If `start` or `end` is not a finite number, or the shape is unknown.

    Example:
        >>> [Schedule(0.1, 0.3).at(step, 4) for step in (0, 2, 4)]
        [0.1, 0.2, 0.3]
    """

    start: float
    end: float
    shape: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        """Check the values."""
        for key, value in (("from", self.start), ("to", self.end)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise UserError("loss", f"expected a finite number as {key!r} of a schedule, got {value!r}")
        if self.shape not in SHAPES:
            raise UserError("loss", f"expected a schedule of {' or '.join(SHAPES)}, got {self.shape!r}")

    def __repr__(self) -> str:
        """As in a config."""
        return f"{{from: {self.start:g}, to: {self.end:g}, schedule: {self.shape}}}"

    def __mul__(self, factor: float) -> Schedule:
        """The schedule of the value times a number."""
        return replace(self, start=self.start * factor, end=self.end * factor)

    __rmul__ = __mul__

    def at(self, step: int, total_steps: int) -> float:
        """The value at a step, a number on the host.

        Args:
            step: Optimizer steps taken before; beyond `total_steps` the value stays at `end`.
            total_steps: Optimizer steps of the run.
        """
        share = min(step / max(total_steps, 1), 1.0)
        weight = share if self.shape == "linear" else (1.0 - math.cos(math.pi * share)) / 2.0
        # Of the two forms of the same line this one is exact at both ends.
        return self.start * (1.0 - weight) + self.end * weight

    def plain(self) -> dict[str, Any]:
        """As a config has it."""
        return dict(zip(KEYS, (self.start, self.end, self.shape), strict=True))

    @classmethod
    def parse(cls, value: Any) -> Any:
        """A mapping with ``from`` and ``to`` as a schedule; any other value unchanged.

        Raises:
            UserError: If the mapping has other keys too, or its values are wrong.
        """
        if not isinstance(value, Mapping) or not {"from", "to"} & set(value):
            return value
        if not {"from", "to"} <= set(value) <= set(KEYS):
            raise UserError(
                "loss",
                f"expected a schedule with the keys from, to and schedule, got {dict(value)}",
                "write it as {from: 0.1, to: 0.01, schedule: linear}",
            )
        return cls(value["from"], value["to"], value.get("schedule", "linear"))


def schedules(loss: Any) -> dict[str, Schedule]:
    """The options of a loss that have a schedule."""
    if not is_dataclass(loss):
        return {}
    values = {f.name: getattr(loss, f.name) for f in fields(loss)}
    return {name: value for name, value in values.items() if isinstance(value, Schedule)}


def numbers_at(loss: L, step: int, total_steps: int) -> L:
    """The loss with the number of a step in place of each schedule; the loss itself if it has none."""
    found = schedules(loss)
    values = {name: schedule.at(step, total_steps) for name, schedule in found.items()}
    record: Any = loss
    made: L = replace(record, **values) if values else loss
    return made


def checked_over_the_run(check: Check) -> Check:
    """Make the ``__post_init__`` of a loss accept schedules: it then checks the numbers that they take.

    Where there are schedules, the check runs in the losses that are made of their numbers, at both ends and between.
    """

    @wraps(check)
    def checked(loss: Any) -> None:
        _read(loss)
        if not schedules(loss):
            check(loss)
            return
        for step in (0, _CHECKS, *range(1, _CHECKS)):
            try:
                numbers_at(loss, step, _CHECKS)
            except UserError as error:
                where = {0: "at the first step", _CHECKS: "at the end of the run"}.get(step, "in the course of the run")
                raise UserError(error.field, f"{error.problem} {where}", error.fix) from None

    return checked


def _read(loss: Any) -> None:
    """Turn mappings into schedules."""
    for field in fields(loss) if is_dataclass(loss) else ():
        value = getattr(loss, field.name)
        try:
            read = Schedule.parse(value)
        except UserError as error:
            raise UserError(f"loss.{field.name}", error.problem, error.fix) from None
        if isinstance(read, Schedule) and isinstance(field.default, (bool, str)):
            raise UserError(f"loss.{field.name}", f"expected a value like {field.default!r}, got the schedule {read}")
        if read is not value:
            object.__setattr__(loss, field.name, read)  # the dataclass is frozen
