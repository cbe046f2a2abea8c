"""What preference data look like to a model: lengths, drops, cuts, duplicates, terminators, examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adadpo_lightning.cli.parser import instantiate, options
from adadpo_lightning.data.lists import BEST_AGAINST_WORST, ListOptions

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def inspect_data(
    data: str,
    tokenizer: str,
    html: str | None = None,
    columns: dict[str, str] | None = None,
    format: str | None = None,
    subset: str | None = None,
    split: str | None = None,
    max_length: int = 2048,
    max_prompt_length: int | None = None,
    truncation: Literal["drop", "keep_start", "keep_end"] = "keep_start",
    chat: Literal["auto", "always", "never"] = "auto",
    special_tokens: Literal["auto", "text", "parse"] = "auto",
    chat_template_kwargs: dict[str, Any] | None = None,
    lists: ListOptions = BEST_AGAINST_WORST,
    score: Literal["assistant", "all"] = "assistant",
    examples: int = 3,
) -> None:
    """What preference data look like to a model: lengths, drops, cuts, duplicates, terminators, examples.

    Args:
        data: File, directory or hub id, as ``data.train`` of ``fit``.
        tokenizer: Directory, hub id or GGUF file of the policy or its tokenizer.
        html: HTML page to write, beside what the terminal shows.
        columns: From this package's column names to the dataset's, such as --columns.prompt=question.
        format: Shape of the rows; null detects it.
        subset: Configuration of a hub dataset.
        split: Split of a hub dataset, or of a directory with several splits.
        max_length: As in ``fit``.
        max_prompt_length: As in ``fit``.
        truncation: As in ``fit``.
        chat: As in ``fit``.
        special_tokens: As in ``fit``.
        chat_template_kwargs: As in ``fit``.
        lists: As in ``fit``.
        score: As in ``fit``.
        examples: Pairs to show; the terminal shows a few lines of each text, the page all of it.
    """
    from rich.console import Console

    from adadpo_lightning.data.inspection import inspect_pairs, print_inspection, to_html
    from adadpo_lightning.data.options import TokenizeOptions
    from adadpo_lightning.data.prepare import prepare
    from adadpo_lightning.data.sources import SourceConfig
    from adadpo_lightning.models.loading import PolicyConfig, load_tokenizer

    how = TokenizeOptions(
        max_length,
        max_prompt_length,
        truncation,
        chat,
        special_tokens=special_tokens,
        chat_template_kwargs=chat_template_kwargs,
        lists=lists,
        score=score,
    )
    source = SourceConfig(data, subset, split, columns=columns, format=format)
    encoder = load_tokenizer(PolicyConfig(path=tokenizer))
    prepared = prepare("data", [source], encoder, how, on_bad_row="drop").with_passes(0)
    found = inspect_pairs(prepared, encoder, examples)
    print_inspection(found, Console())
    if html is not None:
        Path(html).write_text(to_html(found, f"Preference data: {data}"), encoding="utf-8")
        print(f"written to {html}")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the parameters of `inspect_data`."""
    parser.add_function_arguments(inspect_data)


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Inspect."""
    inspect_data(**options(instantiate(parser, config)))
