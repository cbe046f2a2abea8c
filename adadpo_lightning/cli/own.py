"""The subcommands that need no Trainer; the command line reads their signatures and docstrings."""

from __future__ import annotations

import dataclasses
from itertools import count
from pathlib import Path
from typing import Any, Literal


def losses() -> None:
    """Table of the registered losses: formula, reference, options and defaults."""
    from rich.console import Console
    from rich.table import Table

    from adadpo_lightning.losses import available_losses, build_loss

    table = Table(show_lines=True)
    for column in ("key", "formula", "reference", "options and defaults", "source"):
        table.add_column(column, overflow="fold", no_wrap=column == "key")
    for key in available_losses():
        loss = build_loss(key)
        options = dataclasses.fields(loss)  # type: ignore[arg-type]  # registered losses are dataclasses
        defaults = "\n".join(f"{f.name}={getattr(loss, f.name)}" for f in options)
        table.add_row(key, loss.formula, "needed" if loss.needs_reference else "-", defaults or "-", loss.source)
    Console().print(table)


def export(checkpoint: str, output: str, merge: bool = False) -> None:
    """Write a checkpoint's policy as a Hugging Face directory.

    Args:
        checkpoint: A checkpoint file of ``fit``.
        output: Directory to write; must not exist or be empty.
        merge: Merge LoRA adapters into the base model and not write them as adapters.
    """
    from adadpo_lightning.checkpoints.export import export_checkpoint
    from adadpo_lightning.checkpoints.model_card import write_card

    export_checkpoint(checkpoint, output, merge=merge)
    write_card(Path(output), Path(checkpoint).resolve().parent.parent)
    print(f"exported to {output}")


def quickstart(output_dir: str | None = None, seed: int = 0) -> None:
    """The embedded task from end to end: warm-up, pairs, AdaDPO, evaluation.

    Args:
        output_dir: Directory to write to; must not exist or be empty. Null takes runs/quickstart, or the first of
            runs/quickstart-2, -3, ... that is free.
        seed: Seed of the whole pipeline.
    """
    if output_dir is None:
        names = ("runs/quickstart" if n == 1 else f"runs/quickstart-{n}" for n in count(1))
        output_dir = next(name for name in names if not Path(name).exists())
    from adadpo_lightning.cli import main
    from adadpo_lightning.embedded.quickstart import run_quickstart

    run_quickstart(output_dir, seed, main)


def plot(runs: list[str], output: str = "figures", metrics: list[str] | None = None) -> None:
    """Figures (PNG and SVG) of one or several runs: gradient balance, log-probabilities, margin, accuracy, KL.

    Args:
        runs: Output directories of runs, or directories that hold several.
        output: Directory to write to.
        metrics: What to draw: balance, logps, margin, accuracy, kl, or any logged metric such as grad_norm/total; null
            draws all of the named ones that there are.
    """
    from adadpo_lightning.runs.figures import plot_runs

    for path in plot_runs(runs, output, metrics or ()):
        print(path)


def generate(
    model: str,
    prompts: str,
    output: str,
    format: Literal["jsonl", "json", "alpaca_eval", "arena_hard"] | None = None,
    column: str | None = None,
    subset: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    generator: str | None = None,
    system: str | None = None,
    chat: Literal["auto", "always", "never"] = "auto",
    engine: Literal["transformers", "vllm"] = "transformers",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    max_new_tokens: int = 1024,
    temperature: float = 0.7,
    top_p: float = 1.0,
    top_k: int = 0,
    batch_size: int = 16,
    seed: int = 0,
) -> None:
    """Answer prompts with a model; the same command goes on where it was stopped.

    Args:
        model: Hugging Face directory (of ``export``) or hub id.
        prompts: File (.txt with one a line, .json, .jsonl, .parquet, .csv, .arrow), directory or hub id; AlpacaEval's
            and Arena-Hard's questions as they are.
        output: File to write; <output>.settings.json beside it says with what.
        format: jsonl or json (this package's rows), alpaca_eval (its model_outputs.json), arena_hard (its answer file);
            null goes by the file's ending, .json or .jsonl.
        column: Column of the prompt, text or messages; null finds it.
        subset: Configuration of a hub dataset.
        split: Split of a hub dataset or of a directory that holds several.
        limit: The first so many prompts.
        generator: Name of the model in the file; null takes the last part of its path.
        system: System prompt.
        chat: auto renders the tokenizer's chat template where there is one, always demands it, never goes without.
        engine: transformers, or vllm (extra vllm).
        dtype: Type of the weights; auto is that of the checkpoint.
        device: Where to run, such as cuda:1; auto takes a GPU if there is one.
        max_new_tokens: Longer answers are cut off.
        temperature: 0 takes the likeliest token each time.
        top_p: Draw from the smallest set of tokens that holds this probability.
        top_k: Draw from so many of the likeliest tokens; 0 draws from all.
        batch_size: Prompts answered at one time; changes nothing in what is drawn but rounding.
        seed: Seed of the draws.
    """
    from adadpo_lightning.generation.generate import generate as run
    from adadpo_lightning.generation.options import GenerateOptions

    total, kept = run(
        GenerateOptions(
            model=model,
            prompts=prompts,
            output=output,
            format=format,
            column=column,
            subset=subset,
            split=split,
            limit=limit,
            generator=generator,
            system=system,
            chat=chat,
            engine=engine,
            dtype=dtype,
            device=device,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            batch_size=batch_size,
            seed=seed,
        )
    )
    print(f"{total} responses in {output}" + (f", {kept} of them from before" if kept else ""))


def evaluate(
    judge: str,
    output: str,
    responses: str | None = None,
    baseline: str | None = None,
    annotations: str | None = None,
    judge_options: dict[str, Any] | None = None,
    length_unit: Literal["characters", "words", "tokens"] = "characters",
    penalty: Literal["none", "l1_cv"] = "none",
    difficulty: str | None = None,
    length_anchor: list[str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> None:
    """Win rate and length-controlled win rate of a model's responses against a baseline's, by a judge.

    Args:
        judge: annotations (a file of preferences), gold (embedded task), openai_compatible (HTTP endpoint),
            reward_model (a sequence classifier), or the key of your own.
        output: JSON file to write.
        responses: The model's responses, in any format of ``generate``.
        baseline: The opponent's responses to the same prompts; a file with prompt and chosen or output serves too.
        annotations: File of preferences such as AlpacaEval's annotations.json, for that judge; it brings the responses
            along.
        judge_options: Options of the judge, such as --judge_options.model=DIR.
        length_unit: What answers are measured in; AlpacaEval counts characters, tokens need responses of ``generate``.
        penalty: Of the length-controlled fit: none, or l1_cv as in AlpacaEval's code.
        difficulty: File with each prompt's difficulty for the length-controlled fit, such as AlpacaEval's
            instruction_difficulty.csv; null takes the column of that name in the responses or annotations, if any.
        length_anchor: Files of preferences of the baseline against itself, asked to be concise and to be verbose, which
            AlpacaEval adds to the length-controlled fit.
        bootstrap: Bootstrap resamples; 0 for none.
        seed: Seed of the bootstrap.
    """
    from adadpo_lightning.evaluation.evaluate import evaluate as run
    from adadpo_lightning.evaluation.options import EvaluateOptions
    from adadpo_lightning.evaluation.report import summary

    options = EvaluateOptions(
        judge=judge,
        output=output,
        responses=responses,
        baseline=baseline,
        annotations=annotations,
        judge_options=judge_options,
        length_unit=length_unit,
        penalty=penalty,
        difficulty=difficulty,
        length_anchor=length_anchor,
        bootstrap=bootstrap,
        seed=seed,
    )
    print(f"{summary(run(options))}\nwritten to {output}")


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
) -> None:
    """What preference data look like to a model: lengths, drops, cuts, repeats, terminators, examples.

    Args:
        data: File, directory or hub id, as ``data.train`` of ``fit``.
        tokenizer: Directory or hub id of the policy or its tokenizer.
        html: Page to write beside what the terminal shows.
        columns: From this package's column names to the dataset's, such as --columns.prompt=question.
        format: Shape of the rows; null detects it.
        subset: Configuration of a hub dataset.
        split: Split of a hub dataset or of a directory that holds several.
        max_length: As in ``fit``.
        max_prompt_length: As in ``fit``.
        truncation: As in ``fit``.
        chat: As in ``fit``.
    """
    from rich.console import Console

    from adadpo_lightning.data.inspection import inspect_pairs, print_inspection, to_html
    from adadpo_lightning.data.prepare import prepare
    from adadpo_lightning.data.sources import SourceConfig
    from adadpo_lightning.data.tokenize import TokenizeOptions
    from adadpo_lightning.models.loading import PolicyConfig, load_tokenizer

    options = TokenizeOptions(max_length, max_prompt_length, truncation, chat)
    source = SourceConfig(data, subset, split, columns=columns, format=format)
    encoder = load_tokenizer(PolicyConfig(path=tokenizer))
    prepared = prepare("data", [source], encoder, options, on_bad_row="drop").with_passes(0)
    found = inspect_pairs(prepared, encoder)
    print_inspection(found, Console())
    if html is not None:
        Path(html).write_text(to_html(found, f"Preference data: {data}"), encoding="utf-8")
        print(f"written to {html}")


def from_trl(config: str, output: str | None = None, ranks: int = 1) -> None:
    """A config of TRL's DPO script as one of this package, and what of it has no counterpart.

    Args:
        config: YAML or JSON file with keys of DPOConfig, ModelConfig and ScriptArguments.
        output: File to write; null prints it.
        ranks: Devices that TRL ran on, for the global batch.
    """
    from adadpo_lightning.convert.from_trl import from_trl_file

    text, parts = from_trl_file(config, ranks)
    if output is None:
        print(text)
        return
    Path(output).write_text(text, encoding="utf-8")
    for key, why in parts.dropped.items():
        print(f"left out: {key} ({why})")
    print("\n".join([*parts.differs, f"written to {output}"]))
