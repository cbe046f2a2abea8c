"""What was made, in numbers: scores, lengths, the length bias of the selection, and what gave no pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadpo_lightning.evaluation.judges.base import PointwiseJudge
from adadpo_lightning.evaluation.statistics import mean_over_prompts

if TYPE_CHECKING:
    from adadpo_lightning.evaluation.judges.base import Judge
    from adadpo_lightning.generation.prompts import Prompt
    from adadpo_lightning.generation.responses import Response
    from adadpo_lightning.preferences.options import MakePairsOptions
    from adadpo_lightning.preferences.select import Pair, Selection

MANY = 0.1  # share of answers
QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}


class Outcome(NamedTuple):
    """Everything about one prompt.

    Args:
        prompt: The prompt.
        answers: Its usable answers.
        scores: Their scores.
        left_out: Answers that were not usable, by reason.
        no_verdict: Comparisons that the judge did not decide.
        selection: What was selected.
    """

    prompt: Prompt
    answers: list[Response]
    scores: list[float | None]
    left_out: Counter[str]
    no_verdict: int
    selection: Selection


def statistics_of(outcomes: Sequence[Outcome], options: MakePairsOptions, judge: Judge) -> dict[str, Any]:
    """The numbers of ``report.json``. Lengths are in tokens of the model, without the terminator.

    Args:
        outcomes: All prompts of the job; at least one has a pair.
        options: The job.
        judge: Its judge.
    """
    pairs = [pair for outcome in outcomes for pair in outcome.selection.pairs]
    reasons = Counter(outcome.selection.reason for outcome in outcomes if outcome.selection.reason)
    scores, lengths, prompts = scored_answers(outcomes)
    return {
        "model": options.generate.name,
        "judge": judge.key,
        "judge_options": options.judge_options or {},
        "pointwise": isinstance(judge, PointwiseJudge),
        "select": options.select,
        "min_gap": options.min_gap,
        "unfinished": options.unfinished,
        "sampling": {name: getattr(options, name) for name in ("samples", "temperature", "top_p", "top_k", "seed")},
        "prompts": len(outcomes),
        "prompts_with_pairs": sum(bool(outcome.selection.pairs) for outcome in outcomes),
        "prompts_without_pairs": dict(reasons.most_common()),
        "answers": len(outcomes) * options.samples,
        "answers_left_out": dict(sum((outcome.left_out for outcome in outcomes), Counter[str]()).most_common()),
        "answers_without_score": sum(outcome.scores.count(None) for outcome in outcomes),
        "comparisons_without_verdict": sum(outcome.no_verdict for outcome in outcomes),
        "pairs": len(pairs),
        "scores": {
            "answers": distribution(scores),
            "chosen": distribution([pair.chosen.score for pair in pairs]),
            "rejected": distribution([pair.rejected.score for pair in pairs]),
            "difference": distribution([pair.gap for pair in pairs]),
        },
        "tokens": {
            "answers": distribution(lengths),
            "chosen": distribution([tokens(pair.chosen.response) for pair in pairs]),
            "rejected": distribution([tokens(pair.rejected.response) for pair in pairs]),
        },
        "length_bias": length_bias(outcomes)
        | {
            "correlation": correlation(scores, lengths),
            "correlation_within_prompts": correlation(centred(scores, prompts), centred(lengths, prompts)),
        },
        **judge.report(),
        "notes": notes_of(outcomes, options),
    }


def notes_of(outcomes: Sequence[Outcome], options: MakePairsOptions) -> list[str]:
    """What a user should know before training on the pairs."""
    total = len(outcomes) * options.samples
    cut_off = sum(outcome.left_out["cut off"] for outcome in outcomes)
    missing = sum(outcome.no_verdict for outcome in outcomes)
    notes = []
    if cut_off > MANY * total:
        notes.append(
            f"{cut_off / total:.0%} of the answers reach max_new_tokens ({options.max_new_tokens}) and are left out, "
            "so the pairs lack the long answers: raise max_new_tokens, or set unfinished to keep"
        )
    if missing:
        notes.append(f"{missing} comparisons have no verdict: the win rates of their answers rest on the others")
    if options.chat == "never":
        notes.append("the prompts were sampled without a chat template: train with --data.chat never")
    return notes


def scored_answers(outcomes: Sequence[Outcome]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score, length in tokens and number of the prompt of each answer that has a score, three arrays of shape (A,)."""
    found = [
        (score, tokens(answer), i)
        for i, outcome in enumerate(outcomes)
        for answer, score in zip(outcome.answers, outcome.scores, strict=True)
        if score is not None
    ]
    columns = np.array(found, dtype=np.float64).reshape(-1, 3)
    return columns[:, 0], columns[:, 1], columns[:, 2]


def tokens(response: Response) -> int:
    """Tokens of an answer; those of this job always have them."""
    return response.tokens or 0


def distribution(values: Sequence[float] | np.ndarray) -> dict[str, float] | None:
    """Mean, standard deviation and quantiles; None of nothing.

    Example:
        >>> distribution([1.0, 3.0])["mean"], distribution([])
        (2.0, None)
    """
    if not len(values):
        return None
    quantiles = np.quantile(values, list(QUANTILES.values()))
    spread = {"mean": float(np.mean(values)), "sd": float(np.std(values))}
    return spread | dict(zip(QUANTILES, map(float, quantiles), strict=True))


def length_bias(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How chosen and rejected answers differ in length. Every prompt with pairs counts once; errors are over prompts.

    Returns:
        ``chosen_longer``: share of pairs whose chosen answer has more tokens, equal lengths counting one half, with its
        standard error. ``mean_difference``: chosen minus rejected tokens, with its standard error. ``equal_length``:
        number of pairs with answers of one length.
    """
    groups = [np.array([_difference(pair) for pair in o.selection.pairs]) for o in outcomes if o.selection.pairs]
    longer = mean_over_prompts(np.array([np.mean((gaps > 0) + 0.5 * (gaps == 0)) for gaps in groups]))
    mean = mean_over_prompts(np.array([gaps.mean() for gaps in groups]))
    return {
        "chosen_longer": longer.value,
        "chosen_longer_se": finite(longer.se),
        "mean_difference": mean.value,
        "mean_difference_se": finite(mean.se),
        "equal_length": int(sum((gaps == 0).sum() for gaps in groups)),
    }


def _difference(pair: Pair) -> int:
    return tokens(pair.chosen.response) - tokens(pair.rejected.response)


def centred(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Values minus the mean of their group.

    Args:
        values: Shape (A,).
        groups: Number of each value's group, shape (A,).

    Example:
        >>> centred(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1])).tolist()
        [-1.0, 1.0, 0.0]
    """
    _, places = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(places, values), np.bincount(places)
    return np.asarray(values - (sums / np.maximum(counts, 1))[places])


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's correlation; None where one side does not vary.

    Example:
        >>> correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]))
        1.0
        >>> correlation(np.ones(3), np.arange(3.0)) is None
        True
    """
    if len(a) < 2 or np.ptp(a) < 1e-12 or np.ptp(b) < 1e-12:
        return None
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1.0, 1.0))


def finite(value: float) -> float | None:
    """None in place of NaN, which JSON lacks."""
    return float(value) if np.isfinite(value) else None
