"""Write the embedded task to disk: model and tokenizer, warm-up corpus, prompts, and preference pairs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adadpo_lightning.embedded.gold import grade, judge
from adadpo_lightning.embedded.grammar import draw_style, write_response
from adadpo_lightning.embedded.prompts import draw_prompt, draw_prompts
from adadpo_lightning.embedded.tokenizer import build_model_config, build_tokenizer
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from adadpo_lightning.embedded.kinds import Split
    from adadpo_lightning.embedded.sampling import Sample

PAIR_FILES: dict[Split, str] = {"train": "pairs.jsonl", "val": "pairs_val.jsonl"}


@dataclass(frozen=True)
class EmbeddedTask:
    """Paths of a task.

    Args:
        root: Directory written by `make_task`.
    """

    root: Path

    @property
    def model(self) -> Path:
        """Config and tokenizer: ``model.policy.config`` of the warm-up run."""
        return self.root / "model"

    @property
    def warmup(self) -> Path:
        """The warm-up corpus, rows of ``prompt`` and ``chosen``."""
        return self.root / "warmup.jsonl"

    def prompts(self, split: Split) -> list[str]:
        """The prompts of one split: ``train``, ``val`` or ``heldout``.

        Raises:
            UserError: If the directory holds no task.
        """
        return [row["prompt"] for row in read_rows(self.root / f"prompts_{split}.jsonl")]


@dataclass(frozen=True)
class PairStatistics:
    """Statistics of a set of pairs.

    Args:
        pairs: Number of pairs; a prompt with identical answers gives none.
        longer_chosen: Share of pairs with the longer answer chosen, among those of different lengths.
        judge_agrees: Share of pairs in which the judge agrees with the gold reward, among those where it differs.
    """

    pairs: int
    longer_chosen: float
    judge_agrees: float


def make_task(
    out_dir: str | Path,
    *,
    seed: int = 0,
    corpus_size: int = 20_000,
    prompts: int = 4096,
    val_prompts: int = 512,
    heldout_prompts: int = 1000,
) -> EmbeddedTask:
    """Write prompts, warm-up corpus, tokenizer and model config.

    Args:
        out_dir: Directory to write to.
        seed: Seed of prompts and corpus; the facts of the world are fixed.
        corpus_size: Rows of the warm-up corpus.
        prompts: Distinct prompts that training pairs are sampled for.
        val_prompts: Distinct prompts for validation pairs.
        heldout_prompts: Distinct prompts for the evaluation.

    Returns:
        The paths.
    """
    task = EmbeddedTask(Path(out_dir))
    task.root.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(task.model)
    build_model_config(tokenizer).save_pretrained(task.model)
    rng = np.random.default_rng(seed)
    write_rows(task.warmup, (_corpus_row(rng) for _ in range(corpus_size)))
    counts: dict[Split, int] = {"train": prompts, "val": val_prompts, "heldout": heldout_prompts}
    for split, count in counts.items():
        rows = ({"prompt": prompt} for prompt in draw_prompts(rng, split, count))
        write_rows(task.root / f"prompts_{split}.jsonl", rows)
    return task


def _corpus_row(rng: np.random.Generator) -> dict[str, str]:
    prompt = draw_prompt(rng, "train")
    return {"prompt": prompt, "chosen": write_response(rng, prompt, *draw_style(rng))}


def make_pairs(
    model_dir: str | Path,
    task_dir: str | Path,
    out_dir: str | Path,
    *,
    seed: int = 0,
    samples: int = 4,
) -> PairStatistics:
    """Sample answers from the warm-up model, let the judge pick the best and the worst, and write the pairs.

    Args:
        model_dir: The exported warm-up model, a Hugging Face directory.
        task_dir: Directory of `make_task`.
        out_dir: Gets ``pairs.jsonl`` for training and ``pairs_val.jsonl``, whose prompts are never trained on.
        seed: Seed of sampling and of the judge's noise.
        samples: Answers for each prompt, at least two.

    Returns:
        Statistics of the training pairs.
    """
    from adadpo_lightning.embedded.sampling import load_exported, sample_answers

    if samples < 2:
        raise UserError("samples", f"expected at least 2 answers to choose from, got {samples}")
    model, tokenizer = load_exported(str(model_dir))
    rng = np.random.default_rng(seed)
    written = {}
    for split, name in PAIR_FILES.items():
        prompts = EmbeddedTask(Path(task_dir)).prompts(split)
        answers = sample_answers(model, tokenizer, prompts, samples=samples, seed=int(rng.integers(2**31)))
        candidates = (judged_pair(rng, p, drawn) for p, drawn in zip(prompts, answers, strict=True))
        written[split] = [pair for pair in candidates if pair is not None]
        write_rows(Path(out_dir) / name, written[split])
    return pair_statistics(written["train"])


def judged_pair(rng: np.random.Generator, prompt: str, answers: Sequence[Sample]) -> dict[str, Any] | None:
    """Pair of the best and the worst answer by the judge; None if they are identical.

    Empty answers, which an undertrained model sometimes gives, are skipped: a pair with one has nothing to learn from.
    """
    answers = [answer for answer in answers if answer.text]
    if len(answers) < 2:
        return None
    golds = [grade(prompt, answer.text, finished=answer.finished).gold for answer in answers]
    scores = [judge(rng, gold, answer.length) for gold, answer in zip(golds, answers, strict=True)]
    best, worst = int(np.argmax(scores)), int(np.argmin(scores))
    if answers[best].text == answers[worst].text:
        return None
    return {
        "prompt": prompt,
        "chosen": answers[best].text,
        "rejected": answers[worst].text,
        "gold_chosen": round(golds[best], 4),
        "gold_rejected": round(golds[worst], 4),
    }


def pair_statistics(pairs: Sequence[Mapping[str, Any]]) -> PairStatistics:
    """Count how often the judge chose the longer answer, and how often it agreed with the gold reward."""
    longer = [len(pair["chosen"].split()) - len(pair["rejected"].split()) for pair in pairs]
    better = [pair["gold_chosen"] - pair["gold_rejected"] for pair in pairs]
    return PairStatistics(len(pairs), _share_positive(longer), _share_positive(better))


def _share_positive(differences: Sequence[float]) -> float:
    nonzero = [d > 0 for d in differences if d != 0]
    return float(np.mean(nonzero)) if nonzero else float("nan")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines that `write_rows` wrote.

    Raises:
        UserError: If the file is missing.
    """
    if not path.is_file():
        raise UserError(str(path), "no such file", "make the task first: python -m adadpo_lightning quickstart")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
