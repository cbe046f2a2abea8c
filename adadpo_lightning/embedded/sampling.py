"""Sampling from models of the embedded task, and scoring of given answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from adadpo_lightning.generation.options import SamplingOptions
from adadpo_lightning.generation.sampling import pad_id_of, sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 80
ROWS = 1024
# Finished answers leave the batch every BLOCK tokens, so that a few long answers do not slow down the whole batch.
BLOCK = 16


@dataclass(frozen=True)
class Sample:
    """One sampled answer.

    Args:
        text: The answer without its terminator.
        ids: Its tokens, including the terminator if there is one.
        logps: Log-probability of each token under the sampled model, nats, as long as `ids`.
        finished: Whether it ended before the maximum length.
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
    """Model and tokenizer of a Hugging Face directory, ready for sampling."""
    from adadpo_lightning.models.loading import PolicyConfig, load_model, load_tokenizer

    config = PolicyConfig(path=path)
    tokenizer = load_tokenizer(config)
    return load_model(config, tokenizer).eval(), tokenizer


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, rendered with the chat template."""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        for prompt in prompts
    ]


def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    samples: int = 1,
    seed: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[list[Sample]]:
    """Sample answers at temperature 1 from the model's full distribution.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer, with a chat template.
        prompts: User messages.
        samples: Answers per prompt.
        seed: Random seed; see `row_seed`.
        max_new_tokens: Longer answers are truncated.

    Returns:
        The samples of each prompt.
    """
    drawn = sample(
        model,
        encode_prompts(tokenizer, prompts),
        SamplingOptions(max_new_tokens, temperature=1.0, seed=seed, batch_size=ROWS),
        stop_ids={tokenizer.eos_token_id},
        pad_id=pad_id_of(tokenizer),
        samples=samples,
        with_logps=True,
        block=BLOCK,
    )
    return [
        [Sample(tokenizer.decode(a.answer), a.ids, list(a.logps), a.finished) for a in answers] for answers in drawn
    ]


@torch.inference_mode()
def score_answers(model: PreTrainedModel, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> list[Tensor]:
    """Log-probability of each token of given answers.

    Args:
        model: A causal language model.
        prompts: Token ids of each prompt.
        answers: Token ids of its answer, including the terminator.

    Returns:
        For each answer the log-probabilities of its tokens, nats, float32.
    """
    scored: list[Tensor] = [torch.empty(0)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(answers[i]))
    for start in range(0, len(order), ROWS // 4):
        chunk = order[start : start + ROWS // 4]
        texts = [torch.tensor(prompts[i] + answers[i]) for i in chunk]
        # Right padding needs no mask under causal attention.
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        logps = model(ids[:, :-1], use_cache=False).logits.float().log_softmax(-1)
        taken = logps.gather(2, ids[:, 1:, None])[..., 0]
        for row, i in enumerate(chunk):
            scored[i] = taken[row, len(prompts[i]) - 1 : len(prompts[i]) + len(answers[i]) - 1].clone()
    return scored
