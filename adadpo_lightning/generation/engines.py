"""Engines: what turns token ids of prompts into answers, transformers or vLLM."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from adadpo_lightning.errors import UserError
from adadpo_lightning.generation.sampling import Sampled, check_room, pad_id_of, row_seed, sample, through_stop
from adadpo_lightning.gguf import SUFFIX
from adadpo_lightning.models.devices import device_of
from adadpo_lightning.models.loading import PolicyConfig, load_model

if TYPE_CHECKING:
    from adadpo_lightning.generation.options import GenerateOptions
    from adadpo_lightning.generation.prompts import PromptTokenizer


class Engine(Protocol):
    """Answers a batch of prompts."""

    def __call__(self, prompts: Sequence[list[int]], rows: Sequence[tuple[int, int]]) -> list[Sampled]:
        """One answer per prompt.

        Args:
            prompts: Token ids.
            rows: For the random numbers of each answer, the number of its prompt in the whole job, and its number among
                the answers to that prompt.
        """


def build_engine(options: GenerateOptions, encoder: PromptTokenizer, longest: int) -> Engine:
    """Load the model of a job into its engine.

    Args:
        options: The job.
        encoder: The model's tokenizer.
        longest: Tokens of the longest prompt.

    Raises:
        UserError: If the model cannot be loaded, or the longest prompt leaves no room for an answer.
    """
    build = vllm_engine if options.engine == "vllm" else transformers_engine
    return build(options, encoder, longest)


def check_engine(options: GenerateOptions) -> None:
    """Whether engine and device are there, before anything is loaded.

    Raises:
        UserError: If one is not.
    """
    if options.engine == "vllm" and "vllm" not in sys.modules and find_spec("vllm") is None:
        raise UserError(
            "engine", "vllm needs the package vllm, which is not installed", "pip install 'adadpo-lightning[vllm]'"
        )
    device_of(options.device)


def transformers_engine(options: GenerateOptions, encoder: PromptTokenizer, longest: int) -> Engine:
    """Answer with transformers and `sample`; arguments as `build_engine`."""
    loaded = load_model(PolicyConfig(path=options.model, dtype=options.dtype), encoder.tokenizer).eval()
    check_room(loaded, longest, options.sampling)
    model = loaded.to(device_of(options.device))
    stops, pad_id = encoder.stop_ids(), pad_id_of(encoder.tokenizer)

    def answer(prompts: Sequence[list[int]], rows: Sequence[tuple[int, int]]) -> list[Sampled]:
        numbers, firsts = zip(*rows, strict=True)
        drawn = sample(model, prompts, options.sampling, stop_ids=stops, pad_id=pad_id, numbers=numbers, firsts=firsts)
        return [answers[0] for answers in drawn]

    return answer


def vllm_engine(options: GenerateOptions, encoder: PromptTokenizer, longest: int) -> Engine:
    """Answer with vLLM (extra ``vllm``), which loads the model itself; arguments as `build_engine`.

    Its answers have the seeds of `row_seed`, but its own random numbers: they differ from those of transformers.

    Raises:
        UserError: For a GGUF file.
    """
    if options.model.endswith(SUFFIX):
        raise UserError("engine", f"vllm is not given {SUFFIX} files", "use transformers, or safetensors weights")
    from vllm import LLM, SamplingParams

    sampling, stops = options.sampling, encoder.stop_ids()
    model = LLM(model=options.model, dtype=options.dtype, seed=sampling.seed)

    def answer(prompts: Sequence[list[int]], rows: Sequence[tuple[int, int]]) -> list[Sampled]:
        params = [
            SamplingParams(
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k or -1,
                seed=row_seed(sampling.seed, *row),
                stop_token_ids=sorted(stops),
            )
            for row in rows
        ]
        outputs = model.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        firsts = [output.outputs[0] for output in outputs]
        # The last token of a finished answer is its terminator, also where only the model's own config names it.
        return [
            Sampled(through_stop(list(first.token_ids), stops)[0], first.finish_reason == "stop") for first in firsts
        ]

    return answer
