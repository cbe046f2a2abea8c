"""Tokenizes a pair: one BOS, one terminator, and the boundary between prompt and answers.

The chat template is rendered once over prompt and answer together, as in inference. The boundary is the longest common
prefix of the tokenized prompt and both full sequences: if a tokenizer merges the end of the prompt with the start of an
answer, the answer begins one token earlier, so that nothing is scored twice or lost. The scored
tokens of an answer of several turns come from `turns`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from adadpo_lightning.data.lists import ListOptions
from adadpo_lightning.data.schema import BadRow, PreferencePair, RankedList, as_messages
from adadpo_lightning.data.special import Reading, SpecialText, SpecialTokens, check_marks, decide
from adadpo_lightning.data.template import (
    check_template_kwargs,
    marks_answers,
    probe_template,
    render,
    render_marked,
)
from adadpo_lightning.data.truncate import fit_length
from adadpo_lightning.data.turns import (
    Turn,
    Whole,
    common_prefix_length,
    find_turns,
    marked_turns,
    written_turns,
)
from adadpo_lightning.errors import UserError
from adadpo_lightning.log import warn
from adadpo_lightning.types import EncodedPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Self

    from adadpo_lightning.data.schema import Answer, Message

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


class Rendered(NamedTuple):
    """What is tokenized of one pair.

    Args:
        texts: The prompt, the prompt with each answer, and the texts of `turns`.
        end_id: The terminator of an answer that has none.
        joined: Whether the texts were joined without a chat template, so that the tokenizer's own BOS is missing.
        turns: The assistant's turns of each answer; empty if everything after the prompt is scored.
    """

    texts: list[str]
    end_id: int
    joined: bool
    turns: tuple[list[Turn], ...] = ()


class PairTokenizer:
    """Tokenizes and truncates pairs.

    `render`, `ids` and `finish` are its three steps; a call takes them for one pair, and `pipeline.encode` for many.

    Args:
        tokenizer: The policy's tokenizer.
        options: Options of tokenization.
        reading: How the columns are read; None means the decision of `special.decide` without data.

    Raises:
        UserError: If the tokenizer has no EOS token, or lacks a required chat template.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, options: TokenizeOptions, reading: Reading | None = None
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                "tokenizer", "has no EOS token, so no answer could end", "set eos_token in its tokenizer_config.json"
            )
        if options.chat == "always" and not tokenizer.chat_template:
            raise UserError(
                "data.chat", "'always' needs a chat template, but the tokenizer has none", "set data.chat_template"
            )
        self.tokenizer = tokenizer
        self.options = options
        self.uses_template = options.chat != "never" and bool(tokenizer.chat_template)
        self.special = SpecialText(tokenizer)
        self.reading = reading or decide(options.special_tokens, [], [])
        self._blank: dict[int, bool] = {}
        # Whether plain text gets a BOS; what `add_special_tokens` appends at the end differs between tokenizers.
        bos = tokenizer.bos_token_id
        self._adds_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
        if self.uses_template:
            probe_template(tokenizer, options.chat_template_kwargs or {})

    def decide(self, pairs: Sequence[PreferencePair | RankedList]) -> Reading:
        """Decide from a sample of pairs how their columns are read; see `special.decide`."""
        prompts = [text for pair in pairs if (text := one_text(pair.prompt)) is not None]
        answers = [text for pair in pairs for answer in pair.answers if (text := one_text(answer)) is not None]
        return decide(self.options.special_tokens, map(self.looks_rendered, prompts), map(self.special.ends, answers))

    def reads(self, reading: Reading) -> Self:
        """The same tokenizer with another reading of the columns."""
        other = copy(self)
        other.reading = reading
        return other

    def __call__(self, pair: PreferencePair) -> EncodedPair:
        """Tokenise one pair.

        Raises:
            BadRow: If nothing usable is left.
        """
        rendered = self.render(pair)
        return self.finish(pair, rendered, self.ids(rendered.texts))

    def prompt_ids(self, pair: PreferencePair) -> list[int]:
        """Token ids of only the prompt of a pair, as used for generation.

        Raises:
            BadRow: If the template rejects the conversation, or messages have no template.
        """
        rendered = self.render(pair)
        asked = self.ids(rendered.texts[:1])
        self.special.check_ids(rendered.texts[0], asked[0])
        return self._with_bos(rendered, asked)[0]

    def render(self, pair: PreferencePair) -> Rendered:
        """The texts to tokenize.

        Raises:
            BadRow: If the template rejects the conversation, or messages have no template.
        """
        return self._joined(pair) if self.joins(pair) else self._templated(pair)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text of `render`; what is equal in them is tokenized once, and all of it in one call."""
        pieces = [self.special.units(text) for text in texts]
        distinct = list(dict.fromkeys(chain.from_iterable(pieces)))
        # The template has already added BOS if the model needs it.
        options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
        encoded = self.tokenizer(distinct, **options)["input_ids"] if distinct else []
        known = dict(zip(distinct, encoded, strict=True))
        return [[token for piece in parts for token in known[piece]] for parts in pieces]

    def finish(self, pair: PreferencePair, rendered: Rendered, ids: list[list[int]]) -> EncodedPair:
        """Find the boundary, end the answers and truncate.

        Args:
            pair: The pair.
            rendered: Its texts.
            ids: Their token ids.

        Raises:
            BadRow: If nothing usable is left.
        """
        for text, found in zip(rendered.texts, ids, strict=True):
            self.special.check_ids(text, found)
        prompt, *others = self._with_bos(rendered, ids)
        count = len(self._answers(pair))
        # An answer may begin before the end of the prompt, where the template opens a thought for generation only.
        starts = [common_prefix_length([prompt, whole]) for whole in others[:count]]
        texts = [self._terminate(*answer, rendered.end_id) for answer in zip(others[:count], starts, strict=True)]
        wholes = self._wholes(rendered, texts, iter(others[count:]))
        # An answer has at least one token, whatever the prompt's tokens are.
        boundary = min(common_prefix_length([prompt, *texts]), *(len(ids) - 1 for ids in texts))
        if boundary < 1:
            raise BadRow("empty prompt", "no token precedes the answers")
        moved = boundary < len(prompt)
        if rendered.turns:
            # What the template writes before the answers without marking it as the assistant's belongs to the prompt.
            boundary = min(max(boundary, common_prefix_length(texts)), *(w.first_scored(boundary) for w in wholes))
        (chosen, chosen_mask), *rejected = [whole.answer(boundary) for whole in wholes]
        rejected_ids, rejected_mask = rejected[0] if rejected else ([], [])
        encoded = EncodedPair(
            texts[0][:boundary],
            chosen,
            rejected_ids,
            weight=pair.weight,
            margin=pair.margin,
            boundary_moved=moved,
            chosen_mask=chosen_mask,
            rejected_mask=rejected_mask,
            turns_rewritten=any(whole.rewritten for whole in wholes),
            turns_unended=any(whole.unended for whole in wholes),
        )
        options, bos = self.options, self.tokenizer.bos_token_id
        return fit_length(encoded, options.max_length, options.max_prompt_length, options.truncation, bos)

    def _wholes(self, rendered: Rendered, texts: list[list[int]], parts: Iterator[list[int]]) -> list[Whole]:
        if not rendered.turns:
            return [Whole(ids) for ids in texts]
        text_only = not self.reading.messages
        return [
            find_turns(turns, ids, parts, self._end_of, text_only=text_only)
            for turns, ids in zip(rendered.turns, texts, strict=True)
        ]

    def joins(self, pair: PreferencePair) -> bool:
        """Whether prompt and answer are joined unchanged, without rendering the chat template."""
        return not self.uses_template or (self.options.chat == "auto" and self.is_rendered(pair))

    def is_rendered(self, pair: PreferencePair) -> bool:
        """Whether the prompt of a pair is treated as already rendered by a template."""
        if not (self.reading.rendered and self.reading.prompts):
            return False
        prompt = one_text(pair.prompt)
        return prompt is not None and self.looks_rendered(prompt)

    def looks_rendered(self, prompt: str) -> bool:
        """Whether a prompt contains special tokens, or begins and ends like the output of the chat template."""
        if self.special.holds(prompt):
            return True
        before, after = self._frame
        text = prompt.strip()
        return bool(before and after) and text.startswith(before) and text.endswith(after)

    def warn_if_rendered(self, where: str) -> None:
        """Warn about prompts that look already rendered, and report how they are read."""
        reading = self.reading
        if not reading.rendered:
            return
        special = f"their special tokens are read as {'tokens' if reading.prompts else 'text'}"
        again = self.uses_template and not (reading.prompts and self.options.chat == "auto")
        if again:
            template = "the chat template is rendered around them AGAIN"
        elif self.uses_template:
            template = "the chat template is not rendered around them again"
        else:
            template = "no chat template is rendered"
        advice = "" if reading.prompts and not again else "; set data.special_tokens=auto and data.chat=auto"
        warn(f"{where}: the prompts look as if a chat template had rendered them: {special}, and {template}{advice}")

    @cached_property
    def _frame(self) -> tuple[str, str]:
        """Text that the template adds before and after a single user message, without BOS and whitespace."""
        if not self.uses_template:
            return "", ""
        content = "content"
        try:
            text = render(self.tokenizer, [{"role": "user", "content": content}], None, {}, add_generation_prompt=True)
        except BadRow:
            return "", ""
        before, _, after = text.partition(content)
        return before.removeprefix(self.tokenizer.bos_token or "").strip(), after.strip()

    def _templated(self, pair: PreferencePair) -> Rendered:
        prompt = self._prepared(as_messages(pair.prompt, "user"), parse=self.reading.prompts)
        if pair.system:
            prompt = [{"role": "system", "content": self._text(pair.system, parse=self.reading.messages)}, *prompt]
        tools = pair.tools if self.reading.messages else self.special.protect(pair.tools)
        answers = [_turns_of(answer) for answer in self._answers(pair)]
        row_kwargs = self.special.protect(pair.chat_template_kwargs or {})
        kwargs = {**(self.options.chat_template_kwargs or {}), **row_kwargs}

        def write(messages: list[Message], asks: bool) -> str:
            return render(self.tokenizer, messages, tools, kwargs, add_generation_prompt=asks)

        whole = [[*prompt, *self._ended(answer)] for answer in answers]
        texts = [write(prompt, True), *(write(messages, False) for messages in whole)]
        turns: list[list[Turn]] = []
        if self.options.score == "assistant" and any(len(answer) > 1 for answer in answers):
            if marks_answers(self.tokenizer, tools):
                marked = [render_marked(self.tokenizer, messages, tools, kwargs) for messages in whole]
                texts[1:] = [text for text, _ in marked]
                turns = [marked_turns(text, marks) for text, marks in marked]
            else:
                written = zip(whole, texts[1:], strict=True)
                turns = [written_turns(write, messages, len(prompt), text) for messages, text in written]
            texts += [
                text for found in turns for turn in found for text in (turn.before, turn.upto) if text is not None
            ]
        return Rendered([*map(self.special.settle, texts)], self.tokenizer.eos_token_id, joined=False, turns=(*turns,))

    def _prepared(self, messages: list[Message], *, parse: bool) -> list[Message]:
        parse = parse if len(messages) == 1 else self.reading.messages
        checked: list[Message] = messages if parse else self.special.protect(messages)
        return checked

    def _ended(self, answer: list[Message]) -> list[Message]:
        """The answer for a template, which writes the terminator itself."""
        if self.reading.answers and len(answer) == 1 and isinstance(text := answer[0].get("content"), str):
            return [{**answer[0], "content": self.special.without_end(text)}]
        return self._prepared(answer, parse=self.reading.answers)

    def _joined(self, pair: PreferencePair) -> Rendered:
        rendered = self.is_rendered(pair)
        columns = [pair.prompt, *self._answers(pair)]
        prompt, *answers = [one_text(text) if rendered or isinstance(text, str) else None for text in columns]
        if pair.system or pair.tools or prompt is None or None in answers:
            problem = "its prompt is rendered already" if rendered else "data.chat is never, or there is no template"
            raise BadRow("needs a chat template", f"the row has messages, a system prompt or tools, but {problem}")
        prompt = self._text(prompt, parse=self.reading.prompts)
        wholes = [prompt + self._text(answer or "", parse=self.reading.answers) for answer in answers]
        end = self._turn_end if rendered and self.options.chat != "never" else self.tokenizer.eos_token_id
        return Rendered([self.special.settle(text) for text in (prompt, *wholes)], end, joined=True)

    def _answers(self, pair: PreferencePair) -> list[Answer]:
        return pair.answers[: 2 if self.options.with_rejected else 1]

    def _with_bos(self, rendered: Rendered, ids: list[list[int]]) -> list[list[int]]:
        """Add the tokenizer's own BOS to joined texts, unless the prompt has it already."""
        bos = self.tokenizer.bos_token_id
        if not (rendered.joined and self._adds_bos) or ids[0][:1] == [bos]:
            return ids
        return [[bos, *part] for part in ids]

    def _text(self, text: str, *, parse: bool) -> str:
        if not parse:
            return str(self.special.protect(text))
        check_marks(text)
        return text

    @cached_property
    def _turn_end(self) -> int:
        """The special token with which the chat template ends an answer, otherwise EOS."""
        eos: int = self.tokenizer.eos_token_id
        if not self.tokenizer.chat_template:
            return eos
        asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
        try:
            text = render(self.tokenizer, asked, None, {}, add_generation_prompt=False)
        except BadRow:
            return eos
        return self._terminate(self.ids([text])[0], 0, eos)[-1]

    def _terminate(self, ids: list[int], start: int, end_id: int) -> list[int]:
        """End with exactly one terminator: the special token that already ends the text, otherwise `end_id`."""
        end = self._end_of(ids, start, len(ids))
        return [*ids, end_id] if end is None else ids[:end]

    def _end_of(self, ids: list[int], start: int, end: int) -> int | None:
        """End of a part without blanks and doubled terminators after its terminator; None if it has none."""
        end = self._before_blanks(ids, start, end)
        if end <= start or ids[end - 1] not in self.special.all_ids:
            return None
        while (before := self._before_blanks(ids, start, end - 1)) > start and ids[before - 1] == ids[end - 1]:
            end = before
        return end

    def _before_blanks(self, ids: list[int], start: int, end: int) -> int:
        """Exclude the line break after a terminator, which the template adds and the model must not generate."""
        special = self.special.all_ids
        while end > start and ids[end - 1] not in special and self._is_blank(ids[end - 1]):
            end -= 1
        return end

    def _is_blank(self, token: int) -> bool:
        if (known := self._blank.get(token)) is None:
            known = self._blank[token] = not self.tokenizer.decode([token]).strip()
        return known


def one_text(value: Message | list[Message] | str | None) -> str | None:
    """The text of a column with a single text or a single plain-text message; None for anything else."""
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else None
    if isinstance(value, dict):
        plain = value.get("role") in ("user", "assistant") and not value.get("tool_calls")
        value = value.get("content") if plain else None
    return value if isinstance(value, str) else None


def _turns_of(answer: Answer) -> list[Message]:
    return [answer] if isinstance(answer, dict) else as_messages(answer, "assistant")
