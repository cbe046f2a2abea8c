"""Tell facts about an entity."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adadpo_lightning.embedded.kinds.base import ENTITY, Answer, Prompt
from adadpo_lightning.embedded.world import (
    ENTITIES,
    ENTITY_PROPERTIES,
    Claim,
    other_value,
    parse_claims,
    pick,
    say,
    value_of,
)

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class FactsPrompt(Prompt):
    """Tell some facts about an entity."""

    count: int
    entity: str
    words: ClassVar[str] = "tell me facts about is and from one of the"

    @classmethod
    def draw(cls, rng: np.random.Generator) -> FactsPrompt:
        """Draw a random prompt."""
        return cls(int(rng.integers(1, 4)), pick(rng, ENTITIES))

    @classmethod
    def parse(cls, text: str) -> FactsPrompt | None:
        """Parse the question."""
        match = re.fullmatch(f"tell me ([1-3]) facts about ({ENTITY})", text)
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
        """A wrong answer has one false claim."""
        properties = tuple(ENTITY_PROPERTIES)
        chosen = [properties[i] for i in rng.permutation(len(properties))[: self.count]]
        values = [value_of(self.entity, prop) for prop in chosen]
        if not right:
            i = int(rng.integers(len(values)))
            values[i] = other_value(rng, self.entity, chosen[i])
        return say([Claim(self.entity, value) for value in values])

    def score(self, sentence: str) -> Answer | None:
        """Share of the requested number that is true, minus false and repeated claims."""
        claims = parse_claims(sentence)
        if claims is None or claims[0].subject != self.entity:
            return None
        true = min(len({claim for claim in claims if claim.is_true}), self.count)
        wrong = len(claims) - len({claim for claim in claims if claim.is_true})
        return Answer(max(0.0, (true - wrong) / self.count), claims, (self.entity,))
