"""Prompts: read from files in the shapes that data sets and benchmarks have, and rendered as in training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadpo_lightning import log
from adadpo_lightning.data.formats.fields import template_kwargs_of, text_of, tools_of
from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.schema import BadRow, PreferencePair, as_messages, check_text
from adadpo_lightning.data.sources import SourceConfig, decode, load_rows
from adadpo_lightning.data.tokenize import PairTokenizer
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adadpo_lightning.data.special import SpecialTokens
    from adadpo_lightning.generation.options import Chat

PROMPT_COLUMNS = ("prompt", "instruction", "turns", "messages", "question")
UID_COLUMNS = ("uid", "question_id", "id")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer.

    Args:
        messages: The conversation before the answer, or text.
        uid: The benchmark's identifier of the prompt; its number in the file if it has none.
        dataset: AlpacaEval's column of that name.
        chat_template_kwargs: Variables of the chat template for this prompt; they take precedence over the job's, key
            by key.
        tools: Tool descriptions for the chat template.
    """

    messages: list[dict[str, Any]] | str
    uid: str
    dataset: str = ""
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Any] | None = None

    @property
    def text(self) -> str:
        """The prompt as one text: its only user message, or the conversation as JSON."""
        if isinstance(self.messages, str):
            return self.messages
        if len(self.messages) == 1:
            return str(self.messages[0]["content"])
        return json.dumps(self.messages, ensure_ascii=False)

    @property
    def conversation(self) -> list[dict[str, Any]] | None:
        """The messages, where `text` cannot say them all; None for one user message or plain text."""
        alone = isinstance(self.messages, str) or (len(self.messages) == 1 and self.messages[0]["role"] == "user")
        return None if alone else list(self.messages)  # type: ignore[arg-type]  # messages, not text

    @property
    def has_system(self) -> bool:
        """Whether it begins with a system message."""
        return not isinstance(self.messages, str) and self.messages[0]["role"] == "system"

    def with_system(self, system: str | None) -> Prompt:
        """The prompt after a system message; itself without one, and where it has its own."""
        if system is None or self.has_system:
            return self
        return replace(self, messages=[{"role": "system", "content": system}, *as_messages(self.messages, "user")])


class PromptTokenizer(PairTokenizer):
    """Token ids of prompts alone, exactly as they precede answers in training.

    Args:
        tokenizer: The model's tokenizer.
        chat: As in `TokenizeOptions`.
        special_tokens: As in `TokenizeOptions`; ``auto`` decides in `read` and keeps text before.
        chat_template_kwargs: As in `TokenizeOptions`.

    Raises:
        UserError: As `PairTokenizer`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat: Chat = "auto",
        special_tokens: SpecialTokens = "auto",
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        options = TokenizeOptions(
            chat=chat, with_rejected=False, special_tokens=special_tokens, chat_template_kwargs=chat_template_kwargs
        )
        super().__init__(tokenizer, options)

    def read(self, prompts: Sequence[Prompt]) -> None:
        """Decide from all prompts of a job how their special tokens are read; see `data.special.decide`."""
        self.reading = self.decide([PreferencePair(prompt.messages, "") for prompt in prompts])

    def say_own(self, prompts: Sequence[Prompt], system: str | None) -> None:
        """Count the prompts with a system message, tools or variables of the chat template of their own.

        Args:
            prompts: All prompts of a job.
            system: The job's system message.
        """
        count = len(prompts)
        if system is not None and (own := sum(prompt.has_system for prompt in prompts)):
            log.info(f"{own} of {count} prompts have a system message of their own, which replaces the option's")
        if unread := sum(self.ignores_tools(_pair(prompt)) for prompt in prompts):
            log.warn(f"{unread} of {count} prompts have tools or tool calls that the chat template does not write")
        own = sum(bool(prompt.chat_template_kwargs) for prompt in prompts)
        if own and self.uses_template:
            log.info(f"{own} of {count} prompts have chat_template_kwargs, which replace the option's by key")
        elif own:
            log.warn(f"{own} of {count} prompts have chat_template_kwargs, but no chat template is rendered")

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of one prompt, with the template's BOS or, without a template, the tokenizer's own.

        Raises:
            UserError: If the template rejects the conversation, or the prompt has messages and there is no template.
        """
        if not self.uses_template and not isinstance(prompt.messages, str):
            raise UserError(f"prompt {prompt.uid}", "has messages and the tokenizer no chat template")
        try:
            return self.prompt_ids(_pair(prompt))
        except BadRow as error:
            raise UserError(f"prompt {prompt.uid}", str(error)) from error

    def stop_ids(self) -> set[int]:
        """EOS, and the token that ends answers in training."""
        trained = self(PreferencePair(prompt="a", chosen="a")).chosen_ids[-1]
        return {trained, self.tokenizer.eos_token_id}


def _pair(prompt: Prompt) -> PreferencePair:
    return PreferencePair(prompt.messages, "a", tools=prompt.tools, chat_template_kwargs=prompt.chat_template_kwargs)


def read_objects(source: SourceConfig) -> list[tuple[str, dict[str, Any]]]:
    """Every row of a file or data set, with its location for error messages.

    Raises:
        UserError: If the source is missing, empty or malformed.
    """
    rows = load_rows(source)
    found = []
    for i, values in enumerate(rows.table):
        try:
            row = decode(values, is_json=rows.is_json)
        except BadRow as error:
            raise UserError(rows.where(i), str(error), "fix the file") from error
        if row is not None:
            found.append((rows.where(i), row))
    return found


def read_prompts(source: SourceConfig, column: str | None = None, limit: int | None = None) -> list[Prompt]:
    """Read prompts.

    Args:
        source: A text file with one prompt per line, or anything that training data can be read from. Rows with
            ``prompt`` (text or messages), ``instruction`` (AlpacaEval), ``turns`` (Arena-Hard's questions),
            ``messages`` or ``question``; an assistant message at the end of a conversation is removed. ``system`` and
            ``tools`` are read as in training data.
        column: The column with the prompt; None uses the first of those.
        limit: Read only the first `limit` prompts; None reads all.

    Raises:
        UserError: If a row has no prompt, a conversation of Arena-Hard's form has several turns, or a row has two
            system messages.
    """
    if Path(source.path).suffix == ".txt":
        if column is not None:
            raise UserError("column", f"a .txt file has no columns, got {column!r}", "leave it out")
        rows = [(where, {"prompt": line}) for where, line in _text_lines(Path(source.path).expanduser())]
        column = "prompt"
    else:
        rows = read_objects(source)
    return [_completed(parse_prompt(row, where, column, i), row, where) for i, (where, row) in enumerate(rows[:limit])]


def _completed(prompt: Prompt, row: Row, where: str) -> Prompt:
    """The prompt with what training data have in columns of their own: a system message and tools."""
    try:
        check_text([row.get("system"), row.get("tools")])
        system = text_of(row["system"], "system") if row.get("system") else None
        if system is not None and prompt.has_system:
            raise BadRow("two system prompts", "one in the system column and one in the messages")
        return replace(prompt.with_system(system), tools=tools_of(row.get("tools")))
    except BadRow as error:
        raise UserError(where, str(error), "correct the row") from error


def parse_prompt(row: Row, where: str, column: str | None, number: int) -> Prompt:
    """The prompt of one row.

    Args:
        row: Column names to values.
        where: Location for error messages.
        column: As in `read_prompts`.
        number: Number of the row, which identifies prompts without an identifier.

    Raises:
        UserError: If the row has no prompt.
    """
    names = PROMPT_COLUMNS if column is None else (column,)
    name = find_column(row, where, names, "prompt", "name the prompt's column")
    uid = next((str(row[key]) for key in UID_COLUMNS if row.get(key) is not None), str(number))
    try:
        check_text(row[name])
    except BadRow as error:
        raise UserError(f"{where}: {name}", str(error), "correct the text") from error
    try:
        kwargs = template_kwargs_of(row.get("chat_template_kwargs"))
    except BadRow as error:
        raise UserError(where, str(error), "correct the column chat_template_kwargs") from error
    return Prompt(_messages(row[name], f"{where}: {name}"), uid, str(row.get("dataset") or ""), kwargs)


def find_column(row: Row, where: str, names: Iterable[str], what: str, fix: str = "") -> str:
    """The first of some columns that has a value.

    Raises:
        UserError: If none has.
    """
    found = next((name for name in names if row.get(name) is not None), None)
    if found is None:
        expected = f"expected one of {', '.join(names)}, found {', '.join(map(str, row)) or 'none'}"
        raise UserError(where, f"has no {what}: {expected}", fix)
    return found


def _messages(value: Any, field: str) -> list[dict[str, Any]] | str:
    if isinstance(value, str) and value.strip():
        return value
    if _is_conversation(value):
        if all("role" in message for message in value):
            asked = value[:-1] if value[-1]["role"] == "assistant" else value
            if asked:
                return [dict(message) for message in asked]
        elif len(value) == 1:  # a question of Arena-Hard
            return as_messages(value[0]["content"], "user")
    raise UserError(field, "expected text, messages with role and content, or one turn with content")


def _is_conversation(value: Any) -> bool:
    """Messages or turns, each with some text."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(turn, Mapping) and isinstance(turn.get("content"), str) for turn in value)
        and all(turn["content"] for turn in value)
    )


def _text_lines(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise UserError(str(path), "file not found", "check the path")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"is not UTF-8: byte {error.start} cannot be decoded", "convert it") from error
    found = [(f"{path}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise UserError(str(path), "contains no prompts", "write one prompt per line")
    return found
