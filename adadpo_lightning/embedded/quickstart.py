"""The stages of the quickstart: what each one does or, for training, which ``fit`` command does it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adadpo_lightning.errors import UserError
from adadpo_lightning.metrics import names
from adadpo_lightning.runs.logs import read_metrics
from adadpo_lightning.shipped import find_config

if TYPE_CHECKING:
    from adadpo_lightning.embedded.task import PairStatistics

LOGGED = (
    names.val(names.REWARDS_ACCURACIES),
    names.val(names.REWARDS_MARGINS),
    names.val(names.DISPLACEMENT_CHOSEN),
    names.val(names.BALANCE_RATIO),
    names.val(names.LOGPS_CHOSEN),
)


@dataclass(frozen=True)
class Quickstart:
    """Task, warm-up, pairs, AdaDPO and evaluation in one directory; the methods are called in this order.

    Args:
        root: Gets ``task``, ``warmup``, ``pairs`` and ``adadpo``; must be empty or not exist.
        seed: Seed of task, training, sampling and evaluation: the same numbers on every run on one machine.

    Raises:
        UserError: If the directory is not empty.
    """

    root: Path
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the directory."""
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise UserError("output_dir", f"{self.root} exists and is not empty", "remove it or choose another one")

    @property
    def warmup(self) -> Path:
        """The exported warm-up model."""
        return self.root / "warmup" / "export"

    @property
    def trained(self) -> Path:
        """Output directory of the preference training."""
        return self.root / "adadpo"

    def make_task(self) -> None:
        """Write prompts, the warm-up corpus, and the model's config and tokenizer."""
        from adadpo_lightning.embedded import make_task

        make_task(self.root / "task", seed=self.seed)

    def warmup_command(self) -> list[str]:
        """The supervised ``fit`` from random weights."""
        task = self.root / "task"
        return [
            *self._fit("quickstart_warmup.yaml", self.root / "warmup"),
            f"--model.policy.config={task / 'model'}",
            f"--model.policy.init_seed={self.seed}",
            f"--data.train={task / 'warmup.jsonl'}",
        ]

    def make_pairs(self) -> PairStatistics:
        """Sample answers of the warm-up model and write the judged pairs."""
        from adadpo_lightning.embedded import make_pairs

        return make_pairs(self.warmup, self.root / "task", self.root / "pairs", seed=self.seed)

    def preference_command(self) -> list[str]:
        """The ``fit`` with AdaDPO on the pairs."""
        pairs = self.root / "pairs"
        return [
            *self._fit("quickstart.yaml", self.trained),
            f"--model.policy.path={self.warmup}",
            f"--data.train={pairs / 'pairs.jsonl'}",
            f"--data.val={pairs / 'pairs_val.jsonl'}",
        ]

    def _fit(self, config: str, output_dir: Path) -> list[str]:
        # data.seed orders the pairs, seed_everything covers everything else.
        seeds = [f"--seed_everything={self.seed}", f"--data.seed={self.seed}"]
        return ["fit", f"--config={find_config(config)}", f"--output_dir={output_dir}", *seeds]

    def evaluate(self) -> dict[str, float]:
        """The last logged values of `LOGGED`, and the numbers of `evaluate_embedded`."""
        from adadpo_lightning.embedded.evaluation import evaluate_embedded

        scores = evaluate_embedded(self.trained / "export", self.warmup, self.root / "task", seed=self.seed)
        return {**{name: values[-1] for name, values in read_metrics(self.trained, LOGGED).items()}, **scores}


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, so that sums have one order on any number of cores; more are no faster at this size."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def summarise(found: Mapping[str, float]) -> dict[str, str]:
    """The lines of the summary: what was measured, and its number as it is shown.

    Args:
        found: Numbers of `Quickstart.evaluate`.
    """

    def measured(name: str, scale: float = 1.0, unit: str = "") -> str:
        if name not in found:
            return "no finite estimate"
        return f"{scale * found[name]:.2f}{unit} ± {scale * found[name + '_se']:.2f}"

    return {
        "accuracy on validation pairs": f"{found[names.val(names.REWARDS_ACCURACIES)]:.3f}",
        "reward margin on them": f"{found[names.val(names.REWARDS_MARGINS)]:.3f}",
        "gradient balance ratio on them": (
            f"{found[names.val(names.BALANCE_RATIO)]:.3f} (g_w / g_l per token, ratio space)"
        ),
        "log-prob of chosen answers": (
            f"{found[names.val(names.LOGPS_CHOSEN)]:.2f} nats, drift "
            f"{found[names.val(names.DISPLACEMENT_CHOSEN)]:+.2f} since warm-up"
        ),
        "gold win rate against warm-up": measured("gold_win_rate", 100, " %"),
        "judge's win rate, raw": measured("judge_win_rate", 100, " %"),
        "judge's win rate, length-controlled": measured("judge_win_rate_lc", 100, " %"),
        "gold reward": f"{measured('gold')}, warm-up {found['warmup_gold']:.2f}",
        "answer length, tokens": f"{measured('length')}, warm-up {found['warmup_length']:.2f}",
        "on-policy KL, nats an answer": measured("kl"),
    }
