"""Rows of prompt and response files that have the wrong types: each is named by file, row and column."""

import json

import pytest

from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.errors import UserError
from adadpo_lightning.generation.prompts import read_prompts
from adadpo_lightning.generation.responses import read_responses

GOOD = {"prompt": "why", "response": "so", "tokens": 3}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(str(path))


BAD_ROWS = {
    "null answer": ({"response": None}, ": has no answer"),
    "number as answer": ({"response": 5}, ": response: expected text, got int '5'"),
    "empty list": ({"response": []}, ": response: expected text, got null"),
    "list of numbers": ({"response": [1]}, ": response: expected text, got null"),
    "choices": ({"response": None, "choices": [{"turns": []}]}, ": choices: expected text, got null"),
    "choices text": ({"response": None, "choices": "yes"}, ": choices: expected text, got null"),
    "number as prompt": ({"prompt": 5}, ": prompt: expected text, messages"),
    "messages": ({"prompt": [{"role": "user", "content": None}]}, ": prompt: expected text, messages"),
    "half": ({"tokens": 1.5}, ": tokens: expected a whole number, got 1.5"),
    "tokens": ({"tokens": "many"}, ": tokens: expected a number, got str 'many'"),
    "difficulty": ({"instruction_difficulty": "hard"}, ": instruction_difficulty: expected a number, got str 'hard'"),
    "list of lists": ({"response": [["a"]]}, ": response: expected text, got null"),
    "huge": ({"tokens": 10**400}, ": tokens: expected a number, got int '1000"),
    "bool": ({"difficulty": True}, ": difficulty: expected a number, got bool 'True'"),
    "finished": ({"finished": "no"}, ": finished: expected true or false, got str 'no'"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named(tmp_path, case):
    changed, message = BAD_ROWS[case]
    source = write(tmp_path / "r.jsonl", GOOD, GOOD | changed)
    with pytest.raises(UserError) as failure:
        read_responses(source)
    assert str(failure.value).startswith(f"{tmp_path / 'r.jsonl'}:2{message}")


def test_absent_and_null_fields_have_defaults(tmp_path):
    empty = dict.fromkeys(("tokens", "difficulty", "instruction_difficulty", "finished", "generator", "uid"))
    (response,) = read_responses(write(tmp_path / "r.jsonl", GOOD | empty))
    assert (response.tokens, response.difficulty, response.finished, response.uid) == (None, None, True, "0")
    (named,) = read_responses(write(tmp_path / "r.jsonl", {"question_id": 7, "response": "so", "difficulty": "1.5"}))
    assert (named.prompt, named.uid, named.difficulty) == ("7", "7", 1.5)


def test_prompts_in_another_encoding_are_named(tmp_path):
    (tmp_path / "p.txt").write_bytes("warum Bär\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"p\.txt: is not UTF-8: byte 7"):
        read_prompts(SourceConfig(str(tmp_path / "p.txt")))
