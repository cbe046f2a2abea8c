"""Evaluation on the embedded task: held-out prompts, against the warm-up model, with the gold reward and the judge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adadpo_lightning import log
from adadpo_lightning.embedded.gold import JUDGE_LENGTH_BIAS, Grade, grade
from adadpo_lightning.embedded.sampling import encode_prompts, load_exported, sample_answers, score_answers
from adadpo_lightning.embedded.task import EmbeddedTask, read_rows, write_rows
from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.length_controlled import length_controlled_win_rate
from adadpo_lightning.evaluation.statistics import Estimate, mean_over_prompts, win_rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adadpo_lightning.embedded.sampling import Sample

JUDGE_TEMPERATURE = 0.4


def evaluate_embedded(
    model_dir: str | Path,
    warmup_dir: str | Path,
    task_dir: str | Path,
    *,
    n_prompts: int = 1000,
    seed: int = 0,
    pool: str | Path | None = None,
) -> dict[str, float]:
    """Sample one answer per held-out prompt and compare it with four answers of the warm-up model.

    Args:
        model_dir: Exported model, a Hugging Face directory.
        warmup_dir: The exported warm-up model.
        task_dir: Directory of `make_task`.
        n_prompts: Number of held-out prompts, the first ones.
        seed: Random seed of sampling.
        pool: File of `sample_pool`, so that several evaluations share the same samples; None samples new ones.

    Returns:
        Numbers by name, each with its standard error over prompts as ``<name>_se``. Rates are fractions.

        - ``gold_win_rate``: by the gold reward; a tie is half a win.
        - ``judge_win_rate``, ``judge_win_rate_lc``: soft preference of the judge without noise, raw and from
          `length_controlled_win_rate`, which is missing, with a warning, where it has no finite value.
        - ``kl``, ``kl_per_token``: on-policy KL to the warm-up model, nats per answer and per token.
        - ``gold``, ``length``, ``warmup_gold``, ``warmup_length``: mean gold reward and tokens, model and pool.
        - ``answer``: the answer score; ``answer_right``: share of answers that are right and complete.
        - ``true_facts``, ``false_facts``, ``fillers``, ``repeats``, ``unparsable``: claims or sentences per answer.
        - ``unparsable_share``, ``unfinished_share``: share of unparsable and of truncated answers.

    Raises:
        UserError: If there are too few held-out prompts, or the pool was sampled for other prompts.
    """
    prompts = _heldout(task_dir, n_prompts)
    policy_seed, pool_seed = (int(s.generate_state(1)[0]) for s in np.random.SeedSequence(seed).spawn(2))
    rows = _sample_pool_rows(warmup_dir, prompts, pool_seed) if pool is None else read_rows(Path(pool))
    if [row["prompt"] for row in rows] != prompts:
        raise UserError("pool", f"{pool} has other prompts than these {n_prompts}", "sample it again for this task")
    model, tokenizer = load_exported(str(model_dir))
    answers = [drawn[0] for drawn in sample_answers(model, tokenizer, prompts, seed=policy_seed)]
    grades = [grade(prompt, a.text, finished=a.finished) for prompt, a in zip(prompts, answers, strict=True)]
    estimates = (
        _comparison(grades, answers, rows)
        | _contents(grades, answers)
        | _divergence(prompts, answers, warmup_dir, tokenizer)
    )
    return {name + end: v for name, e in estimates.items() for end, v in (("", e.value), ("_se", e.se))}


def sample_pool(
    warmup_dir: str | Path, task_dir: str | Path, output: str | Path, *, n_prompts: int = 1000, seed: int = 0
) -> None:
    """Write four answers of the warm-up model per held-out prompt, for evaluations to compare with.

    Args:
        warmup_dir: The exported warm-up model.
        task_dir: Directory of `make_task`.
        output: JSON-lines file to write.
        n_prompts: Number of held-out prompts, the first ones.
        seed: Random seed of sampling.
    """
    write_rows(Path(output), _sample_pool_rows(warmup_dir, _heldout(task_dir, n_prompts), seed))


def _heldout(task_dir: str | Path, n_prompts: int) -> list[str]:
    prompts = EmbeddedTask(Path(task_dir)).prompts("heldout")
    if not 2 <= n_prompts <= len(prompts):
        raise UserError("n_prompts", f"expected 2 to {len(prompts)}, the number of held-out prompts, got {n_prompts}")
    return prompts[:n_prompts]


def _sample_pool_rows(warmup_dir: str | Path, prompts: Sequence[str], seed: int) -> list[dict[str, Any]]:
    model, tokenizer = load_exported(str(warmup_dir))
    drawn = sample_answers(model, tokenizer, prompts, samples=4, seed=seed)
    return [
        {
            "prompt": prompt,
            "answers": [answer.text for answer in answers],
            "gold": [grade(prompt, answer.text, finished=answer.finished).gold for answer in answers],
            "length": [answer.length for answer in answers],
        }
        for prompt, answers in zip(prompts, drawn, strict=True)
    ]


def _comparison(grades: Sequence[Grade], answers: Sequence[Sample], rows: list[dict[str, Any]]) -> dict[str, Estimate]:
    """Against the pool, by the gold reward and by the judge."""
    gold, length = np.array([g.gold for g in grades]), np.array([float(a.length) for a in answers])
    pool_gold, pool_length = np.array([row["gold"] for row in rows]), np.array([row["length"] for row in rows])
    longer = length[:, None] - pool_length
    preferred = (gold[:, None] - pool_gold + JUDGE_LENGTH_BIAS * longer) / JUDGE_TEMPERATURE
    preferences = 1 / (1 + np.exp(-preferred))
    return {
        "gold_win_rate": win_rate(gold, pool_gold),
        "judge_win_rate": mean_over_prompts(preferences),
        **_length_controlled(preferences, longer),
        "gold": mean_over_prompts(gold),
        "length": mean_over_prompts(length),
        "warmup_gold": mean_over_prompts(pool_gold),
        "warmup_length": mean_over_prompts(pool_length),
    }


def _length_controlled(preferences: np.ndarray, longer: np.ndarray) -> dict[str, Estimate]:
    """Nothing where the length alone tells who wins: the gold win rate is known all the same."""
    try:
        return {"judge_win_rate_lc": length_controlled_win_rate(preferences, longer)}
    except UserError as error:
        if error.field != "length control":
            raise
        log.warn(f"No length-controlled win rate: {error.problem}.")
        return {}


def _contents(grades: Sequence[Grade], answers: Sequence[Sample]) -> dict[str, Estimate]:
    """Parts of the answers."""
    names = ("answer", "true_facts", "false_facts", "repeats", "fillers", "unparsable")
    counts = {name: mean_over_prompts(np.array([getattr(g, name) for g in grades])) for name in names}
    return counts | {
        "answer_right": mean_over_prompts(np.array([g.answer == 1.0 for g in grades])),
        "unparsable_share": mean_over_prompts(np.array([g.unparsable > 0 for g in grades])),
        "unfinished_share": mean_over_prompts(np.array([not a.finished for a in answers])),
    }


def _divergence(
    prompts: Sequence[str], answers: Sequence[Sample], warmup_dir: str | Path, tokenizer: Any
) -> dict[str, Estimate]:
    """On-policy KL to the warm-up model: the mean of ``exp(-d) - 1 + d`` over the sampled tokens."""
    warmup, _ = load_exported(str(warmup_dir))
    reference = score_answers(warmup, encode_prompts(tokenizer, prompts), [answer.ids for answer in answers])
    log_ratios = [np.array(a.logps) - r.double().numpy() for a, r in zip(answers, reference, strict=True)]
    per_answer = np.array([(np.expm1(-d) + d).sum() for d in log_ratios])
    tokens = np.array([len(d) for d in log_ratios])
    per_token = per_answer.sum() / tokens.sum()
    # Delta method: to first order, the error of a ratio of means is that of the residuals.
    residuals = mean_over_prompts((per_answer - per_token * tokens) / tokens.mean())
    return {"kl": mean_over_prompts(per_answer), "kl_per_token": Estimate(float(per_token), residuals.se)}
