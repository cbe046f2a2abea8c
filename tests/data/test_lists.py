"""Ranked lists: how rows are read, which pairs they become, and that these are the pairs that rows of pairs give."""

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.data.formats import FORMATS, detect_format, read_pair, register_format
from adadpo_lightning.data.inspection import inspect_pairs
from adadpo_lightning.data.lists import ListOptions, expand
from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.prepare import prepare
from adadpo_lightning.data.schema import BadRow, RankedList
from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.errors import UserError
from adadpo_lightning.types import ModuleNeeds
from tests.support.tokenizers import make

USER = {"role": "user", "content": "Name a prime."}
ANSWERS, SCORES = ["7", "8", "nine", "two"], [3.0, 1.0, 1.0, 2.5]
ROW = {"prompt": "Name a prime.", "responses": ANSWERS, "scores": SCORES}
READ = RankedList("Name a prime.", ANSWERS, SCORES)


def assistant(text):
    return {"role": "assistant", "content": text}


READ_MESSAGES = RankedList([USER], [assistant(text) for text in ANSWERS], SCORES)
SHAPES = {
    "plain": (ROW, "ranked", READ),
    "other names": ({"instruction": ROW["prompt"], "generations": ANSWERS, "ratings": SCORES}, "ranked", READ),
    "ranks": (
        {"prompt": ROW["prompt"], "answers": ANSWERS, "ranks": [1, 3, 3, 2]},
        "ranked",
        RankedList(ROW["prompt"], ANSWERS, [-1.0, -3.0, -3.0, -2.0]),
    ),
    "both": ({**ROW, "ranks": [1, 3, 4, 2]}, "ranked", READ),
    "prompt as messages": ({**ROW, "prompt": [USER]}, "ranked", READ_MESSAGES),
    "messages": ({**ROW, "prompt": [USER], "responses": READ_MESSAGES.answers}, "ranked", READ_MESSAGES),
    "lists of messages": (
        {**ROW, "prompt": [USER], "responses": [[m] for m in READ_MESSAGES.answers]},
        "ranked",
        READ_MESSAGES,
    ),
    "ultrafeedback": (
        {
            "instruction": ROW["prompt"],
            "completions": [
                {"model": "a", "response": text, "overall_score": score, "annotations": {"truthfulness": None}}
                for text, score in zip(ANSWERS, SCORES, strict=True)
            ],
        },
        "ultrafeedback",
        READ,
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_rows(shape):
    row, name, expected = SHAPES[shape]
    assert detect_format([row], "x") == name
    assert read_pair(row, name) == expected


def test_columns_beside_the_list():
    row = {**ROW, "system": "Be brief.", "weight": 2, "margin": "0.5", "chat_template_kwargs": {"a": 1}}
    read = read_pair(row, "ranked")
    assert (read.system, read.weight, read.margin, read.chat_template_kwargs) == ("Be brief.", 2.0, 0.5, {"a": 1})
    for pair in expand(read, ListOptions("all")).pairs:
        assert (pair.system, pair.weight, pair.margin, pair.chat_template_kwargs) == ("Be brief.", 2.0, 0.5, {"a": 1})


BAD = {
    "uneven lists: 4 responses and 1 scores": {"scores": [1.0]},
    "bad number: scores[1] is empty": {"scores": [1.0, None, 2.0, 3.0]},
    "bad number: scores[0] is nan": {"scores": [float("nan"), 1.0, 2.0, 3.0]},
    "not a list: scores is float": {"scores": 1.0},
    "scores contradict ranks": {"ranks": [4, 3, 2, 1]},
    "ambiguous columns: 'responses' and 'completions'": {"completions": ANSWERS},
    "empty answer: answer 2 has no text": {"responses": ["7", " ", "nine", "two"]},
    "not text: responses[0] is int": {"responses": [7, "8", "nine", "two"]},
    "missing column: 'scores' is missing": {"scores": None},
    "uneven lists: 0 answers": {"responses": [], "scores": []},
    "no single answer": {"responses": [[USER], "8", "nine", "two"]},
}


@pytest.mark.parametrize("problem", BAD)
def test_unusable_rows(problem):
    with pytest.raises(BadRow) as caught:
        read_pair(ROW | BAD[problem], "ranked")
    assert str(caught.value).startswith(problem)


def test_unusable_completions():
    for item, problem in (
        ({"response": "a", "overall_score": ""}, "bad number: overall_score[0] is empty"),
        ({"response": "a"}, "bad number: overall_score[0] is empty"),
        ({"overall_score": 1}, "missing column: 'response'"),
        ("a", "not completions"),
    ):
        with pytest.raises(BadRow, match=problem.replace("[", r"\[")):
            read_pair({"instruction": "Hi", "completions": [item]}, "ultrafeedback")


@given(
    scores=st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 2.0]), min_size=1, max_size=6),
    gap=st.sampled_from([0.0, 0.25, 1.0, 9.0]),
)
def test_which_pairs_are_made(scores, gap):
    """Against the definitions, written over all ordered pairs of positions."""
    ranked = RankedList("Hi", [f"answer {i}" for i in range(len(scores))], scores)
    numbers = range(len(scores))
    wide = {(i, j) for i in numbers for j in numbers if scores[i] > scores[j] and scores[i] - scores[j] >= gap}
    made = {kind: expand(ranked, ListOptions(kind, gap)) for kind in ("best_worst", "all", "adjacent")}
    found = {kind: [pair.answer_indices for pair in made[kind].pairs] for kind in made}
    for kind, pairs in found.items():
        assert len(set(pairs)) == len(pairs)
        assert set(pairs) <= wide
        for pair in made[kind].pairs:
            assert (pair.chosen, pair.rejected) == tuple(f"answer {i}" for i in pair.answer_indices)
    assert set(found["all"]) == wide
    assert made["all"].ties == sum(scores[i] == scores[j] for i in numbers for j in range(i))
    candidates = len(scores) * (len(scores) - 1) // 2
    assert len(found["all"]) + made["all"].ties + made["all"].narrow == candidates
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    assert found["best_worst"] == ([(best, worst)] if (best, worst) in wide else [])
    # Neighbors: no other answer is strictly between them.
    assert all(not scores[i] > scores[k] > scores[j] for i, j in found["adjacent"] for k in numbers)
    distinct = sorted(set(scores))
    assert [scores[i] for i, _ in found["adjacent"]] == [b for a, b in pairwise(distinct) if b - a >= gap][::-1]


def test_margins():
    differences = ListOptions("adjacent", margin="score_difference")
    assert [pair.margin for pair in expand(READ, differences).pairs] == [0.5, 1.5]
    assert [pair.margin for pair in expand(READ, ListOptions("adjacent")).pairs] == [None, None]
    with pytest.raises(BadRow, match="two margins"):
        expand(RankedList("Hi", ["a", "b"], [1.0, 0.0], margin=1.0), differences)


def test_options_are_checked():
    for options, message in (
        ({"pairs": "best"}, r"data\.lists\.pairs: expected one of best_worst, all, adjacent, got 'best'"),
        ({"min_gap": -1.0}, r"data\.lists\.min_gap: expected a finite number of 0 or more, got -1"),
        ({"min_gap": float("nan")}, r"data\.lists\.min_gap"),
        ({"margin": "scores"}, r"data\.lists\.margin"),
    ):
        with pytest.raises(UserError, match=message):
            ListOptions(**options)


ROWS = [
    ROW,
    {"prompt": "Name a colour.", "responses": ["red", "a chair", "red"], "scores": [1, 0, 0.5]},
    {"prompt": "Tied.", "responses": ["a", "b"], "scores": [1, 1]},
    {"prompt": "Alone.", "responses": ["a"], "scores": [1]},
]


def prepared(write, rows, lists=None, name="lists.jsonl", **options):
    options = TokenizeOptions(**options, **({"lists": lists} if lists else {}))
    return prepare("train", [SourceConfig(write(rows, name))], make("llama3"), options).with_passes(0)


IDS = ("prompt_ids", "chosen_ids", "rejected_ids", "weight", "margin", "prompt_key")


@pytest.mark.parametrize("kind", ["best_worst", "all", "adjacent"])
@pytest.mark.parametrize("options", [{}, {"max_length": 22, "truncation": "keep_end"}])
def test_a_list_is_the_pairs_that_it_stands_for(write, kind, options):
    lists = ListOptions(kind, min_gap=0.5)
    pairs = [
        {"prompt": row["prompt"], "chosen": pair.chosen, "rejected": pair.rejected}
        for row in ROWS
        for pair in expand(read_pair(row, "ranked"), lists).pairs
        if pair.chosen != pair.rejected
    ]
    ours, theirs = prepared(write, ROWS, lists, **options), prepared(write, pairs, name="pairs.jsonl", **options)
    assert len(pairs) > 1
    for column in IDS:
        assert ours.pairs[column][:] == theirs.pairs[column][:]


def test_the_table_counts_what_was_not_made(write):
    found = prepared(write, ROWS, ListOptions("all", min_gap=0.75))
    lines = dict(found.report.lines())
    assert lines["rows read"] == "4"
    assert lines["ranked lists"] == "4"
    assert lines["pairs not made, equal scores"] == "2"
    assert lines["pairs not made, below data.lists.min_gap"] == "3"
    assert lines["dropped: ranked list without a pair"] == "2"
    assert lines["pairs"] == "5"
    # Equal answers with different scores are dropped as those of pairs are.
    assert dict(prepared(write, ROWS, ListOptions("all")).report.dropped) == {
        "chosen equals rejected": 1,
        "ranked list without a pair": 2,
    }


def test_the_origin_of_each_pair_is_kept(write):
    found = prepared(write, ROWS, ListOptions("all", min_gap=0.5))
    origin = list(zip(*(found.pairs[name][:] for name in ("row", "chosen_index", "rejected_index")), strict=True))
    assert origin == [(0, 0, 3), (0, 0, 1), (0, 0, 2), (0, 3, 1), (0, 3, 2), (1, 0, 1), (1, 2, 1)]
    assert found.where(3).endswith("lists.jsonl:1, answer 4 over 2")
    assert inspect_pairs(found, make("llama3"), 1).examples[0].where.endswith("lists.jsonl:1, answer 1 over 4")
    pair = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    found = prepared(write, [pair], name="pairs.jsonl")
    assert found.pairs["chosen_index"][:] == [None]
    assert found.where(0).endswith("pairs.jsonl:1")


def test_a_bad_row_is_named_by_its_own_number(write):
    with pytest.raises(UserError, match=r"lists\.jsonl:3: uneven lists"):
        prepared(write, [ROW, ROW, {**ROW, "scores": [1.0]}], ListOptions("all"))


def test_each_distinct_answer_is_tokenized_once(write, monkeypatch):
    tokenizer = make("llama3")
    seen = []
    call = type(tokenizer).__call__
    monkeypatch.setattr(type(tokenizer), "__call__", lambda self, text, **k: seen.extend(text) or call(self, text, **k))
    prepared(write, [{**ROW, "prompt": "Name one prime."}], ListOptions("all"))
    for text in (*ANSWERS, "Name one prime."):
        assert sum(text in piece for piece in seen) == 1


def data_module(write, rows, *, rejected=True, **options):
    data = PreferenceDataModule(train=write(rows, "lists.jsonl"), global_batch_size=4, micro_batch_size=4, **options)
    data.connect(ModuleNeeds(make("llama3"), rejected, lambda: "packed"))
    data.setup("fit")
    return data


def test_batches_say_which_answers_they_compare(write):
    data = data_module(write, ROWS, lists=ListOptions("all", min_gap=0.5), shuffle=False)
    batches = list(data.train_dataloader())
    found = torch.cat([torch.column_stack([batch.row_ids, batch.answer_ids]) for batch in batches]).tolist()
    assert sorted(found) == [[0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 3, 1], [0, 3, 2], [1, 0, 1], [1, 2, 1]]


def test_a_loss_without_rejected_answers_gets_each_best_answer_once(write):
    data = data_module(write, ROWS, rejected=False, lists=ListOptions("all"))
    pairs = data.prepared["train"].pairs
    assert [make("llama3").decode(ids) for ids in pairs["chosen_ids"]] == [
        f"{text}<|eot_id|>" for text in ("7", "red", "a", "a")
    ]
    assert pairs["chosen_index"][:] == [0, 0, 0, 0]


def test_pairs_of_a_list_stay_on_one_side_of_the_split(write):
    rows = [{**ROW, "prompt": f"Number {i}?"} for i in range(10)]
    data = data_module(write, rows, lists=ListOptions("all"), val_size=0.3)
    sides = [set(data.prepared[name].pairs["row"]) for name in ("train", "val")]
    assert not sides[0] & sides[1]
    assert len(data.prepared["val"].pairs) % 5 == 0


def test_other_options_give_other_pairs_from_the_same_file(write):
    counts = [len(prepared(write, ROWS, ListOptions(kind)).pairs) for kind in ("all", "best_worst", "adjacent", "all")]
    assert counts == [7, 2, 3, 7]


def test_a_format_of_another_package_may_give_lists(write):
    @register_format("voted", lambda row: "votes" in row)
    def voted(row):
        return RankedList(row["question"], list(row["votes"]), [float(n) for n in row["votes"].values()])

    try:
        found = prepared(write, [{"question": "Why?", "votes": {"so": 3, "no": 1, "yes": 2}}], ListOptions("all"))
        assert found.report.formats == {found.sources[0].path: "voted"}
        assert len(found.pairs) == 3
    finally:
        FORMATS.pop("voted")


def test_what_make_pairs_writes_is_read():
    """Its other columns, such as lists of token counts, are no part of the ranked list."""
    row = {**ROW, "prompt": [USER], "uid": "1", "tokens": [1, 1, 1, 1], "samples": [0, 1, 2, 3], "made_by": {"seed": 0}}
    row = json.loads(json.dumps(row))
    assert read_pair(row, detect_format([row], "x")) == READ_MESSAGES
