"""Bad files and options of `evaluate`."""

import json

from tests.support.bad_input.case import Case, file, text

GOOD = [{"prompt": f"p{i}", "response": "a" * (i + 1)} for i in range(4)]
NOTES = [
    {"instruction": f"p{i}", "output_1": "a", "output_2": "bb", "generator_1": "x", "generator_2": "y", "preference": 2}
    for i in range(4)
]


def lines(*given, name="responses.jsonl"):
    return text("".join(json.dumps(row) + "\n" for row in given), name)


def changed(**columns):
    """Good responses, of which the last is changed."""
    return lines(*GOOD[:3], {**GOOD[3], **columns})


def evaluated(name, options, names, says):
    """`evaluate` with two good response files and a judge, with some options changed."""
    given = {
        "judge": "length",
        "responses": lines(*GOOD),
        "baseline": lines(*GOOD, name="base.jsonl"),
        "output": "o.json",
    }
    return Case(f"evaluate {name}", {**given, **options}, names, says, command="evaluate", bare=True)


def responses(name, content, names, says):
    return evaluated(name, {"responses": content}, names, says)


def annotated(name, change, names, says):
    """`evaluate` by annotations, of which the last is changed."""
    made = lines(*NOTES[:3], {k: v for k, v in {**NOTES[3], **change}.items() if v != "-"}, name="notes.jsonl")
    options = {"judge": "annotations", "annotations": made, "responses": None, "baseline": None}
    return evaluated(f"annotations with {name}", options, names, says)


def anchored(name, content, names, says):
    options = {"judge": "annotations", "annotations": lines(*NOTES, name="notes.jsonl"), "length_anchor": content}
    return evaluated(name, {**options, "responses": None, "baseline": None}, names, says)


CASES = [
    # Responses.
    responses("missing", "nowhere.jsonl", "nowhere.jsonl", "no such file or directory"),
    responses("empty", text("", "responses.jsonl"), "responses.jsonl", "the file is empty"),
    responses("broken", text("{", "responses.jsonl"), "responses.jsonl:1", "malformed JSON: Expecting property name"),
    responses(
        "a list", text("[[1]]", "responses.json"), "responses.json", "malformed JSON: expected an object, got list"
    ),
    responses(
        "not UTF-8",
        text(b'{"prompt": "\xe9"}', "responses.jsonl"),
        "responses.jsonl:1",
        "utf-8' codec can't decode byte 0xe9 in position",
    ),
    responses("response null", changed(response=None), "responses.jsonl:4", "has no answer: expected one of response,"),
    responses("response a number", changed(response=5), "responses.jsonl:4", "response: expected text, got int '5"),
    responses(
        "response a list of numbers", changed(response=[1]), "responses.jsonl:4", "response: expected text, got null"
    ),
    responses("response an empty list", changed(response=[]), "responses.jsonl:4", "response: expected text, got null"),
    responses(
        "response messages without content",
        changed(response=[{"role": "assistant"}]),
        "responses.jsonl:4",
        "response: expected text, got null",
    ),
    responses(
        "choices empty", lines({"prompt": "p0", "choices": []}), "responses.jsonl:1", "choices: expected text, got null"
    ),
    responses(
        "choices of text",
        lines({"prompt": "p0", "choices": "x"}),
        "responses.jsonl:1",
        "choices: expected text, got null",
    ),
    responses(
        "choices without content",
        lines({"prompt": "p0", "choices": [{"turns": [{}]}]}),
        "responses.jsonl:1",
        "choices: expected text, got null",
    ),
    responses("prompt null", changed(prompt=None), "responses.jsonl:4", "has no prompt: expected one of question_id,"),
    responses(
        "prompt a number", changed(prompt=5), "responses.jsonl:4", "prompt: expected text, messages with role and"
    ),
    responses("prompt empty", changed(prompt=""), "responses.jsonl:4", "prompt: expected text, messages with role and"),
    responses(
        "prompt of empty messages",
        changed(prompt=[]),
        "responses.jsonl:4",
        "prompt: expected text, messages with role and",
    ),
    responses(
        "prompt of messages without roles",
        changed(prompt=[{"content": "a"}, {"content": "b"}]),
        "responses.jsonl:4",
        "prompt: expected text, messages with role and",
    ),
    responses("no column", lines({"a": 1}), "responses.jsonl:1", "has no answer: expected one of response,"),
    responses(
        "tokens of text", changed(tokens="many"), "responses.jsonl:4", "tokens: expected a number, got str 'many"
    ),
    responses("tokens negative", changed(tokens=-1), "responses.jsonl:4", "tokens: expected a whole number, got -1"),
    responses(
        "tokens a fraction", changed(tokens=1.5), "responses.jsonl:4", "tokens: expected a whole number, got 1.5"
    ),
    responses("sample of text", changed(sample="x"), "responses.jsonl:4", "sample: expected a number, got str 'x"),
    responses(
        "difficulty of text",
        changed(difficulty="hard"),
        "responses.jsonl:4",
        "difficulty: expected a number, got str 'hard",
    ),
    responses(
        "difficulty infinite",
        text('{"prompt": "p0", "response": "a", "difficulty": Infinity}', "r.jsonl"),
        "r.jsonl:1",
        "difficulty: expected a number, got float 'inf",
    ),
    responses(
        "difficulty true",
        changed(difficulty=True),
        "responses.jsonl:4",
        "difficulty: expected a number, got bool 'True",
    ),
    responses("difficulty of one", changed(difficulty=1.0), "instruction_difficulty", "is given for 1 of 4 prompts"),
    responses(
        "finished of text",
        changed(finished="yes"),
        "responses.jsonl:4",
        "finished: expected true or false, got str 'yes",
    ),
    responses(
        "another prompt", changed(prompt="[/inst] elsewhere"), "baseline", "has no answer to 1 of 4 prompts, the first:"
    ),
    evaluated("one file", {"baseline": None}, "baseline", "two response files are needed, got one"),
    evaluated(
        "baseline broken",
        {"baseline": text("x", "b.jsonl")},
        "b.jsonl:1",
        "malformed JSON: Expecting value: line 1 column",
    ),
    evaluated("no judge", {"judge": None}, "config", "the following arguments are required: judge"),
    evaluated("judge unknown", {"judge": "lenght"}, "judge", "unknown judge 'lenght"),
    evaluated(
        "judge option unknown",
        {"judge_options": '{"unti": "words"}'},
        "judge_options.unti",
        "length' has no option 'unti",
    ),
    evaluated("judge options a list", {"judge_options": "[1]"}, "judge_options", ""),
    evaluated(
        "judge unit unknown",
        {"judge_options": '{"unit": "miles"}'},
        "judge_options.unit",
        "expected one of characters, words, tokens, got",
    ),
    evaluated("gold without a task", {"judge": "gold"}, "prompt 0", "does not belong to the embedded task: not a"),
    evaluated(
        "gold of no task",
        {"judge": "gold", "judge_options": '{"task": "./nowhere"}'},
        "judge_options.task",
        "gold' has no option 'task",
    ),
    evaluated(
        "reward model missing",
        {"judge": "reward_model", "judge_options": '{"model": "./nowhere"}'},
        "judge_options.model",
        "no sequence classifier could be loaded from",
    ),
    evaluated(
        "reward model of a policy",
        {"judge": "reward_model", "judge_options": lambda f, m: json.dumps({"model": str(m)})},
        "judge_options.model",
        "lacks score.weight, which would be random",
    ),
    evaluated("biased without a judge", {"judge": "biased"}, "judge_options", "biased' needs judge"),
    evaluated(
        "biased noise",
        {"judge": "biased", "judge_options": '{"judge": "length", "noise": -1}'},
        "judge_options",
        "expected noise >= 0 and finite numbers, got -1",
    ),
    evaluated("bootstrap negative", {"bootstrap": -1}, "bootstrap", "expected 0 or more resamples, got -1"),
    evaluated("bootstrap of text", {"bootstrap": "many"}, "bootstrap", ""),
    evaluated("seed negative", {"seed": -1}, "seed", "expected 0 or more, got -1"),
    evaluated("unit unknown", {"length_unit": "miles"}, "length_unit", ""),
    evaluated("tokens unknown", {"length_unit": "tokens"}, "length_unit", "the response files have no token counts"),
    evaluated("penalty unknown", {"penalty": "l3"}, "penalty", ""),
    evaluated("output a directory", {"output": lambda f, m: f}, "output", "expected a file, got"),
    evaluated(
        "output below a file", {"output": lambda f, m: file("x")(f, m) / "o.json"}, "output", "is not a directory"
    ),
    evaluated("difficulty file missing", {"difficulty": "nowhere.csv"}, "nowhere.csv", "no such file or directory"),
    evaluated(
        "difficulty without a value",
        {"difficulty": text("instruction\np0\n", "d.csv")},
        "d.csv",
        "expected instruction_difficulty and instruction",
    ),
    evaluated(
        "difficulty of text in a file",
        {"difficulty": text("instruction,instruction_difficulty\np0,x\n", "d.csv")},
        "d.csv",
        "instruction_difficulty: expected a number, got",
    ),
    evaluated(
        "difficulty by a fraction",
        {"difficulty": text("index,instruction_difficulty\n0.5,1\n", "d.csv")},
        "d.csv",
        "index: expected the number of a prompt, got 0.5",
    ),
    evaluated(
        "difficulty of too few",
        {"difficulty": text("instruction,instruction_difficulty\np0,1\n", "d.csv")},
        "difficulty",
        "has no value for 3 of 4 prompts",
    ),
    # Annotations.
    annotated("no preference", {"preference": "-"}, "notes.jsonl:4", "has no preference"),
    annotated(
        "a preference of text", {"preference": "model"}, "notes.jsonl:4", "expected a number as preference, got 'model"
    ),
    annotated("a preference of 3", {"preference": 3}, "notes.jsonl:4", "expected a preference in [1, 2] (or 0 for a"),
    annotated(
        "a preference of 0.5", {"preference": 0.5}, "notes.jsonl:4", "expected a preference in [1, 2] (or 0 for a"
    ),
    annotated(
        "a preference of true", {"preference": True}, "notes.jsonl:4", "expected a number as preference, got True"
    ),
    annotated(
        "a preference of a list", {"preference": [1]}, "notes.jsonl:4", "expected a number as preference, got [1]"
    ),
    annotated("an output null", {"output_1": None}, "notes.jsonl:4", "output_1: expected text, got null"),
    annotated("an output of a number", {"output_2": 5}, "notes.jsonl:4", "output_2: expected text, got int '5"),
    annotated("an instruction null", {"instruction": None}, "notes.jsonl:4", "instruction: expected text, got null"),
    annotated(
        "a difficulty of text",
        {"instruction_difficulty": "x"},
        "notes.jsonl:4",
        "instruction_difficulty: expected a number, got",
    ),
    annotated(
        "a difficulty of one", {"instruction_difficulty": 1}, "instruction_difficulty", "is given for 1 of 4 prompts"
    ),
    evaluated(
        "annotations without a verdict",
        {
            "judge": "annotations",
            "annotations": lines(*({**note, "preference": None} for note in NOTES), name="notes.jsonl"),
            "responses": None,
            "baseline": None,
        },
        "judge",
        "gave no verdict on any of 4 comparisons",
    ),
    evaluated(
        "annotations missing",
        {"judge": "annotations", "responses": None, "baseline": None},
        "judge_options",
        "annotations' needs annotations",
    ),
    evaluated(
        "annotations of another model",
        {
            "judge": "annotations",
            "annotations": lines(*NOTES, name="n.jsonl"),
            "judge_options": '{"generator": "z"}',
            "responses": None,
            "baseline": None,
        },
        "n.jsonl:1",
        "compares 'x' and 'y', not 'z",
    ),
    evaluated(
        "annotations for other texts",
        {"judge": "annotations", "annotations": lines(*NOTES, name="n.jsonl")},
        "n.jsonl",
        "has no row for 4 of 4 comparisons: prompt and",
    ),
    anchored("anchor missing", "[nowhere.jsonl]", "nowhere.jsonl", "no such file or directory"),
    anchored(
        "anchor broken",
        lambda f, m: json.dumps([str(text("{", "a.jsonl")(f, m))]),
        "a.jsonl:1",
        "malformed JSON: Expecting property name",
    ),
    anchored(
        "anchor of other prompts",
        lambda f, m: json.dumps([str(lines({**NOTES[0], "instruction": "z"}, name="a.jsonl")(f, m))]),
        "a.jsonl",
        "has no differences in length, so it cannot be a",
    ),
]
