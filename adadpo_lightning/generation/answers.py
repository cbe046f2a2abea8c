"""Texts from a model in memory: prompts in, answers out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adadpo_lightning.errors import UserError
from adadpo_lightning.generation.options import SamplingOptions
from adadpo_lightning.generation.prompts import Prompt, PromptTokenizer
from adadpo_lightning.generation.responses import Response
from adadpo_lightning.generation.sampling import check_room, pad_id_of, sample
from adadpo_lightning.models.policy import PolicyModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from adadpo_lightning.generation.options import Chat
    from adadpo_lightning.generation.sampling import Sampled


def answer_prompts(
    model: PolicyModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | list[dict[str, Any]]],
    options: SamplingOptions | None = None,
    *,
    samples: int = 1,
    system: str | None = None,
    chat: Chat = "auto",
    chat_template_kwargs: dict[str, Any] | None = None,
    synced: bool = False,
) -> list[list[Response]]:
    """Answer prompts with a model in memory, also one that is being trained: its state is left as it was.

    Args:
        model: The policy, or a causal language model of transformers.
        tokenizer: Its tokenizer.
        prompts: Texts (each a user message where a chat template is used) or conversations.
        options: How to sample; None uses the defaults.
        samples: Answers per prompt.
        system: System prompt.
        chat: As in `TokenizeOptions`.
        chat_template_kwargs: As in `TokenizeOptions`.
        synced: As in `sample`: True if the weights are sharded; all ranks then call this with equally many prompts.

    Returns:
        For each prompt its answers. The same seed gives the answers that ``generate`` writes for the same prompts.

    Raises:
        UserError: If there are no prompts, or one leaves no room for an answer.

    Example:
        Greedy answers of a policy in training::

            answers = answer_prompts(policy, tokenizer, ["What is 2 plus 3?"], SamplingOptions(temperature=0))
            answers[0][0].response
    """
    options = options or SamplingOptions()
    if not prompts or isinstance(prompts, str):
        raise UserError("prompts", "expected a list of at least one prompt")
    asked = [Prompt(messages, str(i)) for i, messages in enumerate(prompts)]
    encoder = PromptTokenizer(tokenizer, chat, chat_template_kwargs=chat_template_kwargs)
    encoder.read(asked)
    encoded = [encoder.encode(prompt.with_system(system)) for prompt in asked]
    with _ready(model) as ready:
        check_room(ready, max(map(len, encoded)), options)
        drawn = sample(
            ready,
            encoded,
            options,
            stop_ids=encoder.stop_ids(),
            pad_id=pad_id_of(tokenizer),
            samples=samples,
            synced=synced,
        )
    return [
        [
            Response(
                prompt.text,
                decode_answer(tokenizer, sampled),
                uid=prompt.uid,
                finished=sampled.finished,
                tokens=len(sampled.answer),
            )
            for sampled in answers
        ]
        for prompt, answers in zip(asked, drawn, strict=True)
    ]


def decode_answer(tokenizer: PreTrainedTokenizerBase, sampled: Sampled) -> str:
    """Text of an answer, without special tokens and surrounding white space."""
    text: str = tokenizer.decode(sampled.answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()


@contextmanager
def _ready(model: Any) -> Iterator[Any]:
    """Within this context the model can generate: in evaluation mode, and with plain attention."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        if isinstance(model, PolicyModel):
            with model.plain_attention():
                yield model.causal_lm
        else:
            yield model
    finally:
        for module, training in modes:
            module.training = training
