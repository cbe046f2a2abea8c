"""Every case of bad input: exit code 2, an error that names the field and says how to mend it, nothing written."""

import json
import logging
import time
from importlib import import_module

import pytest

from adadpo_lightning.cli import main
from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.prepare import prepare
from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.errors import UserError
from adadpo_lightning.models.loading import PolicyConfig, load_tokenizer
from tests.support import endpoint
from tests.support.bad_input import CASES, KINDS
from tests.support.bad_input.case import GOOD, Case, command_line, good_options, model_with
from tests.support.bad_input.models import tokenizer_without


def arguments(case, folder, model_dir):
    """The command line of a case."""
    options = ({} if case.bare else good_options(folder, model_dir)) | case.options
    return command_line(case.command, options, folder, model_dir)


def test_there_are_enough_cases_of_each_kind():
    assert len(CASES) >= 200
    assert min(map(len, KINDS.values())) >= 20
    assert len({case.name for case in CASES}) == len(CASES)


# Cases of a kind in the default run; the others take a minute and a half.
QUICK = 32


def parametrised(cases):
    quick = {case.name for kind in KINDS.values() for case in [c for c in kind if not c.slow][:QUICK]}
    marks = {True: (), False: pytest.mark.slow}
    return [pytest.param(case, id=case.name.replace(" ", "_"), marks=marks[case.name in quick]) for case in cases]


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """What takes seconds to import is not part of a case's time."""
    for name in ("adadpo_lightning.cli.trainer", "datasets", "transformers", "peft"):
        import_module(name)


@pytest.fixture
def _no_endpoints_left():
    yield
    endpoint.stop_all()


@pytest.mark.usefixtures("_no_endpoints_left")
@pytest.mark.parametrize("case", parametrised(CASES))
def test_bad_input_is_named_and_nothing_is_written(case, tmp_path, model_dir, capsys, monkeypatch):
    # Lightning's log handler may hold the captured stream of an earlier test.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.setattr("adadpo_lightning.study.jobs.run_study", lambda *_: pytest.fail("the study ran"))
    inputs, work = tmp_path / "in", tmp_path / "work"
    inputs.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    args = arguments(case, inputs, model_dir)
    before = sorted(path for path in tmp_path.rglob("*"))
    began = time.monotonic()
    assert main(args) == 2
    assert time.monotonic() - began < 15
    said = capsys.readouterr().err
    assert "error: " in said
    assert "Traceback" not in said
    message = said[said.index("error: ") :]
    assert case.names in message
    assert case.says in message
    assert len(message) < 3000
    after = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert not [path for path in after if ".cache" not in str(path)]


def test_debug_shows_the_traceback(tmp_path, model_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = next(case for case in CASES if case.name == "beta zero")
    with pytest.raises(UserError, match="above 0"):
        main([*arguments(case, tmp_path, model_dir), "--debug"])


ODD = {
    "byte order mark": "\ufeff" + "".join(json.dumps(row) + "\n" for row in GOOD),
    "CRLF": "".join(json.dumps(row) + "\r\n" for row in GOOD),
    "no newline at the end": "\n".join(json.dumps(row) for row in GOOD),
    "blank lines between": "\n\n".join(json.dumps(row) for row in GOOD) + "\n\n\n",
    "emoji and right-to-left": "".join(
        json.dumps(
            {"prompt": "a \U0001f600", "chosen": f"\u05e9\u05dc\u05d5\u05dd {i} yes", "rejected": f"b {i} no"},
            ensure_ascii=False,
        )
        + "\n"
        for i in range(4)
    ),
    "a huge line": "".join(
        json.dumps({**row, "prompt": "a " * 100_000, "note": "x" * 1_000_000}) + "\n" for row in GOOD
    ),
    "duplicate rows": "".join(json.dumps(GOOD[0]) + "\n" for _ in range(4)),
    "nested columns that nobody reads": "".join(
        json.dumps({**row, "meta": {"a": [{"b": [1, {}]}]}}) + "\n" for row in GOOD
    ),
}


@pytest.mark.parametrize("content", ODD.values(), ids=[name.replace(" ", "_") for name in ODD])
def test_odd_input_that_is_good(content, tmp_path, model_dir):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content.encode())
    options = TokenizeOptions(max_length=40, truncation="keep_end", max_prompt_length=20)
    prepared = prepare("train", [SourceConfig(str(path))], load_tokenizer(PolicyConfig(path=str(model_dir))), options)
    assert len(prepared.pairs) == 4


def test_a_tokenizer_without_a_pad_token_serves(tmp_path, model_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = Case("no pad", {"model.policy.path": model_with(tokenizer_without(pad_token=None))}, "", "")
    assert main(arguments(case, tmp_path, model_dir)) == 0
    assert (tmp_path / "out/checkpoints/last.ckpt").is_file()
