"""Response files: written row by row so that jobs can resume, and read in the formats of benchmarks."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.errors import UserError, did_you_mean
from adadpo_lightning.generation.prompts import PROMPT_COLUMNS, Prompt, Row, find_column, parse_prompt, read_objects

ANSWER_COLUMNS = ("response", "output", "choices", "completion", "chosen")


@dataclass(frozen=True)
class Response:
    """One answer to a prompt.

    Args:
        prompt: Text of the prompt, as `Prompt.text`; two files are matched by it.
        response: The answer.
        generator: Name of the model that wrote it.
        uid: As in `Prompt`.
        dataset: As in `Prompt`.
        finished: Whether the model ended the answer before the maximum length.
        tokens: Tokens of the answer without its terminator; None if unknown.
        difficulty: AlpacaEval's instruction difficulty; None if unknown.
        messages: The prompt as messages, where it is more than one user message; None otherwise.
        sample: Number of the answer among those to the prompt, from 0; None if it is the only one.
    """

    prompt: str
    response: str
    generator: str = ""
    uid: str = ""
    dataset: str = ""
    finished: bool = True
    tokens: int | None = None
    difficulty: float | None = None
    messages: list[dict[str, Any]] | None = None
    sample: int | None = None


@dataclass(frozen=True)
class ResponseFormat:
    """A format of response files.

    Args:
        to_row: Converts a response to a JSON object.
        lines: One object per line; otherwise one JSON array.
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
        # Arena-Hard counts OpenAI's tokens here; these are tokens of the model's own tokenizer.
        "choices": [{"index": 0, "turns": [{"content": response.response, "token_len": response.tokens}]}],
        "tstamp": time.time(),
    }


# `json` and `jsonl` have the same rows; `alpaca_eval` is its model_outputs.json, `arena_hard` its model_answer/*.jsonl.
RESPONSE_FORMATS = {
    "jsonl": ResponseFormat(_plain, lines=True),
    "json": ResponseFormat(_plain, lines=False),
    "alpaca_eval": ResponseFormat(_alpaca_eval, lines=False),
    "arena_hard": ResponseFormat(_arena_hard, lines=True),
}


def response_format(name: str) -> ResponseFormat:
    """Look up a format by name.

    Raises:
        UserError: If the name is unknown.
    """
    if name not in RESPONSE_FORMATS:
        raise UserError("format", f"unknown format {name!r}", did_you_mean(name, RESPONSE_FORMATS))
    return RESPONSE_FORMATS[name]


def append_responses(path: Path, responses: Iterable[Response], fmt: ResponseFormat) -> None:
    """Append responses to a file; a killed job leaves at most one incomplete line (see `recover_rows`)."""
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
    """Count the rows that a job has written; an incomplete last line is removed.

    Raises:
        UserError: If the file has other content.
    """
    if not path.exists():
        return 0
    content = path.read_bytes()
    try:
        if fmt.lines and not content.endswith(b"\n"):
            content = content[: content.rfind(b"\n") + 1]
            write_atomically(path, content.decode("utf-8"))
        rows = [json.loads(line) for line in content.splitlines()] if fmt.lines else json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(str(path), f"malformed JSON: {error}", "delete it and generate again") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(str(path), "expected JSON objects", "delete it and generate again")
    return len(rows)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers see either the old content or all of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def read_responses(source: SourceConfig) -> list[Response]:
    """Read responses in any of this package's formats, or a data set with a prompt and an answer column.

    Raises:
        UserError: If a row has no prompt or no answer, or a field of the wrong type; names file and row.
    """
    return [_response(row, where, i) for i, (where, row) in enumerate(read_objects(source))]


def read_text(row: Row, name: str, where: str) -> str:
    """A column with text.

    Raises:
        UserError: If the value has a different type.
    """
    value = row.get(name)
    if not isinstance(value, str):
        raise UserError(f"{where}: {name}", f"expected text, got {_shown(value)}", "fix the row")
    return value


def read_number(row: Row, name: str, where: str) -> float | None:
    """A column with a finite number, also as text; None if it is absent, null, empty or NaN.

    Raises:
        UserError: If the value is not a finite number.
    """
    value = row.get(name)
    if value is None or value == "" or value != value:  # a NaN is null, as pandas writes it
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: {name}", f"expected a number, got {_shown(value)}", "fix the row")
    return number


def _response(row: Row, where: str, number: int) -> Response:
    name = find_column(row, where, ANSWER_COLUMNS, "answer")
    has_prompt = any(row.get(column) is not None for column in PROMPT_COLUMNS)
    # Arena-Hard's answers have no prompt: the identifier of the question replaces it.
    column = None if has_prompt else "question_id"
    asked = row if column is None or row.get(column) is None else {**row, column: str(row[column])}
    prompt = parse_prompt(asked, where, column, number)
    tokens, sample = (_whole_number(row, name, where) for name in ("tokens", "sample"))
    difficulty = "difficulty" if row.get("difficulty") is not None else "instruction_difficulty"
    return Response(
        prompt.text,
        _answer(row[name], where, name),
        str(row.get("generator") or row.get("model_id") or ""),
        prompt.uid,
        prompt.dataset,
        _finished(row, where),
        tokens,
        read_number(row, difficulty, where),
        _conversation(row, prompt),
        sample,
    )


def _whole_number(row: Row, name: str, where: str) -> int | None:
    value = read_number(row, name, where)
    if value is not None and (value < 0 or value != int(value)):
        raise UserError(f"{where}: {name}", f"expected a whole number, got {value:g}", "fix the row")
    return None if value is None else int(value)


def _conversation(row: Row, prompt: Prompt) -> list[dict[str, Any]] | None:
    """The messages of the prompt; a column ``messages`` counts only if it says the same as the prompt."""
    written = row.get("messages")
    if isinstance(written, list) and json.dumps(written, ensure_ascii=False) == prompt.text:
        return [dict(message) for message in written]
    return prompt.conversation


def _answer(value: Any, where: str, name: str) -> str:
    """Text, the last of several messages, or Arena-Hard's choices."""
    if name == "choices":
        value = _item(_item(value, 0), "turns")
    if isinstance(value, list):
        value = _item(_item(value, -1), "content")
    if not isinstance(value, str):
        raise UserError(f"{where}: {name}", f"expected text, got {_shown(value)}", "fix the row")
    return value


def _item(value: Any, key: Any) -> Any:
    """An item of a list or mapping; None if missing."""
    try:
        return value[key] if isinstance(value, (list, Mapping)) else None
    except (KeyError, IndexError, TypeError):
        return None


def _finished(row: Row, where: str) -> bool:
    value = row.get("finished")
    if value is None:
        return True
    if not isinstance(value, bool):
        raise UserError(f"{where}: finished", f"expected true or false, got {_shown(value)}", "fix the row")
    return value


def _shown(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
