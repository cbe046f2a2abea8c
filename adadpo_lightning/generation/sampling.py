"""The sampler: maps token ids of prompts to token ids of answers, with separate random numbers for each answer.

Every draw in this package comes from here, so one seed gives one answer: the random numbers depend on the seed, the
index of the prompt in the job and the index of the sample, never on the batch, the rank or the order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.generation.options import SamplingOptions


@dataclass(frozen=True)
class Sampled:
    """One sampled answer.

    Args:
        ids: Its tokens, including the terminator if there is one.
        finished: Whether the answer ends with a terminator.
        logps: Log-probability of each token under the model at temperature 1, nats; empty unless requested.
    """

    ids: list[int]
    finished: bool
    logps: tuple[float, ...] = ()

    @property
    def answer(self) -> list[int]:
        """The tokens without the terminator."""
        return self.ids[: len(self.ids) - self.finished]


def row_seed(seed: int, number: int, sample: int = 0) -> int:
    """Seed of one answer.

    Args:
        seed: Seed of the job.
        number: Number of the prompt in the whole job, from 0.
        sample: Number of the answer among those to the same prompt, from 0.

    Example:
        >>> row_seed(0, 1) == row_seed(0, 1), row_seed(0, 1) == row_seed(1, 0), row_seed(0, 1) == row_seed(0, 1, 1)
        (True, False, False)
    """
    digest = hashlib.sha256(f"{seed}/{number}/{sample}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """Random numbers in [0, 1), one row per seed, shape (rows, `count`), float64."""
    rows = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.rand(count, generator=generator, dtype=torch.float64) for generator in rows])


class SeededChoice:
    """A logits processor that chooses each row's token from that row's own random numbers.

    Greedy search then returns the chosen token.

    Args:
        uniform: Random numbers in [0, 1) for each row and new token, shape (rows, max_new_tokens).
        options: Temperature, top-k and top-p.
        prompt_length: Columns of the padded prompts.
        with_logps: Keep the log-probability of each chosen token in `logps`.
    """

    def __init__(
        self, uniform: Tensor, options: SamplingOptions, prompt_length: int, *, with_logps: bool = False
    ) -> None:
        self._uniform = uniform
        self._options = options
        self._prompt_length = prompt_length
        self._with_logps = with_logps
        self.logps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of 0 for the chosen token and -inf for all others, shape (rows, vocabulary)."""
        uniform = self._uniform[:, input_ids.shape[1] - self._prompt_length, None]
        chosen = choose(scores, uniform.to(scores.device), self._options)
        if self._with_logps:
            self.logps.append(scores.float().log_softmax(-1).gather(1, chosen)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def choose(scores: Tensor, uniform: Tensor, options: SamplingOptions) -> Tensor:
    """Choose a token for each row by inverting the cumulative distribution.

    Args:
        scores: Logits, shape (rows, vocabulary).
        uniform: A random number in [0, 1) per row, shape (rows, 1), float64.
        options: Temperature, top-k and top-p.

    Returns:
        Token ids, shape (rows, 1).
    """
    if options.temperature == 0:
        return scores.argmax(-1, keepdim=True)
    probabilities = (scores.double() / options.temperature).softmax(-1)
    tokens = None
    if options.top_k or options.top_p < 1:
        probabilities, tokens = probabilities.sort(-1, descending=True)
        if options.top_k:
            probabilities[:, options.top_k :] = 0
        if options.top_p < 1:
            cumulative = probabilities.cumsum(-1)
            before = cumulative - probabilities
            probabilities = probabilities.where(before < options.top_p * cumulative[:, -1:], 0.0)
    cumulative = probabilities.cumsum(-1)
    # The first token whose cumulative probability exceeds the point: never one with probability 0.
    place = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return place if tokens is None else tokens.gather(1, place)


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[list[int]],
    options: SamplingOptions,
    *,
    stop_ids: set[int],
    pad_id: int,
    numbers: Sequence[int] | None = None,
    firsts: Sequence[int] | None = None,
    samples: int = 1,
    with_logps: bool = False,
    block: int | None = None,
    synced: bool = False,
) -> list[list[Sampled]]:
    """Answer prompts with transformers' ``generate``; prompts of similar length share a batch, padded on the left.

    Args:
        model: A causal language model of transformers, in evaluation mode, on its device.
        prompts: Token ids of each prompt.
        options: How to sample.
        stop_ids: Tokens that end an answer, in addition to those of the model's generation config.
        pad_id: Token that pads shorter prompts; it is masked.
        numbers: Number of each prompt in the whole job, for its random numbers; None counts from 0.
        firsts: Number of each prompt's first answer among all answers to it, for the same; None is 0.
        samples: Answers per prompt.
        with_logps: Also return the log-probability of each token.
        block: Remove finished answers from the batch after every `block` tokens, so that long answers do not cost as
            much as all; needs a model with a dynamic key-value cache. None keeps them until the batch is done.
        synced: Run equally many forward passes on all ranks, for sharded weights; not together with `block`.

    Returns:
        For each prompt its answers.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    firsts = [0] * len(prompts) if firsts is None else firsts
    rows = list(product(range(len(prompts)), range(samples)))
    rows.sort(key=lambda row: len(prompts[row[0]]))
    answers: dict[tuple[int, int], Sampled] = {}
    with _generation_config(model, options, stop_ids, pad_id) as stops:
        for start in range(0, len(rows), options.batch_size):
            batch = rows[start : start + options.batch_size]
            seeds = [row_seed(options.seed, numbers[prompt], firsts[prompt] + number) for prompt, number in batch]
            drawn = _Batch(model, [prompts[prompt] for prompt, _ in batch], pad_id, stops)
            drawn.run(uniforms(seeds, options.max_new_tokens), options, block, with_logps=with_logps, synced=synced)
            answers.update(zip(batch, drawn.answers(), strict=True))
    return [[answers[prompt, number] for number in range(samples)] for prompt in range(len(prompts))]


class _Batch:
    """Answers to one batch of prompts, in blocks between which finished rows leave."""

    def __init__(self, model: Any, prompts: Sequence[list[int]], pad_id: int, stops: set[int]) -> None:
        device = model.get_input_embeddings().weight.device
        width = max(map(len, prompts))
        self._model, self._stops = model, stops
        self._ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts], device=device)
        self._mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        self._tokens: list[list[int]] = [[] for _ in prompts]
        self._logps: list[list[float]] = [[] for _ in prompts]

    def run(
        self, uniform: Tensor, options: SamplingOptions, block: int | None, *, with_logps: bool, synced: bool
    ) -> None:
        rows = list(range(len(self._tokens)))
        cache: dict[str, Any] = {}
        longest, width = options.max_new_tokens, self._ids.shape[1]
        while rows and self._ids.shape[1] < width + longest:
            done = self._ids.shape[1]
            choice = SeededChoice(uniform[rows], options, width, with_logps=with_logps)
            drawn = self._model.generate(
                input_ids=self._ids,
                attention_mask=self._mask,
                max_new_tokens=min(block or longest, width + longest - done),
                logits_processor=[choice],
                return_dict_in_generate=True,
                synced_gpus=synced,
                **cache,
            )
            going = self._take(rows, drawn.sequences[:, done:].tolist(), choice.logps)
            if block is None:
                return
            rows = [rows[i] for i in going]
            keep = torch.tensor(going, dtype=torch.long, device=self._ids.device)
            self._ids = drawn.sequences[keep]
            grown = self._mask.new_ones(len(self._mask), drawn.sequences.shape[1] - done)
            self._mask = torch.cat([self._mask, grown], 1)[keep]
            drawn.past_key_values.batch_select_indices(keep)
            cache = {"past_key_values": drawn.past_key_values}

    def _take(self, rows: Sequence[int], new: Sequence[list[int]], logps: Sequence[Tensor]) -> list[int]:
        """Add a block's tokens; returns which of its rows have not come to a terminator."""
        values = torch.stack(list(logps), 1).tolist() if logps else [[]] * len(rows)
        going = []
        for i, row in enumerate(rows):
            ids, finished = through_stop(new[i], self._stops)
            self._tokens[row] += ids
            self._logps[row] += values[i][: len(ids)]
            if not finished:
                going.append(i)
        return going

    def answers(self) -> list[Sampled]:
        ended = [bool(ids) and ids[-1] in self._stops for ids in self._tokens]
        return [Sampled(*row) for row in zip(self._tokens, ended, map(tuple, self._logps), strict=True)]


@contextmanager
def _generation_config(model: Any, options: SamplingOptions, stop_ids: set[int], pad_id: int) -> Iterator[set[int]]:
    """Within this context the model's own generation defaults do not apply; yields all tokens that end an answer."""
    from transformers import GenerationConfig

    # transformers would complete a config that is passed as an argument with the model's temperature or penalties.
    own = model.generation_config
    theirs = own.eos_token_id
    stops = stop_ids | set(theirs if isinstance(theirs, list) else [] if theirs is None else [theirs])
    model.generation_config = GenerationConfig(
        max_new_tokens=options.max_new_tokens, do_sample=False, eos_token_id=sorted(stops), pad_token_id=pad_id
    )
    try:
        yield stops
    finally:
        model.generation_config = own


def through_stop(ids: list[int], stops: set[int]) -> tuple[list[int], bool]:
    """The tokens up to and including the first terminator, and whether there is one.

    Example:
        >>> through_stop([5, 6, 2, 0, 0], {2}), through_stop([5, 6], {2})
        (([5, 6, 2], True), ([5, 6], False))
    """
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    return (ids, False) if end is None else (ids[: end + 1], True)


def pad_id_of(tokenizer: Any) -> int:
    """The tokenizer's padding token, or EOS without one."""
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None else pad)


def check_room(model: Any, longest: int, options: SamplingOptions, field: str = "max_new_tokens") -> None:
    """Check that the longest prompt and its answer fit the model's positions.

    Raises:
        UserError: If they do not.
    """
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and longest + options.max_new_tokens > room:
        raise UserError(
            field,
            f"the longest prompt has {longest} tokens; with {options.max_new_tokens} new ones that is beyond the "
            f"model's {room} positions",
            "lower it, or use shorter prompts",
        )
