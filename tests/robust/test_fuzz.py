"""Arbitrary rows, files, configs and command lines: no exception but ours."""

import json
import string

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adadpo_lightning.cli import main
from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.prepare import prepare
from adadpo_lightning.data.schema import BadRow, PreferencePair
from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.data.tokenize import PairTokenizer
from adadpo_lightning.errors import UserError
from tests.support.tiny import make_tokenizer

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
TEXT = st.text(max_size=30) | st.sampled_from(["<eos>", "<user>", "\ufdd0", "\x00", "a b", "\u202e", "{{ 1 }}"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
COLUMNS = ["prompt", "chosen", "rejected", "system", "tools", "weight", "margin", "messages", "label"]
MESSAGE = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "assistant", "system", "x"]) | JSON, "content": JSON}
)
ROW = st.dictionaries(st.sampled_from(COLUMNS), TEXT | st.lists(MESSAGE, max_size=3) | JSON, max_size=6)


@QUICK
@given(rows=st.lists(ROW, min_size=1, max_size=3))
def test_any_rows(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        prepared = prepare("train", [SourceConfig(str(path))], make_tokenizer(), TokenizeOptions(max_length=64))
    except UserError:
        return
    assert len(prepared.pairs) <= len(rows)


@QUICK
@given(content=st.binary(max_size=80), ending=st.sampled_from(["jsonl", "json", "csv", "parquet", "arrow"]))
def test_any_bytes_in_a_file(tmp_path_factory, content, ending):
    path = tmp_path_factory.mktemp("bytes") / f"pairs.{ending}"
    path.write_bytes(content)
    with pytest.raises(UserError):  # so few random bytes hold no pair
        prepare("train", [SourceConfig(str(path))], make_tokenizer(), TokenizeOptions(max_length=64))


@QUICK
@given(prompt=TEXT, chosen=TEXT, rejected=TEXT)
def test_special_tokens_in_text_stay_text(prompt, chosen, rejected):
    tokenizer = make_tokenizer()
    encode = PairTokenizer(tokenizer, TokenizeOptions(max_length=200))
    try:
        pair = encode(PreferencePair(prompt=prompt, chosen=chosen + " <eos> yes", rejected=rejected + " no"))
    except BadRow:
        return
    for ids in (pair.chosen_ids, pair.rejected_ids):
        assert ids.count(tokenizer.eos_token_id) == 1  # the terminator alone
        assert ids[-1] == tokenizer.eos_token_id


NAMES = [
    "data",
    "model",
    "trainer",
    "output_dir",
    "policy",
    "loss",
    "optimizer",
    "train",
    "lr",
    "beta",
    "class_path",
    "init_args",
    "max_epochs",
    "callbacks",
    "logger",
]
CONFIG = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False)
    | st.text(string.printable, max_size=12),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=6,
)


@settings(QUICK, max_examples=15)
@given(document=st.dictionaries(st.sampled_from(NAMES), CONFIG, max_size=3) | CONFIG)
def test_any_config(tmp_path_factory, document):
    path = tmp_path_factory.mktemp("config") / "c.yaml"
    path.write_text(yaml.safe_dump(document))
    # The missing model ends whatever the config does not.
    args = [
        "fit",
        f"--config={path}",
        "--model.loss=dpo",
        "--model.policy.path=./nowhere",
        "--data.train=nowhere.jsonl",
    ]
    assert main([*args, f"--output_dir={path.parent / 'out'}"]) == 2
    assert not (path.parent / "out").exists()


@settings(QUICK, max_examples=15)
@given(tokens=st.lists(st.text(string.ascii_letters + string.digits + "-=._[]{}:,", max_size=14), max_size=4))
def test_any_command_line(tmp_path_factory, tokens):
    out = tmp_path_factory.mktemp("line") / "out"
    args = ["fit", "--model.loss=dpo", "--model.policy.path=./nowhere", f"--output_dir={out}"]
    try:
        status = main([*args, *tokens])
    except SystemExit as end:
        status = end.code
        tokens = [token for token in tokens if token.startswith("-")]  # --help, --print_config and their short forms
    assert status == 2 or (status == 0 and tokens)
    assert not out.exists()
