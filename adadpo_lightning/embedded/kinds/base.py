"""A kind of prompt: how it is drawn, asked, answered correctly or wrongly, and scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from adadpo_lightning.embedded.world import ENTITIES, stable_hash

if TYPE_CHECKING:
    import numpy as np

    from adadpo_lightning.embedded.world import Claim

ENTITY = "|".join(ENTITIES)  # as a pattern

Split = Literal["train", "val", "heldout"]


class Answer(NamedTuple):
    """What an answer sentence is worth.

    Args:
        score: From 0, wrong, to 1, right and complete.
        claims: Claims it makes; repeating them counts as no further fact.
        subjects: Entities and numbers that it mentions.
    """

    score: float
    claims: tuple[Claim, ...]
    subjects: tuple[str, ...]


class Prompt(ABC):
    """One question, without its opening."""

    words: ClassVar[str]
    """Words of question and answer other than entities, values and numbers."""

    @classmethod
    @abstractmethod
    def draw(cls, rng: np.random.Generator) -> Prompt:
        """Draw a random prompt of this kind."""

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
        """Split by a hash of the content: one tenth is held out, one twentieth is for validation."""
        bucket = stable_hash(self.text) % 20
        return "heldout" if bucket < 2 else "val" if bucket == 2 else "train"
