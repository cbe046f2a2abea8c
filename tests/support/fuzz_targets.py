"""What strangers feed: for each parser how to make inputs, and how it reads one.

`TARGETS` serves the tests (few examples of each) and ``scripts/fuzz.py`` (hours of them, guided by coverage). A parser
reads its input or raises `UserError` or `BadRow`, in `SECONDS` and with a message that fits on a screen.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import yaml
from hypothesis import strategies as st

from adadpo_lightning.checkpoints.integrity import damage
from adadpo_lightning.checkpoints.parts import check_parts, read_checkpoint
from adadpo_lightning.cli.commands import study
from adadpo_lightning.cli.messages import readable_errors
from adadpo_lightning.cli.parser import build_parser, instantiate, parse
from adadpo_lightning.cli.registry import find_command
from adadpo_lightning.convert import from_llama_factory, from_trl
from adadpo_lightning.convert.trl_script import read_script
from adadpo_lightning.data import files, template
from adadpo_lightning.data.encoding import tokenize_rows
from adadpo_lightning.data.formats import detect_format, read_pair
from adadpo_lightning.data.formats.registry import FORMATS
from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.schema import BadRow
from adadpo_lightning.data.tokenize import PairTokenizer
from adadpo_lightning.data.tokenizer import template_text
from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.judges import annotations
from adadpo_lightning.fingerprint import of_model_folder
from adadpo_lightning.generation import responses
from adadpo_lightning.generation.prompts import parse_prompt
from adadpo_lightning.models.loading import PolicyConfig, load_model, load_tokenizer
from adadpo_lightning.models.weights import config_values
from adadpo_lightning.study.grid import cells_of
from adadpo_lightning.study.result_file import metrics_in_fractions, read_result
from tests.support import fuzz_inputs as given
from tests.support.fuzz_inputs import edited
from tests.support.tiny import make_model_dir, make_tokenizer

SECONDS = 5.0
MESSAGE = 5000
RENDERING = patch.object(template, "RENDER_SECONDS", 2.0)


class Target(NamedTuple):
    inputs: st.SearchStrategy
    read: Callable[[Any], Any]


def holds(target: Target, value: Any) -> None:
    """The property of every target."""
    start = time.perf_counter()
    try:
        target.read(value)
    except (UserError, BadRow) as error:
        if len(str(error)) >= MESSAGE:
            raise AssertionError(f"a message of {len(str(error))} characters") from error
    assert time.perf_counter() - start < SECONDS


@cache
def here() -> Path:
    """A directory for what is written, which ends with the process."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz-")
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[Any] = []


@cache
def encoders() -> list[PairTokenizer]:
    with_template, without = make_tokenizer(), make_tokenizer()
    without.chat_template = None
    options = TokenizeOptions(max_length=200)
    return [PairTokenizer(tokenizer, options) for tokenizer in (with_template, without)]


def read_rows(rows: list[Any]) -> None:
    texts = [json.dumps(row) for row in rows]
    found = [row for row in (files.decode({"text": text}, is_json=True) for text in texts) if row is not None]
    fmt = detect_format(found, "rows")
    for name in {fmt, *(name for name in FORMATS if all(FORMATS[name].matches(row) for row in found))}:
        with suppress(BadRow, RecursionError):
            for row in found:
                read_pair(row, name)
        for encoder in encoders():
            tokenize_rows({"text": texts}, list(range(len(texts))), encoder, name, None, True, os.getpid())


def read_file(value: tuple[str, bytes]) -> None:
    kind, content = value
    path = here() / f"pairs.{kind}"
    path.write_bytes(content)
    if kind == "csv":
        _, batches = files.read_csv(path)
    elif files.is_json_array(path):
        _, batches = files.read_json_array(path)
    else:
        _, batches = files.read_json_lines(path)
    for batch in batches:
        batch.to_pylist()


def read_template(text: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template_text(text) or None
    with RENDERING:
        render_rows(tokenizer)


def render_rows(tokenizer: Any) -> None:
    encoder = PairTokenizer(tokenizer, TokenizeOptions(max_length=200))
    for row in given.ROWS[:3]:
        tokenize_rows({"text": [json.dumps(row)]}, [0], encoder, detect_format([row], "rows"), None, True, os.getpid())


def read_answer(row: Any) -> None:
    if isinstance(row, dict):  # as `read_objects` ensures
        responses._response(row, "here", 0)


def read_judgement(row: Any) -> None:
    if isinstance(row, dict):
        annotations._annotation(row, "here", "a")


def read_prompt(row: Any) -> None:
    if isinstance(row, dict):
        parse_prompt(row, "here", None, 0)


@cache
def model() -> Path:
    """A model in two shards with an index."""
    from transformers import AutoModelForCausalLM

    folder = make_model_dir(here() / "model")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    loaded.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file()
    return folder


def changed_model(name: str, content: bytes) -> Path:
    folder = here() / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model(), folder)
    (folder / name).write_bytes(content)
    return folder


def read_index(index: Any) -> None:
    folder = changed_model("model.safetensors.index.json", json.dumps(index).encode())
    of_model_folder(folder)
    load_model(PolicyConfig(path=str(folder)))


def read_shard(value: tuple[int, bytes]) -> None:
    """Bytes in the place of others in the first shard: header length, header or data."""
    at, content = value
    shard = min(model().glob("*.safetensors"))
    whole = shard.read_bytes()
    at %= min(len(whole), 2000)
    load_model(PolicyConfig(path=str(changed_model(shard.name, whole[:at] + content + whole[at + len(content) :]))))


def read_model_config(config: Any) -> None:
    folder = changed_model("config.json", json.dumps(config).encode())
    of_model_folder(folder)
    config_values(str(folder))
    load_model(PolicyConfig(path=str(folder)), empty=True)


def read_tokenizer(value: tuple[str, Any]) -> None:
    name, content = value
    load_tokenizer(PolicyConfig(path=str(changed_model(name, json.dumps(content).encode()))))


@st.composite
def model_file(draw, *names):
    name = draw(st.sampled_from(names))
    return name, draw(edited(json.loads((model() / name).read_text())))


def read_trl(config: Any) -> None:
    path = here() / "trl.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=False))
    from_trl.from_trl_file(str(path))


def read_factory(config: Any) -> None:
    path = here() / "factory.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=False))
    from_llama_factory.from_llama_factory_file(str(path))


def read_study_result(result: Any) -> None:
    path = here() / "result.json"
    path.write_text(json.dumps(result))
    metrics_in_fractions(path, read_result(path))


@cache
def checkpoint() -> bytes:
    return next(Path(__file__).parents[1].glob("fixtures/release_*/step4.ckpt")).read_bytes()


def read_damaged(value: tuple[int, bytes]) -> None:
    at, content = value
    whole = checkpoint()
    at %= len(whole)
    path = here() / "damaged.ckpt"
    path.write_bytes(whole[:at] + content + whole[at + len(content) :])
    if damage(path) is None:  # as every resume asks first
        check_parts(read_checkpoint(path), resume=True)


@cache
def parser(name: str) -> Any:
    return build_parser(name, find_command(name).load())


def parsed(name: str, document: Any) -> tuple[Any, Any]:
    path = here() / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    return parse(parser(name), [f"--config={path}"]), parser(name)


def read_fit_config(document: Any) -> None:
    with readable_errors("fit"):
        config, by = parsed("fit", document)
        instantiate(by, config)


def read_study_config(document: Any) -> None:
    with readable_errors("study"):
        list(cells_of(study.study_of(*parsed("study", document))))


@cache
def index() -> Any:
    return json.loads((model() / "model.safetensors.index.json").read_text())


TARGETS = {
    "fit_config": Target(edited(given.FIT) | given.JSON, read_fit_config),
    "study_config": Target(edited(given.STUDY) | given.JSON, read_study_config),
    "rows": Target(st.lists(st.sampled_from(given.ROWS).flatmap(edited), min_size=1, max_size=3), read_rows),
    "files": Target(st.tuples(st.sampled_from(["json", "jsonl", "csv"]), given.BYTES), read_file),
    "template": Target(given.TEMPLATES, read_template),
    "responses": Target(st.sampled_from(given.ANSWERS).flatmap(edited), read_answer),
    "annotations": Target(st.sampled_from(given.JUDGED).flatmap(edited), read_judgement),
    "prompts": Target(st.sampled_from(given.PROMPTS).flatmap(edited), read_prompt),
    "index": Target(st.deferred(lambda: edited(index())), read_index),
    "shard": Target(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=40)), read_shard),
    "model_config": Target(
        st.deferred(lambda: edited(json.loads((model() / "config.json").read_text()))), read_model_config
    ),
    "tokenizer": Target(st.deferred(lambda: model_file("tokenizer.json", "tokenizer_config.json")), read_tokenizer),
    "trl": Target(given.CONFIGS.flatmap(edited) | given.JSON, read_trl),
    "trl_script": Target(given.SCRIPTS, lambda t: read_script(t, "x")),
    "factory": Target(edited(given.FACTORY), read_factory),
    "result": Target(edited(given.RESULT) | given.JSON, read_study_result),
    "checkpoint": Target(st.tuples(st.integers(0, 2**31), st.binary(min_size=1, max_size=40)), read_damaged),
}
