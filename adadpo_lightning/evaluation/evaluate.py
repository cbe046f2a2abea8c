"""Two files of responses and a judge to win rates: raw, length-controlled, with errors and a table of prompts."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.judges.base import AnnotationsJudge, Comparison, build_judge
from adadpo_lightning.evaluation.length_controlled import Anchor, Interval, bootstrap, length_controlled
from adadpo_lightning.evaluation.options import EvaluateOptions, EvaluationOptions, LengthUnit
from adadpo_lightning.evaluation.win_rate import mean_over_prompts
from adadpo_lightning.generation.prompts import read_objects
from adadpo_lightning.generation.responses import Response, read_responses, write_atomically

if TYPE_CHECKING:
    from adadpo_lightning.evaluation.judges.base import Judge


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Evaluate as the ``evaluate`` command does, and write the report.

    Returns:
        The report of `evaluate_responses`.

    Raises:
        UserError: As `evaluate_responses`, and if a file is missing or malformed.
    """
    given = {"annotations": options.annotations} if options.annotations else {}
    judge = build_judge(options.judge, **(options.judge_options or {}), **given)
    if options.responses is None or options.baseline is None:
        comparisons = judge.comparisons()
    else:
        files = [read_responses(SourceConfig(path)) for path in (options.responses, options.baseline)]
        comparisons = match_responses(*files)
    table = read_difficulties(options.difficulty) if options.difficulty is not None else None
    if table is not None:
        comparisons = with_difficulties(comparisons, table)
    anchor = None
    if options.length_anchor:
        files_of = [AnnotationsJudge(path) for path in options.length_anchor]
        anchor = length_anchor(files_of, options.length_unit, difficulties=table)
    report = evaluate_responses(judge, comparisons, options.statistics, anchor)
    write_report(report, options.output)
    return report


def evaluate_responses(
    judge: Judge,
    comparisons: Sequence[Comparison],
    options: EvaluationOptions | None = None,
    anchor: Anchor | None = None,
) -> dict[str, Any]:
    """Judge every comparison and sum up.

    Args:
        judge: Decides.
        comparisons: What to decide.
        options: How to sum up.
        anchor: Further rows for the length-controlled fit, see `length_anchor`.

    Returns:
        JSON-ready; rates are percent.

        - ``win_rate``: mean preference for the model's answers. ``discrete_win_rate`` counts only the side of a half
          that each preference is on, ties half.
        - ``length_controlled_win_rate``: that of `length_controlled`, with the difficulty term where the responses
          carry difficulties; ``length_controlled_win_rate_no_difficulty`` is then the one without. Null where it
          cannot be had, and ``notes`` says why.
        - ``<name>_se``, ``<name>_ci``: standard error (of a mean over comparisons for the win rates, the bootstrap's
          for the length-controlled ones) and 95 % bootstrap interval.
        - ``n``, ``n_no_verdict``: comparisons with and without a verdict.
        - ``mean_length`` and ``mean_length_baseline`` with their standard errors, and the table ``per_prompt``.

    Raises:
        UserError: If there is nothing to compare, or the judge cannot decide.
    """
    options = options or EvaluationOptions()
    if not comparisons:
        raise UserError("responses", "there is nothing to compare")
    pairs, preferences, lengths = _decided(judge, comparisons, options.length_unit)
    notes: list[str] = []
    numbers = _win_rates(preferences, options) | _length_controlled(preferences, lengths, pairs, options, anchor, notes)
    means = [mean_over_prompts(lengths[:, side]) for side in (0, 1)]
    return {
        "judge": judge.key,
        "model": pairs[0].model.generator,
        "baseline": pairs[0].baseline.generator,
        "n": len(pairs),
        "n_no_verdict": len(comparisons) - len(pairs),
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


def read_difficulties(path: str) -> dict[int | str, float]:
    """Difficulty of each instruction, from rows with ``instruction_difficulty`` and ``instruction`` or ``index``.

    Args:
        path: File, such as AlpacaEval's instruction_difficulty.csv; an index is the number of the prompt, from 0.

    Raises:
        UserError: If a row lacks one of these.
    """
    table: dict[int | str, float] = {}
    for where, row in read_objects(SourceConfig(path)):
        try:
            value = float(row["instruction_difficulty"])
            table[row["instruction"] if row.get("instruction") is not None else int(row["index"])] = value
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                where, f"expected instruction_difficulty and instruction or index, found {dict(row)}"
            ) from error
    return table


def with_difficulties(comparisons: Sequence[Comparison], table: Mapping[int | str, float]) -> list[Comparison]:
    """Comparisons that carry the difficulties of a table.

    Raises:
        UserError: If a prompt has none.
    """
    found = [table.get(pair.model.prompt, table.get(i)) for i, pair in enumerate(comparisons)]
    if None in found:
        raise UserError(
            "difficulty", f"has none for {found.count(None)} of {len(found)} prompts", "give it for all of them"
        )
    return [
        replace(pair, model=replace(pair.model, difficulty=value))
        for pair, value in zip(comparisons, found, strict=True)
    ]


def length_anchor(
    judges: Sequence[AnnotationsJudge],
    unit: LengthUnit,
    weight: float = 0.2,
    difficulties: Mapping[int | str, float] | None = None,
) -> Anchor:
    """Rows of the baseline against itself at other lengths, from a file of preferences for each.

    Args:
        judges: One for each file, such as AlpacaEval's gpt4_1106_preview_concise and gpt4_1106_preview_verbose.
        unit: As in `EvaluationOptions`.
        weight: Shared out among the files, for each row; AlpacaEval's is 0.2.
        difficulties: As `read_difficulties` gives them; None takes what the files say.

    Raises:
        UserError: If the answers of a file are all as long as the baseline's.
    """
    given = [judge.comparisons() for judge in judges]
    if difficulties is not None:
        given = [with_difficulties(comparisons, difficulties) for comparisons in given]
    files = [_decided(judge, comparisons, unit) for judge, comparisons in zip(judges, given, strict=True)]
    gaps = [lengths[:, 0] - lengths[:, 1] for _, _, lengths in files]
    for judge, gap in zip(judges, gaps, strict=True):
        if len(gap) < 2 or np.ptp(gap) == 0:
            raise UserError(judge.annotations, "has no differences in length, so it is no anchor")
    pairs = [pair for file, _, _ in files for pair in file]
    return Anchor(
        np.concatenate([preferences for _, preferences, _ in files]),
        np.concatenate([gap / gap.std(ddof=1) for gap in gaps]),
        _difficulties(pairs),
        weight / len(files),
    )


def match_responses(responses: Sequence[Response], baseline: Sequence[Response]) -> list[Comparison]:
    """Pair up two files by prompt; of a prompt that comes several times the first with the first, and so on.

    Raises:
        UserError: If a response has no counterpart. The baseline may have answers to further prompts.
    """
    waiting = defaultdict(list)
    for response in reversed(baseline):
        waiting[response.prompt].append(response)
    matched = [
        (response, waiting[response.prompt].pop() if waiting[response.prompt] else None) for response in responses
    ]
    lonely = [response for response, opponent in matched if opponent is None]
    if lonely:
        raise UserError(
            "baseline",
            f"has no answer to {len(lonely)} of {len(responses)} prompts, the first: {lonely[0].prompt[:80]!r}",
            "answer the same prompts with both models",
        )
    return [Comparison(response, opponent) for response, opponent in matched if opponent is not None]


def write_report(report: dict[str, Any], output: str) -> None:
    """Write a report as JSON."""
    write_atomically(Path(output), json.dumps(report, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def summary(report: dict[str, Any]) -> str:
    """The report in a few lines for the terminal."""

    def rate(name: str) -> str:
        if report[name] is None:
            return "-"
        se, ci = report[f"{name}_se"], report[f"{name}_ci"]
        interval = "" if ci is None else f", 95 % interval {ci[0]:.2f} to {ci[1]:.2f}"
        return f"{report[name]:.2f} %" + ("" if se is None else f" ± {se:.2f}") + interval

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


def _decided(
    judge: Judge, comparisons: Sequence[Comparison], unit: LengthUnit
) -> tuple[list[Comparison], np.ndarray, np.ndarray]:
    """The comparisons with a verdict, the verdicts, and the lengths of both sides, shape (P, 2)."""
    verdicts = judge.preferences(comparisons)
    decided = [(pair, verdict) for pair, verdict in zip(comparisons, verdicts, strict=True) if verdict is not None]
    if not decided:
        raise UserError("judge", f"gave no verdict on any of {len(comparisons)} comparisons")
    lengths = [[_length(side, unit) for side in (pair.model, pair.baseline)] for pair, _ in decided]
    return [pair for pair, _ in decided], np.array([verdict for _, verdict in decided]), np.array(lengths)


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
    preferences: np.ndarray,
    lengths: np.ndarray,
    pairs: Sequence[Comparison],
    options: EvaluationOptions,
    anchor: Anchor | None,
    notes: list[str],
) -> dict[str, Any]:
    gaps = lengths[:, 0] - lengths[:, 1]
    difficulty = _difficulties(pairs)
    name = "length_controlled_win_rate"
    numbers = _controlled(name, preferences, gaps, difficulty, options, anchor, notes)
    if difficulty is not None:
        numbers |= _controlled(f"{name}_no_difficulty", preferences, gaps, None, options, anchor, notes)
    return numbers


def _controlled(
    name: str,
    preferences: np.ndarray,
    gaps: np.ndarray,
    difficulty: np.ndarray | None,
    options: EvaluationOptions,
    anchor: Anchor | None,
    notes: list[str],
) -> dict[str, Any]:
    try:
        fit = length_controlled(preferences, gaps, difficulty, penalty=options.penalty, anchor=anchor)
    except UserError as error:
        if "scikit-learn" in error.problem:
            raise
        notes.append(f"{name}: {error}")
        return {name: None, f"{name}_se": None, f"{name}_ci": None}
    chosen = None if options.penalty == "none" else fit.inverse_penalty  # found once: cross-validation is slow

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
    bounds = None if not interval.resamples else [100 * interval.low, 100 * interval.high]
    if bounds is not None and not np.isfinite(bounds).all():
        bounds = None
    return {name: 100 * value, f"{name}_se": _finite(100 * se), f"{name}_ci": bounds}


def _difficulties(pairs: Sequence[Comparison]) -> np.ndarray | None:
    found = [p.model.difficulty if p.model.difficulty is not None else p.baseline.difficulty for p in pairs]
    given = [value for value in found if value is not None]
    if not given:
        return None
    if len(given) < len(found):
        raise UserError(
            "instruction_difficulty",
            f"is given for {len(given)} of {len(found)} prompts",
            "give it for all of them or for none",
        )
    return np.array(given)


def _length(response: Response, unit: LengthUnit) -> float:
    if unit == "characters":
        return len(response.response)
    if unit == "words":
        return len(response.response.split())
    if response.tokens is None:
        raise UserError("length_unit", "tokens are not in the response files", "take characters or words")
    return response.tokens


def _finite(value: float) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return float(value) if np.isfinite(value) else None
