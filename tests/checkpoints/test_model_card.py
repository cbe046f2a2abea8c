"""The card of an export: what it records, what it keeps to itself, and that the hub's own reader understands it."""

import pytest
from huggingface_hub import ModelCard

from adadpo_lightning.checkpoints.model_card import card, public_name, write_card
from adadpo_lightning.cli import main
from tests.support.runs import arguments, run
from tests.support.tiny import make_rows, write_rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_dir):
    folder = tmp_path_factory.mktemp("secret-place")
    pairs = write_rows(folder / "pairs.jsonl", make_rows(12))
    options = ["--trainer.callbacks+=adadpo_lightning.callbacks.ExportHF", "--model.loss.beta=0.25"]
    assert run(arguments(model_dir, pairs, folder / "out", *options)) == 0
    return folder / "out"


@pytest.mark.parametrize("how", ["callback", "command"])
def test_every_export_has_a_card_that_the_hub_reads(finished, tmp_path, how):
    folder = finished / "export"
    if how == "command":
        folder = tmp_path / "export"
        checkpoint = finished / "checkpoints/last.ckpt"
        assert main(["export", f"--checkpoint={checkpoint}", f"--output={folder}"]) == 0
    found = ModelCard.load(folder / "README.md")
    assert found.data.library_name == "transformers"
    assert "adadpo-lightning" in found.data.tags
    text = found.text
    for piece in ("AdaDPO (beta=0.25", "`pairs.jsonl`", "data.global_batch_size: 8", "- torch 2.", "2605.28440"):
        assert piece in text, piece
    assert "`val/rewards/accuracies`: " in text
    assert "secret-place" not in text  # no path of who trained


def test_hub_names_are_named_in_the_header():
    config = {
        "model": {"policy": {"path": "meta-llama/Meta-Llama-3-8B-Instruct", "lora": {"r": 16}}},
        "data": {"train": [{"path": "HuggingFaceH4/ultrafeedback_binarized"}, "local/pairs/x.jsonl"]},
    }
    data = ModelCard(card(config, {})).data
    assert data.base_model == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert data.datasets == ["HuggingFaceH4/ultrafeedback_binarized"]
    assert "rank 16" in card(config, {})


def test_an_empty_run_says_so():
    text = card({}, {})
    assert "Base model: not recorded" in text
    assert "None was logged." in text
    assert public_name("/home/me/model", []) == "`model`"


def test_a_local_name_stays_local_in_another_directory(tmp_path, model_dir, monkeypatch):
    """`models/tiny` looks like a hub id where it is no directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/tiny").symlink_to(model_dir)
    (tmp_path / "data/rows").mkdir(parents=True)
    write_rows(tmp_path / "data/rows/pairs.jsonl", make_rows(12))
    assert run(arguments("models/tiny", "data/rows", "out")) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["export", "--checkpoint=../out/checkpoints/last.ckpt", "--output=export"]) == 0
    found = ModelCard.load("export/README.md")
    assert "base_model" not in found.data.to_dict()
    assert "datasets" not in found.data.to_dict()
    assert "- Base model: `tiny`\n- Training data: `rows`" in found.text


@pytest.mark.parametrize(
    "content", ["", "model: [", "- 1\n", "model: [1]\n", "data: 5\n", b"\xff\xfe", "model:\ndata:\n"]
)
@pytest.mark.parametrize("file", ["config.yaml", "csv/version_0/metrics.csv"])
def test_an_export_ends_well_where_the_run_cannot_be_read(finished, tmp_path, content, file, capsys):
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "csv/version_0/metrics.csv"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes((finished / name).read_bytes())
    (tmp_path / "run" / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "export").mkdir()
    write_card(tmp_path / "export", tmp_path / "run")
    text = (tmp_path / "export/README.md").read_text()
    assert ("Base model: not recorded" in text) == (file == "config.yaml")
    ModelCard(text)
    capsys.readouterr()
