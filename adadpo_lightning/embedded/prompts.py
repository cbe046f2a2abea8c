"""Prompts as text: an opening, followed by a question of one of the kinds."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from adadpo_lightning.embedded.kinds import KINDS
from adadpo_lightning.embedded.world import pick

if TYPE_CHECKING:
    import numpy as np

    from adadpo_lightning.embedded.kinds import Prompt, Split

OPENINGS = ("", "please", "now", "ok then", "hello", "next")


@lru_cache(maxsize=65536)
def parse_prompt(text: str) -> Prompt:
    """Parse a prompt with or without an opening.

    Raises:
        ValueError: If the text is not a prompt of the embedded task.

    Example:
        >>> parse_prompt("please what is 2 plus 3")
        SumPrompt(a=2, b=3)
    """
    for opening in OPENINGS:
        content = text.removeprefix(opening).lstrip()
        parsed = [prompt for kind in KINDS if (prompt := kind.parse(content)) is not None]
        if parsed:
            return parsed[0]
    raise ValueError(f"not a prompt of the embedded task: {text!r}")


def draw_prompts(rng: np.random.Generator, split: Split, count: int) -> list[str]:
    """Draw distinct prompts of one split, with openings; kinds are equally likely until one is exhausted.

    Args:
        rng: Source of randomness.
        split: The split, which a hash of the content assigns.
        count: Number of prompts.
    """
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[draw_prompt(rng, split)] = None
    return list(texts)


def draw_prompt(rng: np.random.Generator, split: Split) -> str:
    """Draw one prompt of a split as text, all kinds equally likely."""
    kind = KINDS[int(rng.integers(len(KINDS)))]
    while (prompt := kind.draw(rng)).split != split:
        pass
    return f"{pick(rng, OPENINGS)} {prompt.text}".strip()
