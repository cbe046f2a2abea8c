"""Outputs resume only what they were: another model, template, option or prompt is refused by name."""

import json
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from adadpo_lightning.errors import UserError
from adadpo_lightning.generation.generate import generate_responses
from adadpo_lightning.generation.options import GenerateOptions
from adadpo_lightning.generation.prompts import Prompt
from adadpo_lightning.runs.lock import lock_output

PROMPTS = [Prompt("why cat", "0"), Prompt("the dog", "1")]


@pytest.fixture
def job(model_dir, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(model_dir, model)
    options = GenerateOptions(str(model), "", str(tmp_path / "o.jsonl"), max_new_tokens=2, temperature=0, device="cpu")
    generate_responses(options, PROMPTS)
    return options


def other_weights(model):
    file = model / "model.safetensors"
    weights = load_file(file)
    # One value, the same size, and the old file's times.
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, model / "new", metadata={"format": "pt"})
    shutil.copystat(file, model / "new")
    (model / "new").replace(file)


def edit(name, change):
    def apply(model):
        values = json.loads((model / name).read_text())
        change(values)
        (model / name).write_text(json.dumps(values))

    return apply


def other_template(model):
    file = model / "chat_template.jinja"
    file.write_text(file.read_text() + "{# #}")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".lock"}


CHANGES = {
    "weights": (other_weights, r"model\.weights\.model\.safetensors: \w{12} -> \w{12}"),
    "config": (edit("config.json", lambda c: c.update(rms_norm_eps=0.1)), r"model\.config\.rms_norm_eps: .* -> 0\.1"),
    "template": (other_template, r"tokenizer\.chat_template: \w{12} -> \w{12}"),
}


@pytest.mark.parametrize("unfinished", [False, True])
@pytest.mark.parametrize("case", CHANGES)
def test_what_changed_at_the_same_path_is_named_and_nothing_is_written(job, tmp_path, case, unfinished):
    change, message = CHANGES[case]
    output = tmp_path / "o.jsonl"
    if unfinished:
        output.write_text(output.read_text().splitlines(keepends=True)[0])
    change(tmp_path / "model")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"was started with other inputs: {message}; restore them"):
        generate_responses(job, PROMPTS)
    assert before == contents(tmp_path)


def test_options_and_prompts_are_compared_and_places_are_not(job, tmp_path):
    for changed, message in (({"temperature": 0.5}, "temperature: 0 -> 0.5"), ({"system": "be"}, "system: null -> be")):
        with pytest.raises(UserError, match=rf"options\.{message}"):
            generate_responses(replace(job, **changed), PROMPTS)
    with pytest.raises(UserError, match=r"prompts\.content"):
        generate_responses(job, [PROMPTS[0], Prompt("no", "1")])
    (tmp_path / "model").rename(tmp_path / "moved")
    moved = replace(job, model=str(tmp_path / "moved"), generator="model", batch_size=1)
    assert generate_responses(moved, PROMPTS).resumed == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seed": 0}', "[" * 100_000], ids=range(5))
def test_a_damaged_record_is_named(job, tmp_path, text):
    (tmp_path / "o.jsonl.settings.json").write_text(text)
    with pytest.raises(UserError, match=r"o\.jsonl\.settings\.json: .*; delete it and o\.jsonl"):
        generate_responses(job, PROMPTS)


@pytest.mark.parametrize("content", [b"\xff\n", b"1\n", b"{\n{}\n"])
def test_a_damaged_output_is_named(job, tmp_path, content):
    (tmp_path / "o.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"o\.jsonl: .*; delete it and generate again"):
        generate_responses(job, PROMPTS)


def test_two_jobs_do_not_write_to_one_output(job, tmp_path):
    with lock_output(tmp_path / "o.jsonl", "output"):
        with pytest.raises(UserError, match=r"output: .*o\.jsonl is being written by process \d+"):
            generate_responses(job, PROMPTS)
        generate_responses(replace(job, output=str(tmp_path / "other.jsonl")), PROMPTS)
    assert generate_responses(job, PROMPTS).resumed == 2
