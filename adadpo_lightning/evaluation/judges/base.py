"""Judges by name: which of two answers to a prompt is the better one.

A new judge is one file beside this one, with a class under `register_judge`. Another package declares an entry point of
the group ``adadpo_lightning.judges`` that imports its class.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from types import UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from adadpo_lightning.errors import UserError, did_you_mean
from adadpo_lightning.fingerprint import of_path
from adadpo_lightning.plugins import load_plugins

if TYPE_CHECKING:
    from adadpo_lightning.evaluation.comparisons import Comparison
    from adadpo_lightning.generation.responses import Response

ENTRY_POINT_GROUP = "adadpo_lightning.judges"
# Judges of this package that need rooms above this one; imported by name when judges are asked for.
ELSEWHERE = ("adadpo_lightning.embedded.gold_judge",)

_judges: dict[str, type[Judge]] = {}

J = TypeVar("J", bound="type[Judge]")


class Judge(ABC):
    """Decides comparisons. Subclasses are dataclasses: their fields are the judge's options."""

    key = ""
    # Options that change neither scores nor verdicts, only where or how fast they are found.
    BESIDE: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def preferences(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """For each comparison the probability in [0, 1] that the model's answer is the better one.

        0.5 is a tie; None is no verdict, which is counted and left out of the win rate.
        """

    def comparisons(self) -> list[Comparison]:
        """The comparisons that the judge itself provides, for one that has read them from a file.

        Raises:
            UserError: If it provides none.
        """
        raise UserError("responses", f"the judge {self.key!r} needs two response files", "set responses and baseline")

    def report(self) -> dict[str, Any]:
        """Further entries of the report, such as the cost."""
        return {}

    @property
    def by_order(self) -> bool:
        """Whether a verdict may depend on which answer is which; ``make-pairs`` then asks in both orders."""
        return True

    def deciding(self) -> dict[str, Any]:
        """What the verdicts depend on: the judge's key, its options, and the content of files that they name."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}  # type: ignore[arg-type]
        named = {name: value for name, value in options.items() if name not in self.BESIDE}
        files = {name: found for name, v in named.items() if isinstance(v, str) and (found := of_path(v)) is not None}
        # Of a file the content counts, and its place does not.
        return {"judge": self.key, "options": {**named, **files}}


class PointwiseJudge(Judge):
    """A judge that scores one answer at a time; of two answers, the one with the higher score is the better one.

    Args:
        temperature: As in `preference_of`; a field of each subclass.
    """

    temperature: float

    @abstractmethod
    def scores(self, responses: Sequence[Response]) -> list[float | None]:
        """A score for each answer, comparable among answers to one prompt; None if the judge gives none."""

    def preferences(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """Score both sides of each comparison; None if one has no score."""
        scores = self.scores([side for pair in comparisons for side in (pair.model, pair.baseline)])
        return [
            None if ours is None or theirs is None else preference_of(ours, theirs, self.temperature)
            for ours, theirs in zip(scores[::2], scores[1::2], strict=True)
        ]


def register_judge(key: str) -> Callable[[J], J]:
    """Class decorator: register a judge under `key`.

    Args:
        key: What users write as ``--judge``.

    Raises:
        UserError: If another class has the key.

    Example:
        >>> from adadpo_lightning.evaluation.comparisons import Comparison
        >>> from adadpo_lightning.generation.responses import Response
        >>> @register_judge("shorter")
        ... @dataclasses.dataclass
        ... class Shorter(Judge):
        ...     def preferences(self, comparisons):
        ...         return [float(len(c.model.response) < len(c.baseline.response)) for c in comparisons]
        >>> build_judge("shorter").preferences([Comparison(Response("hi", "a"), Response("hi", "abc"))])
        [1.0]
        >>> _ = _judges.pop("shorter")
    """

    def register(cls: J) -> J:
        other = _judges.get(key)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UserError(f"judge {key!r}", f"is already registered by {other.__qualname__}", "choose another key")
        cls.key = key
        _judges[key] = cls
        return cls

    return register


def available_judges() -> list[str]:
    """Keys of all judges.

    Example:
        >>> available_judges()
        ['annotations', 'biased', 'gold', 'length', 'openai_compatible', 'reward_model', 'sentiment']
    """
    _load_judges()
    return sorted(_judges)


def build_judge(key: str, **options: Any) -> Judge:
    """Make a judge by its key.

    Args:
        key: One of `available_judges`.
        **options: Its options.

    Raises:
        UserError: For an unknown key or option, a missing one, or a value out of range.
    """
    if key not in available_judges():
        raise UserError("judge", f"unknown judge {key!r}", did_you_mean(key, _judges))
    cls: Any = _judges[key]
    known = [f.name for f in dataclasses.fields(cls) if f.init]
    for name in options:
        if name not in known:
            raise UserError(f"judge_options.{name}", f"{key!r} has no option {name!r}", did_you_mean(name, known))
    required = [n for n, p in inspect.signature(cls).parameters.items() if p.default is p.empty]
    if missing := [name for name in required if name not in options]:
        raise UserError("judge_options", f"{key!r} needs {', '.join(missing)}", "set it")
    _check_types(cls, options)
    return cls(**options)  # type: ignore[no-any-return]  # registered classes are judges


def _check_types(cls: type[Judge], options: dict[str, Any]) -> None:
    """Whether options have the types of a judge's fields.

    Raises:
        UserError: Naming the first that does not.
    """
    try:
        hints = get_type_hints(cls)
    except NameError:  # of another package, which imports its types for type checkers alone
        return
    for name, value in options.items():
        if not _fits(value, hints.get(name, Any)):
            kind = getattr(hints[name], "__name__", None) or str(hints[name]).replace("typing.", "")
            raise UserError(f"judge_options.{name}", f"expected {kind}, got {value!r}")


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return True  # each judge names the choices itself
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    known = origin or kind
    return not isinstance(known, type) or isinstance(value, known)


def verdicts_of(judge: Judge, comparisons: Sequence[Comparison]) -> list[float | None]:
    """The preferences of a judge, checked.

    Raises:
        UserError: If they are not one number in [0, 1] or None per comparison.
    """
    found = judge.preferences(comparisons)
    return _checked(judge, found, len(comparisons), "a number in [0, 1] or None per comparison", lambda v: 0 <= v <= 1)


def scores_of(judge: PointwiseJudge, responses: Sequence[Response]) -> list[float | None]:
    """The scores of a judge, checked.

    Raises:
        UserError: If they are not one finite number or None per answer.
    """
    found = judge.scores(responses)
    return _checked(judge, found, len(responses), "a finite number or None per answer", math.isfinite)


def _checked(
    judge: Judge, found: list[float | None], count: int, expected: str, good: Callable[[float], bool]
) -> list[float | None]:
    odd = [value for value in found if value is not None and not good(value)]
    if len(found) != count or odd:
        got = f"{odd[0]!r}" if odd else f"{len(found)} for {count}"
        raise UserError(f"judge {judge.key!r}", f"expected {expected}, got {got}", "fix the judge")
    return found


@cache
def _load_judges() -> None:
    """Import all judges, which register themselves: the files of this folder, `ELSEWHERE`, and other packages'."""
    package = import_module(__package__ or "")
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    for name in ELSEWHERE:
        import_module(name)
    load_plugins(ENTRY_POINT_GROUP)


def preference_of(score: float, opponent: float, temperature: float) -> float:
    """From two scores to a preference.

    Args:
        score: Score of the model's answer.
        opponent: Score of the other answer.
        temperature: 0 counts wins, losses and ties; above 0 the preference is ``sigmoid(difference / temperature)``.

    Example:
        >>> preference_of(0.1 + 0.2, 0.3, 0.0), preference_of(1.0, 0.0, 0.0), round(preference_of(1.0, 0.0, 1.0), 3)
        (0.5, 1.0, 0.731)
    """
    difference = score - opponent
    if temperature == 0:
        # Sums of the same terms in another order differ in their last bits: these are ties.
        return 0.5 if math.isclose(difference, 0.0, abs_tol=1e-9) else float(difference > 0)
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, difference / temperature))))
