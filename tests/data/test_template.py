"""Chat templates from strangers: rendered under limits, and their errors are errors of the row."""

import threading
import time

import pytest

from adadpo_lightning.data import template
from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.prepare import prepare
from adadpo_lightning.data.schema import BadRow, PreferencePair
from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.data.tokenize import PairTokenizer
from adadpo_lightning.errors import UserError
from tests.support.tiny import make_tokenizer, write_rows

PAIR = PreferencePair("why", "yes", "no")
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
HOSTILE = {
    "endless loop": (LOOP, "did not end within"),
    "huge range": ("{% for i in range(10 ** 12) %}x{% endfor %}", "Range too big"),
    "endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "huge string": ("{{ 'abc' * 1000000000 }}", "MemoryError"),
    "long string": ("{{ 'abc' * 7000000 }}", "wrote 21,000,000 characters"),
}


def tokenizer_with(text):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = text
    return tokenizer


@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_refused_before_any_row(monkeypatch, text, message):
    if "did not end" in message:  # the other limits are reached sooner, but not within 1 s on any machine
        monkeypatch.setattr(template, "RENDER_SECONDS", 1.0)
    start = time.perf_counter()
    with pytest.raises(UserError, match=rf"data.chat_template: chat template refused: .*{message}"):
        PairTokenizer(tokenizer_with(text), TokenizeOptions())
    assert time.perf_counter() - start < 10


def test_a_template_that_is_hostile_to_one_row_makes_it_a_bad_row(monkeypatch):
    monkeypatch.setattr(template, "RENDER_SECONDS", 1.0)
    encode = PairTokenizer(
        tokenizer_with(
            "{% for m in messages %}{{ m['content'] }}{% if m['content'] == 'bad' %}"
            + LOOP
            + "{% endif %} {% endfor %}"
        ),
        TokenizeOptions(),
    )
    encode(PAIR)
    with pytest.raises(BadRow, match="did not end within 1 s"):
        encode(PreferencePair("bad", "yes", "no"))
    encode(PAIR)


def test_a_template_that_was_not_written_for_a_row_names_its_error():
    number = "{% if m['content'] == 'bad' %}{{ m['content'] + 1 }}{% endif %}"
    encode = PairTokenizer(
        tokenizer_with(f"{{% for m in messages %}}{{{{ m['content'] }}}} {number}{{% endfor %}}"), TokenizeOptions()
    )
    with pytest.raises(BadRow, match="chat template refused: TypeError: can only concatenate str"):
        encode(PreferencePair("bad", "yes", "no"))


def test_limits_leave_no_trace():
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    PairTokenizer(make_tokenizer(), TokenizeOptions())(PAIR)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_outside_the_main_thread_there_is_no_time_limit():
    found = []
    thread = threading.Thread(target=lambda: found.append(PairTokenizer(make_tokenizer(), TokenizeOptions())(PAIR)))
    thread.start()
    thread.join()
    assert found[0].prompt_ids


THINKING = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {{ eos_token }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% if not enable_thinking | default(true) %}no {% endif %}"
    "{% endif %}"
)


def test_template_variables_come_from_the_option_and_from_the_row():
    tokenizer = tokenizer_with(THINKING)
    asked = {None: 4, True: 4, False: 5}
    for value, tokens in asked.items():
        kwargs = {} if value is None else {"enable_thinking": value}
        ids = PairTokenizer(tokenizer, TokenizeOptions(chat_template_kwargs=kwargs)).prompt_ids(PAIR)
        assert len(ids) == tokens
    encode = PairTokenizer(tokenizer, TokenizeOptions(chat_template_kwargs={"enable_thinking": False}))
    assert (
        len(encode.prompt_ids(PreferencePair("why", "yes", "no", chat_template_kwargs={"enable_thinking": True}))) == 4
    )
    with pytest.raises(UserError, match=r"data.chat_template_kwargs: 'tokenize' is set by this package"):
        TokenizeOptions(chat_template_kwargs={"tokenize": True})


def test_template_variables_of_rows_are_counted(tmp_path):
    # Joined without a template, "why" and "yes" would be one word.
    row = {"prompt": "why ", "chosen": "yes", "rejected": "no"}
    own = [None, {"enable_thinking": True}, {"enable_thinking": False}, {"other": 1}]
    path = write_rows(tmp_path / "p.jsonl", [row if k is None else row | {"chat_template_kwargs": k} for k in own])
    options = {"chat_template_kwargs": {"enable_thinking": False}}
    for chat, expected in (("auto", {"row": "3", "replace": "1"}), ("never", {"unused": "3"})):
        found = prepare(
            "train", [SourceConfig(str(path))], tokenizer_with(THINKING), TokenizeOptions(chat=chat, **options)
        )
        lines = {label: n for label, n in found.with_passes(0).report.lines() if "chat_template_kwargs" in label}
        assert list(lines.values()) == list(expected.values())
        assert all(word in label for word, label in zip(expected, lines, strict=True))
