"""The ``make-pairs`` job: sample, judge, select, report; each stage resumes where it was interrupted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.judges.base import build_judge
from adadpo_lightning.generation.generate import generate_responses
from adadpo_lightning.generation.prompts import read_prompts
from adadpo_lightning.generation.record import record_path
from adadpo_lightning.generation.responses import Response, write_atomically
from adadpo_lightning.preferences.judging import judge_answers
from adadpo_lightning.preferences.report import write_report
from adadpo_lightning.preferences.rows import provenance, rows_of
from adadpo_lightning.preferences.select import CUT_OFF, IDENTICAL, Selection, select, usable
from adadpo_lightning.preferences.statistics import Outcome, statistics_of
from adadpo_lightning.runs.lock import lock_directory

if TYPE_CHECKING:
    from adadpo_lightning.evaluation.judges.base import Judge
    from adadpo_lightning.generation.prompts import Prompt
    from adadpo_lightning.preferences.judging import Judged
    from adadpo_lightning.preferences.options import MakePairsOptions

PAIRS, SCORES = "pairs.jsonl", "scores.jsonl"


class Made(NamedTuple):
    """What a job made.

    Args:
        pairs: The file that ``fit`` reads.
        report: The report in Markdown; ``report.json`` beside it has the same numbers.
        statistics: The numbers of ``report.json``.
    """

    pairs: Path
    report: Path
    statistics: dict[str, Any]


def make_pairs(options: MakePairsOptions) -> Made:
    """Make preference pairs as the ``make-pairs`` command does.

    Answers and scores are kept in ``responses.jsonl`` and ``scores.jsonl``, so that a job that was killed at any moment
    resumes and ends with the same files. Pairs and report follow from them and are written again by every call: another
    ``select``, ``min_gap`` or ``judge`` needs no new answers.

    Raises:
        UserError: If an option is wrong, the directory belongs to another job or another process, the model cannot be
            loaded, a prompt leaves no room for an answer, the judge gives no scores, or no prompt gives a pair.

    Example:
        Twenty answers, and the longer ones chosen::

            made = make_pairs(
                MakePairsOptions("my-model", "prompts.txt", "runs/pairs", "length", samples=4, limit=5)
            )
            made.statistics["pairs"]
    """
    judge = build_judge(options.judge, **(options.judge_options or {}))
    source = SourceConfig(options.prompts, subset=options.subset, split=options.split)
    prompts = read_prompts(source, options.column, options.limit)
    with lock_directory(options.root, "output_dir"):
        generate_responses(options.generate, prompts)
        written = Path(options.generate.output)
        answers = _read_answers(written, prompts, options.samples)
        judged = judge_answers(judge, answers, options.unfinished, written, options.root / SCORES)
        outcomes = [_outcome(*each, options) for each in zip(prompts, answers, judged, strict=True)]
        _check_pairs(outcomes, judge, options)
        record = json.loads(record_path(written).read_text(encoding="utf-8"))
        made_by = provenance(options, judge, record)
        rows = [row for each in outcomes for row in rows_of(each.prompt, each.selection, options, made_by)]
        write_atomically(options.root / PAIRS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        statistics = statistics_of(outcomes, options, judge)
        report = write_report(statistics, outcomes, options)
    return Made(options.root / PAIRS, report, statistics)


def _read_answers(path: Path, prompts: Sequence[Prompt], samples: int) -> list[list[Response]]:
    """The answers to each prompt.

    Raises:
        UserError: If the file was edited.
    """
    try:
        with path.open(encoding="utf-8") as lines:  # `str.splitlines` would also split at U+2028 in a text
            rows = [Response(**json.loads(line)) for line in lines]
        texts = [row.prompt for row in rows]
    except (TypeError, ValueError) as error:
        raise UserError(str(path), f"not a file of answers: {error}", "delete it to sample again") from error
    if texts != [prompt.text for prompt in prompts for _ in range(samples)]:
        raise UserError(str(path), "does not hold the answers to these prompts in their order", "restore the file")
    return [rows[i : i + samples] for i in range(0, len(rows), samples)]


def _outcome(prompt: Prompt, answers: Sequence[Response], judged: Judged, options: MakePairsOptions) -> Outcome:
    kept, left_out = usable(answers, options.unfinished)
    chosen = [answers[i] for i in kept]
    selection = select(chosen, judged.scores, options.select, options.min_gap)
    if len(kept) == 1 and left_out.keys() == {"duplicate"}:
        selection = Selection([], [], IDENTICAL)
    elif len(kept) < 2 and len(usable(answers, "keep")[0]) > 1:
        selection = Selection([], [], CUT_OFF)
    return Outcome(prompt, chosen, judged.scores, left_out, judged.no_verdict, selection)


def _check_pairs(outcomes: Sequence[Outcome], judge: Judge, options: MakePairsOptions) -> None:
    """Stop where no prompt gives a pair; files of an earlier selection stay.

    Raises:
        UserError: If so; says why.
    """
    if any(outcome.selection.pairs for outcome in outcomes):
        return
    scores = [score for outcome in outcomes for score in outcome.scores]
    if scores and all(score is None for score in scores):
        raise UserError("judge", f"{judge.key!r} scored none of {len(scores)} answers", "choose another judge")
    reasons = Counter(outcome.selection.reason for outcome in outcomes)
    left_out = sum((outcome.left_out for outcome in outcomes), Counter[str]())
    why = "; ".join(f"{reason}: {count} prompts" for reason, count in reasons.most_common())
    beside = "; ".join(f"{what}: {count} answers" for what, count in left_out.most_common())
    raise UserError(
        "select",
        f"no prompt gives a pair ({why}{'; ' if beside else ''}{beside})",
        "raise temperature, samples or max_new_tokens, or lower min_gap"
        if options.unfinished == "drop"
        else "raise temperature or samples, or lower min_gap",
    )
