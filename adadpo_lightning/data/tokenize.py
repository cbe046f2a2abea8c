"""A pair to token ids: one BOS, one terminator, and the boundary where the answers begin.

The chat template is rendered once over prompt and answer together, as the model will see it in use. The boundary is the
longest common prefix of the tokenised prompt and both whole sequences: where a tokenizer merges the last letters of the
prompt with the first of an answer, the answer begins one token earlier, and nothing is scored twice or lost.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from adadpo_lightning.data.schema import IDENTICAL, BadRow, PreferencePair, as_messages
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adadpo_lightning.data.schema import Message

# Put inside special tokens that stand in the data's own text, and split at before tokenising: so the text
# "<|eot_id|>" in an answer stays text. A Unicode noncharacter, which no text holds.
BREAK = "\ufdd0"
TOO_LONG = "longer than max_length"
PROMPT_TOO_LONG = "prompt too long"


@dataclass(frozen=True)
class TokenizeOptions:
    """How pairs become token ids.

    Args:
        max_length: Tokens of prompt plus longer answer at most.
        max_prompt_length: Tokens of the prompt at most; None for no bound of its own.
        truncation: What to do with a pair that is too long. ``drop``: leave it out. ``keep_start``: cut the end of its
            answers, which lose their terminator; a prompt that leaves no room is a bad row. ``keep_end``: cut the start
            of its prompt; left out if its answers alone are too long.
        chat: ``auto`` renders the tokenizer's chat template where there is one, ``always`` demands it, ``never`` joins
            prompt, answer and EOS as they are.
        with_rejected: False leaves the rejected answers out, for a loss that reads none.
    """

    max_length: int = 2048
    max_prompt_length: int | None = None
    truncation: Literal["drop", "keep_start", "keep_end"] = "keep_start"
    chat: Literal["auto", "always", "never"] = "auto"
    with_rejected: bool = True

    def __post_init__(self) -> None:
        """Check the bounds and the choices."""
        if self.max_length < 2:
            raise UserError("data.max_length", f"expected at least 2, got {self.max_length}")
        if self.max_prompt_length is not None and not 1 <= self.max_prompt_length < self.max_length:
            raise UserError(
                "data.max_prompt_length",
                f"expected 1 to max_length - 1 = {self.max_length - 1}, got {self.max_prompt_length}",
            )
        choices = {"truncation": ("drop", "keep_start", "keep_end"), "chat": ("auto", "always", "never")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UserError(f"data.{name}", f"expected one of {', '.join(known)}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of a pair, and what was done to get them.

    Args:
        prompt_ids: The prompt that both answers share; never empty.
        chosen_ids: Scored tokens of the chosen answer; never empty.
        rejected_ids: Scored tokens of the rejected answer; empty if there is none.
        cut: What was cut off: ``""``, ``"answer cut"`` or ``"prompt cut"``.
        boundary_moved: Whether the answers begin before the tokenised prompt's end.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    cut: str = ""
    boundary_moved: bool = False


class PairTokenizer:
    """Tokenises pairs and cuts them to length.

    Args:
        tokenizer: The policy's tokenizer.
        options: How to render and to cut.

    Raises:
        UserError: If the tokenizer has no EOS token, or no chat template where one is demanded.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                "tokenizer", "has no EOS token, so no answer could end", "set eos_token in its tokenizer_config.json"
            )
        if options.chat == "always" and not tokenizer.chat_template:
            raise UserError(
                "data.chat", "'always' needs a chat template and the tokenizer has none", "set data.chat_template"
            )
        self.tokenizer = tokenizer
        self.options = options
        self.uses_template = options.chat != "never" and bool(tokenizer.chat_template)
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        special |= {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = frozenset(special.values())
        breakable = sorted((token for token in special if len(token) > 1), key=len, reverse=True)
        self._special_text = re.compile("|".join(map(re.escape, breakable)))
        # Whether plain text gets a BOS; what `add_special_tokens` adds at the end differs from tokenizer to tokenizer.
        bos = tokenizer.bos_token_id
        self._adds_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]

    def __call__(self, pair: PreferencePair) -> TokenizedPair:
        """Tokenise one pair.

        Raises:
            BadRow: If nothing usable is left.
        """
        if not self.options.with_rejected:
            pair = replace(pair, rejected=None)
        prompt, wholes = self._templated(pair) if self.uses_template else self._joined(pair)
        wholes = [self._terminate(ids, len(prompt)) for ids in wholes]
        # An answer has at least one token, whatever the prompt's tokens are.
        boundary = min(common_prefix_length([prompt, *wholes]), *(len(ids) - 1 for ids in wholes))
        if boundary < 1:
            raise BadRow("empty prompt", "no token stands before the answers")
        chosen, *rejected = [ids[boundary:] for ids in wholes]
        moved = boundary < len(prompt)
        return self._fit(TokenizedPair(prompt[:boundary], chosen, rejected[0] if rejected else [], "", moved))

    def _templated(self, pair: PreferencePair) -> tuple[list[int], list[list[int]]]:
        prompt = as_messages(pair.prompt, "user")
        if pair.system:
            prompt = [{"role": "system", "content": pair.system}, *prompt]
        answers = [as_messages(a, "assistant") if isinstance(a, str) else [a] for a in _answers(pair)]
        prompt_text = self._render(prompt, pair.tools, add_generation_prompt=True)
        texts = [self._render([*prompt, *answer], pair.tools, add_generation_prompt=False) for answer in answers]
        return self._ids(prompt_text), [self._ids(text) for text in texts]

    def _render(self, messages: list[Message], tools: Any, *, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    self._protected(messages),
                    tools=self._protected(tools),
                    add_generation_prompt=add_generation_prompt,
                    tokenize=False,
                )
            )
        except TemplateError as error:
            raise BadRow("chat template refused", str(error).partition("\n")[0]) from error

    def _joined(self, pair: PreferencePair) -> tuple[list[int], list[list[int]]]:
        texts = (pair.prompt, *_answers(pair))
        if pair.system or pair.tools or not all(isinstance(text, str) for text in texts):
            raise BadRow(
                "needs a chat template",
                "the row has messages, a system prompt or tools; data.chat is never or the tokenizer has no template",
            )
        prompt, *answers = [self._protected(text) for text in texts]
        bos = [self.tokenizer.bos_token_id] if self._adds_bos else []
        return bos + self._ids(prompt), [bos + self._ids(prompt + answer) for answer in answers]

    def _protected(self, value: Any) -> Any:
        """Break the special tokens in the data's own text, at any depth of messages and tools."""
        if isinstance(value, str):
            return self._special_text.sub(lambda found: found[0][0] + BREAK + found[0][1:], value)
        if isinstance(value, dict):
            return {key: self._protected(item) for key, item in value.items()}
        return [self._protected(item) for item in value] if isinstance(value, list) else value

    def _ids(self, text: str) -> list[int]:
        pieces = [piece for piece in text.split(BREAK) if piece]
        # The template has written BOS where the model wants one.
        encoded = self.tokenizer(pieces, add_special_tokens=False)["input_ids"] if pieces else []
        return [token for ids in encoded for token in ids]

    def _terminate(self, ids: list[int], start: int) -> list[int]:
        """End with exactly one terminator: the special token with which the template ends a turn, else EOS."""
        end = self._before_blanks(ids, start, len(ids))
        if end <= start or ids[end - 1] not in self._special_ids:
            return [*ids, self.tokenizer.eos_token_id]
        while (before := self._before_blanks(ids, start, end - 1)) > start and ids[before - 1] == ids[end - 1]:
            end = before
        return ids[:end]

    def _before_blanks(self, ids: list[int], start: int, end: int) -> int:
        """The line break that a template writes after a terminator is not the model's to write."""
        while (
            end > start and ids[end - 1] not in self._special_ids and not self.tokenizer.decode([ids[end - 1]]).strip()
        ):
            end -= 1
        return end

    def _fit(self, pair: TokenizedPair) -> TokenizedPair:
        """Cut to length as the options say."""
        prompt, answer = len(pair.prompt_ids), max(len(pair.chosen_ids), len(pair.rejected_ids))
        max_length = self.options.max_length
        longest_prompt = self.options.max_prompt_length or max_length - 1
        if prompt > longest_prompt or prompt + answer > max_length:
            sizes = f"{prompt} prompt tokens and {answer} answer tokens, max_length {max_length}"
            if self.options.truncation == "drop":
                raise BadRow(TOO_LONG, sizes)
            if self.options.truncation == "keep_end":
                pair = self._cut_prompt(pair, min(longest_prompt, max_length - answer), sizes)
            elif prompt > longest_prompt:
                raise BadRow(PROMPT_TOO_LONG, f"{sizes}, longest prompt {longest_prompt}")
            else:
                room = max_length - prompt
                chosen, rejected = pair.chosen_ids[:room], pair.rejected_ids[:room]
                pair = replace(pair, chosen_ids=chosen, rejected_ids=rejected, cut="answer cut")
        if pair.chosen_ids == pair.rejected_ids:
            raise BadRow(IDENTICAL, "as tokens, after the template and after cutting")
        return pair

    def _cut_prompt(self, pair: TokenizedPair, room: int, sizes: str) -> TokenizedPair:
        """Cut the start of the prompt; a BOS stays."""
        bos = pair.prompt_ids[: pair.prompt_ids[0] == self.tokenizer.bos_token_id]
        kept = room - len(bos)
        if kept < 1:
            raise BadRow(TOO_LONG, f"{sizes}: no room for a prompt")
        return replace(pair, prompt_ids=bos + pair.prompt_ids[-kept:], cut="prompt cut")


def _answers(pair: PreferencePair) -> list[Message | str]:
    return [answer for answer in (pair.chosen, pair.rejected) if answer is not None]


def common_prefix_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many first items all sequences share.

    Example:
        >>> common_prefix_length([[1, 2, 3], [1, 2, 4, 5], [1, 2]])
        2
    """
    for length, items in enumerate(zip(*sequences, strict=False)):
        if len(set(items)) > 1:
            return length
    return min(map(len, sequences))
