"""The report: the numbers as JSON, and the same for a person, with examples and a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadpo_lightning import log
from adadpo_lightning.generation.responses import write_atomically

if TYPE_CHECKING:
    from adadpo_lightning.preferences.options import MakePairsOptions
    from adadpo_lightning.preferences.statistics import Outcome

EXAMPLES = 3
SHOWN = 600  # characters of a text in an example
COLUMNS = ("mean", "sd", "min", "p10", "median", "p90", "max")


def write_report(statistics: Mapping[str, Any], outcomes: Sequence[Outcome], options: MakePairsOptions) -> Path:
    """Write ``report.json``, ``report.md`` and the figure ``report.png`` and ``report.svg``.

    Returns:
        Path of ``report.md``.
    """
    text = json.dumps(statistics, ensure_ascii=False, indent=2, allow_nan=False, default=str) + "\n"
    write_atomically(options.root / "report.json", text)
    drawn = find_spec("matplotlib") is not None
    if drawn:
        from adadpo_lightning.preferences.figures import draw
        from adadpo_lightning.runs.figures import save

        save(draw(outcomes), options.root, "report")
    else:
        log.warn("the report has no figure, which needs matplotlib: pip install 'adadpo-lightning[plot]'")
    path = options.root / "report.md"
    write_atomically(path, markdown(statistics, outcomes, figure="report.png" if drawn else None))
    return path


def summary(statistics: Mapping[str, Any]) -> str:
    """The report in a few lines, for the terminal."""
    counts = f"{statistics['pairs']} {'lists' if statistics['select'] == 'list' else 'pairs'}"
    scores, bias = statistics["scores"], statistics["length_bias"]
    lines = [
        f"{counts} from {statistics['prompts_with_pairs']} of {statistics['prompts']} prompts, "
        f"{statistics['answers']} answers, judged by {statistics['judge']}",
        f"score: chosen {scores['chosen']['mean']:.3g}, rejected {scores['rejected']['mean']:.3g}, "
        f"all answers {scores['answers']['mean']:.3g}",
        f"length: chosen {statistics['tokens']['chosen']['mean']:.0f} tokens, rejected "
        f"{statistics['tokens']['rejected']['mean']:.0f}; chosen is longer in {bias['chosen_longer']:.0%} of pairs",
    ]
    lines += [f"no pair: {reason}: {count} prompts" for reason, count in statistics["prompts_without_pairs"].items()]
    lines += [f"left out: {what}: {count} answers" for what, count in statistics["answers_left_out"].items()]
    lines += [f"note: {note}" for note in statistics["notes"]]
    return "\n".join(lines)


def markdown(statistics: Mapping[str, Any], outcomes: Sequence[Outcome], figure: str | None) -> str:
    """The report for a person.

    Args:
        statistics: Numbers of `statistics_of`.
        outcomes: All prompts of the job, for examples.
        figure: File name of the figure; None without one.
    """
    sampling = ", ".join(f"{name} {value}" for name, value in statistics["sampling"].items())
    what = "lists" if statistics["select"] == "list" else "pairs"
    lines = [
        "# Preference pairs",
        "",
        f"{statistics['pairs']} {what} from {statistics['prompts_with_pairs']} of {statistics['prompts']} prompts. "
        f"Model `{statistics['model']}` ({sampling}), judge `{statistics['judge']}`, selection "
        f"`{statistics['select']}` with a least difference of {statistics['min_gap']:g}.",
        "",
        *_table(["", "count"], _counts(statistics)),
        *(line for note in statistics["notes"] for line in (f"Note: {note}.", "")),
        "## Scores and lengths",
        "",
        *_table(["", *COLUMNS], _distributions(statistics)),
        "## Length bias of the selection",
        "",
        *_bias(statistics),
        "",
    ]
    if figure is not None:
        lines += [f"![Scores, lengths, and what became of the prompts]({figure})", ""]
    lines += ["## Examples", "", "The pairs with the largest difference of score.", ""]
    for outcome in sorted(outcomes, key=_largest_gap)[:EXAMPLES]:
        lines += _example(outcome)
    return "\n".join(lines)


def _counts(statistics: Mapping[str, Any]) -> list[list[str]]:
    rows = [
        ["prompts", statistics["prompts"]],
        *([f"without a pair: {reason}", count] for reason, count in statistics["prompts_without_pairs"].items()),
        ["answers", statistics["answers"]],
        *([f"left out: {reason}", count] for reason, count in statistics["answers_left_out"].items()),
        ["without a score", statistics["answers_without_score"]],
        ["comparisons without a verdict", statistics["comparisons_without_verdict"]],
    ]
    return [[name, f"{count:,}"] for name, count in rows if count or name in ("prompts", "answers")]


def _distributions(statistics: Mapping[str, Any]) -> list[list[str]]:
    return [
        [f"{kind}, {side}", *(f"{values[column]:.4g}" for column in COLUMNS)]
        for kind in ("scores", "tokens")
        for side, values in statistics[kind].items()
        if values is not None
    ]


def _bias(statistics: Mapping[str, Any]) -> list[str]:
    bias = statistics["length_bias"]

    def measured(name: str, scale: float = 1.0) -> str:
        se = bias[f"{name}_se"]
        return f"{scale * bias[name]:.1f}" + ("" if se is None else f" ± {scale * se:.1f}")

    def shown(value: float | None) -> str:
        return "not defined" if value is None else f"{value:+.2f}"

    return [
        f"- The chosen answer is the longer one in {measured('chosen_longer', 100)} % of pairs (50 % without bias; "
        f"± one standard error over prompts; {bias['equal_length']} pairs of equal length count one half).",
        f"- Chosen minus rejected: {measured('mean_difference')} tokens on average.",
        f"- Correlation of score and length: {shown(bias['correlation'])} over all answers, "
        f"{shown(bias['correlation_within_prompts'])} among the answers to one prompt.",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _largest_gap(outcome: Outcome) -> float:
    return -outcome.selection.pairs[0].gap if outcome.selection.pairs else 0.0


def _example(outcome: Outcome) -> list[str]:
    if not outcome.selection.pairs:
        return []
    pair = outcome.selection.pairs[0]
    lines = _quoted(f"Prompt {outcome.prompt.uid}", outcome.prompt.text)
    for side, answer in (("Chosen", pair.chosen), ("Rejected", pair.rejected)):
        title = f"{side}, score {answer.score:.4g}, {answer.response.tokens} tokens"
        lines += _quoted(title, answer.response.response)
    return [*lines, "---", ""]


def _quoted(title: str, text: str) -> list[str]:
    """A text as a block that Markdown does not interpret."""
    short = text if len(text) <= SHOWN else f"{text[:SHOWN]} [... {len(text) - SHOWN} more characters]"
    return [f"**{title}**", "", *(f"    {line}" for line in short.splitlines()), ""]
