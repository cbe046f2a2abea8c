"""Findings in the terminal, a few lines of each text, and as an HTML page with all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from adadpo_lightning.data.inspection.findings import Example, Inspection, Piece

STYLES = {"prompt": "dim", "chosen": "green", "rejected": "red"}
BAR_WIDTH = 30
# What the terminal shows of one text; half of it from the text's end.
SHOWN_LINES = 6
SHOWN_CHARACTERS = 400


def print_inspection(found: Inspection, console: Console, title: str = "Preference data") -> None:
    """Show the findings in a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table("what", "count", title=Text(title))
    for fact in found.facts:
        table.add_row(*map(Text, fact))
    console.print(table)
    for name, bins in found.histograms.items():
        console.print(f"tokens: {name}")
        most = max(count for _, _, count in bins)
        for first, last, count in bins:
            console.print(
                f"  {f'{first}-{last}':>13} {'█' * round(BAR_WIDTH * count / most)} {count:,}", highlight=False
            )
    for example in found.examples:
        console.print(*_example_lines(example), sep="\n")
    for hint in found.hints:
        console.print(Text(f"check: {hint}", style="yellow"))


def _example_lines(example: Example) -> list[RenderableType]:
    from rich.text import Text

    lines: list[RenderableType] = [Text(f"\n{example.where}", style="bold")]
    for name, text in example.texts.items():
        lines.append(Text(f"{name}, {counted(example, name)}:"))
        partly = name != "prompt" and example.scored[name] < example.tokens[name]
        lines.append(Text(shortened(marked(example.pieces[name]) if partly else text), style=STYLES[name]))
    return lines


def counted(example: Example, name: str) -> str:
    """How many tokens a text has, and how many of them are scored."""
    tokens = f"{example.tokens[name]:,} tokens"
    if name == "prompt":
        return tokens
    scored = example.scored[name]
    return f"{tokens}, scored" if scored == example.tokens[name] else f"{tokens}, {scored:,} scored, not «this»"


def marked(pieces: Sequence[Piece]) -> str:
    """The text with guillemets around what is not scored.

    Example:
        >>> from adadpo_lightning.data.inspection.findings import Piece
        >>> marked([Piece("a", False), Piece("b", False, False), Piece("c", True, False)])
        'a«bc»'
    """
    runs = ((scored, "".join(piece.text for piece in run)) for scored, run in groupby(pieces, lambda p: p.scored))
    return "".join(text if scored else f"«{text}»" for scored, text in runs)


def shortened(text: str, lines: int = SHOWN_LINES, characters: int = SHOWN_CHARACTERS) -> str:
    r"""Start and end of a text, and between them how much is left out.

    Args:
        text: Any text.
        lines: Lines to keep at most.
        characters: Characters to keep at most.

    Example:
        >>> print(shortened("one\ntwo\nthree\nfour\nfive", lines=2))
        one
        [... 3 lines, 14 characters left out; --html shows all ...]
        five
    """
    all_lines = text.split("\n")
    start, end = text, ""
    if len(all_lines) > lines:
        start, end = "\n".join(all_lines[: lines // 2]), "\n".join(all_lines[-(lines // 2) :])
    elif len(text) > characters:
        start, end = text[: characters // 2], text[-characters // 2 :]
    else:
        return text
    start, end = start[: characters // 2], end[-characters // 2 :]
    middle = text[len(start) : len(text) - len(end)]
    whole_lines = max(middle.count("\n") - 1, 0)
    what = (f"{whole_lines:,} lines, " if whole_lines else "") + f"{len(middle.strip()):,} characters"
    return f"{start}\n[... {what} left out; --html shows all ...]\n{end}"


def to_html(sets: Mapping[str, Inspection], title: str) -> str:
    """The findings on one or several sets as one page without scripts or outside resources; all text is escaped."""
    from jinja2 import Environment, StrictUndefined

    source = files("adadpo_lightning.data.inspection").joinpath("page.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.from_string(source).render(sets=sets, title=title, counted=counted)
