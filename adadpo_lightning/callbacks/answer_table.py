"""A table of generated answers, written to each logger that supports tables, otherwise to a file."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import TensorBoardLogger

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

COLUMNS = ["prompt", "response", "tokens", "finished"]


def write_table(trainer: Trainer, rows: list[list[Any]], step: int) -> None:
    """Write rows of `COLUMNS` to each logger that supports tables, and to a file if one does not or none is set."""
    needs_file = not trainer.loggers
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text("val/generations", markdown_table(COLUMNS, rows), step)
        elif hasattr(logger, "log_table"):
            logger.log_table("val/generations", columns=COLUMNS, data=rows, step=step)
        else:
            needs_file = True
    if needs_file:
        path = Path(trainer.default_root_dir) / "generations.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for row in rows:
                line = {"step": step, **dict(zip(COLUMNS, row, strict=True))}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table that shows the text of its cells verbatim, even if it contains Markdown or HTML.

    Example:
        >>> print(markdown_table(["prompt"], [["a|b"]]))
        | prompt |
        | --- |
        | a&#124;b |
    """
    lines = [list(columns), ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    text = html.escape(str(value), quote=False)
    # Entities, because Markdown accepts a backslash escape for some characters only.
    text = re.sub(r"[^\w\s&;,.]", lambda match: f"&#{ord(match[0])};", text)
    return re.sub(r"\r\n|\r|\n", "<br>", text.replace("_", "&#95;"))
