"""What a chat template leaves out of answers, rewrites in them, or adds before them is counted."""

import json
from itertools import pairwise

import pytest

from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.prepare import prepare
from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.data.template import compare_answer
from tests.support.tokenizers import CHATML, make

CHANGED = "answers of which the template leaves out or rewrites a part"
PREFIXED = "answers before which the template writes text of its own, scored too"
DROPS = CHATML.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")
NO_THOUGHT = {"chat_template_kwargs": {"enable_thinking": False}}
PLAIN = [" Paris.\n", "<|im_end|>", "capital"]  # a special token as text, and a word of the prompt
THOUGHT = ["<think>\nHm.\n</think>\n\nParis.", "no"]


def notes(tmp_path, tokenizer, answers, **fields):
    """Counts of one pair for each of two neighbouring answers."""
    rows = [
        {
            "prompt": [{"role": "user", "content": "What is the capital?"}],
            "chosen": [{"role": "assistant", "content": chosen, **fields.get("answer", {})}],
            "rejected": [{"role": "assistant", "content": rejected}],
            **fields.get("row", {}),
        }
        for chosen, rejected in pairwise(answers)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return prepare("train", [SourceConfig(str(path))], tokenizer, TokenizeOptions()).report.notes


@pytest.mark.parametrize("family", ["llama3", "chatml", "smollm2", "gemma", "mistral", "unended"])
def test_plain_answers_are_written_as_they_are(family, tmp_path):
    assert {CHANGED, PREFIXED}.isdisjoint(notes(tmp_path, make(family), PLAIN))


def test_a_thought_that_the_template_drops_is_counted(tmp_path):
    tokenizer = make("chatml")
    tokenizer.chat_template = DROPS
    found = notes(tmp_path, tokenizer, [*THOUGHT, "yes"])
    assert found[CHANGED] == 1
    assert PREFIXED not in found
    in_a_field = notes(tmp_path, make("chatml"), ["yes", "no"], answer={"reasoning_content": "Hm."})
    assert in_a_field[CHANGED] == 1


def test_an_empty_thought_of_the_template_is_counted(tmp_path):
    found = notes(tmp_path, make("qwen3"), PLAIN)
    assert found[PREFIXED] == 2
    assert CHANGED not in found
    # Without thinking it is part of the prompt.
    assert {CHANGED, PREFIXED}.isdisjoint(notes(tmp_path, make("qwen3"), PLAIN, row=NO_THOUGHT))


def test_blanks_around_an_answer_and_inside_are_no_change():
    turn = {"role": "assistant", "content": " <think>\nHm.</think>No. "}
    assert compare_answer("Why? A:", "Why? A: <think> Hm. </think> No.", [turn]) == (False, False)
    # The prompt of generation opens the thought.
    assert compare_answer("Why? A: <think>", "Why? A: <think>\nHm.</think>No.", [turn]) == (False, False)
    assert compare_answer("No. A:", "No. A:", [{"role": "assistant", "content": "No."}]) == (True, False)
    assert compare_answer("A:", "A: call()", [{"role": "assistant", "content": None}]) == (False, False)
