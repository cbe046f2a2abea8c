"""Judges by name: which of two answers to a prompt is the better one.

A new judge is one class under `register_judge`; the larger ones have files of their own, `reward_model` and `endpoint`.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from adadpo_lightning.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from adadpo_lightning.generation.responses import Response

ENTRY_POINT_GROUP = "adadpo_lightning.judges"

_judges: dict[str, type[Judge]] = {}

J = TypeVar("J", bound="type[Judge]")


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt: the model's, and the opponent's."""

    model: Response
    baseline: Response


class Judge(ABC):
    """Decides comparisons. Subclasses are dataclasses: their fields are the judge's options."""

    key = ""

    @abstractmethod
    def preferences(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """For each comparison the probability in [0, 1] that the model's answer is the better one.

        A half is a tie; None is no verdict, which is left out of the win rate and counted.
        """

    def comparisons(self) -> list[Comparison]:
        """The comparisons that the judge brings along, for one that has read them from a file.

        Raises:
            UserError: If it brings none.
        """
        raise UserError("responses", f"the judge {self.key!r} needs two response files", "give responses and baseline")

    def report(self) -> dict[str, Any]:
        """What else the judge has to say once it is done, such as its cost."""
        return {}


def register_judge(key: str) -> Callable[[J], J]:
    """Class decorator: make a judge known under `key`.

    Args:
        key: What users write as ``--judge``.

    Raises:
        UserError: If the key is taken by another class.

    Example:
        >>> from adadpo_lightning.generation.responses import Response
        >>> @register_judge("shorter")
        ... @dataclass
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
            raise UserError(f"judge {key!r}", f"is taken by {other.__qualname__}", "choose another key")
        cls.key = key
        _judges[key] = cls
        return cls

    return register


def available_judges() -> list[str]:
    """Keys of all judges.

    Example:
        >>> available_judges()
        ['annotations', 'gold', 'openai_compatible', 'reward_model']
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
        raise UserError("judge_options", f"{key!r} needs {', '.join(missing)}", "name it")
    return cls(**options)  # type: ignore[no-any-return]  # registered classes are judges


@cache
def _load_judges() -> None:
    """Import the judges outside this file: our own, and those that packages declare under the entry-point group."""
    from adadpo_lightning.evaluation.judges import endpoint, reward_model  # noqa: F401  # they register themselves

    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist else "unknown package"
            raise UserError(
                f"entry point {entry.name!r} of {package}",
                f"could not be loaded: {type(error).__name__}: {error}",
                "mend or uninstall that package",
            ) from error


def preference_of(score: float, opponent: float, temperature: float) -> float:
    """From two scores to a preference.

    Args:
        score: That of the model's answer.
        opponent: That of the other answer.
        temperature: 0 counts wins, losses and ties; above it is the preference ``sigmoid(difference / temperature)``.

    Example:
        >>> preference_of(0.1 + 0.2, 0.3, 0.0), preference_of(1.0, 0.0, 0.0), round(preference_of(1.0, 0.0, 1.0), 3)
        (0.5, 1.0, 0.731)
    """
    difference = score - opponent
    if temperature == 0:
        # Sums of the same terms in another order differ in their last bits: these are ties.
        return 0.5 if math.isclose(difference, 0.0, abs_tol=1e-9) else float(difference > 0)
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, difference / temperature))))


@register_judge("gold")
@dataclass
class GoldJudge(Judge):
    """The embedded task's gold reward: true of prompts of that task only.

    Args:
        temperature: As in `preference_of`.
    """

    temperature: float = 0.0

    def preferences(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """The higher gold reward wins."""
        return [preference_of(_gold(pair.model), _gold(pair.baseline), self.temperature) for pair in comparisons]


def _gold(response: Response) -> float:
    from adadpo_lightning.embedded.gold import grade

    try:
        return grade(response.prompt, response.response, finished=response.finished).gold
    except ValueError as error:
        raise UserError(
            f"prompt {response.uid}", f"is none of the embedded task: {error}", "take another judge"
        ) from error


@register_judge("annotations")
@dataclass
class AnnotationsJudge(Judge):
    """Preferences from a file, such as AlpacaEval's annotations.json.

    Its rows have ``instruction``, ``output_1``, ``output_2``, ``generator_1``, ``generator_2`` and ``preference``: 1
    where the first output is the better one, 2 where the second is, anything between as a probability, 1.5 or 0 for a
    tie, null for no verdict. ``instruction_difficulty`` may stand beside them.

    Args:
        annotations: The file.
        generator: The model to be judged; null takes ``generator_2``, as AlpacaEval does. Rows in which it is
            ``generator_1`` are turned round.
    """

    annotations: str
    generator: str | None = None
    _rows: list[tuple[Comparison, float | None]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Read the file."""
        from adadpo_lightning.data.sources import SourceConfig
        from adadpo_lightning.generation.prompts import read_objects

        found = read_objects(SourceConfig(self.annotations))
        self._rows = [_annotation(row, where, self.generator) for where, row in found]

    def comparisons(self) -> list[Comparison]:
        """All of the file's."""
        return [comparison for comparison, _ in self._rows]

    def preferences(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """The verdicts on the file's own comparisons; others are looked up by prompt and both answers.

        Of several rows with the same texts the last one counts there.

        Raises:
            UserError: If the file has no verdict on one.
        """
        if list(comparisons) == self.comparisons():
            return [preference for _, preference in self._rows]
        known = {_texts(comparison): preference for comparison, preference in self._rows}
        missing = sum(_texts(comparison) not in known for comparison in comparisons)
        if missing:
            raise UserError(
                self.annotations,
                f"has no row for {missing} of {len(comparisons)} comparisons: prompt and both outputs must be the same",
                "annotate these responses, or leave the response files out",
            )
        return [known[_texts(comparison)] for comparison in comparisons]


def _texts(comparison: Comparison) -> tuple[str, str, str]:
    return comparison.model.prompt, comparison.model.response, comparison.baseline.response


def _annotation(row: Mapping[str, Any], where: str, generator: str | None) -> tuple[Comparison, float | None]:
    from adadpo_lightning.generation.responses import Response

    missing = [name for name in ("instruction", "output_1", "output_2", "preference") if name not in row]
    if missing:
        raise UserError(where, f"has no {', '.join(missing)}; found {', '.join(row)}")
    second_wins = _second_wins(row["preference"], where)
    difficulty = row.get("instruction_difficulty")
    first, second = (
        Response(
            row["instruction"],
            row[f"output_{i}"],
            str(row.get(f"generator_{i}") or ""),
            dataset=str(row.get("dataset") or ""),
            difficulty=None if difficulty is None else float(difficulty),
        )
        for i in (1, 2)
    )
    if generator is None or second.generator == generator:
        return Comparison(second, first), second_wins
    if first.generator == generator:
        return Comparison(first, second), None if second_wins is None else 1 - second_wins
    raise UserError(where, f"is of {first.generator!r} and {second.generator!r}, not of {generator!r}")


def _second_wins(preference: Any, where: str) -> float | None:
    if preference is None or preference != preference:  # a NaN is null, as pandas writes it
        return None
    if isinstance(preference, bool) or not isinstance(preference, (int, float)):
        raise UserError(where, f"expected a number as preference, got {preference!r}")
    if preference == 0:
        return 0.5
    if not 1 <= preference <= 2:
        raise UserError(where, f"expected a preference in [1, 2] (or 0 for a tie), got {preference!r}")
    return float(preference) - 1
