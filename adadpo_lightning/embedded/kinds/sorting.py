"""Sort numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adadpo_lightning.embedded.kinds.base import Answer, Prompt

if TYPE_CHECKING:
    import numpy as np

LARGEST_SORTED = 20


@dataclass(frozen=True)
class SortPrompt(Prompt):
    """Put three or four different numbers in order."""

    numbers: tuple[int, ...]
    words: ClassVar[str] = "sort in order"

    @classmethod
    def draw(cls, rng: np.random.Generator) -> SortPrompt:
        """Draw a random prompt."""
        return cls(tuple(int(n) for n in rng.permutation(LARGEST_SORTED + 1)[: int(rng.integers(3, 5))]))

    @classmethod
    def parse(cls, text: str) -> SortPrompt | None:
        """Parse the question."""
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
        """A wrong answer has two neighbours swapped."""
        numbers = sorted(self.numbers)
        if not right:
            i = int(rng.integers(len(numbers) - 1))
            numbers[i], numbers[i + 1] = numbers[i + 1], numbers[i]
        return f"in order {' '.join(map(str, numbers))}"

    def score(self, sentence: str) -> Answer | None:
        """Share of positions with the correct number; 0 for too few or too many numbers."""
        match = re.fullmatch(r"in order((?: \d+)+)", sentence)
        if match is None:
            return None
        said, right = match[1].split(), [str(n) for n in sorted(self.numbers)]
        hits = sum(a == b for a, b in zip(said, right, strict=False)) if len(said) == len(right) else 0
        return Answer(hits / len(right), (), tuple(said))
