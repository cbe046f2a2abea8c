"""List some entities of a category."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adadpo_lightning.embedded.kinds.base import ENTITY, Answer, Prompt
from adadpo_lightning.embedded.world import CATEGORIES, CATEGORY_OF, ENTITIES, pick

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ListPrompt(Prompt):
    """List some entities of a category except one."""

    count: int
    category: str
    excluded: str
    words: ClassVar[str] = "list but not here are and"

    @classmethod
    def draw(cls, rng: np.random.Generator) -> ListPrompt:
        """Draw a random prompt."""
        category = pick(rng, tuple(CATEGORIES))
        return cls(int(rng.integers(1, 5)), category, pick(rng, CATEGORIES[category]))

    @classmethod
    def parse(cls, text: str) -> ListPrompt | None:
        """Parse the question."""
        match = re.fullmatch(f"list ([1-4]) ({'|'.join(CATEGORIES)}) but not ({ENTITY})", text)
        return cls(int(match[1]), match[2], match[3]) if match else None

    @property
    def text(self) -> str:
        """The question."""
        return f"list {self.count} {self.category} but not {self.excluded}"

    @property
    def subjects(self) -> tuple[str, ...]:
        """Empty: the listed entities are the topic, not the excluded one."""
        return ()

    def answer(self, rng: np.random.Generator, *, right: bool) -> str:
        """A wrong answer contains one entity of another category, or the excluded one."""
        members = [entity for entity in CATEGORIES[self.category] if entity != self.excluded]
        items = [members[i] for i in rng.permutation(len(members))[: self.count]]
        if not right:
            strangers = [entity for entity in ENTITIES if CATEGORY_OF[entity] != self.category]
            wrong = self.excluded if rng.random() < 0.5 else pick(rng, strangers)
            items[int(rng.integers(len(items)))] = wrong
        return f"here are {' and '.join(items)}"

    def score(self, sentence: str) -> Answer | None:
        """Share of the requested number that is correct, minus wrong, repeated and surplus items."""
        if not sentence.startswith("here are "):
            return None
        items = sentence.removeprefix("here are ").split(" and ")
        if not all(item in CATEGORY_OF for item in items):
            return None
        fitting = {item for item in items if CATEGORY_OF[item] == self.category and item != self.excluded}
        right = min(len(fitting), self.count)
        return Answer(max(0.0, (2 * right - len(items)) / self.count), (), tuple(items))
