"""The five kinds of prompts, one file each; nothing else in the task depends on which kinds exist."""

from __future__ import annotations

from adadpo_lightning.embedded.kinds.base import Answer, Prompt, Split
from adadpo_lightning.embedded.kinds.comparing import ComparePrompt
from adadpo_lightning.embedded.kinds.facts import FactsPrompt
from adadpo_lightning.embedded.kinds.lists import ListPrompt
from adadpo_lightning.embedded.kinds.sorting import SortPrompt
from adadpo_lightning.embedded.kinds.sums import SumPrompt

# The order matters: the same seed draws the same prompts.
KINDS: tuple[type[Prompt], ...] = (ListPrompt, FactsPrompt, SumPrompt, SortPrompt, ComparePrompt)

__all__ = [
    "KINDS",
    "Answer",
    "ComparePrompt",
    "FactsPrompt",
    "ListPrompt",
    "Prompt",
    "SortPrompt",
    "Split",
    "SumPrompt",
]
