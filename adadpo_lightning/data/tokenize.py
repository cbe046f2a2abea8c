"""A pair to token ids: one BOS, one terminator, and the boundary where the answers begin.

The chat template is rendered once over prompt and answer together, as it will be seen by the model in use. The boundary
is the longest common prefix of the tokenised prompt and both whole sequences: where a tokenizer merges the last letters
of the prompt with the first of an answer, the answer begins one token earlier, and nothing is scored twice or lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from adadpo_lightning.data.schema import BadRow, as_messages, common_prefix_length
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adadpo_lightning.data.schema import Message, PreferencePair

Truncation = Literal["drop", "keep_start", "keep_end"]


@dataclass(frozen=True)
class TokenizeOptions:
    """How pairs become token ids.

    Args:
        max_length: Tokens of prompt plus longer answer at most.
        max_prompt_length: Tokens of the prompt at most; None for no bound of its own.
        truncation: What to do with a pair that is too long. ``drop`` it; ``keep_start``: cut the end of its answers
            (these lose their terminator); ``keep_end``: cut the start of its prompt, and drop it if that is not enough.
        chat: ``auto`` renders the tokenizer's chat template where there is one, ``always`` demands it, ``never`` joins
            prompt and answer as they are.
    """

    max_length: int = 2048
    max_prompt_length: int | None = None
    truncation: Truncation = "keep_start"
    chat: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        """Check the bounds."""
        if self.max_length < 2:
            raise UserError("data.max_length", f"expected at least 2, got {self.max_length}")
        if self.max_prompt_length is not None and not 1 <= self.max_prompt_length < self.max_length:
            raise UserError(
                "data.max_prompt_length", f"expected 1 to max_length - 1, got {self.max_prompt_length}", "lower it"
            )
        if self.truncation not in ("drop", "keep_start", "keep_end"):
            raise UserError("data.truncation", f"expected drop, keep_start or keep_end, got {self.truncation!r}")
        if self.chat not in ("auto", "always", "never"):
            raise UserError("data.chat", f"expected auto, always or never, got {self.chat!r}")


@dataclass
class TokenizedPair:
    """Token ids of a pair, and what was done to get them.

    Args:
        prompt_ids: The prompt that both answers share.
        chosen_ids: Scored tokens of the chosen answer.
        rejected_ids: Scored tokens of the rejected answer; empty if there is none.
        cut: What was cut off: ``""``, ``"answer cut"`` or ``"prompt cut"``.
        boundary_moved: Whether the answers begin before the tokenised prompt's end.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    cut: str = ""
    boundary_moved: bool = False


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions) -> None:
    """Check once what every row needs.

    Raises:
        UserError: If there is no EOS token, or no chat template where one is demanded.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "tokenizer", "has no EOS token, so answers could not end", "set eos_token in its tokenizer_config.json"
        )
    if options.chat == "always" and not tokenizer.chat_template:
        raise UserError("data.chat", "'always' needs a chat template, the tokenizer has none", "set data.chat_template")


def tokenize_pair(pair: PreferencePair, tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions) -> TokenizedPair:
    """Tokenise a pair and cut it to length.

    Raises:
        BadRow: If nothing usable is left.
    """
    if uses_template(tokenizer, options):
        prompt, answers = _templated(pair, tokenizer)
    else:
        prompt, answers = _joined(pair, tokenizer)
    boundary = common_prefix_length([prompt, *answers])
    # An answer has at least one token, whatever the prompt's tokens were.
    boundary = min(boundary, *(len(answer) - 1 for answer in answers))
    if boundary < 1:
        raise BadRow("empty prompt", "no token stands before the answer")
    chosen, rejected = answers[0][boundary:], answers[1][boundary:] if len(answers) > 1 else []
    result = TokenizedPair(prompt[:boundary], chosen, rejected, boundary_moved=boundary < len(prompt))
    return _cut_to_length(result, tokenizer, options)


def uses_template(tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions) -> bool:
    """Whether the chat template is rendered."""
    return options.chat == "always" or (options.chat == "auto" and bool(tokenizer.chat_template))


def _templated(pair: PreferencePair, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[list[int]]]:
    prompt = as_messages(pair.prompt, "user")
    answers = [as_messages(a, "assistant") for a in (pair.chosen, pair.rejected) if a is not None]
    prompt_ids = _render(prompt, pair.tools, tokenizer, add_generation_prompt=True)
    whole = [_render([*prompt, *answer], pair.tools, tokenizer, add_generation_prompt=False) for answer in answers]
    return prompt_ids, [_terminate(ids, len(prompt_ids), tokenizer) for ids in whole]


def _render(
    messages: list[Message], tools: Any, tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool
) -> list[int]:
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False
        )
    except TemplateError as error:
        raise BadRow("template refused", str(error).splitlines()[0]) from error
    # The template writes BOS itself where the model wants one.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _joined(pair: PreferencePair, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[list[int]]]:
    prompt = _as_text(pair.prompt)
    answers = [_as_text(a) for a in (pair.chosen, pair.rejected) if a is not None]
    prompt_ids = _with_bos(prompt, tokenizer)
    return prompt_ids, [_terminate(_with_bos(prompt + a, tokenizer), len(prompt_ids), tokenizer) for a in answers]


def _as_text(value: list[Message] | str) -> str:
    if not isinstance(value, str):
        raise BadRow("messages without a template", "data.chat is never, or the tokenizer has no chat template")
    return value


def _with_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    # By hand: what add_special_tokens adds at the end differs from tokenizer to tokenizer.
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    return [bos, *ids] if adds_bos and ids[:1] != [bos] else ids


def _terminate(ids: list[int], prompt_length: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """End with exactly one terminator: the special token with which the template ends a turn, else EOS."""
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    end = len(ids)
    # What a template writes after the terminator (a line break) is not the model's to write.
    while end > prompt_length and ids[end - 1] not in special and not tokenizer.decode([ids[end - 1]]).strip():
        end -= 1
    if end <= prompt_length or ids[end - 1] not in special:
        return [*ids, tokenizer.eos_token_id]
    while end - 2 >= prompt_length and ids[end - 2] == ids[end - 1]:
        end -= 1
    return ids[:end]


def _cut_to_length(pair: TokenizedPair, tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions) -> TokenizedPair:
    answer = max(len(pair.chosen_ids), len(pair.rejected_ids))
    longest_prompt = options.max_prompt_length or options.max_length - 1
    if len(pair.prompt_ids) <= longest_prompt and len(pair.prompt_ids) + answer <= options.max_length:
        return pair
    if options.truncation == "drop":
        raise BadRow(
            "too long", f"{len(pair.prompt_ids)} prompt and {answer} answer tokens, max_length {options.max_length}"
        )
    if options.truncation == "keep_end":
        return _cut_prompt(pair, min(longest_prompt, options.max_length - answer), tokenizer)
    if len(pair.prompt_ids) > longest_prompt:
        raise BadRow(
            "prompt too long", f"{len(pair.prompt_ids)} tokens leave no room for an answer in {options.max_length}"
        )
    room = options.max_length - len(pair.prompt_ids)
    chosen, rejected = pair.chosen_ids[:room], pair.rejected_ids[:room]
    if chosen == rejected:
        raise BadRow("identical answers", f"their first {room} tokens, which are left after cutting, are the same")
    return TokenizedPair(pair.prompt_ids, chosen, rejected, "answer cut", pair.boundary_moved)


def _cut_prompt(pair: TokenizedPair, room: int, tokenizer: PreTrainedTokenizerBase) -> TokenizedPair:
    """Cut the start of the prompt; a BOS stays."""
    has_bos = pair.prompt_ids[0] == tokenizer.bos_token_id
    if room < 1 + has_bos:
        raise BadRow("answer too long", "no room is left for its prompt")
    prompt = pair.prompt_ids[:1] + pair.prompt_ids[1 - room :] if has_bos else pair.prompt_ids[-room:]
    return TokenizedPair(prompt, pair.chosen_ids, pair.rejected_ids, "prompt cut", pair.boundary_moved)
