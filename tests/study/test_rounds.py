"""Rounds: the commands they consist of, resumption, what may change, and two rounds from end to end."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from adadpo_lightning.cli import main
from adadpo_lightning.errors import UserError
from adadpo_lightning.study.processes import run_in_turn
from adadpo_lightning.study.rounds import RoundsOptions, run_rounds
from adadpo_lightning.study.rounds_report import rounds_table
from tests.support.cli import parsed
from tests.support.tiny import make_rows, write_rows

FIT = """
trainer: {accelerator: cpu, devices: 1, log_every_n_steps: 1, enable_progress_bar: false}
data: {global_batch_size: 4, micro_batch_size: 2, max_length: 100}
model:
  loss: {class_path: adadpo_lightning.losses.AdaDPO, init_args: {beta: 0.1}}
  optimizer: {lr: 1.0e-3}
"""


@pytest.fixture
def options(model_dir, tmp_path):
    (tmp_path / "fit.yaml").write_text(FIT)
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in make_rows(9)])
    return RoundsOptions(
        str(model_dir),
        str(prompts),
        str(tmp_path / "out"),
        "length",
        judge_options={"unit": "tokens"},
        rounds=2,
        fit_configs=[str(tmp_path / "fit.yaml")],
        samples=3,
        temperature=1.0,
        max_new_tokens=8,
        unfinished="keep",
        device="cpu",
    )


def pretend(arguments):
    """What a command leaves behind, as far as the next one reads it."""
    given = dict(a.removeprefix("--").split("=", 1) for a in arguments[1:])
    if arguments[0] == "make-pairs":
        folder = given["output_dir"]
        os.makedirs(folder)
        made = {"prompts": 9, "pairs": 7, "answers": 27, "pointwise": True, "answers_left_out": {"cut off": 3}}
        numbers = {"scores": {"answers": {"mean": 2.5}}, "tokens": {"answers": {"mean": 4.0}}}
        with open(f"{folder}/report.json", "w") as file:
            json.dump({**made, **numbers, "length_bias": {"chosen_longer": 0.75}}, file)
    else:
        os.makedirs(f"{given['output_dir']}/csv/version_0")
        with open(f"{given['output_dir']}/csv/version_0/metrics.csv", "w") as file:
            file.write("step,train/loss,train/rewards/accuracies\n0,0.7,\n1,0.5,0.625\n")
    return arguments


def commands_of(options):
    asked, rounds = [], run_rounds(options)
    try:
        while True:
            asked.append(pretend(next(rounds)))
    except StopIteration as end:
        return asked, end.value


def test_each_round_samples_from_the_export_of_the_round_before(options):
    asked, results = commands_of(options)
    assert [arguments[0] for arguments in asked] == ["make-pairs", "fit", "make-pairs", "fit"]
    read = [parsed(*arguments)[0] for arguments in asked]
    out = options.root
    assert [config.model for config in read[::2]] == [options.model, str(out / "round1/fit/export")]
    assert [config.seed for config in read[::2]] == [0, 1]
    for config in read[::2]:
        assert (config.samples, config.judge_options, config.unfinished) == (3, {"unit": "tokens"}, "keep")
    assert [config.model.policy.path for config in read[1::2]] == [config.model for config in read[::2]]
    assert [config.data.train for config in read[1::2]] == [str(out / f"round{k}/pairs/pairs.jsonl") for k in (1, 2)]
    for config in read[1::2]:
        assert config.model.reference_path is None
        assert config.trainer.callbacks[-1].init_args.merge is True
        assert config.auto_resume
    assert [row["rewards/accuracies"] for row in results] == [0.625, 0.625]
    table = rounds_table(results)
    assert "| 2 | 9 | 7 | 2.5 | 4 | 11.1 % | 75.0 % | 0.5 | 62.5 % |" in table
    assert table in (out / "rounds.md").read_text()


def test_finished_rounds_are_skipped_and_more_can_be_added(options):
    commands_of(options)
    assert commands_of(options)[0] == []
    asked, results = commands_of(replace(options, rounds=3))
    assert [arguments[0] for arguments in asked] == ["make-pairs", "fit"]
    assert [row["round"] for row in results] == [1, 2, 3]


def test_an_interrupted_round_asks_for_its_commands_again(options):
    rounds = run_rounds(options)
    first = [pretend(next(rounds)), next(rounds)]
    rounds.close()
    again = run_rounds(options)
    assert [next(again), next(again)] == first
    again.close()


def test_other_settings_are_named(options, tmp_path):
    commands_of(options)
    for change in ({"seed": 1}, {"min_gap": 2.0}, {"reference": "first"}, {"fit_options": {"model.optimizer.lr": 1}}):
        with pytest.raises(UserError, match=f"holds rounds with other settings: .*{next(iter(change))}"):
            next(run_rounds(replace(options, **change)))
    (tmp_path / "fit.yaml").write_text(FIT.replace("1.0e-3", "1.0e-2"))
    with pytest.raises(UserError, match=r"fit_configs\.1\.model\.optimizer\.lr: 0\.001 -> 0\.01"):
        next(run_rounds(options))


def test_reference_first_and_parts_of_the_prompts(options):
    asked, _ = commands_of(replace(options, reference="first", round_prompts="part"))
    read = [parsed(*arguments)[0] for arguments in asked]
    assert [config.model.reference_path for config in read[1::2]] == [None, options.model]
    parts = [[json.loads(line) for line in Path(config.prompts).read_text().splitlines()] for config in read[::2]]
    assert [len(part) for part in parts] == [5, 4]
    together = sorted(parts[0] + parts[1], key=lambda row: int(row["uid"]))
    assert [row["prompt"] for row in together] == [row["prompt"] for row in make_rows(9)]


def test_parts_of_the_prompts_keep_what_a_prompt_has(options):
    rows = [{"prompt": "why", "dataset": "a"}, {"prompt": "how", "chat_template_kwargs": {"a": 1}, "tools": [{"b": 2}]}]
    write_rows(Path(options.prompts), rows)
    asked, _ = commands_of(replace(options, round_prompts="part"))
    read = [parsed(*arguments)[0].prompts for arguments in asked[::2]]
    found = [json.loads(line) for path in read for line in Path(path).read_text().splitlines()]
    assert found == [{"uid": str(i), **row} for i, row in enumerate(rows)]


BAD = {
    "rounds": ({"rounds": 0}, "rounds: expected at least 1"),
    "configs": ({"fit_configs": []}, "fit_configs: expected configs of fit, got none"),
    "own": ({"fit_options": {"data.train": "x"}}, "fit_options.data.train: is set by each round itself"),
    "reference": ({"reference": "last"}, "reference: unknown choice 'last'"),
    "samples": ({"samples": 1}, "samples: expected at least 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options(options, case):
    change, message = BAD[case]
    with pytest.raises(UserError, match=message):
        replace(options, **change)


def test_it_is_started_once(options, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="was started 2 times by a launcher"):
        next(run_rounds(options))


def test_a_command_that_fails_ends_the_rounds_with_its_status(capfd):
    def commands():
        yield ["losses", "--nosuch"]
        raise AssertionError("the failure was not seen")

    with pytest.raises(SystemExit) as end:
        run_in_turn(commands())
    assert end.value.code == 2
    assert "nosuch" in capfd.readouterr().err


def command_line(options):
    names = ("model", "prompts", "output_dir", "judge", "rounds", "samples", "temperature", "max_new_tokens")
    given = [f"--{name}={getattr(options, name)}" for name in (*names, "unfinished", "device")]
    given += [f"--fit_options={json.dumps(options.fit_options)}"] if options.fit_options else []
    return ["rounds", *given, '--judge_options={"unit": "tokens"}', f"--fit_configs={json.dumps(options.fit_configs)}"]


@pytest.mark.slow
def test_two_rounds_from_end_to_end_and_killed_in_between(options, tmp_path, capfd):
    """Whole, and killed again and again: the same files, bit by bit."""
    assert main(command_line(options)) == 0
    assert "| 2 | 9 |" in capfd.readouterr().out
    weights = [load_file(options.root / f"round{k}/fit/export/model.safetensors") for k in (1, 2)]
    assert any((weights[0][name] != weights[1][name]).any() for name in weights[0])
    killed = replace(options, output_dir=str(tmp_path / "killed"))
    for seconds in (9, 13, 17, 21, 500):
        process = subprocess.Popen(
            [sys.executable, "-m", "adadpo_lightning", *command_line(killed)], start_new_session=True
        )
        try:
            assert process.wait(timeout=seconds) == 0
        except subprocess.TimeoutExpired:
            children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
            for pid in [process.pid, *map(int, children.stdout.split())]:
                os.kill(pid, signal.SIGKILL)
            process.wait()
            time.sleep(0.5)
    for k in (1, 2):
        for name in ("responses.jsonl", "scores.jsonl", "pairs.jsonl"):
            part = f"round{k}/pairs/{name}"
            assert (killed.root / part).read_bytes() == (options.root / part).read_bytes()
        ours = load_file(killed.root / f"round{k}/fit/export/model.safetensors")
        assert all((ours[name] == weights[k - 1][name]).all() for name in ours)


@pytest.mark.slow
def test_lora_rounds_ended_by_a_signal_and_run_again(options, tmp_path):
    """SIGTERM to `rounds` reaches the fit in progress, which saves; run again, the rounds end with the same weights."""
    options = replace(
        options,
        fit_options={
            "model.policy.lora.r": 2,
            "model.policy.lora.target_modules": ["q_proj", "v_proj"],
            "model.policy.lora.dropout": 0.2,
            "trainer.max_epochs": 30,
        },
    )
    assert main(command_line(options)) == 0
    weights = [load_file(options.root / f"round{k}/fit/export/model.safetensors") for k in (1, 2)]
    start = load_file(Path(options.model) / "model.safetensors")
    assert start.keys() == weights[0].keys() == weights[1].keys()  # merged, a full model each
    changed = {n for n in start if (start[n] != weights[0][n]).any() and (weights[0][n] != weights[1][n]).any()}
    assert changed == {n for n in start if "q_proj" in n or "v_proj" in n}

    stopped = replace(options, output_dir=str(tmp_path / "stopped"))
    command = [sys.executable, "-m", "adadpo_lightning", *command_line(stopped)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    fit = stopped.root / "round1/fit"
    while not list(fit.glob("csv/version_*/metrics.csv")) and process.poll() is None:
        time.sleep(0.02)
    process.terminate()
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "SIGTERM: saved" in said
    assert (fit / "checkpoints/last.ckpt").is_file()
    assert not (fit / "export").exists()
    assert main(command_line(stopped)) == 0
    for k in (1, 2):
        ours = load_file(stopped.root / f"round{k}/fit/export/model.safetensors")
        assert all((ours[name] == weights[k - 1][name]).all() for name in ours)
