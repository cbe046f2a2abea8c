"""Generation: from prompts to answers. One sampler serves the command line, the callback and the Python API."""

from __future__ import annotations

from adadpo_lightning.generation.answers import answer_prompts
from adadpo_lightning.generation.generate import Generated, generate, generate_responses
from adadpo_lightning.generation.options import GenerateOptions, SamplingOptions
from adadpo_lightning.generation.prompts import Prompt, read_prompts
from adadpo_lightning.generation.responses import Response, read_responses

__all__ = [
    "GenerateOptions",
    "Generated",
    "Prompt",
    "Response",
    "SamplingOptions",
    "answer_prompts",
    "generate",
    "generate_responses",
    "read_prompts",
    "read_responses",
]
