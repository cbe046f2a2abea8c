"""The report of a study: Markdown from a Jinja template, its figures, and one CSV row per cell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadpo_lightning.study import league_tables
from adadpo_lightning.study.comparisons import Comparison, comparisons, twin_pairs
from adadpo_lightning.study.results import Results, read_results, write_table
from adadpo_lightning.study.tables import HEADLINES, arm_table, cell_table, effect_table, headlines, statements

if TYPE_CHECKING:
    from adadpo_lightning.study.grid import StudyConfig

TEMPLATES = {"pairs": "report.md.jinja", "league": "league.md.jinja"}


def write_report(study: StudyConfig, output: Path) -> Path:
    """Write ``report.md``, ``results.csv`` and the figures.

    Args:
        study: A study with at least one finished cell.
        output: Directory to write to.

    Returns:
        The Markdown file.

    Raises:
        UserError: If no cell is finished, results cannot be compared, or matplotlib or scipy is missing.
    """
    results = read_results(study)
    output.mkdir(parents=True, exist_ok=True)
    write_table(results, output / "results.csv")
    path = output / "report.md"
    path.write_text(render(study, results, _draw(study, results, output)), encoding="utf-8")
    return path


def _draw(study: StudyConfig, results: Results, output: Path) -> dict[str, str]:
    from adadpo_lightning.study.figures import draw_figures
    from adadpo_lightning.study.league_figures import draw_league

    if study.report == "league":
        return draw_league(study, results, output)
    return draw_figures(
        results, {pair: comparisons(study, results, pair) for pair in twin_pairs(study, results)}, output
    )


def render(study: StudyConfig, results: Results, figures: dict[str, str]) -> str:
    """The report's text.

    Args:
        study: The study.
        results: Its results.
        figures: The caption of each figure by file name.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("adadpo_lightning.study", "templates"),
        autoescape=select_autoescape(("html",)),  # the report is Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    if study.report == "league":
        sections = [league_tables.section(study, results, measure) for measure in league_tables.judged_by(results)]
    else:
        sections = [section(study, results, pair) for pair in twin_pairs(study, results)]
    text: str = environment.get_template(TEMPLATES[study.report]).render(
        study=study,
        results=results,
        arms=arm_table(study),
        sections=sections,
        figures=figures,
        cells=cell_table(results),
    )
    return text.rstrip() + "\n"


def section(study: StudyConfig, results: Results, pair: Comparison) -> dict[str, Any]:
    """Template values of one plain loss and its twin."""
    others = comparisons(study, results, pair)
    judged = any(results.has(measure) for measure in HEADLINES)
    return {
        "pair": pair,
        "statements": statements(results, pair, others),
        "headlines": headlines(study, results, pair, others) if judged else None,
        "effects": effect_table(results, others),
    }
