"""What files and configs from strangers cannot do."""

import ast
import io
import pickle
from pathlib import Path

import pytest
import torch

import adadpo_lightning
from adadpo_lightning.cli import main
from tests.support.runs import arguments, run
from tests.support.tiny import make_rows, write_rows

PACKAGE = Path(adadpo_lightning.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def calls():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path.relative_to(PACKAGE), node, ast.unparse(node.func)


def test_weights_are_loaded_without_pickle():
    loads = [(path, node) for path, node, name in calls() if name == "torch.load"]
    assert loads
    for path, node in loads:
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert options.get("weights_only") == "True", f"{path}:{node.lineno}"


def test_nothing_is_evaluated_unpickled_or_given_to_a_shell():
    forbidden = {"eval", "exec", "compile", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "os.system"}
    found = [f"{path}:{node.lineno} {name}" for path, node, name in calls() if name in forbidden]
    # block.compile() of a model is torch's.
    assert not [line for line in found if not line.endswith(" compile")]
    for path, node, name in calls():
        if name.startswith("subprocess."):
            assert "shell" not in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.write_text, (Path(self.target), "owned")


def malicious(path, target):
    torch.save({"global_step": 1, "state_dict": {}, "x": Malicious(str(target))}, path)
    # The same bytes do act where somebody unpickles them.
    stream = io.BytesIO(pickle.dumps(Malicious(str(target))))
    pickle.load(stream)  # noqa: S301  # that is the point
    assert target.read_text() == "owned"
    target.unlink()
    return path


def test_a_malicious_checkpoint_does_not_act(tmp_path, model_dir, capsys):
    target = tmp_path / "target"
    checkpoint = malicious(tmp_path / "x.ckpt", target)
    pairs = write_rows(tmp_path / "pairs.jsonl", make_rows(4))
    assert run([*arguments(model_dir, pairs, tmp_path / "out"), f"--ckpt_path={checkpoint}"]) == 2
    assert "x.ckpt is damaged" in capsys.readouterr().err
    assert main(["export", f"--checkpoint={checkpoint}", f"--output={tmp_path / 'export'}"]) == 2
    assert not target.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--model.loss=os.system"],
        ["--model.loss=subprocess.Popen", "--model.loss.args=['touch','target']"],
        ["--trainer.callbacks=subprocess.Popen"],
        ["--trainer.callbacks+=os.system"],
        ["--trainer.logger=subprocess.Popen"],
        ["--trainer.strategy=subprocess.Popen"],
        ["--trainer.plugins=subprocess.Popen"],
    ],
    ids=lambda options: options[0],
)
def test_a_config_names_no_callable_of_another_kind(tmp_path, model_dir, options, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pairs = write_rows(tmp_path / "pairs.jsonl", make_rows(4))
    assert run([*arguments(model_dir, pairs, tmp_path / "out"), *options]) == 2
    assert "error: " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl"]


def test_secrets_of_the_environment_are_written_nowhere(tmp_path, model_dir, monkeypatch, capsys):
    names = ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY")
    for name in names:
        monkeypatch.setenv(name, f"secret-of-{name}")
    pairs = write_rows(tmp_path / "pairs.jsonl", make_rows(8))
    export = "--trainer.callbacks+=adadpo_lightning.callbacks.ExportHF"
    assert run([*arguments(model_dir, pairs, tmp_path / "out", export), "--trainer.max_steps=1"]) == 0
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) > 5
    for path in written:
        assert b"secret-of" not in path.read_bytes(), path
    said = capsys.readouterr()
    assert "secret-of" not in said.out + said.err


def test_links_and_dots_in_model_and_data_write_nothing_outside(tmp_path, model_dir):
    (tmp_path / "real").mkdir()
    write_rows(tmp_path / "real" / "pairs.jsonl", make_rows(8))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "data.jsonl").symlink_to("../real/pairs.jsonl")
    (tmp_path / "inner" / "model").symlink_to(model_dir)
    before = {path: path.stat().st_mtime_ns for path in Path(model_dir).rglob("*")}
    data, model = tmp_path / "inner/../inner/data.jsonl", tmp_path / "inner/../inner/model"
    export = "--trainer.callbacks+=adadpo_lightning.callbacks.ExportHF"
    assert run([*arguments(model, data, tmp_path / "out", export), "--trainer.max_steps=1"]) == 0
    assert {path: path.stat().st_mtime_ns for path in Path(model_dir).rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inner", "out", "real"]
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["pairs.jsonl"]
