"""The ``generate`` job: answer the prompts of a file, append to the output, resume where it was interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from adadpo_lightning import log
from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.generation.answers import decode_answer
from adadpo_lightning.generation.engines import build_engine
from adadpo_lightning.generation.prompts import Prompt, PromptTokenizer, read_prompts
from adadpo_lightning.generation.record import check_record, make_record
from adadpo_lightning.generation.responses import Response, append_responses, recover_rows, response_format
from adadpo_lightning.models.loading import PolicyConfig, load_tokenizer
from adadpo_lightning.runs.lock import lock_output

if TYPE_CHECKING:
    from adadpo_lightning.generation.options import GenerateOptions


class Generated(NamedTuple):
    """What a job did: the responses in its output, and how many of them an earlier job had written."""

    total: int
    resumed: int


def generate(options: GenerateOptions) -> Generated:
    """Answer prompts as the ``generate`` command does.

    Raises:
        UserError: As `generate_responses` and `read_prompts`.
    """
    source = SourceConfig(options.prompts, subset=options.subset, split=options.split)
    prompts = read_prompts(source, options.column, options.limit)
    return generate_responses(options, prompts)


def generate_responses(options: GenerateOptions, prompts: Sequence[Prompt]) -> Generated:
    """Answer every prompt that has no answer in the output file yet.

    ``<output>.settings.json`` records what the answers depend on: model (weights and config), tokenizer with its
    template, options and prompts. A job with the same record resumes after the existing rows; any other stops before
    it changes a file.

    Raises:
        UserError: If another process writes the file, the file belongs to another job, the model or its tokenizer
            cannot be loaded, or a prompt leaves no room for an answer.
    """
    with lock_output(Path(options.output), "output"):
        return _generate_locked(options, prompts)


def _generate_locked(options: GenerateOptions, prompts: Sequence[Prompt]) -> Generated:
    fmt, output = response_format(options.response_format), Path(options.output)
    tokenizer = load_tokenizer(PolicyConfig(path=options.model))
    check_record(output, make_record(options, prompts, tokenizer))
    done = recover_rows(output, fmt)
    if done >= len(prompts):
        return Generated(len(prompts), done)
    encoder = PromptTokenizer(tokenizer, options.chat, options.special_tokens, options.chat_template_kwargs)
    encoder.read(prompts)
    encoder.warn_if_rendered(options.prompts)
    encoded = [encoder.encode(prompt.with_system(options.system)) for prompt in prompts]
    answer = build_engine(options, encoder, max(map(len, encoded)))
    numbers = iter(range(done, len(prompts)))
    while batch := list(islice(numbers, options.batch_size)):
        answers = answer([encoded[i] for i in batch], batch)
        rows = [
            Response(
                prompt=prompts[i].text,
                response=decode_answer(tokenizer, sampled),
                generator=options.name,
                uid=prompts[i].uid,
                dataset=prompts[i].dataset,
                finished=sampled.finished,
                tokens=len(sampled.answer),
            )
            for i, sampled in zip(batch, answers, strict=True)
        ]
        append_responses(output, rows, fmt)
        log.info(f"{batch[-1] + 1} of {len(prompts)} prompts answered")
    return Generated(len(prompts), done)
