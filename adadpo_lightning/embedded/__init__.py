"""The embedded task: a small world with a known gold reward and a noisy judge that favours length.

No download, a model that one CPU core trains in a minute, and preference pairs sampled from that model:
`world` (facts), `kinds` and `prompts` (questions), `grammar` (the warm-up corpus), `gold` (reward and judge),
`tokenizer`, `sampling` and `task` (files).
"""

from __future__ import annotations

from adadpo_lightning.embedded.gold import Grade, grade, judge
from adadpo_lightning.embedded.task import EmbeddedTask, PairStatistics, make_pairs, make_task

__all__ = ["EmbeddedTask", "Grade", "PairStatistics", "grade", "judge", "make_pairs", "make_task"]
