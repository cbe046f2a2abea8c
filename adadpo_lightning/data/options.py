"""Options of tokenization: lengths, chat template, special tokens, and what is scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from adadpo_lightning.data.lists import ListOptions
from adadpo_lightning.data.special import SpecialTokens
from adadpo_lightning.data.template import check_template_kwargs
from adadpo_lightning.errors import UserError

Score = Literal["assistant", "all"]


@dataclass(frozen=True)
class TokenizeOptions:
    """Options of tokenization.

    Args:
        max_length: Maximum tokens of prompt plus longer answer.
        max_prompt_length: Maximum tokens of the prompt; None for no separate limit.
        truncation: Handling of too long pairs. ``drop``: drop the pair. ``keep_start``: truncate the end of the
            answers, which lose their terminator; a prompt that leaves no room is a bad row. ``keep_end``: truncate the
            start of the prompt; drop the pair if its answers alone are too long.
        chat: ``auto`` renders the tokenizer's chat template if it has one, except for prompts that are already
            rendered; ``always`` requires it; ``never`` joins prompt, answer and EOS unchanged.
        with_rejected: False omits the rejected answers, for a loss that does not read them.
        special_tokens: ``text`` keeps special tokens in the data as plain text, ``parse`` reads them as tokens, and
            ``auto`` decides for each column; see `special.decide`.
        chat_template_kwargs: Variables of the chat template, for example ``{"enable_thinking": False}``; a column of
            this name takes precedence, key by key.
        lists: How ranked lists are made into pairs.
        score: Scored tokens of an answer of several turns: those of the ``assistant``, or ``all``, also those of the
            user and of tools in between.
    """

    max_length: int = 2048
    max_prompt_length: int | None = None
    truncation: Literal["drop", "keep_start", "keep_end"] = "keep_start"
    chat: Literal["auto", "always", "never"] = "auto"
    with_rejected: bool = True
    special_tokens: SpecialTokens = "auto"
    chat_template_kwargs: dict[str, Any] | None = None
    lists: ListOptions = field(default_factory=ListOptions)
    score: Score = "assistant"

    def __post_init__(self) -> None:
        """Check the bounds and the choices."""
        if self.max_length < 2:
            raise UserError("data.max_length", f"expected at least 2, got {self.max_length}")
        if self.max_prompt_length is not None and not 1 <= self.max_prompt_length < self.max_length:
            raise UserError(
                "data.max_prompt_length",
                f"expected 1 to max_length - 1 = {self.max_length - 1}, got {self.max_prompt_length}",
            )
        choices = {
            "truncation": ("drop", "keep_start", "keep_end"),
            "chat": ("auto", "always", "never"),
            "special_tokens": ("auto", "text", "parse"),
            "score": ("assistant", "all"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UserError(f"data.{name}", f"expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        check_template_kwargs(self.chat_template_kwargs)
