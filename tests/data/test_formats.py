import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adadpo_lightning import plugins
from adadpo_lightning.data.formats import FORMATS, detect_format, read_pair, register_format, rename_columns
from adadpo_lightning.data.schema import IDENTICAL, BadRow, PreferencePair
from adadpo_lightning.errors import UserError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A joke?\n\nAssistant: "
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]}
CASES = {
    "strings": (
        {"prompt": "Hi", "chosen": "good", "rejected": "bad"},
        ("text", PreferencePair("Hi", "good", "bad")),
    ),
    "strings with all extras": (
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "system": "Be kind", "weight": 2, "margin": -0.5, "id": 7},
        ("text", PreferencePair("Hi", "a", "b", system="Be kind", weight=2.0, margin=-0.5)),
    ),
    "numbers as CSV has them": (
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "weight": "0.5", "margin": "", "system": ""},
        ("text", PreferencePair("Hi", "a", "b", weight=0.5)),
    ),
    "message prompt, string answers": (
        {"prompt": [user("Hi")], "chosen": "good", "rejected": "bad"},
        ("text", PreferencePair([user("Hi")], assistant("good"), assistant("bad"))),
    ),
    "answers as messages": (
        {"prompt": [user("Hi")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        ("messages", PreferencePair([user("Hi")], assistant("good"), assistant("bad"))),
    ),
    "string prompt, answers as messages": (
        {"prompt": "Hi", "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        ("messages", PreferencePair([user("Hi")], assistant("good"), assistant("bad"))),
    ),
    "message prompt, whole conversations": (
        {"prompt": [user("Hi")], "chosen": [user("Hi"), assistant("good")], "rejected": [user("Hi"), assistant("bad")]},
        ("conversations", PreferencePair([user("Hi")], assistant("good"), assistant("bad"))),
    ),
    "ultrafeedback binarized": (
        {
            "prompt": "Hi",
            "prompt_id": "0f",
            "chosen": [user("Hi"), assistant("good")],
            "rejected": [user("Hi"), assistant("bad")],
            "messages": [user("Hi"), assistant("good")],
            "score_chosen": 8.0,
            "score_rejected": 6.0,
        },
        ("conversations", PreferencePair([user("Hi")], assistant("good"), assistant("bad"))),
    ),
    "implicit prompt, several turns": (
        {
            "chosen": [user("Hi"), assistant("Hello"), user("And?"), assistant("good")],
            "rejected": [user("Hi"), assistant("Hello"), user("And?"), assistant("bad")],
        },
        (
            "conversations",
            PreferencePair([user("Hi"), assistant("Hello"), user("And?")], assistant("good"), assistant("bad")),
        ),
    ),
    "conversations that part early": (
        {"chosen": [user("a"), assistant("b"), user("c"), assistant("d")], "rejected": [user("a"), assistant("e")]},
        (
            "conversations",
            PreferencePair([user("a")], [assistant("b"), user("c"), assistant("d")], assistant("e")),
        ),
    ),
    "conversations that part behind their prompt": (
        {
            "prompt": [user("a")],
            "chosen": [user("a"), assistant("b"), user("c"), assistant("d")],
            "rejected": [user("a"), assistant("b"), user("c"), assistant("e")],
        },
        (
            "conversations",
            PreferencePair([user("a"), assistant("b"), user("c")], assistant("d"), assistant("e"), shared_turns=True),
        ),
    ),
    "a trajectory of tool calls behind its prompt": (
        {
            "prompt": [user("1+1?")],
            "chosen": [CALL, {"role": "tool", "content": "2"}, assistant("2")],
            "rejected": [assistant("3")],
        },
        (
            "messages",
            PreferencePair([user("1+1?")], [CALL, {"role": "tool", "content": "2"}, assistant("2")], assistant("3")),
        ),
    ),
    "turns that both answers begin with": (
        {
            "prompt": "a",
            "chosen": [assistant("b"), user("c"), assistant("d")],
            "rejected": [assistant("b"), user("c"), assistant("e")],
        },
        (
            "messages",
            PreferencePair([user("a"), assistant("b"), user("c")], assistant("d"), assistant("e"), shared_turns=True),
        ),
    ),
    "HH that part early": (
        {"chosen": HH + "A cat.", "rejected": HH.replace("Hello", "Good day") + "No."},
        (
            "hh",
            PreferencePair(
                [user("Hi")],
                [assistant("Hello."), user("A joke?"), assistant("A cat.")],
                [assistant("Good day."), user("A joke?"), assistant("No.")],
            ),
        ),
    ),
    "HH": (
        {"chosen": HH + "A cat.", "rejected": HH + "No.\nSorry."},
        (
            "hh",
            PreferencePair(
                [user("Hi"), assistant("Hello."), user("A joke?")], assistant("A cat."), assistant("No.\nSorry.")
            ),
        ),
    ),
    "nulls that Arrow fills in, tools, tool call": (
        {
            "prompt": [user("1+1?") | {"tool_calls": None}],
            "chosen": [CALL | {"content": None}],
            "rejected": [assistant("3") | {"tool_calls": None}],
            "tools": [{"type": "function", "function": {"name": "add", "description": None}}],
        },
        (
            "messages",
            PreferencePair(
                [user("1+1?")], CALL, assistant("3"), tools=[{"type": "function", "function": {"name": "add"}}]
            ),
        ),
    ),
    "tools as JSON text": (
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "tools": '[{"name": "add"}]'},
        ("text", PreferencePair("Hi", "a", "b", tools=[{"name": "add"}])),
    ),
    "sft: chosen": ({"prompt": "Hi", "chosen": "good"}, ("answer", PreferencePair("Hi", "good"))),
    "sft: completion": ({"prompt": "Hi", "completion": "good"}, ("answer", PreferencePair("Hi", "good"))),
    "sft: response as messages": (
        {"prompt": "Hi", "response": [assistant("good")]},
        ("answer", PreferencePair([user("Hi")], assistant("good"))),
    ),
    "sft: null rejected": (
        {"prompt": [user("Hi")], "chosen": "good", "rejected": None},
        ("answer", PreferencePair([user("Hi")], assistant("good"))),
    ),
    "sft: conversation with its prompt": (
        {"prompt": "Hi", "chosen": [user("Hi"), assistant("good")]},
        ("answer", PreferencePair([user("Hi")], assistant("good"))),
    ),
    "sft: messages": (
        {"messages": [{"role": "system", "content": "Be kind"}, user("Hi"), assistant("good")]},
        ("dialogue", PreferencePair([{"role": "system", "content": "Be kind"}, user("Hi")], assistant("good"))),
    ),
}


@pytest.mark.parametrize(("row", "expected"), CASES.values(), ids=CASES)
def test_formats(row, expected):
    name = detect_format([row], "pairs.jsonl")
    assert (name, read_pair(row, name)) == expected


BAD = {
    "missing column": ({"prompt": "a", "chosen": "b"}, "text", "missing column", "'rejected'.*found prompt, chosen"),
    "null": ({"prompt": None, "chosen": "a", "rejected": "b"}, "text", "missing column", "'prompt' is missing or null"),
    "number": ({"prompt": "a", "chosen": 3, "rejected": "b"}, "text", "not text", "chosen is int '3', expected text"),
    "dict": ({"prompt": {"a": 1}, "chosen": "a", "rejected": "b"}, "text", "not text", "prompt is dict"),
    "empty": ({"prompt": "a", "chosen": " \n", "rejected": "b"}, "text", "empty answer", "chosen has no text"),
    "empty prompt": ({"prompt": "", "chosen": "a", "rejected": "b"}, "text", "empty prompt", ""),
    "empty message": (
        {"prompt": "a", "chosen": [assistant("x")], "rejected": [assistant("")]},
        "messages",
        "empty answer",
        "rejected has no text",
    ),
    "equal": ({"prompt": "a", "chosen": "b", "rejected": "b"}, "text", IDENTICAL, ""),
    "no messages": ({"prompt": "a", "chosen": [], "rejected": []}, "messages", "not messages", "chosen must be"),
    "list of text": ({"prompt": "a", "chosen": ["x"], "rejected": ["y"]}, "messages", "not messages", ""),
    "no role": ({"prompt": "a", "chosen": [{"content": "x"}], "rejected": []}, "messages", "not messages", "no role"),
    "number as content": (
        {"prompt": "a", "chosen": [assistant(3)], "rejected": [assistant("b")]},
        "messages",
        "not text",
        "no text as its content",
    ),
    "answer of the user": (
        {"prompt": "a", "chosen": [user("x")], "rejected": [assistant("y")]},
        "messages",
        "no single answer",
        "got: user",
    ),
    "conversations part at the user": (
        {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("b")]},
        "conversations",
        "no shared prompt",
        "message 1 is where they part, by user and user",
    ),
    "one is the other's beginning": (
        {"chosen": [user("a"), assistant("b"), user("c"), assistant("d")], "rejected": [user("a"), assistant("b")]},
        "conversations",
        "no shared prompt",
        "one of chosen and rejected is the beginning of the other",
    ),
    "a trajectory ends with a tool": (
        {"prompt": "a", "chosen": [CALL, {"role": "tool", "content": "2"}], "rejected": [assistant("3")]},
        "messages",
        "no single answer",
        "must begin and end with an assistant message, got: assistant, tool",
    ),
    "a blank turn": (
        {"prompt": "a", "chosen": [assistant(" "), user("b"), assistant("c")], "rejected": [assistant("3")]},
        "messages",
        "empty answer",
        "chosen has no text",
    ),
    "prompt is not the conversation's": (
        {"prompt": [user("z")], "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
        "conversations",
        "prompt differs",
        "",
    ),
    "only answers": ({"chosen": [assistant("b")], "rejected": [assistant("c")]}, "conversations", "empty prompt", ""),
    "HH without turns": ({"chosen": "b", "rejected": "c"}, "hh", "not a dialogue", "Human"),
    "HH without answer": ({"chosen": HH, "rejected": HH + "b"}, "hh", "empty answer", "chosen"),
    "two systems": (
        {"prompt": [{"role": "system", "content": "s"}, user("a")], "chosen": "b", "rejected": "c", "system": "t"},
        "text",
        "two system prompts",
        "",
    ),
    "system is a number": (
        {"prompt": "a", "chosen": "b", "rejected": "c", "system": 3},
        "text",
        "not text",
        "system is int",
    ),
    "tools": ({"prompt": "a", "chosen": "b", "rejected": "c", "tools": "{"}, "text", "bad tools", "no JSON"),
    "tools of no list": ({"prompt": "a", "chosen": "b", "rejected": "c", "tools": {"a": 1}}, "text", "bad tools", ""),
    "negative weight": (
        {"prompt": "a", "chosen": "b", "rejected": "c", "weight": -1},
        "text",
        "bad number",
        "weight is -1.*0 or more",
    ),
    "weight is true": ({"prompt": "a", "chosen": "b", "rejected": "c", "weight": True}, "text", "bad number", ""),
    "margin is no number": (
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "x"},
        "text",
        "bad number",
        "margin is 'x'",
    ),
    "infinite margin": ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1e999}, "text", "bad number", ""),
    "no answer": ({"prompt": "a", "text": "b"}, "answer", "missing column", "chosen, completion, response"),
}


@pytest.mark.parametrize(("row", "fmt", "reason", "detail"), BAD.values(), ids=BAD)
def test_bad_rows_say_what_is_wrong(row, fmt, reason, detail):
    with pytest.raises(BadRow, match=detail) as caught:
        read_pair(row, fmt)
    assert caught.value.reason == reason


def test_detection_takes_the_format_of_most_rows():
    rows = [{"prompt": "a"}, *({"prompt": "a", "chosen": "b", "rejected": "c"} for _ in range(2))]
    assert detect_format(rows, "x") == "text"


def test_columns_that_fit_no_format_are_listed():
    with pytest.raises(UserError, match=r"pairs.csv: missing columns: expected prompt, chosen.*found bad, good, q"):
        detect_format([{"q": "a", "good": "b", "bad": "c"}], "pairs.csv")


def test_columns_are_renamed():
    row = rename_columns({"q": "a", "chosen": "unused", "good": "b", "bad": "c"}, {"chosen": "good", "prompt": "q"})
    assert row == {"prompt": "a", "chosen": "b", "bad": "c"}
    with pytest.raises(BadRow, match="no column 'godo'; did you mean 'good'"):
        rename_columns({"good": "b"}, {"chosen": "godo"})


def test_a_new_format_is_one_function():
    @register_format("sharegpt", lambda row: "conversation" in row)
    def sharegpt(row):
        return PreferencePair(row["conversation"], assistant(row["best"]), assistant(row["worst"]))

    try:
        row = {"conversation": [user("Hi")], "best": "a", "worst": "b"}
        assert read_pair(row, detect_format([row], "x")).rejected == assistant("b")
    finally:
        FORMATS.pop("sharegpt")


words = st.text(string.ascii_letters + "<|>\n:'é ", min_size=1).filter(str.strip)


@given(turns=st.lists(words, min_size=1, max_size=5).filter(lambda t: len(t) % 2), chosen=words, rejected=words)
def test_every_shape_of_a_pair_reads_the_same(turns, chosen, rejected):
    """The same conversation as answers, as whole conversations and as HH text."""
    turns, chosen, rejected = [t.strip() for t in turns], chosen.strip(), rejected.strip()
    prompt = [(user, assistant)[i % 2](text) for i, text in enumerate(turns)]
    names = {"user": "Human", "assistant": "Assistant"}
    text = "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in prompt) + "\n\nAssistant: "
    shapes = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected},
        {"prompt": prompt, "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]},
        {"chosen": [*prompt, assistant(chosen)], "rejected": [*prompt, assistant(rejected)]},
        {"chosen": text + chosen, "rejected": text + rejected},
    ]
    for row in shapes:
        if chosen == rejected:
            with pytest.raises(BadRow, match=IDENTICAL):
                read_pair(row, detect_format([row], "x"))
        else:
            expected = PreferencePair(prompt, assistant(chosen), assistant(rejected))
            assert read_pair(row, detect_format([row], "x")) == expected


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab 1{[", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "a"]), inner),
    max_leaves=8,
)
columns = st.sampled_from(
    ["prompt", "chosen", "rejected", "messages", "system", "tools", "weight", "margin", "response"]
)


@given(row=st.dictionaries(columns, values), fmt=st.sampled_from(sorted(FORMATS)))
def test_any_row_is_a_pair_or_a_bad_row(row, fmt):
    """Whatever stands in a row, no other error comes out, and a pair has text to answer and to ask with."""
    try:
        pair = read_pair(row, fmt)
    except BadRow:
        return
    assert pair.prompt
    assert pair.chosen != pair.rejected
    assert isinstance(pair.prompt_key, str)


class Plugin:
    """An entry point of an installed package."""

    name, dist = "theirs", None

    def __init__(self, error=None):
        self.error = error

    def load(self):
        if self.error is not None:
            raise self.error
        read = register_format("theirs", lambda row: "ask" in row)
        read(lambda row: PreferencePair(row["ask"], row["good"], row["bad"]))


def test_an_installed_package_adds_a_format(monkeypatch):
    row = {"ask": "a", "good": "b", "bad": "c"}
    try:
        plugins.load_plugins.cache_clear()
        monkeypatch.setattr(plugins, "entry_points", lambda group: [Plugin()])
        assert detect_format([row], "x") == "theirs"
        assert read_pair(row, "theirs") == PreferencePair("a", "b", "c")
        plugins.load_plugins.cache_clear()
        monkeypatch.setattr(plugins, "entry_points", lambda group: [Plugin(ImportError("no torch2"))])
        with pytest.raises(UserError, match=r"entry point 'theirs' of unknown package: .*ImportError: no torch2"):
            detect_format([row], "x")
    finally:
        FORMATS.pop("theirs", None)
        plugins.load_plugins.cache_clear()
