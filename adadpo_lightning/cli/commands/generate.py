"""Answer prompts with a model and write a response file; an interrupted job resumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adadpo_lightning.cli.parser import options
from adadpo_lightning.generation.options import GenerateOptions

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the fields of `GenerateOptions`."""
    parser.add_class_arguments(GenerateOptions)


def run(config: Namespace, parser: ArgumentParser) -> None:
    """Generate, and print how many responses there are."""
    from adadpo_lightning.generation.generate import generate

    total, kept = generate(GenerateOptions(**options(config)))
    print(f"{total} responses in {config.output}" + (f", {kept} of them from before" if kept else ""))
