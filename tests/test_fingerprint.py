"""Fingerprints: equal for equal content wherever it lies, different for any change, and never stale."""

import json
import os
import shutil
import time

import pytest
import torch
from datasets import Dataset

from adadpo_lightning import fingerprint
from adadpo_lightning.errors import UserError
from adadpo_lightning.fingerprint import (
    differences,
    of_data,
    of_file,
    of_model_folder,
    of_pairs,
    of_tokenizer,
    of_weights,
)
from tests.support.tiny import make_model_dir, make_tokenizer


@pytest.fixture(autouse=True)
def remembered(tmp_path, monkeypatch):
    """Files of any size are remembered, in a cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "REMEMBERED_BYTES", 1)
    monkeypatch.setattr(fingerprint, "SETTLED_SECONDS", 0.0)


def test_a_hash_is_remembered_until_the_content_changes(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = of_file(path)
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "_content_hash", lambda path: pytest.fail("read again"))
        assert of_file(path) == first
    status = path.stat()
    time.sleep(0.02)
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as cp -p, rsync and tar do
    assert of_file(path) != first


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "SETTLED_SECONDS", 60.0)
    (tmp_path / "weights").write_bytes(b"one")
    of_file(tmp_path / "weights")
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_is_damaged_or_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = of_file(path)
    (memory,) = (tmp_path / "cache").rglob("*.json")
    memory.write_text("[")
    assert of_file(path) == first
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert of_file(path) == first


def test_a_model_directory_by_its_content_alone(model_dir, tmp_path):
    moved = shutil.copytree(model_dir, tmp_path / "moved")
    before = of_model_folder(model_dir)
    assert of_model_folder(moved) == before
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5, "transformers_version": "0"}))
    assert differences(before, of_model_folder(moved)) == ["config.rms_norm_eps: 1e-06 -> 0.5"]
    other = of_model_folder(make_model_dir(tmp_path / "other", seed=1))
    (line,) = differences(before, other)
    assert line.startswith("weights.model.safetensors: ")
    (moved / "config.json").write_text("[1]")
    with pytest.raises(UserError, match=r"config.json: expected a JSON object, got list; restore the file"):
        of_model_folder(moved)


def test_a_tokenizer_by_vocabulary_rules_and_template():
    before = of_tokenizer(make_tokenizer())
    used = make_tokenizer()
    used(["a", "the cat"], padding=True, truncation=True, max_length=1)  # kept in the tokenizer's own state
    assert of_tokenizer(used) == before
    used.chat_template += " "
    assert [line.split(":")[0] for line in differences(before, of_tokenizer(used))] == ["chat_template"]
    other = make_tokenizer()
    other.eos_token = "<pad>"
    assert "special_tokens.eos_token: <eos> -> <pad>" in differences(before, of_tokenizer(other))


def rows(**changed):
    one = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5], "weight": None, "margin": 0.5}
    return Dataset.from_list([one, {**one, "weight": 2.0, **changed}])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"rejected_ids": [5, 4]}, "token_ids"),
        ({"prompt_ids": [1], "chosen_ids": [2, 3]}, "token_ids"),
        ({"weight": 3.0}, "weight"),
        ({"margin": None}, "margin"),
    ],
)
def test_pairs_by_every_token_weight_and_margin(changed, named):
    assert of_pairs(rows()) == of_pairs(rows())
    (line,) = differences(of_pairs(rows()), of_pairs(rows(**changed)))
    assert line.startswith(f"{named}: ")
    turned = rows().select([1, 0])
    assert of_pairs(turned) != of_pairs(rows())
    assert of_pairs(turned)["pairs"] == 2


def test_loaded_weights_by_name_type_and_bytes():
    weights = {"a": torch.ones(2, 3), "b": torch.tensor(1.0, dtype=torch.bfloat16)}
    before = of_weights(weights.items())
    assert of_weights({name: w.clone() for name, w in weights.items()}.items()) == before
    assert of_weights({**weights, "a": torch.ones(3, 2)}.items()) != before
    assert of_weights({**weights, "b": torch.tensor(2.0, dtype=torch.bfloat16)}.items()) != before


def test_what_cannot_be_compared_between_processes_is_no_data():
    with pytest.raises(TypeError, match="plain data, got object"):
        of_data({"a": object()})
