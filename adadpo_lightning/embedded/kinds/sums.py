"""Add two numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adadpo_lightning.embedded.kinds.base import Answer, Prompt
from adadpo_lightning.embedded.world import NUMBERS, pick

if TYPE_CHECKING:
    import numpy as np

LARGEST_SUMMAND = 12


@dataclass(frozen=True)
class SumPrompt(Prompt):
    """Add two numbers."""

    a: int
    b: int
    words: ClassVar[str] = "what is plus"

    @classmethod
    def draw(cls, rng: np.random.Generator) -> SumPrompt:
        """Draw a random prompt."""
        return cls(int(rng.integers(LARGEST_SUMMAND + 1)), int(rng.integers(LARGEST_SUMMAND + 1)))

    @classmethod
    def parse(cls, text: str) -> SumPrompt | None:
        """Parse the question."""
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
        """A wrong answer is off by one to three."""
        total = str(self.a + self.b)
        if not right:
            nearby = range(max(0, int(total) - 3), min(len(NUMBERS), int(total) + 4))
            total = pick(rng, [str(n) for n in nearby if str(n) != total])
        return f"{self.a} plus {self.b} is {total}"

    def score(self, sentence: str) -> Answer | None:
        """1 if correct, else 0."""
        match = re.fullmatch(r"(\d+) plus (\d+) is (\d+)", sentence)
        if match is None:
            return None
        right = match.groups() == (str(self.a), str(self.b), str(self.a + self.b))
        return Answer(float(right), (), match.groups())
