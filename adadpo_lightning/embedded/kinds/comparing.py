"""Compare a property of two entities."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adadpo_lightning.embedded.kinds.base import ENTITY, Answer, Prompt
from adadpo_lightning.embedded.world import ENTITIES, Claim, other_value, parse_claims, pick, say, value_of

if TYPE_CHECKING:
    import numpy as np

COMPARED = ("size", "colour", "origin")


@dataclass(frozen=True)
class ComparePrompt(Prompt):
    """Say whether two entities have the same size, colour or origin."""

    first: str
    second: str
    prop: str
    words: ClassVar[str] = "do have the same size colour origin and is from so yes no"

    @classmethod
    def draw(cls, rng: np.random.Generator) -> ComparePrompt:
        """Draw a random prompt about two different entities."""
        first, second = (ENTITIES[i] for i in rng.permutation(len(ENTITIES))[:2])
        return cls(first, second, pick(rng, COMPARED))

    @classmethod
    def parse(cls, text: str) -> ComparePrompt | None:
        """Parse the question."""
        match = re.fullmatch(f"do ({ENTITY}) and ({ENTITY}) have the same ({'|'.join(COMPARED)})", text)
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
        """A wrong answer makes a false claim about one entity and draws the conclusion from it."""
        values = [value_of(self.first, self.prop), value_of(self.second, self.prop)]
        if not right:
            i = int(rng.integers(2))
            values[i] = other_value(rng, self.subjects[i], self.prop)
        said = " and ".join(say([Claim(s, v)]) for s, v in zip(self.subjects, values, strict=True))
        return f"{said} so {'yes' if values[0] == values[1] else 'no'}"

    def score(self, sentence: str) -> Answer | None:
        """One third each for both values and for the conclusion."""
        match = re.fullmatch(r"(.+) and (.+) so (yes|no)", sentence)
        claims = (parse_claims(match[1]), parse_claims(match[2])) if match else (None, None)
        if match is None or claims[0] is None or claims[1] is None:
            return None
        said = claims[0] + claims[1]
        right = [Claim(s, value_of(s, self.prop)) for s in self.subjects]
        same = "yes" if right[0].value == right[1].value else "no"
        hits = sum(claim in said for claim in right) + (match[3] == same)
        return Answer(hits / 3 if len(said) == 2 else 0.0, said, tuple(claim.subject for claim in said))
