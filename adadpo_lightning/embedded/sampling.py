"""Sample from a causal language model, and score given answers: batched, seeded, without padding of prompts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 80
ROWS = 1024


@dataclass(frozen=True)
class Sample:
    """One sampled answer.

    Args:
        text: The answer without its terminator.
        ids: Its tokens, the terminator included where it came to one.
        logps: Log-probability of each token under the model that it was sampled from, nats, as long as `ids`.
        finished: Whether it ended before the longest allowed length.
    """

    text: str
    ids: list[int]
    logps: list[float]
    finished: bool

    @property
    def length(self) -> int:
        """Tokens without the terminator."""
        return len(self.ids) - self.finished


def load_exported(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a Hugging Face directory, ready to be sampled from."""
    from adadpo_lightning.models.loading import PolicyConfig, load_model, load_tokenizer

    config = PolicyConfig(path=path)
    tokenizer = load_tokenizer(config)
    return load_model(config, tokenizer).eval(), tokenizer


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt through the chat template, ready to be answered."""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        for prompt in prompts
    ]


@torch.inference_mode()
def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    samples: int = 1,
    seed: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[list[Sample]]:
    """Sample answers at temperature 1 from the model's whole distribution.

    Prompts of equal length share a batch, so that no prompt is padded and the model sees what it saw in training.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer, with a chat template.
        prompts: User messages.
        samples: Answers for each prompt.
        seed: The same seed gives the same answers on one machine.
        max_new_tokens: Longer answers are cut off.

    Returns:
        For each prompt its samples.
    """
    generator = torch.Generator().manual_seed(seed)
    encoded = encode_prompts(tokenizer, prompts)
    drawn: list[list[Sample]] = [[] for _ in prompts]
    for chunk in _equal_lengths(encoded, max(1, ROWS // samples)):
        ids, logps = _sample_batch(
            model, torch.tensor([encoded[i] for i in chunk]), samples, generator, max_new_tokens, tokenizer.eos_token_id
        )
        for row, (row_ids, row_logps) in enumerate(zip(ids, logps, strict=True)):
            finished = row_ids[-1] == tokenizer.eos_token_id
            text = tokenizer.decode(row_ids[: len(row_ids) - finished])
            drawn[chunk[row // samples]].append(Sample(text, row_ids, row_logps, finished))
    return drawn


def _equal_lengths(encoded: Sequence[list[int]], size: int) -> Iterator[list[int]]:
    """Indices of prompts of equal length, at most `size` at a time."""
    by_length = defaultdict(list)
    for i, ids in enumerate(encoded):
        by_length[len(ids)].append(i)
    for length in sorted(by_length):
        group = by_length[length]
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _sample_batch(
    model: PreTrainedModel, prompts: Tensor, samples: int, generator: torch.Generator, max_new_tokens: int, eos: int
) -> tuple[list[list[int]], list[list[float]]]:
    step = model(prompts, use_cache=True, logits_to_keep=1)
    cache: Any = step.past_key_values
    cache.batch_repeat_interleave(samples)
    logits = step.logits[:, -1].repeat_interleave(samples, 0)
    rows = torch.arange(len(logits))
    ids: list[list[int]] = [[] for _ in rows]
    logps: list[list[float]] = [[] for _ in rows]
    for _ in range(max_new_tokens):
        distribution = logits.float().log_softmax(-1)
        token = torch.multinomial(distribution.exp(), 1, generator=generator)
        logp = distribution.gather(1, token)
        for row, t, lp in zip(rows.tolist(), token[:, 0].tolist(), logp[:, 0].tolist(), strict=True):
            ids[row].append(t)
            logps[row].append(lp)
        going = (token[:, 0] != eos).nonzero()[:, 0]
        if len(going) == 0:
            break
        # Finished rows leave the batch: the longest answers would otherwise cost as much as all.
        if len(going) < len(rows):
            cache.batch_select_indices(going)
            rows, token = rows[going], token[going]
        logits = model(token, past_key_values=cache, use_cache=True).logits[:, -1]
    return ids, logps


@torch.inference_mode()
def score_answers(model: PreTrainedModel, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> list[Tensor]:
    """Log-probability of each token of given answers.

    Args:
        model: A causal language model.
        prompts: Token ids of each prompt.
        answers: Token ids of its answer, the terminator included.

    Returns:
        For each answer the log-probabilities of its tokens, nats, float32.
    """
    scored: list[Tensor] = [torch.empty(0)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(answers[i]))
    for start in range(0, len(order), ROWS // 4):
        chunk = order[start : start + ROWS // 4]
        texts = [torch.tensor(prompts[i] + answers[i]) for i in chunk]
        # Padding on the right needs no mask: causal attention never looks there.
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        logps = model(ids[:, :-1], use_cache=False).logits.float().log_softmax(-1)
        taken = logps.gather(2, ids[:, 1:, None])[..., 0]
        for row, i in enumerate(chunk):
            scored[i] = taken[row, len(prompts[i]) - 1 : len(prompts[i]) + len(answers[i]) - 1].clone()
    return scored
