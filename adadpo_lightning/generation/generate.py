"""The ``generate`` job: answer the prompts of a file, append to the output, resume where it was interrupted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from adadpo_lightning import log
from adadpo_lightning.checkpoints.export import made_of
from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.generation.answers import decode_answer
from adadpo_lightning.generation.engines import build_engine, check_engine
from adadpo_lightning.generation.prompts import Prompt, PromptTokenizer, read_prompts
from adadpo_lightning.generation.record import check_record, make_record
from adadpo_lightning.generation.responses import Response, append_responses, recover_rows, response_format
from adadpo_lightning.models.loading import PolicyConfig, load_tokenizer
from adadpo_lightning.runs.lock import lock_output
from adadpo_lightning.runs.output import check_output

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    """Answer every prompt that does not have all of its answers in the output file yet.

    The answers to one prompt follow each other. A resumed job repeats the batch that was interrupted and appends what
    is missing of it, so that all batches, and with them all answers, are those of a job that nothing interrupted.

    ``<output>.settings.json`` records what the answers depend on: model (weights and config), tokenizer with its
    template, options and prompts. A job with the same record resumes after the existing rows; any other stops before
    it changes a file.

    Raises:
        UserError: If another process writes the file, the file belongs to another job, the model or its tokenizer
            cannot be loaded, or a prompt leaves no room for an answer.
    """
    check_output(options.output, "output")
    check_engine(options)
    tokenizer = load_tokenizer(PolicyConfig(path=options.model))
    with lock_output(Path(options.output), "output"):
        return _generate_locked(options, prompts, tokenizer)


def _generate_locked(
    options: GenerateOptions, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase
) -> Generated:
    fmt, output = response_format(options.response_format), Path(options.output)
    check_record(output, make_record(options, prompts, tokenizer))
    done, total = recover_rows(output, fmt), len(prompts) * options.samples
    if done >= total:
        return Generated(total, done)
    encoder = PromptTokenizer(tokenizer, options.chat, options.special_tokens, options.chat_template_kwargs)
    encoder.read(prompts)
    encoder.warn_if_rendered(options.prompts)
    encoder.say_own(prompts, options.system)
    _say_other_kwargs(options)
    if not encoder.uses_template and options.chat == "auto":
        log.warn(f"{options.model} has no chat template: the model continues the prompts as plain text")
    encoded = [encoder.encode(prompt.with_system(options.system)) for prompt in prompts]
    answer = build_engine(options, encoder, max(map(len, encoded)))
    first, begun = done - done % options.batch_size, time.monotonic()
    for start in range(first, total, options.batch_size):
        rows = [divmod(i, options.samples) for i in range(start, min(start + options.batch_size, total))]
        answers = answer([encoded[prompt] for prompt, _ in rows], rows)
        responses = [
            Response(
                prompt=prompts[prompt].text,
                response=decode_answer(tokenizer, sampled),
                generator=options.name,
                uid=prompts[prompt].uid,
                dataset=prompts[prompt].dataset,
                finished=sampled.finished,
                tokens=len(sampled.answer),
                messages=prompts[prompt].conversation,
                sample=number if options.samples > 1 else None,
            )
            for (prompt, number), sampled in zip(rows, answers, strict=True)
        ]
        append_responses(output, responses[max(0, done - start) :], fmt)
        so_far = start + len(rows)
        seconds = (time.monotonic() - begun) / (so_far - first) * (total - so_far)
        log.info(progress(so_far, total, options.samples, seconds))
    return Generated(total, done)


def _say_other_kwargs(options: GenerateOptions) -> None:
    """Warn where the model is an export whose training pairs were rendered with other variables of the template."""
    try:
        trained = made_of(Path(options.model))["fingerprint"]["options"]["data"]["chat_template_kwargs"]
    except (KeyError, TypeError):
        return  # not an export, or one of an earlier version
    if (trained or None) != (options.chat_template_kwargs or None):
        log.warn(
            f"chat_template_kwargs: {options.model} was trained with {trained}, and answers with "
            f"{options.chat_template_kwargs}"
        )


def progress(done: int, total: int, samples: int, seconds: float) -> str:
    """How far a job is.

    Args:
        done: Number of answers.
        total: The same at the end.
        samples: Answers per prompt.
        seconds: Estimated time left.

    Example:
        >>> progress(2, 5, 1, 90.0), progress(20, 20, 4, 0.0)
        ('2 of 5 prompts answered (ETA 2 min)', '20 of 20 answers sampled')
    """
    eta = f" (ETA {max(1, round(seconds / 60))} min)" if done < total else ""
    return f"{done} of {total} {'prompts answered' if samples == 1 else 'answers sampled'}{eta}"
