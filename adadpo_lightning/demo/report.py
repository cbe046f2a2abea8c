"""What a demo came to: numbers from its answers and logs, and the same as text for a terminal of 90 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.demo.stages import LENGTH_BIAS, NOISE
from adadpo_lightning.evaluation.comparisons import match_responses
from adadpo_lightning.evaluation.judges.sentiment import SentimentJudge
from adadpo_lightning.evaluation.options import EvaluationOptions
from adadpo_lightning.evaluation.report import evaluate_responses
from adadpo_lightning.evaluation.statistics import mean_over_prompts
from adadpo_lightning.generation.responses import read_responses
from adadpo_lightning.metrics import names
from adadpo_lightning.runs.logs import last_metrics

if TYPE_CHECKING:
    from adadpo_lightning.demo.stages import Demo
    from adadpo_lightning.generation.responses import Response

WIDTH, EXAMPLES, OPENING = 90, 5, 3
# Relative change of length, and of the number of different openings, from which the text remarks on it.
REMARKABLE = 0.1, 0.25


def measure(demo: Demo) -> dict[str, Any]:
    """The numbers of a finished demo, ready for JSON.

    Args:
        demo: A demo all of whose stages are done.
    """
    before, after = (read_responses(SourceConfig(str(demo.answers(when)))) for when in ("before", "after"))
    judge = SentimentJudge()
    compared = evaluate_responses(
        judge, match_responses(after, before), EvaluationOptions(length_unit="tokens", seed=demo.seed)
    )
    first, last = (np.array([judge.sentiment(answer.response) for answer in side]) for side in (before, after))
    logged = last_metrics(demo.trained)
    kept = (names.val(names.KL_POLICY), names.val(names.KL_POLICY_STDERR), names.val(names.REWARDS_ACCURACIES))
    balance = [names.train(names.BALANCE_RATIO), names.train(names.BALANCE_COEFFICIENT)]
    return {
        "prompts": len(after),
        "before": _side(before, first),
        "after": _side(after, last),
        "change": mean_over_prompts(last - first)._asdict(),
        **{name: compared[name] for name in compared if "win_rate" in name},
        "notes": compared["notes"],
        "training": {name: logged[name] for name in (*kept, *balance) if name in logged},
        "examples": [
            {
                "prompt": a.prompt,
                "before": b.response,
                "after": a.response,
                "sentiment": [float(first[i]), float(last[i])],
            }
            for i, (a, b) in enumerate(zip(after[:EXAMPLES], before, strict=False))
        ],
    }


def _side(answers: Sequence[Response], scores: np.ndarray) -> dict[str, Any]:
    openings = {" ".join(answer.response.lower().split()[:OPENING]) for answer in answers}
    return {
        "sentiment": mean_over_prompts(scores)._asdict(),
        "tokens": mean_over_prompts(np.array([answer.tokens for answer in answers]))._asdict(),
        "finished": float(np.mean([answer.finished for answer in answers])),
        "openings": len(openings),
    }


def render(found: Mapping[str, Any], root: Path) -> list[str]:
    """The report as lines of at most `WIDTH` characters; paths may be longer.

    Args:
        found: Numbers of `measure`.
        root: The demo's directory.
    """
    return [
        *_examples(found["examples"], found["prompts"]),
        *_table(found),
        "",
        *(line for remark in remarks(found) for line in _wrapped(remark, "* ", "  ")),
        "",
        f"Answers:  {root / 'answers'}   pairs: {root / 'pairs' / 'report.md'}",
        f"Model:    {root / 'adadpo' / 'export'}",
        f"Curves:   tensorboard --logdir {root / 'adadpo'}",
    ]


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent=first, subsequent_indent=rest) or [first]


def _examples(examples: Sequence[Mapping[str, Any]], prompts: int) -> list[str]:
    lines = [f"The first {len(examples)} of {prompts} held-out prompts (sentiment from -1 to 1)", ""]
    for number, example in enumerate(examples, start=1):
        lines += _wrapped(example["prompt"], f"{number}. ", "   ")
        for when, score in zip(("before", "after"), example["sentiment"], strict=True):
            lines += _wrapped(example[when], f"   {when:<6} {score:+.2f}  ", " " * 17)
        lines.append("")
    return lines


def _table(found: Mapping[str, Any]) -> list[str]:
    before, after, training = found["before"], found["after"], found["training"]

    def both(name: str, digits: int) -> str:
        sides = (f"{side[name]['value']:.{digits}f} ± {side[name]['se']:.{digits}f}" for side in (before, after))
        return "  {:>14}  {:>14}".format(*sides)

    def logged(name: str, digits: int = 3) -> str:
        return f"{training[name]:.{digits}f}" if name in training else "not logged"

    change = found["change"]
    return [
        f"{'':<34}  {'before':>14}  {'after':>14}",
        f"{'mean sentiment':<34}{both('sentiment', 3)}",
        f"{'tokens per answer':<34}{both('tokens', 1)}",
        f"{'answers that ended by themselves':<34}  {before['finished']:>14.0%}  {after['finished']:>14.0%}",
        f"{f'different openings ({OPENING} words)':<34}  {before['openings']:>14}  {after['openings']:>14}",
        "",
        f"change of sentiment                 {change['value']:+.3f} ± {change['se']:.3f}  (over pairs of answers)",
        f"win rate, after against before      {_rate(found, 'win_rate')}",
        f"the same, length-controlled         {_rate(found, 'length_controlled_win_rate')}",
        f"KL to the model before              {logged(names.val(names.KL_POLICY))} ± "
        f"{logged(names.val(names.KL_POLICY_STDERR))} nats per token, on its own answers",
        f"gradient balance g_w / g_l          {logged(names.train(names.BALANCE_RATIO))} at the last step, coefficient "
        f"{logged(names.train(names.BALANCE_COEFFICIENT))}",
        f"accuracy on validation pairs        {logged(names.val(names.REWARDS_ACCURACIES), 2)}",
    ]


def _rate(found: Mapping[str, Any], name: str) -> str:
    value, interval = found.get(name), found.get(f"{name}_ci")
    if value is None:
        return "no estimate"
    between = "" if interval is None else f"  (95 % interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
    return f"{100 * value:.1f} %{between}"


def remarks(found: Mapping[str, Any]) -> list[str]:
    """What a reader of the numbers must know: what they do not show, and side effects of the training.

    Args:
        found: Numbers of `measure`.
    """
    before, after = found["before"], found["after"]
    return [
        *_verdict(found),
        *_length(before["tokens"]["value"], after["tokens"]["value"]),
        *_openings(before["openings"], after["openings"]),
        "Sentiment is VADER's mean over sentences. It counts kind words; it does not know whether a review is well "
        f"written. The judge that chose the pairs added {LENGTH_BIAS} per token of length and noise of {NOISE}, as "
        "imperfect judges do.",
        *found["notes"],
    ]


def _verdict(found: Mapping[str, Any]) -> list[str]:
    interval = found.get("win_rate_ci")
    if interval is not None and interval[0] <= 0.5 <= interval[1]:
        return ["The interval of the win rate includes 50 %: this run shows no difference in sentiment."]
    if found["win_rate"] < 0.5:
        return ["The answers became less positive: the opposite of what the judge rewards."]
    return []


def _length(before: float, after: float) -> list[str]:
    change = after / before - 1 if before else 0.0
    if abs(change) < REMARKABLE[0]:
        return []
    way = "longer" if change > 0 else "shorter"
    why = " The judge favours length, so part of what was learned is length." if change > 0 else ""
    return [
        f"Answers became {abs(change):.0%} {way}.{why} A mean over sentences also rises where neutral sentences are "
        "left out: compare the length-controlled win rate."
    ]


def _openings(before: int, after: int) -> list[str]:
    if not before or after > before * (1 - REMARKABLE[1]):
        return []
    return [f"Answers became more alike: {after} different openings instead of {before}."]
