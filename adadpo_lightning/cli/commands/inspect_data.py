"""What preference data look like to a model: lengths, drops, cuts, duplicates, terminators, examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adadpo_lightning.cli.parser import instantiate, options
from adadpo_lightning.compat import actions_of, read_no_config_from
from adadpo_lightning.data.lists import BEST_AGAINST_WORST, ListOptions
from adadpo_lightning.data.validation import NamedSources, Sources, listed, named_sources
from adadpo_lightning.errors import UserError
from adadpo_lightning.runs.output import check_output

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from adadpo_lightning.data.prepare import Prepared
    from adadpo_lightning.data.sources import SourceConfig


def inspect_data(
    data: Sources | NamedSources,
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
        data: As ``data.val`` of ``fit``: a file, directory, hub id or source with options, a list of these, which are
            looked at together, or several sets by name (``{train: a.jsonl, safety: b.jsonl}``), each by itself.
        tokenizer: Directory, hub id or GGUF file of the policy or its tokenizer.
        html: HTML page to write, beside what the terminal shows.
        columns: From this package's column names to the dataset's, such as --columns.prompt=question. This and the
            next three options are for each source that does not set its own.
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
        examples: Pairs of each set to show; the terminal shows a few lines of each text, the page all of it.
    """
    from rich.console import Console

    from adadpo_lightning.data.inspection import inspect_pairs, print_inspection, to_html
    from adadpo_lightning.data.options import TokenizeOptions
    from adadpo_lightning.data.prepare import prepare
    from adadpo_lightning.models.loading import PolicyConfig, load_tokenizer

    if html is not None:
        check_output(html, "html")
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
    sets = named_sources(data, "data") if isinstance(data, Mapping) else {"data": listed(data)}
    if not all(sets.values()):
        raise UserError("data", "expected a file, directory or hub id, got an empty list")
    beside = {"columns": columns, "format": format, "subset": subset, "split": split}
    encoder = load_tokenizer(PolicyConfig(path=tokenizer))
    prepared = {
        name: prepare(name, _with(sources, beside), encoder, how, on_bad_row="drop").with_passes(0)
        for name, sources in sets.items()
    }
    _note_shared_prompts(prepared)
    found = {name: inspect_pairs(each, encoder, examples) for name, each in prepared.items()}
    for name, each in found.items():
        print_inspection(each, Console(), f"Preference data: {name}" if len(found) > 1 else "Preference data")
    if html is not None:
        paths = dict.fromkeys(source.path for sources in sets.values() for source in sources)
        Path(html).parent.mkdir(parents=True, exist_ok=True)
        Path(html).write_text(to_html(found, f"Preference data: {', '.join(paths)}"), encoding="utf-8")
        print(f"written to {html}")


def _with(sources: list[SourceConfig], beside: Mapping[str, Any]) -> list[SourceConfig]:
    """Sources with the command's own options, where they have none of their own."""
    return [
        replace(source, **{name: value for name, value in beside.items() if getattr(source, name) is None})
        for source in sources
    ]


def _note_shared_prompts(sets: Mapping[str, Prepared]) -> None:
    """Count in the report of each set the prompts that an earlier one has too: a validation set must have none."""
    from adadpo_lightning.data.prepared import column

    prompts = {name: set(column(each.pairs, "prompt_key")) for name, each in sets.items()}
    for number, (name, each) in enumerate(sets.items()):
        for earlier in list(sets)[:number]:
            each.report.note(f"prompts that {earlier} has too", len(prompts[name] & prompts[earlier]))


def add_arguments(parser: ArgumentParser) -> None:
    """Add the parameters of `inspect_data`."""
    parser.add_function_arguments(inspect_data)
    for action in actions_of(parser):
        if action.dest == "data":
            read_no_config_from(action)


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Inspect."""
    inspect_data(**options(instantiate(parser, config)))
