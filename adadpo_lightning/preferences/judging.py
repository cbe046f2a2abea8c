"""Judging: a score for each answer, in a file that an interrupted job resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from adadpo_lightning import fingerprint, log
from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.comparisons import Comparison
from adadpo_lightning.evaluation.judges.base import PointwiseJudge, scores_of, verdicts_of
from adadpo_lightning.generation.record import check_record
from adadpo_lightning.generation.responses import recover_rows, response_format
from adadpo_lightning.preferences.select import usable

if TYPE_CHECKING:
    from pathlib import Path

    from adadpo_lightning.evaluation.judges.base import Judge
    from adadpo_lightning.generation.responses import Response
    from adadpo_lightning.preferences.options import Unfinished

# Prompts that are judged together and then written: what a killed job loses.
CHUNK = 32


class Judged(NamedTuple):
    """The scores of the answers to one prompt.

    Args:
        scores: One per usable answer (see `usable`); None for an answer without one.
        no_verdict: Comparisons that the judge did not decide.
    """

    scores: list[float | None]
    no_verdict: int = 0


def judge_answers(
    judge: Judge, answers: Sequence[Sequence[Response]], unfinished: Unfinished, responses: Path, output: Path
) -> list[Judged]:
    """Score the answers to every prompt whose scores are not in the output file yet.

    ``<output>.settings.json`` records what the scores depend on: the judge, its options and files, the answers, and
    which of them are judged.

    Args:
        judge: The judge.
        answers: The answers to each prompt.
        unfinished: Which of them are usable.
        responses: The file that they are in.
        output: Gets one line per prompt.

    Returns:
        The scores of each prompt.

    Raises:
        UserError: If the output belongs to another judge or other answers, or the judge gives no usable scores.
    """
    record = {
        "version": fingerprint.FORMAT_VERSION,
        "judge": judge.deciding(),
        "answers": fingerprint.of_file(responses),
        "unfinished": unfinished,
    }
    try:
        check_record(output, record, "output_dir", "make-pairs")
    except UserError as error:
        again = f"restore them, delete {output.name} to judge the same answers again, or choose another directory"
        raise UserError(error.field, error.problem, again) from error
    done = recover_rows(output, response_format("jsonl"))
    chosen = [[prompt[i] for i in usable(prompt, unfinished)[0]] for prompt in answers]
    for start in range(done - done % CHUNK, len(answers), CHUNK):
        found = judge_prompts(judge, chosen[start : start + CHUNK])
        _append(output, found[max(0, done - start) :])
        log.info(f"{start + len(found)} of {len(answers)} prompts judged")
    return _read(output)


def judge_prompts(judge: Judge, prompts: Sequence[Sequence[Response]]) -> list[Judged]:
    """Score the answers to some prompts.

    A judge that scores single answers gives its score. From one that compares two, an answer's score is its mean win
    rate over the other answers to the prompt, a tie counting one half: the order of Bradley-Terry's strengths, which
    follows the number of wins where every two answers are compared. Where the order in which two answers are shown may
    count (`Judge.by_order`), both are asked, and their mean is the verdict.

    Args:
        judge: The judge.
        prompts: The answers to each prompt, no two of them identical.

    Raises:
        UserError: If the judge returns something else than scores or preferences.
    """
    if isinstance(judge, PointwiseJudge):
        found = iter(scores_of(judge, [answer for answers in prompts for answer in answers]))
        return [Judged([next(found) for _ in answers]) for answers in prompts]
    orders = (False, True) if judge.by_order else (False,)
    asked = [
        Comparison(two[reverse], two[not reverse])
        for answers in prompts
        for two in combinations(answers, 2)
        for reverse in orders
    ]
    verdicts = iter(verdicts_of(judge, asked))

    def win_rates(count: int) -> Judged:
        return _win_rates(count, [_verdict([next(verdicts) for _ in orders]) for _ in combinations(range(count), 2)])

    return [win_rates(len(answers)) for answers in prompts]


def _verdict(verdicts: Sequence[float | None]) -> float | None:
    """Probability that the first of two answers is the better one, from the verdicts in one order or in both."""
    first_wins = [None if v is None else 1 - v if i else v for i, v in enumerate(verdicts)]
    # With only one order the mean would have the bias that asking twice removes.
    given = [v for v in first_wins if v is not None]
    return sum(given) / len(given) if len(given) == len(first_wins) else None


def _win_rates(count: int, verdicts: Sequence[float | None]) -> Judged:
    """Mean win rate of each of `count` answers, from the verdicts on all `combinations` of two."""
    wins: list[list[float]] = [[] for _ in range(count)]
    for (first, second), verdict in zip(combinations(range(count), 2), verdicts, strict=True):
        if verdict is not None:
            wins[first].append(verdict)
            wins[second].append(1 - verdict)
    return Judged([sum(each) / len(each) if each else None for each in wins], list(verdicts).count(None))


def _append(output: Path, found: Sequence[Judged]) -> None:
    with output.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(judged._asdict()) + "\n" for judged in found))
        file.flush()
        os.fsync(file.fileno())


def _read(output: Path) -> list[Judged]:
    lines = output.read_text(encoding="utf-8").splitlines()
    try:
        return [Judged(**json.loads(line)) for line in lines]
    except (TypeError, ValueError) as error:
        raise UserError(str(output), f"not a file of scores: {error}", "delete it to judge again") from error
