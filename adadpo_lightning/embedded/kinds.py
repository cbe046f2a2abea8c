"""The five kinds of prompts: how each is drawn, asked, answered rightly or wrongly, and scored.

A kind is one frozen dataclass; the rest of the task does not know which kinds there are.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from adadpo_lightning.embedded.world import (
    CATEGORIES,
    CATEGORY_OF,
    ENTITIES,
    ENTITY_PROPERTIES,
    NUMBERS,
    Claim,
    other_value,
    parse_claims,
    pick,
    say,
    stable_hash,
    value_of,
)

if TYPE_CHECKING:
    import numpy as np

LARGEST_SUMMAND = 12
LARGEST_SORTED = 20
COMPARED = ("size", "colour", "origin")
_ENTITY = "|".join(ENTITIES)

Split = Literal["train", "val", "heldout"]


class Answer(NamedTuple):
    """What an answer sentence is worth.

    Args:
        score: From 0, wrong, to 1, right and complete.
        claims: What it says of the world, so that saying it again is no further fact.
        subjects: Entities and numbers that it brings up.
    """

    score: float
    claims: tuple[Claim, ...]
    subjects: tuple[str, ...]


class Prompt(ABC):
    """One question, without its opening."""

    words: ClassVar[str]
    """Words of question and answer that are no entities, values or numbers."""

    @classmethod
    @abstractmethod
    def draw(cls, rng: np.random.Generator) -> Prompt:
        """A random prompt of this kind."""

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Prompt | None:
        """The inverse of `text`; None for other kinds."""

    @property
    @abstractmethod
    def text(self) -> str:
        """The question as it is asked."""

    @property
    @abstractmethod
    def subjects(self) -> tuple[str, ...]:
        """Entities and numbers that the question is about."""

    @abstractmethod
    def answer(self, rng: np.random.Generator, *, right: bool) -> str:
        """An answer sentence without its full stop; a wrong one scores below 1."""

    @abstractmethod
    def score(self, sentence: str) -> Answer | None:
        """Score a sentence that has the form of an answer; None for other sentences."""

    @property
    def split(self) -> Split:
        """Where it belongs, by a hash of its content: one tenth is held out, one twentieth is for validation."""
        bucket = stable_hash(self.text) % 20
        return "heldout" if bucket < 2 else "val" if bucket == 2 else "train"


@dataclass(frozen=True)
class ListPrompt(Prompt):
    """List some entities of a category but not a certain one."""

    count: int
    category: str
    excluded: str
    words: ClassVar[str] = "list but not here are and"

    @classmethod
    def draw(cls, rng: np.random.Generator) -> ListPrompt:
        """A random one."""
        category = pick(rng, tuple(CATEGORIES))
        return cls(int(rng.integers(1, 5)), category, pick(rng, CATEGORIES[category]))

    @classmethod
    def parse(cls, text: str) -> ListPrompt | None:
        """From its text."""
        match = re.fullmatch(f"list ([1-4]) ({'|'.join(CATEGORIES)}) but not ({_ENTITY})", text)
        return cls(int(match[1]), match[2], match[3]) if match else None

    @property
    def text(self) -> str:
        """The question."""
        return f"list {self.count} {self.category} but not {self.excluded}"

    @property
    def subjects(self) -> tuple[str, ...]:
        """None: the listed ones are the topic, not the one to leave out."""
        return ()

    def answer(self, rng: np.random.Generator, *, right: bool) -> str:
        """A wrong one has one entity of another category, or the excluded one."""
        members = [entity for entity in CATEGORIES[self.category] if entity != self.excluded]
        items = [members[i] for i in rng.permutation(len(members))[: self.count]]
        if not right:
            strangers = [entity for entity in ENTITIES if CATEGORY_OF[entity] != self.category]
            wrong = self.excluded if rng.random() < 0.5 else pick(rng, strangers)
            items[int(rng.integers(len(items)))] = wrong
        return f"here are {' and '.join(items)}"

    def score(self, sentence: str) -> Answer | None:
        """Share of the asked number that is right, less what is wrong, repeated or too much."""
        if not sentence.startswith("here are "):
            return None
        items = sentence.removeprefix("here are ").split(" and ")
        if not all(item in CATEGORY_OF for item in items):
            return None
        fitting = {item for item in items if CATEGORY_OF[item] == self.category and item != self.excluded}
        right = min(len(fitting), self.count)
        return Answer(max(0.0, (2 * right - len(items)) / self.count), (), tuple(items))


@dataclass(frozen=True)
class FactsPrompt(Prompt):
    """Tell some facts about an entity."""

    count: int
    entity: str
    words: ClassVar[str] = "tell me facts about is and from one of the"

    @classmethod
    def draw(cls, rng: np.random.Generator) -> FactsPrompt:
        """A random one."""
        return cls(int(rng.integers(1, 4)), pick(rng, ENTITIES))

    @classmethod
    def parse(cls, text: str) -> FactsPrompt | None:
        """From its text."""
        match = re.fullmatch(f"tell me ([1-3]) facts about ({_ENTITY})", text)
        return cls(int(match[1]), match[2]) if match else None

    @property
    def text(self) -> str:
        """The question."""
        return f"tell me {self.count} facts about {self.entity}"

    @property
    def subjects(self) -> tuple[str, ...]:
        """The entity."""
        return (self.entity,)

    def answer(self, rng: np.random.Generator, *, right: bool) -> str:
        """A wrong one has one false claim."""
        properties = tuple(ENTITY_PROPERTIES)
        chosen = [properties[i] for i in rng.permutation(len(properties))[: self.count]]
        values = [value_of(self.entity, prop) for prop in chosen]
        if not right:
            i = int(rng.integers(len(values)))
            values[i] = other_value(rng, self.entity, chosen[i])
        return say([Claim(self.entity, value) for value in values])

    def score(self, sentence: str) -> Answer | None:
        """Share of the asked number that is true, less what is false or repeated."""
        claims = parse_claims(sentence)
        if claims is None or claims[0].subject != self.entity:
            return None
        true = min(len({claim for claim in claims if claim.is_true}), self.count)
        wrong = len(claims) - len({claim for claim in claims if claim.is_true})
        return Answer(max(0.0, (true - wrong) / self.count), claims, (self.entity,))


@dataclass(frozen=True)
class SumPrompt(Prompt):
    """Add two numbers."""

    a: int
    b: int
    words: ClassVar[str] = "what is plus"

    @classmethod
    def draw(cls, rng: np.random.Generator) -> SumPrompt:
        """A random one."""
        return cls(int(rng.integers(LARGEST_SUMMAND + 1)), int(rng.integers(LARGEST_SUMMAND + 1)))

    @classmethod
    def parse(cls, text: str) -> SumPrompt | None:
        """From its text."""
        match = re.fullmatch(r"what is (\d+) plus (\d+)", text)
        return cls(int(match[1]), int(match[2])) if match else None

    @property
    def text(self) -> str:
        """The question."""
        return f"what is {self.a} plus {self.b}"

    @property
    def subjects(self) -> tuple[str, ...]:
        """Both numbers."""
        return str(self.a), str(self.b)

    def answer(self, rng: np.random.Generator, *, right: bool) -> str:
        """A wrong one is off by one to three."""
        total = str(self.a + self.b)
        if not right:
            nearby = range(max(0, int(total) - 3), min(len(NUMBERS), int(total) + 4))
            total = pick(rng, [str(n) for n in nearby if str(n) != total])
        return f"{self.a} plus {self.b} is {total}"

    def score(self, sentence: str) -> Answer | None:
        """1 or 0."""
        match = re.fullmatch(r"(\d+) plus (\d+) is (\d+)", sentence)
        if match is None:
            return None
        right = match.groups() == (str(self.a), str(self.b), str(self.a + self.b))
        return Answer(float(right), (), match.groups())


@dataclass(frozen=True)
class SortPrompt(Prompt):
    """Put three or four different numbers in order."""

    numbers: tuple[int, ...]
    words: ClassVar[str] = "sort in order"

    @classmethod
    def draw(cls, rng: np.random.Generator) -> SortPrompt:
        """A random one."""
        return cls(tuple(int(n) for n in rng.permutation(LARGEST_SORTED + 1)[: int(rng.integers(3, 5))]))

    @classmethod
    def parse(cls, text: str) -> SortPrompt | None:
        """From its text."""
        match = re.fullmatch(r"sort((?: \d+){3,4})", text)
        return cls(tuple(int(n) for n in match[1].split())) if match else None

    @property
    def text(self) -> str:
        """The question."""
        return f"sort {' '.join(map(str, self.numbers))}"

    @property
    def subjects(self) -> tuple[str, ...]:
        """The numbers."""
        return tuple(map(str, self.numbers))

    def answer(self, rng: np.random.Generator, *, right: bool) -> str:
        """A wrong one has two neighbours swapped."""
        numbers = sorted(self.numbers)
        if not right:
            i = int(rng.integers(len(numbers) - 1))
            numbers[i], numbers[i + 1] = numbers[i + 1], numbers[i]
        return f"in order {' '.join(map(str, numbers))}"

    def score(self, sentence: str) -> Answer | None:
        """Share of the places that hold the right number; 0 for too few or too many numbers."""
        match = re.fullmatch(r"in order((?: \d+)+)", sentence)
        if match is None:
            return None
        said, right = match[1].split(), [str(n) for n in sorted(self.numbers)]
        hits = sum(a == b for a, b in zip(said, right, strict=False)) if len(said) == len(right) else 0
        return Answer(hits / len(right), (), tuple(said))


@dataclass(frozen=True)
class ComparePrompt(Prompt):
    """Say whether two entities have the same size, colour or origin."""

    first: str
    second: str
    prop: str
    words: ClassVar[str] = "do have the same size colour origin and is from so yes no"

    @classmethod
    def draw(cls, rng: np.random.Generator) -> ComparePrompt:
        """A random one of two different entities."""
        first, second = (ENTITIES[i] for i in rng.permutation(len(ENTITIES))[:2])
        return cls(first, second, pick(rng, COMPARED))

    @classmethod
    def parse(cls, text: str) -> ComparePrompt | None:
        """From its text."""
        match = re.fullmatch(f"do ({_ENTITY}) and ({_ENTITY}) have the same ({'|'.join(COMPARED)})", text)
        return cls(match[1], match[2], match[3]) if match else None

    @property
    def text(self) -> str:
        """The question."""
        return f"do {self.first} and {self.second} have the same {self.prop}"

    @property
    def subjects(self) -> tuple[str, ...]:
        """Both entities."""
        return self.first, self.second

    def answer(self, rng: np.random.Generator, *, right: bool) -> str:
        """A wrong one has a false claim about one of the two, and concludes from it."""
        values = [value_of(self.first, self.prop), value_of(self.second, self.prop)]
        if not right:
            i = int(rng.integers(2))
            values[i] = other_value(rng, self.subjects[i], self.prop)
        said = " and ".join(say([Claim(s, v)]) for s, v in zip(self.subjects, values, strict=True))
        return f"{said} so {'yes' if values[0] == values[1] else 'no'}"

    def score(self, sentence: str) -> Answer | None:
        """One third for each of both values and for the conclusion."""
        match = re.fullmatch(r"(.+) and (.+) so (yes|no)", sentence)
        claims = (parse_claims(match[1]), parse_claims(match[2])) if match else (None, None)
        if match is None or claims[0] is None or claims[1] is None:
            return None
        said = claims[0] + claims[1]
        right = [Claim(s, value_of(s, self.prop)) for s in self.subjects]
        same = "yes" if right[0].value == right[1].value else "no"
        hits = sum(claim in said for claim in right) + (match[3] == same)
        return Answer(hits / 3 if len(said) == 2 else 0.0, said, tuple(claim.subject for claim in said))


KINDS: tuple[type[Prompt], ...] = (ListPrompt, FactsPrompt, SumPrompt, SortPrompt, ComparePrompt)
