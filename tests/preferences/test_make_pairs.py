"""make-pairs on the tiny model: the same answers as generate, resumption, the report, and bad input."""

import json
import multiprocessing as mp
import os
import random
import re
import shutil
import signal
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch

from adadpo_lightning.cli import main
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.data.lists import ListOptions
from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.judges import base
from adadpo_lightning.evaluation.judges.base import Judge
from adadpo_lightning.generation.answers import answer_prompts
from adadpo_lightning.generation.options import SamplingOptions
from adadpo_lightning.models.loading import PolicyConfig, load_model, load_tokenizer
from adadpo_lightning.preferences import judging, report
from adadpo_lightning.preferences.make import make_pairs
from adadpo_lightning.preferences.options import MakePairsOptions
from tests.support.tiny import make_rows, write_rows

ROWS = [{"prompt": row["prompt"]} for row in make_rows(9)]
OUTPUTS = ("responses.jsonl", "scores.jsonl", "pairs.jsonl", "report.json", "report.md")


@pytest.fixture(scope="module", autouse=True)
def _no_figure():
    """Drawing takes longer than the rest; `test_the_command_line_with_a_system_prompt` draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "find_spec", lambda name: None)
        yield


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", ROWS)


@pytest.fixture(scope="module")
def job(model_dir, prompts):
    def job(output_dir, **options):
        given = {"samples": 3, "temperature": 1.0, "max_new_tokens": 12, "batch_size": 4, "unfinished": "keep"}
        names = {"judge": "length", "judge_options": {"unit": "tokens"}, "device": "cpu"}
        asked = options.pop("prompts", str(prompts))
        return MakePairsOptions(str(model_dir), asked, str(output_dir), **(names | given | options))

    return job


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    """A job that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, make_pairs(job(folder))


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder):
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def test_answers_are_those_of_the_sampler_and_pairs_follow_from_them(whole, job, model_dir):
    folder, made = whole
    config = PolicyConfig(str(model_dir))
    tokenizer = load_tokenizer(config)
    drawn = answer_prompts(
        load_model(config),
        tokenizer,
        [row["prompt"] for row in ROWS],
        SamplingOptions(max_new_tokens=12, temperature=1.0),
        samples=3,
    )
    written = rows_of(folder / "responses.jsonl")
    assert [row["response"] for row in written] == [answer.response for answers in drawn for answer in answers]
    assert [row["sample"] for row in written] == [0, 1, 2] * 9
    expected = {}
    for row, answers in zip(ROWS, drawn, strict=True):
        given = {answer.response: answer.tokens for answer in answers if answer.response}
        if len(given) > 1 and len(set(given.values())) > 1:
            expected[row["prompt"]] = (max(given.values()), min(given.values()))
    pairs = rows_of(made.pairs)
    assert {row["prompt"]: (row["tokens_chosen"], row["tokens_rejected"]) for row in pairs} == expected
    for row in pairs:
        assert (
            row["score_margin"]
            == row["score_chosen"] - row["score_rejected"]
            == row["tokens_chosen"] - row["tokens_rejected"]
        )
        sampled = [w for w in written if w["prompt"] == row["prompt"]]
        assert [sampled[i]["response"] for i in row["samples"]] == [row["chosen"], row["rejected"]]
        assert row["made_by"]["judge"] == "length"
    assert made.statistics["pairs"] == len(expected)
    assert made.statistics["prompts_with_pairs"] + sum(made.statistics["prompts_without_pairs"].values()) == 9
    assert made.statistics["length_bias"]["chosen_longer"] == 1.0
    assert made.statistics["length_bias"]["correlation"] == pytest.approx(1.0)


def test_separators_of_unicode_in_a_prompt_end_no_line(job, tmp_path):
    """U+2028 and others are not escaped in JSON; only a newline ends a row."""
    rows = [{"prompt": f"why the{mark}cat {i}"} for i, mark in enumerate("\u2028\u2029\x85\x0b\x1c")]
    made = make_pairs(job(tmp_path / "out", prompts=str(write_rows(tmp_path / "prompts.jsonl", rows))))
    assert made.statistics["prompts"] == 5
    pairs = made.pairs.read_text(encoding="utf-8").split("\n")[:-1]
    assert {json.loads(pair)["prompt"] for pair in pairs} <= {row["prompt"] for row in rows}


def test_pairs_have_the_template_variables_that_their_prompts_were_rendered_with(job, tmp_path):
    rows = [{"prompt": f"why {i}", "chat_template_kwargs": {"two": i} if i else None} for i in range(3)]
    prompts = write_rows(tmp_path / "prompts.jsonl", rows)
    option = {"one": 1, "two": "option"}
    made = make_pairs(job(tmp_path / "out", prompts=str(prompts), chat_template_kwargs=option, samples=8))
    found = {row["prompt"]: row["chat_template_kwargs"] for row in rows_of(made.pairs)}
    assert found.pop("why 0") == option
    assert found  # two answers of one length make no pair
    assert all(kwargs == {"one": 1, "two": int(prompt[-1])} for prompt, kwargs in found.items())


def test_fit_reads_the_pairs(whole, model_dir):
    _, made = whole
    data = PreferenceDataModule(train=str(made.pairs), tokenizer=str(model_dir), max_length=100, global_batch_size=2)
    data.setup("fit")
    rows = data.prepared["train"]
    assert len(rows.pairs) == made.statistics["pairs"]
    assert not {"margin", "weight"} & rows_of(made.pairs)[0].keys()  # they would change the loss


@pytest.mark.parametrize("stage", ["answers", "scores"])
def test_an_interrupted_job_ends_with_the_same_bytes(whole, job, tmp_path, monkeypatch, stage):
    monkeypatch.setattr(judging, "CHUNK", 4)
    shutil.copytree(whole[0], tmp_path / "job")
    folder = tmp_path / "job"
    name = "responses.jsonl" if stage == "answers" else "scores.jsonl"
    lines = (folder / name).read_text().splitlines(keepends=True)
    (folder / name).write_text("".join(lines[:6]) + lines[6][:9])  # killed while it wrote the seventh
    for later in OUTPUTS[OUTPUTS.index(name) + 1 :]:
        (folder / later).unlink()
        (folder / f"{later}.settings.json").unlink(missing_ok=True)
    make_pairs(job(folder))
    assert contents(folder) == contents(whole[0])


def test_neither_batch_size_nor_the_number_of_prompts_changes_the_answers(whole, job, tmp_path):
    make_pairs(job(tmp_path / "job", batch_size=27, limit=5))
    lines = (whole[0] / "responses.jsonl").read_text().splitlines()
    assert (tmp_path / "job/responses.jsonl").read_text().splitlines() == lines[:15]


def test_another_selection_needs_no_new_answers_and_another_judge_says_what_to_delete(
    whole, job, model_dir, tmp_path, monkeypatch
):
    folder = tmp_path / "job"
    shutil.copytree(whole[0], folder)
    kept = (folder / "responses.jsonl").read_bytes()
    monkeypatch.setattr("adadpo_lightning.generation.generate.build_engine", None)
    best = make_pairs(job(folder, min_gap=3.0))
    assert all(row["score_margin"] >= 3 for row in rows_of(best.pairs))
    every = make_pairs(job(folder, select="all"))
    assert every.statistics["pairs"] == len(rows_of(every.pairs)) > best.statistics["pairs"]
    ranked = make_pairs(job(folder, select="list"))
    for row in rows_of(ranked.pairs):
        assert row["scores"] == sorted(row["scores"], reverse=True)
        assert len(row["responses"]) == len(set(row["responses"])) == len(row["scores"])
    data = PreferenceDataModule(
        train=str(ranked.pairs),
        lists=ListOptions(pairs="all"),
        tokenizer=str(model_dir),
        max_length=100,
        global_batch_size=2,
    )
    data.setup("fit")
    assert len(data.prepared["train"].pairs) == every.statistics["pairs"]
    before = contents(folder)
    with pytest.raises(
        UserError, match=r"judge\.options\.prefer: longer -> shorter; restore them, delete scores\.jsonl"
    ):
        make_pairs(job(folder, judge_options={"unit": "tokens", "prefer": "shorter"}))
    with pytest.raises(UserError, match=r"no prompt gives a pair \(largest difference of score below min_gap: "):
        make_pairs(job(folder, min_gap=99))
    assert contents(folder) == before
    (folder / "scores.jsonl").unlink()
    shorter = make_pairs(job(folder, judge_options={"unit": "tokens", "prefer": "shorter"}))
    assert shorter.statistics["length_bias"]["chosen_longer"] == 0.0
    assert (folder / "responses.jsonl").read_bytes() == kept


def test_the_command_line_with_a_system_prompt(model_dir, prompts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "find_spec", find_spec)
    args = [f"--model={model_dir}", f"--prompts={prompts}", f"--output_dir={tmp_path / 'out'}", "--judge=length"]
    more = ["--max_new_tokens=10", "--temperature=1", "--unfinished=keep", "--system=be a cat", "--limit=4"]
    assert main(["make-pairs", *args, *more]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"pairs from \d of 4 prompts, 20 answers, judged by length", printed)
    row = rows_of(tmp_path / "out/pairs.jsonl")[0]
    assert row["prompt"][0] == {"role": "system", "content": "be a cat"}
    assert row["prompt"][1]["content"] in {row["prompt"] for row in ROWS}
    assert "## Length bias of the selection" in (tmp_path / "out/report.md").read_text()
    assert (tmp_path / "out/report.png").stat().st_size > 10_000


def test_a_model_that_never_says_anything_else_gives_no_pair(model_dir, prompts, job, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(model_dir, model)
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"] = torch.zeros_like(weights["lm_head.weight"])
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    options = job(tmp_path / "out", max_new_tokens=1, top_k=1)
    with pytest.raises(UserError, match=r"no prompt gives a pair .*; raise temperature or samples"):
        make_pairs(MakePairsOptions(**{**vars(options), "model": str(model)}))
    assert not (tmp_path / "out/pairs.jsonl").exists()


BAD = {
    "judge": (["--judge=golf"], "judge: unknown judge 'golf'; did you mean 'gold'"),
    "judge option": (["--judge_options.unti=words"], "'length' has no option 'unti'; did you mean 'unit'"),
    "samples": (["--samples=1"], "samples: expected at least 2"),
    "greedy": (["--temperature=0"], "temperature: 0 always draws the same answer"),
    "gap": (["--min_gap=-1"], "min_gap: expected 0 or more"),
    "select": (["--select=best"], "select"),
    "gold": (["--judge=gold", "--judge_options=null"], "does not belong to the embedded task"),
    "prompts": (["--prompts=none.jsonl"], "none.jsonl: no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_one_clear_error(case, model_dir, prompts, tmp_path, capsys):
    args, message = BAD[case]
    given = [f"--model={model_dir}", f"--prompts={prompts}", f"--output_dir={tmp_path / 'out'}", "--judge=length"]
    small = ["--judge_options.unit=words", "--max_new_tokens=3", "--limit=2", "--unfinished=keep"]
    try:
        status = main(["make-pairs", *given, *small, *args])
    except SystemExit as stop:  # a value that the parser refuses
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error
    if case != "gold":
        assert not (tmp_path / "out").exists()


def test_messages_need_a_chat_template(model_dir, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(model_dir, model)
    (model / "chat_template.jinja").unlink()
    talk = [
        {"role": "user", "content": "why"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "how"},
    ]
    asked = write_rows(tmp_path / "talk.jsonl", [{"prompt": talk}])
    options = MakePairsOptions(str(model), str(asked), str(tmp_path / "out"), "length", max_new_tokens=3)
    with pytest.raises(UserError, match="has messages and the tokenizer no chat template"):
        make_pairs(options)


@pytest.mark.slow
def test_sigkill_at_any_moment(whole, job, tmp_path, monkeypatch):
    """Children, forked after everything is imported, until one ends by itself."""
    monkeypatch.setattr(judging, "CHUNK", 2)
    rng, folder, kills = random.Random(0), tmp_path / "job", 0
    options = job(folder)
    while True:
        process = mp.get_context("fork").Process(target=make_pairs, args=(options,))
        process.start()
        process.join(timeout=rng.uniform(0.01, 0.12) if kills < 20 else None)  # a whole job takes 0.2 s
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills > 0
    assert contents(folder) == contents(whole[0])


@dataclass
class LikesCats(Judge):
    """Compares two answers: more cats win, and among equals what is shown first."""

    def preferences(self, comparisons):
        cats = [(c.model.response.split().count("cat"), c.baseline.response.split().count("cat")) for c in comparisons]
        return [float(ours >= theirs) for ours, theirs in cats]


def test_a_judge_that_compares_two_answers(job, tmp_path, monkeypatch):
    monkeypatch.setitem(base._judges, "cats", LikesCats)
    monkeypatch.setattr(LikesCats, "key", "cats")
    made = make_pairs(job(tmp_path / "out", judge="cats", judge_options={}))
    for row in rows_of(made.pairs):
        assert row["chosen"].split().count("cat") > row["rejected"].split().count("cat")
        assert 1 >= row["score_chosen"] > row["score_rejected"] >= 0
    assert made.statistics["pointwise"] is False
    assert made.statistics["prompts_without_pairs"]["all scores equal"] > 0  # equal numbers of cats, either way round


def test_cut_off_answers_are_left_out_and_said(whole, job, tmp_path):
    shutil.copytree(whole[0], tmp_path / "job")
    (tmp_path / "job/scores.jsonl").unlink()
    made = make_pairs(job(tmp_path / "job", unfinished="drop"))
    written = rows_of(tmp_path / "job/responses.jsonl")
    cut_off = {(row["prompt"], row["response"]) for row in written if not row["finished"]}
    assert made.statistics["answers_left_out"]["cut off"] == sum(not row["finished"] for row in written) > 0
    assert not any(
        (row["prompt"], row[side]) in cut_off for row in rows_of(made.pairs) for side in ("chosen", "rejected")
    )
    assert "of the answers reach max_new_tokens (12) and are left out" in made.statistics["notes"][0]
    assert made.statistics["notes"][0] in made.report.read_text()
