"""The ``evaluate`` job: response files or annotations and a judge to a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.evaluation.comparisons import match_responses, read_difficulties, with_difficulties
from adadpo_lightning.evaluation.judges.annotations import AnnotationsJudge
from adadpo_lightning.evaluation.judges.base import build_judge
from adadpo_lightning.evaluation.report import evaluate_responses, length_anchor, write_report
from adadpo_lightning.generation.responses import read_responses
from adadpo_lightning.runs.output import check_output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adadpo_lightning.evaluation.comparisons import Comparison
    from adadpo_lightning.evaluation.judges.base import Judge
    from adadpo_lightning.evaluation.length_controlled import Anchor
    from adadpo_lightning.evaluation.options import EvaluateOptions


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Evaluate as the ``evaluate`` command does, and write the report.

    Returns:
        The report of `evaluate_responses`.

    Raises:
        UserError: As `evaluate_responses`, and if a file is missing or malformed, or the output cannot be written.
    """
    check_output(options.output, "output")
    given = {"annotations": options.annotations} if options.annotations else {}
    judge = build_judge(options.judge, **(options.judge_options or {}), **given)
    table = None if options.difficulty is None else read_difficulties(options.difficulty)
    comparisons = _comparisons(options, judge)
    if table is not None:
        comparisons = with_difficulties(comparisons, table)
    report = evaluate_responses(judge, comparisons, options.statistics, _anchor(options, table))
    write_report(report, options.output)
    return report


def _comparisons(options: EvaluateOptions, judge: Judge) -> list[Comparison]:
    if options.responses is None or options.baseline is None:
        return judge.comparisons()
    responses, baseline = (read_responses(SourceConfig(path)) for path in (options.responses, options.baseline))
    return match_responses(responses, baseline)


def _anchor(options: EvaluateOptions, table: Mapping[int | str, float] | None) -> Anchor | None:
    if not options.length_anchor:
        return None
    judges = [AnnotationsJudge(path) for path in options.length_anchor]
    return length_anchor(judges, options.length_unit, table=table)
