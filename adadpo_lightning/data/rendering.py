"""The texts of a pair before they are tokenized: the chat template rendered, or prompt and answer joined."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from adadpo_lightning.compat import template_renderer
from adadpo_lightning.data.schema import BadRow, PreferencePair, as_messages
from adadpo_lightning.data.special import Reading, SpecialText, check_marks, decide
from adadpo_lightning.data.template import (
    Write,
    compare_answer,
    limits,
    marks_answers,
    probe_template,
    reads_name,
    render,
    render_marked,
    writer,
)
from adadpo_lightning.data.texts import TextTokenizer
from adadpo_lightning.data.turns import Turn, marked_turns, written_turns
from adadpo_lightning.errors import UserError
from adadpo_lightning.log import warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adadpo_lightning.data.options import TokenizeOptions
    from adadpo_lightning.data.schema import Answer, Message

# Without its call, an answer that is nothing but a call would be empty.
UNWRITTEN = "tool calls not rendered"


class Rendered(NamedTuple):
    """What is tokenized of one pair.

    Args:
        texts: The prompt, the prompt with each answer, and the texts of `turns`.
        end_id: The terminator of an answer that has none.
        joined: Whether the texts were joined without a chat template, so that the tokenizer's own BOS is missing.
        turns: The assistant's turns of each answer; empty if everything after the prompt is scored.
        changed: Whether the template leaves out or rewrites part of an answer.
        prefixed: Whether it writes text of its own before an answer, which is scored with it.
    """

    texts: list[str]
    end_id: int
    joined: bool
    turns: tuple[list[Turn], ...] = ()
    changed: bool = False
    prefixed: bool = False


class PairRenderer:
    """Renders pairs, and decides for which of them the chat template is rendered.

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
        self.texts = TextTokenizer(tokenizer, self.special)
        self.reading = reading or decide(options.special_tokens, [], [])
        if self.uses_template:
            probe_template(tokenizer, options.chat_template_kwargs or {})

    def render(self, pair: PreferencePair) -> Rendered:
        """The texts to tokenize.

        Raises:
            BadRow: If the template rejects the conversation, or messages have no template.
        """
        return self._joined(pair) if self.joins(pair) else self._templated(pair)

    def joins(self, pair: PreferencePair) -> bool:
        """Whether prompt and answer are joined unchanged, without rendering the chat template."""
        return not self.uses_template or (self.options.chat == "auto" and self.is_rendered(pair))

    def is_rendered(self, pair: PreferencePair) -> bool:
        """Whether the prompt of a pair is treated as already rendered by a template."""
        if not (self.reading.rendered and self.reading.prompts):
            return False
        prompt = one_text(pair.prompt)
        return prompt is not None and self.looks_rendered(prompt)

    def ignores_tools(self, pair: PreferencePair) -> bool:
        """Whether the chat template leaves out the tools of a pair, or tool calls in its prompt."""
        if self.joins(pair):
            return False
        unread = bool(pair.tools) and not reads_name(self.tokenizer, pair.tools, "tools")
        return unread or self._loses_calls(as_messages(pair.prompt, "user"), pair.tools)

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
        write = writer(self.tokenizer, tools, kwargs, None if row_kwargs else self._quick)
        if any(self._loses_calls(answer, tools) for answer in answers):
            raise BadRow(UNWRITTEN, "the chat template does not write tool_calls; set data.chat_template")
        ended = [self._ended(answer) for answer in answers]
        whole = [[*prompt, *answer] for answer in ended]
        # One limit for all of a pair: to set one takes as long as to render a short text.
        with limits():
            texts = [write(prompt, True), *(write(messages, False) for messages in whole)]
            compared = [compare_answer(texts[0], text, answer) for text, answer in zip(texts[1:], ended, strict=True)]
            changed, prefixed = (any(found) for found in zip(*compared, strict=True))
            turns: list[list[Turn]] = []
            if self.options.score == "assistant" and any(len(answer) > 1 for answer in answers):
                if marks_answers(self.tokenizer, tools):
                    marked = [render_marked(self.tokenizer, messages, tools, kwargs) for messages in whole]
                    texts[1:] = [text for text, _ in marked]
                    turns = [marked_turns(text, marks) for text, marks in marked]
                    prefixed = False  # only what the template marks is scored
                else:
                    written = zip(whole, texts[1:], strict=True)
                    turns = [written_turns(write, messages, len(prompt), text) for messages, text in written]
                texts += [
                    text for found in turns for turn in found for text in (turn.before, turn.upto) if text is not None
                ]
        settled, end = [*map(self.special.settle, texts)], self.tokenizer.eos_token_id
        return Rendered(settled, end, joined=False, turns=(*turns,), changed=changed, prefixed=prefixed)

    @cached_property
    def _quick(self) -> Write | None:
        return template_renderer(self.tokenizer, self.options.chat_template_kwargs or {})

    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled template, which cannot be sent to another process."""
        return {name: value for name, value in self.__dict__.items() if name != "_quick"}

    def _loses_calls(self, messages: list[Message], tools: list[Any] | None) -> bool:
        calls = any(message.get("tool_calls") for message in messages)
        return calls and not reads_name(self.tokenizer, tools, "tool_calls")

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
        return self.texts.terminate(self.texts.ids([text])[0], 0, eos)[-1]


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
