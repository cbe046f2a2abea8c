"""Prompts and responses on disk: read in the shapes they come in, written in the shapes that benchmarks want."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adadpo_lightning.data.schema import BadRow, as_messages
from adadpo_lightning.data.sources import SourceConfig, decode, load_rows
from adadpo_lightning.errors import UserError, did_you_mean

PROMPT_COLUMNS = ("prompt", "instruction", "turns", "messages", "question")
ANSWER_COLUMNS = ("response", "output", "choices", "completion", "chosen")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Prompt:
    """What is to be answered.

    Args:
        messages: The conversation before the answer, or text.
        uid: The benchmark's own name of the prompt; its number in the file where it has none.
        dataset: AlpacaEval's column of that name.
    """

    messages: list[dict[str, Any]] | str
    uid: str
    dataset: str = ""

    @property
    def text(self) -> str:
        """The prompt as one text: its only user message, or the conversation as JSON."""
        if isinstance(self.messages, str):
            return self.messages
        if len(self.messages) == 1:
            return str(self.messages[0]["content"])
        return json.dumps(self.messages, ensure_ascii=False)


@dataclass(frozen=True)
class Response:
    """One answer to a prompt.

    Args:
        prompt: Text of the prompt, as `Prompt.text`; what two files are matched by.
        response: The answer.
        generator: Name of the model that wrote it.
        uid: As in `Prompt`.
        dataset: As in `Prompt`.
        finished: Whether the model ended the answer before the longest allowed length.
        tokens: Tokens of the answer without its terminator; None if unknown.
        difficulty: AlpacaEval's instruction difficulty; None if unknown.
    """

    prompt: str
    response: str
    generator: str = ""
    uid: str = ""
    dataset: str = ""
    finished: bool = True
    tokens: int | None = None
    difficulty: float | None = None


@dataclass(frozen=True)
class ResponseFormat:
    """A shape of response files.

    Args:
        to_row: From a response to a JSON object.
        lines: One object a line; else one JSON array.
    """

    to_row: Callable[[Response], dict[str, Any]]
    lines: bool


def _plain(response: Response) -> dict[str, Any]:
    return {name: value for name, value in asdict(response).items() if value is not None}


def _alpaca_eval(response: Response) -> dict[str, Any]:
    return {
        "dataset": response.dataset,
        "instruction": response.prompt,
        "output": response.response,
        "generator": response.generator,
    }


def _arena_hard(response: Response) -> dict[str, Any]:
    return {
        "question_id": response.uid,
        "answer_id": f"{response.generator}/{response.uid}",
        "model_id": response.generator,
        # Arena-Hard counts OpenAI's tokens here; ours are those of the model's own tokenizer.
        "choices": [{"index": 0, "turns": [{"content": response.response, "token_len": response.tokens}]}],
        "tstamp": time.time(),
    }


# `json` and `jsonl` differ in the file only; `alpaca_eval` is its model_outputs.json, `arena_hard` its
# model_answer/*.jsonl.
RESPONSE_FORMATS = {
    "jsonl": ResponseFormat(_plain, lines=True),
    "json": ResponseFormat(_plain, lines=False),
    "alpaca_eval": ResponseFormat(_alpaca_eval, lines=False),
    "arena_hard": ResponseFormat(_arena_hard, lines=True),
}


def response_format(name: str) -> ResponseFormat:
    """The format of that name.

    Raises:
        UserError: If there is none.
    """
    if name not in RESPONSE_FORMATS:
        raise UserError("format", f"unknown format {name!r}", did_you_mean(name, RESPONSE_FORMATS))
    return RESPONSE_FORMATS[name]


def read_objects(source: SourceConfig) -> list[tuple[str, dict[str, Any]]]:
    """Every row of a file or data set with where it stands.

    Raises:
        UserError: If it is missing, empty or malformed.
    """
    rows = load_rows(source)
    found = []
    for i, values in enumerate(rows.table):
        try:
            row = decode(values, is_json=rows.is_json)
        except BadRow as error:
            raise UserError(rows.where(i), str(error), "mend the file") from error
        if row is not None:
            found.append((rows.where(i), row))
    return found


def read_prompts(source: SourceConfig, column: str | None = None, limit: int | None = None) -> list[Prompt]:
    """Read prompts.

    Args:
        source: A text file with one prompt a line, or whatever training data can be read from. Rows with ``prompt``
            (text or messages), ``instruction`` (AlpacaEval), ``turns`` (Arena-Hard's questions), ``messages``
            or ``question``; where a conversation ends with the assistant's message, that one is left out.
        column: The column that holds the prompt; None takes the first of those.
        limit: The first so many; None for all.

    Raises:
        UserError: If a row has no prompt, or a conversation with several turns of Arena-Hard's form.
    """
    if Path(source.path).suffix == ".txt":
        rows = [(where, {"prompt": line}) for where, line in _text_lines(Path(source.path).expanduser())]
        column = "prompt"
    else:
        rows = read_objects(source)
    return [_prompt(row, where, column, i) for i, (where, row) in enumerate(rows[:limit])]


def read_responses(source: SourceConfig) -> list[Response]:
    """Read responses in any of this package's formats, or a data set with a prompt and an answer column.

    Raises:
        UserError: If a row has no prompt or no answer.
    """
    return [_response(row, where, i) for i, (where, row) in enumerate(read_objects(source))]


def append_responses(path: Path, responses: Iterable[Response], fmt: ResponseFormat) -> None:
    """Add responses to a file, so that a run that is killed in between leaves whole rows (see `recover_rows`)."""
    rows = [json.dumps(fmt.to_row(response), ensure_ascii=False) for response in responses]
    if fmt.lines:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(row + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
    else:
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        write_atomically(path, json.dumps(before + [json.loads(row) for row in rows], ensure_ascii=False, indent=2))


def recover_rows(path: Path, fmt: ResponseFormat) -> int:
    """Count the rows that a run has written; a last line that was cut off in the middle is removed.

    Raises:
        UserError: If the file holds something else.
    """
    if not path.exists():
        return 0
    content = path.read_bytes()
    if fmt.lines and not content.endswith(b"\n"):
        content = content[: content.rfind(b"\n") + 1]
        write_atomically(path, content.decode("utf-8"))
    try:
        rows = [json.loads(line) for line in content.splitlines()] if fmt.lines else json.loads(content)
    except ValueError as error:
        raise UserError(str(path), f"malformed JSON: {error}", "delete it and generate anew") from error
    return len(rows)


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is either the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _text_lines(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise UserError(str(path), "there is no such file", "check the path")
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    found = [(f"{path}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise UserError(str(path), "holds no prompts", "write one a line")
    return found


def _column(row: Row, where: str, names: Iterable[str], what: str) -> str:
    found = next((name for name in names if row.get(name) is not None), None)
    if found is None:
        expected = f"expected one of {', '.join(names)}, found {', '.join(row) or 'none'}"
        raise UserError(where, f"has no {what}: {expected}", f"name the {what}'s column" if what == "prompt" else "")
    return found


def _prompt(row: Row, where: str, column: str | None, number: int) -> Prompt:
    name = _column(row, where, PROMPT_COLUMNS if column is None else (column,), "prompt")
    uid = next((str(row[key]) for key in ("uid", "question_id", "id") if row.get(key) is not None), str(number))
    return Prompt(_messages(row[name], where, name), uid, str(row.get("dataset") or ""))


def _messages(value: Any, where: str, name: str) -> list[dict[str, Any]] | str:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value and all(isinstance(m, Mapping) and m.get("content") for m in value):
        if all("role" in m for m in value):
            asked = value[:-1] if value[-1]["role"] == "assistant" else value
            if asked:
                return [dict(m) for m in asked]
        elif len(value) == 1:  # a question of Arena-Hard
            return as_messages(str(value[0]["content"]), "user")
    raise UserError(f"{where}: {name}", "expected text, messages with role and content, or one turn with content")


def _response(row: Row, where: str, number: int) -> Response:
    name = _column(row, where, ANSWER_COLUMNS, "answer")
    has_prompt = any(row.get(column) is not None for column in PROMPT_COLUMNS)
    # Arena-Hard's answers carry no prompt: the question's name stands in for it.
    prompt = _prompt(row, where, None if has_prompt else "question_id", number)
    difficulty = row.get("difficulty", row.get("instruction_difficulty"))
    return Response(
        prompt.text,
        _answer(row[name], where, name),
        str(row.get("generator") or row.get("model_id") or ""),
        prompt.uid,
        prompt.dataset,
        bool(row.get("finished", True)),
        row.get("tokens"),
        None if difficulty is None else float(difficulty),
    )


def _answer(value: Any, where: str, name: str) -> str:
    if name == "choices" and value:
        value = value[0]["turns"][-1]["content"]
    if isinstance(value, list) and value:
        value = value[-1].get("content")
    if not isinstance(value, str):
        raise UserError(f"{where}: {name}", f"expected text, got {type(value).__name__}")
    return value
