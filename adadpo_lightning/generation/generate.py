"""Answer prompts with a model: batched, seeded by prompt, resumable, through the template it was trained with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from adadpo_lightning.data.schema import BadRow, PreferencePair, as_messages
from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.data.tokenize import PairTokenizer, TokenizeOptions
from adadpo_lightning.errors import UserError, did_you_mean
from adadpo_lightning.evaluation.formats import (
    Prompt,
    Response,
    append_responses,
    read_prompts,
    recover_rows,
    response_format,
    write_atomically,
)
from adadpo_lightning.generation.options import GenerateOptions, SamplingOptions

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# From token ids of prompts, and the number of each prompt in the whole job, to token ids of answers without terminator,
# and whether each came to one.
Engine = Callable[[Sequence[list[int]], Sequence[int]], list[tuple[list[int], bool]]]


class PromptTokenizer(PairTokenizer):
    """Token ids of prompts alone, exactly as answers follow them in training.

    Args:
        tokenizer: The model's tokenizer.
        chat: As in `TokenizeOptions`.

    Raises:
        UserError: As `PairTokenizer`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat: Literal["auto", "always", "never"] = "auto") -> None:
        super().__init__(tokenizer, TokenizeOptions(chat=chat, with_rejected=False))

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of one prompt, with the template's BOS or, without a template, the tokenizer's own.

        Raises:
            UserError: If the template refuses the conversation, or there is none for messages.
        """
        if not self.uses_template:
            if not isinstance(prompt.messages, str):
                raise UserError(f"prompt {prompt.uid}", "has messages and the tokenizer no chat template")
            bos = [self.tokenizer.bos_token_id] if self._adds_bos else []
            return bos + self._ids(self._protected(prompt.messages))
        messages = as_messages(prompt.messages, "user")
        try:
            return self._ids(self._render(messages, None, add_generation_prompt=True))
        except BadRow as error:
            raise UserError(f"prompt {prompt.uid}", str(error)) from error

    def stop_ids(self) -> set[int]:
        """EOS, and the token with which answers end in training."""
        trained = self(PreferencePair(prompt="a", chosen="a")).chosen_ids[-1]
        return {trained, self.tokenizer.eos_token_id}


class SeededChoice:
    """A logits processor that draws each row's token itself, from random numbers of that row alone.

    Greedy search then takes the token that was drawn.

    Args:
        seeds: One for each row.
        options: Temperature, top-k and top-p.
        prompt_length: Columns of the padded prompts.
    """

    def __init__(self, seeds: Sequence[int], options: SamplingOptions, prompt_length: int) -> None:
        rows = [torch.Generator().manual_seed(seed) for seed in seeds]
        # One number in [0, 1) picks a token by the cumulative distribution.
        self._uniform = torch.stack(
            [torch.rand(options.max_new_tokens, generator=g, dtype=torch.float64) for g in rows]
        )
        self._options = options
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of 0 for the token drawn and -inf for all others, shape (rows, vocabulary)."""
        step = input_ids.shape[1] - self._prompt_length
        probabilities, tokens = (scores.double() / self._options.temperature).softmax(-1).sort(-1, descending=True)
        if self._options.top_k:
            probabilities[:, self._options.top_k :] = 0
        cumulative = probabilities.cumsum(-1)
        if self._options.top_p < 1:
            before = cumulative - probabilities
            probabilities = probabilities.where(before < self._options.top_p * cumulative[:, -1:], 0.0)
            cumulative = probabilities.cumsum(-1)
        point = self._uniform[:, step, None].to(cumulative.device) * cumulative[:, -1:]
        # The first token whose cumulative probability is above the point: never one of probability 0.
        drawn = tokens.gather(1, torch.searchsorted(cumulative, point, right=True))
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


def transformers_engine(model: PreTrainedModel, stop_ids: set[int], pad_id: int, options: SamplingOptions) -> Engine:
    """Answer by transformers' ``generate``, prompts padded on the left.

    Args:
        model: A causal language model on its device.
        stop_ids: Tokens that end an answer, besides those of the model's generation config.
        pad_id: Fills up shorter prompts; masked.
        options: How to draw.
    """
    from transformers import GenerationConfig

    theirs = model.generation_config.eos_token_id
    stops = stop_ids | set(theirs if isinstance(theirs, list) else [] if theirs is None else [theirs])
    # A fresh one: transformers would fill in what the model's own says of temperature, top-k or penalties.
    model.generation_config = GenerationConfig(
        max_new_tokens=options.max_new_tokens, do_sample=False, eos_token_id=sorted(stops), pad_token_id=pad_id
    )
    device = model.get_input_embeddings().weight.device

    @torch.inference_mode()
    def answer(prompts: Sequence[list[int]], numbers: Sequence[int]) -> list[tuple[list[int], bool]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        seeds = [_row_seed(options.seed, number) for number in numbers]
        choice = [SeededChoice(seeds, options, width)] if options.temperature > 0 else []
        whole = model.generate(input_ids=ids, attention_mask=mask, logits_processor=choice)
        return [_until_stop(row, stops) for row in whole[:, width:].tolist()]

    return answer


def vllm_engine(path: str, dtype: str, stop_ids: set[int], options: SamplingOptions) -> Engine:
    """Answer by vLLM (extra ``vllm``), which loads the model itself; its draws differ from those of transformers.

    Args:
        path: Directory or hub id.
        dtype: Type of the weights; ``auto`` is that of the checkpoint.
        stop_ids: Tokens that end an answer, besides those of the model's generation config.
        options: How to draw.

    Raises:
        UserError: If vLLM is not installed.
    """
    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        raise UserError(
            "engine", "vllm needs the package vllm, which is not installed", "pip install 'adadpo-lightning[vllm]'"
        ) from error
    model = LLM(model=path, dtype=dtype, seed=options.seed)

    def answer(prompts: Sequence[list[int]], numbers: Sequence[int]) -> list[tuple[list[int], bool]]:
        params = [
            SamplingParams(
                max_tokens=options.max_new_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                top_k=options.top_k or -1,
                seed=_row_seed(options.seed, number),
                stop_token_ids=sorted(stop_ids),
            )
            for number in numbers
        ]
        outputs = model.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        firsts = [output.outputs[0] for output in outputs]
        return [(_until_stop(list(o.token_ids), stop_ids)[0], o.finish_reason == "stop") for o in firsts]

    return answer


@dataclass(frozen=True)
class GenerationJob:
    """What is to be generated, and where it goes.

    Args:
        model: Hugging Face directory or hub id.
        output: File to write.
        format: One of `RESPONSE_FORMATS`.
        generator: Name of the model in the file; null takes the last part of `model`.
        system: System prompt before every prompt.
        chat: As in `TokenizeOptions`.
        engine: ``transformers`` or ``vllm``.
        dtype: Type of the weights; ``auto`` is that of the checkpoint.
        device: Where to run; ``auto`` takes a GPU if there is one.
    """

    model: str
    output: str
    format: str = "jsonl"
    generator: str | None = None
    system: str | None = None
    chat: Literal["auto", "always", "never"] = "auto"
    engine: Literal["transformers", "vllm"] = "transformers"
    dtype: str = "auto"
    device: str = "auto"

    @property
    def name(self) -> str:
        """Name of the model in the file."""
        return self.generator or Path(self.model).name


def generate(options: GenerateOptions) -> tuple[int, int]:
    """Answer prompts as the ``generate`` command does.

    Returns:
        How many responses the output holds, and how many of them were there before.

    Raises:
        UserError: As `generate_responses` and `read_prompts`.
    """
    source = SourceConfig(options.prompts, subset=options.subset, split=options.split)
    prompts = read_prompts(source, options.column, options.limit)
    job = GenerationJob(
        options.model,
        options.output,
        options.response_format,
        options.generator,
        options.system,
        options.chat,
        options.engine,
        options.dtype,
        options.device,
    )
    return len(prompts), generate_responses(job, prompts, options.sampling)


def generate_responses(job: GenerationJob, prompts: Sequence[Prompt], options: SamplingOptions) -> int:
    """Answer every prompt that has no answer in the output file yet.

    Beside the output stands ``<output>.settings.json``: model, sampling and a hash of the prompts. A run with the same
    settings goes on after the rows that are there; one with others stops before it has touched the file.

    Returns:
        How many rows were there already.

    Raises:
        UserError: If the file is of another job, the model or its tokenizer cannot be loaded, or a prompt leaves no
            room for an answer.
    """
    from adadpo_lightning.models.loading import PolicyConfig, load_tokenizer

    fmt, output = response_format(job.format), Path(job.output)
    if job.engine not in ("transformers", "vllm"):
        raise UserError("engine", f"unknown engine {job.engine!r}", did_you_mean(job.engine, ["transformers", "vllm"]))
    _check_settings(output, _settings(job, prompts, options))
    done = recover_rows(output, fmt)
    if done >= len(prompts):
        return done
    asked = [_with_system(prompt, job.system) for prompt in prompts]
    tokenizer = load_tokenizer(PolicyConfig(path=job.model))
    encoder = PromptTokenizer(tokenizer, job.chat)
    encoded = [encoder.encode(prompt) for prompt in asked]
    answer = _engine(job, encoder, max(map(len, encoded)), options)
    numbers = iter(range(done, len(prompts)))
    while batch := list(islice(numbers, options.batch_size)):
        answers = answer([encoded[i] for i in batch], batch)
        rows = [
            Response(
                prompt=prompts[i].text,
                response=tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip(),
                generator=job.name,
                uid=prompts[i].uid,
                dataset=prompts[i].dataset,
                finished=finished,
                tokens=len(ids),
            )
            for i, (ids, finished) in zip(batch, answers, strict=True)
        ]
        append_responses(output, rows, fmt)
        print(f"{batch[-1] + 1} of {len(prompts)} prompts", flush=True)
    return done


def _engine(job: GenerationJob, encoder: PromptTokenizer, longest: int, options: SamplingOptions) -> Engine:
    from adadpo_lightning.models.loading import PolicyConfig, load_model

    stops = encoder.stop_ids()
    if job.engine == "vllm":
        return vllm_engine(job.model, job.dtype, stops, options)
    model = load_model(PolicyConfig(path=job.model, dtype=job.dtype), encoder.tokenizer).eval()  # type: ignore[arg-type]  # checked where it is used
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and longest + options.max_new_tokens > room:
        raise UserError(
            "max_new_tokens",
            f"the longest prompt has {longest} tokens; with {options.max_new_tokens} new ones that is beyond the "
            f"model's {room} positions",
            "lower it, or leave the longest prompts out",
        )
    device = job.device if job.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    pad = encoder.tokenizer.pad_token_id
    pad_id = encoder.tokenizer.eos_token_id if pad is None else pad
    return transformers_engine(model.to(device), stops, pad_id, options)


def _with_system(prompt: Prompt, system: str | None) -> Prompt:
    if system is None:
        return prompt
    return replace(prompt, messages=[{"role": "system", "content": system}, *as_messages(prompt.messages, "user")])


def _row_seed(seed: int, number: int) -> int:
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _until_stop(ids: list[int], stops: set[int]) -> tuple[list[int], bool]:
    """The tokens before the first stop, and whether there is one."""
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    return ids[:end], end is not None


def _settings(job: GenerationJob, prompts: Sequence[Prompt], options: SamplingOptions) -> dict[str, Any]:
    asked = hashlib.sha256(json.dumps([asdict(p) for p in prompts], sort_keys=True).encode()).hexdigest()
    settings = {"prompts": f"{len(prompts)}, sha256 {asked}"} | asdict(options) | asdict(job) | {"generator": job.name}
    # Where it runs and how many at a time does not change what is drawn.
    return {name: value for name, value in settings.items() if name not in ("batch_size", "device", "output")}


def _check_settings(output: Path, settings: dict[str, Any]) -> None:
    beside = output.with_name(f"{output.name}.settings.json")
    if not output.exists():
        write_atomically(beside, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        return
    if not beside.exists():
        raise UserError("output", f"{output} exists and is no unfinished output of generate", "choose another path")
    before = json.loads(beside.read_text(encoding="utf-8"))
    changed = sorted(name for name in settings.keys() | before.keys() if settings.get(name) != before.get(name))
    if changed:
        was = ", ".join(f"{name} was {before.get(name)}" for name in changed)
        raise UserError("output", f"{output} was begun with other settings: {was}", "delete it or choose another path")
