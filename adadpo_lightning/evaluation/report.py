"""Preferences of a judge to a report: win rates, raw and length-controlled, with errors and a table of prompts.

Rates are fractions; only `summary` shows percent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.comparisons import answer_length, difficulties, with_difficulties
from adadpo_lightning.evaluation.judges.base import verdicts_of
from adadpo_lightning.evaluation.length_controlled import Anchor, length_controlled
from adadpo_lightning.evaluation.options import EvaluationOptions, LengthUnit
from adadpo_lightning.evaluation.statistics import Interval, bootstrap, mean_over_prompts
from adadpo_lightning.generation.responses import write_atomically

if TYPE_CHECKING:
    from adadpo_lightning.evaluation.comparisons import Comparison
    from adadpo_lightning.evaluation.judges.annotations import AnnotationsJudge
    from adadpo_lightning.evaluation.judges.base import Judge


class _Judged(NamedTuple):
    """The comparisons with a verdict.

    Args:
        pairs: The comparisons, P of them.
        preferences: Verdicts in [0, 1], shape (P,).
        lengths: Lengths of both sides, shape (P, 2).
    """

    pairs: list[Comparison]
    preferences: np.ndarray
    lengths: np.ndarray

    @property
    def gaps(self) -> np.ndarray:
        """Length of the model's answer minus the opponent's, shape (P,)."""
        gaps: np.ndarray = self.lengths[:, 0] - self.lengths[:, 1]
        return gaps


def evaluate_responses(
    judge: Judge,
    comparisons: Sequence[Comparison],
    options: EvaluationOptions | None = None,
    anchor: Anchor | None = None,
) -> dict[str, Any]:
    """Judge every comparison and summarise.

    Args:
        judge: Decides the comparisons.
        comparisons: The comparisons.
        options: How to summarise.
        anchor: Further rows for the length-controlled fit, see `length_anchor`.

    Returns:
        JSON-ready; rates are fractions in [0, 1], as ``rates`` says.

        - ``win_rate``: mean preference for the model's answers. ``discrete_win_rate`` rounds each preference to a win,
          a loss or a tie, which counts as half a win.
        - ``length_controlled_win_rate``: that of `length_controlled`, with the difficulty term where the responses
          have difficulties; ``length_controlled_win_rate_no_difficulty`` is then the one without. Null where no
          estimate exists, and ``notes`` says why.
        - ``<name>_se``, ``<name>_ci``: standard error (of a mean over comparisons for the win rates, of the bootstrap
          for the length-controlled ones) and 95 % bootstrap interval.
        - ``n``, ``n_no_verdict``: comparisons with and without a verdict.
        - ``mean_length`` and ``mean_length_baseline`` with their standard errors, and the table ``per_prompt``.

    Raises:
        UserError: If there is nothing to compare, or the judge cannot decide.
    """
    options = options or EvaluationOptions()
    if not comparisons:
        raise UserError("responses", "there is nothing to compare")
    judged = _judged(judge, comparisons, options.length_unit)
    pairs, preferences, lengths = judged
    notes: list[str] = []
    if (prompts := len({pair.model.prompt for pair in pairs})) < len(pairs):
        notes.append(
            f"{len(pairs)} comparisons are on {prompts} prompts: errors and intervals take them for independent, so "
            "they are too narrow"
        )
    numbers = _win_rates(preferences, options) | _length_controlled(judged, options, anchor, notes)
    means = [mean_over_prompts(lengths[:, side]) for side in (0, 1)]
    return {
        "judge": judge.key,
        "model": pairs[0].model.generator,
        "baseline": pairs[0].baseline.generator,
        "n": len(pairs),
        "n_no_verdict": len(comparisons) - len(pairs),
        "rates": "fraction",
        **numbers,
        "length_unit": options.length_unit,
        "mean_length": means[0].value,
        "mean_length_se": _finite(means[0].se),
        "mean_length_baseline": means[1].value,
        "mean_length_baseline_se": _finite(means[1].se),
        **judge.report(),
        "notes": notes,
        "per_prompt": [
            {
                "prompt": pair.model.prompt,
                "preference": float(preference),
                "length": length,
                "length_baseline": length_baseline,
            }
            for pair, preference, (length, length_baseline) in zip(pairs, preferences, lengths.tolist(), strict=True)
        ],
    }


def length_anchor(
    judges: Sequence[AnnotationsJudge],
    unit: LengthUnit,
    weight: float = 0.2,
    table: Mapping[int | str, float] | None = None,
) -> Anchor:
    """Rows of the baseline against itself at other lengths, from one file of preferences per length.

    Args:
        judges: One per file, such as AlpacaEval's gpt4_1106_preview_concise and gpt4_1106_preview_verbose.
        unit: As in `EvaluationOptions`.
        weight: Weight of all files together, per row; AlpacaEval's is 0.2.
        table: Table of `read_difficulties`; None uses those of the files.

    Raises:
        UserError: If all answers of a file are as long as the baseline's.
    """
    given = [judge.comparisons() for judge in judges]
    if table is not None:
        given = [with_difficulties(comparisons, table) for comparisons in given]
    files = [_judged(judge, comparisons, unit) for judge, comparisons in zip(judges, given, strict=True)]
    for judge, judged in zip(judges, files, strict=True):
        if len(judged.gaps) < 2 or np.ptp(judged.gaps) == 0:
            raise UserError(judge.annotations, "has no differences in length, so it cannot be a length_anchor")
    return Anchor(
        np.concatenate([judged.preferences for judged in files]),
        np.concatenate([judged.gaps / judged.gaps.std(ddof=1) for judged in files]),
        _difficulties([pair for judged in files for pair in judged.pairs]),
        weight / len(files),
    )


def write_report(report: dict[str, Any], output: str) -> None:
    """Write a report as JSON."""
    write_atomically(Path(output), json.dumps(report, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def summary(report: dict[str, Any]) -> str:
    """The report in a few lines for the terminal, rates in percent."""

    def rate(name: str) -> str:
        if report[name] is None:
            return "-"
        se, ci = report[f"{name}_se"], report[f"{name}_ci"]
        interval = "" if ci is None else f", 95 % interval {100 * ci[0]:.2f} to {100 * ci[1]:.2f}"
        return f"{100 * report[name]:.2f} %" + ("" if se is None else f" ± {100 * se:.2f}") + interval

    lines = [
        f"{report['model'] or 'model'} against {report['baseline'] or 'baseline'}, {report['n']} comparisons by "
        f"{report['judge']}, {report['n_no_verdict']} without a verdict",
        f"win rate                    {rate('win_rate')}",
        f"length-controlled win rate  {rate('length_controlled_win_rate')}",
        f"mean length, {report['length_unit']}: {report['mean_length']:.1f} against "
        f"{report['mean_length_baseline']:.1f}",
    ]
    if usage := report.get("usage"):
        cost = f", cost {usage['cost']:.4f}" if "cost" in usage else ""
        lines.append(
            f"endpoint: {usage['requests']} requests, {usage['cached']} from the cache, {usage['prompt_tokens']} "
            f"prompt and {usage['completion_tokens']} reply tokens{cost}"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in report["notes"])])


def _judged(judge: Judge, comparisons: Sequence[Comparison], unit: LengthUnit) -> _Judged:
    verdicts = verdicts_of(judge, comparisons)
    decided = [(pair, verdict) for pair, verdict in zip(comparisons, verdicts, strict=True) if verdict is not None]
    if not decided:
        raise UserError("judge", f"gave no verdict on any of {len(comparisons)} comparisons")
    lengths = [[answer_length(side, unit) for side in (pair.model, pair.baseline)] for pair, _ in decided]
    return _Judged([pair for pair, _ in decided], np.array([verdict for _, verdict in decided]), np.array(lengths))


def _win_rates(preferences: np.ndarray, options: EvaluationOptions) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    sides = np.where(np.isclose(preferences, 0.5), 0.5, preferences > 0.5)
    for name, values in (("win_rate", preferences), ("discrete_win_rate", sides)):
        mean = mean_over_prompts(values)
        interval = bootstrap(
            lambda i, values=values: float(values[i].mean()),  # type: ignore[misc]  # bound now, not at the call
            len(values),
            resamples=options.resamples,
            seed=options.seed,
        )
        numbers |= _named(name, mean.value, mean.se, interval)
    return numbers


def _length_controlled(
    judged: _Judged, options: EvaluationOptions, anchor: Anchor | None, notes: list[str]
) -> dict[str, Any]:
    difficulty = _difficulties(judged.pairs)
    name = "length_controlled_win_rate"
    numbers = _controlled(name, judged, difficulty, options, anchor, notes)
    if difficulty is not None:
        numbers |= _controlled(f"{name}_no_difficulty", judged, None, options, anchor, notes)
    return numbers


def _controlled(
    name: str,
    judged: _Judged,
    difficulty: np.ndarray | None,
    options: EvaluationOptions,
    anchor: Anchor | None,
    notes: list[str],
) -> dict[str, Any]:
    preferences, gaps = judged.preferences, judged.gaps
    try:
        fit = length_controlled(preferences, gaps, difficulty, penalty=options.penalty, anchor=anchor)
    except UserError as error:
        if error.field == "penalty":  # the option needs scikit-learn
            raise
        notes.append(f"{name}: {error}")
        return {name: None, f"{name}_se": None, f"{name}_ci": None}
    chosen = None if options.penalty == "none" else fit.inverse_penalty  # determined once: cross-validation is slow

    def again(i: np.ndarray) -> float:
        hard = None if difficulty is None else difficulty[i]
        return length_controlled(
            preferences[i], gaps[i], hard, penalty=options.penalty, inverse_penalty=chosen, anchor=anchor
        ).win_rate

    interval = bootstrap(again, len(gaps), resamples=options.resamples, seed=options.seed)
    if interval.resamples < options.resamples:
        failed = options.resamples - interval.resamples
        notes.append(f"{name}: {failed} of {options.resamples} resamples have no finite estimate and are left out")
    weights = {"model": _finite(fit.theta), "length": fit.phi, "difficulty": fit.psi}
    return _named(name, fit.win_rate, interval.se, interval) | {f"{name}_weights": weights}


def _named(name: str, value: float, se: float, interval: Interval) -> dict[str, Any]:
    bounds = [interval.low, interval.high] if interval.resamples and np.isfinite(interval.low) else None
    return {name: value, f"{name}_se": _finite(se), f"{name}_ci": bounds}


def _difficulties(pairs: Sequence[Comparison]) -> np.ndarray | None:
    found = difficulties(pairs)
    return None if found is None else np.array(found)


def _finite(value: float) -> float | None:
    """None in place of NaN and infinity, which JSON lacks."""
    return float(value) if np.isfinite(value) else None
