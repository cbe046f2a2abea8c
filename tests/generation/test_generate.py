"""Generation: the prompts of training, the draws of the model, formats, and runs that are stopped in between."""

import json
import re
import shutil
import sys
import types

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from adadpo_lightning.cli import main
from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.schema import PreferencePair, as_messages
from adadpo_lightning.data.tokenize import PairTokenizer
from adadpo_lightning.errors import UserError
from adadpo_lightning.generation.generate import generate_responses
from adadpo_lightning.generation.options import GenerateOptions, SamplingOptions
from adadpo_lightning.generation.prompts import Prompt, PromptTokenizer
from adadpo_lightning.generation.sampling import SeededChoice, uniforms
from tests.support.tiny import make_rows, make_tokenizer
from tests.support.tokenizers import make

PROMPTS = [Prompt(row["prompt"], f"q{i}") for i, row in enumerate(make_rows(11))]


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def job(model_dir, path, **options):
    return GenerateOptions(str(model_dir), "prompts", str(path), device="cpu", **options)


@pytest.fixture(scope="module")
def model(model_dir):
    return AutoModelForCausalLM.from_pretrained(model_dir).eval()


@pytest.mark.parametrize("chat", ["always", "never"])
def test_prompts_are_those_of_training_with_one_bos(chat):
    tokenizer = make_tokenizer()
    # Plain text gets a BOS from the tokenizer itself, as Llama's does; the template writes its own.
    with_bos = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = with_bos
    encoder = PromptTokenizer(tokenizer, chat)
    trained = PairTokenizer(tokenizer, TokenizeOptions(chat=chat))
    for text in ("why <eos> cat", "the dog"):
        ids = encoder.encode(Prompt(text, "0"))
        assert ids == trained(PreferencePair(text, " yes", " no")).prompt_ids
        assert ids.count(tokenizer.bos_token_id) == 1
    messages = [{"role": "system", "content": "the"}, {"role": "user", "content": "why"}]
    if chat == "always":
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert encoder.encode(Prompt(messages, "0")) == expected
    else:
        with pytest.raises(UserError, match="has messages and the tokenizer no chat template"):
            encoder.encode(Prompt(messages, "0"))


def test_greedy_answers_are_the_models_likeliest_tokens(model_dir, model, tmp_path):
    """Without padding, cache or ``generate``: one whole forward pass for each token."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    generate_responses(job(model_dir, tmp_path / "out.jsonl", max_new_tokens=9, temperature=0.0, batch_size=4), PROMPTS)
    for prompt, row in zip(PROMPTS, rows_of(tmp_path / "out.jsonl"), strict=True):
        ids = PromptTokenizer(tokenizer).encode(prompt)
        start = len(ids)
        while len(ids) < start + 9 and ids[-1] != tokenizer.eos_token_id:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        finished = ids[-1] == tokenizer.eos_token_id
        answer = ids[start : len(ids) - finished]
        assert row["response"] == tokenizer.decode(answer, skip_special_tokens=True).strip()
        assert (row["finished"], row["tokens"], row["uid"]) == (finished, len(answer), prompt.uid)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_neither_batch_size_nor_a_stop_in_between_changes_the_answers(model_dir, tmp_path, temperature):
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"

    def run(path, batch_size):
        options = job(model_dir, path, max_new_tokens=8, temperature=temperature, batch_size=batch_size)
        return generate_responses(options, PROMPTS).resumed

    assert run(whole, 11) == 0
    assert run(stopped, 2) == 0
    assert stopped.read_text() == whole.read_text()
    lines = whole.read_text().splitlines(keepends=True)
    stopped.write_text("".join(lines[:5]) + lines[5][:20])  # killed while it wrote the sixth
    assert run(stopped, 3) == 5
    assert stopped.read_text() == whole.read_text()
    assert run(stopped, 3) == 11


def test_the_seed_decides(model_dir, tmp_path):
    texts = []
    for i, seed in enumerate((0, 0, 1)):
        options = job(model_dir, tmp_path / f"{i}.jsonl", max_new_tokens=8, temperature=1.0, seed=seed)
        generate_responses(options, PROMPTS)
        texts.append((tmp_path / f"{i}.jsonl").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_draws_follow_the_models_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])

    def frequencies(**options):
        options = SamplingOptions(max_new_tokens=1, **options)
        choice = SeededChoice(uniforms(range(20000), 1), options, prompt_length=3)
        scores = choice(torch.zeros(20000, 3, dtype=torch.long), logits.repeat(20000, 1))
        assert ((scores == 0).sum(1) == 1).all()
        return torch.bincount(scores.argmax(1), minlength=5) / 20000

    p = (logits / 0.8).softmax(-1)
    assert frequencies(temperature=0.8).numpy() == pytest.approx(p.numpy(), abs=0.012)
    top2 = torch.where(torch.arange(5) < 2, p, 0.0)
    assert frequencies(temperature=0.8, top_k=2).numpy() == pytest.approx((top2 / top2.sum()).numpy(), abs=0.012)
    # The likeliest alone has less than 0.8, the first two have more.
    assert p[0] < 0.8 < p[:2].sum()
    assert frequencies(temperature=0.8, top_p=0.8).numpy() == pytest.approx((top2 / top2.sum()).numpy(), abs=0.012)


def test_answers_end_at_the_token_that_ends_turns_in_training():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "<unk>")
    assert PromptTokenizer(tokenizer).stop_ids() == {tokenizer.unk_token_id, tokenizer.eos_token_id}


def test_the_command_line_reads_alpaca_eval_and_writes_its_outputs(model_dir, tmp_path, capsys):
    questions = [{"dataset": "koala", "instruction": p.text, "output": "x", "generator": "y"} for p in PROMPTS[:3]]
    (tmp_path / "eval.json").write_text(json.dumps(questions))
    output = tmp_path / "model_outputs.json"
    args = [
        "generate",
        f"--model={model_dir}",
        f"--prompts={tmp_path / 'eval.json'}",
        f"--output={output}",
        "--format=alpaca_eval",
        "--generator=mine",
        "--max_new_tokens=5",
        "--batch_size=2",
    ]
    assert main(args) == 0
    rows = json.loads(output.read_text())
    assert [set(row) for row in rows] == [{"dataset", "instruction", "output", "generator"}] * 3
    assert [(row["instruction"], row["dataset"], row["generator"]) for row in rows] == [
        (p.text, "koala", "mine") for p in PROMPTS[:3]
    ]
    before = output.read_text()
    assert main(args) == 0
    assert "3 responses in" in (printed := capsys.readouterr().out)
    assert "3 of them from before" in printed
    assert output.read_text() == before
    output.write_text(json.dumps(rows[:2]))
    assert main(args) == 0
    assert json.loads(output.read_text()) == rows
    assert main([*args, "--seed=1"]) == 2
    assert "was started with other inputs: options.seed: 0 -> 1" in capsys.readouterr().err
    assert json.loads(output.read_text()) == rows


def test_arena_hard_questions_and_answers(model_dir, tmp_path):
    questions = [
        {"question_id": "a1", "category": "c", "turns": [{"content": "why cat"}]},
        {"uid": "b2", "prompt": "the dog"},
    ]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    output = tmp_path / "mine.jsonl"
    args = [f"--model={model_dir}", f"--prompts={tmp_path / 'question.jsonl'}", f"--output={output}"]
    assert main(["generate", *args, "--format=arena_hard", "--generator=mine", "--max_new_tokens=4"]) == 0
    rows = rows_of(output)
    assert [row["question_id"] for row in rows] == ["a1", "b2"]
    for row in rows:
        assert set(row) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
        assert row["model_id"] == "mine"
        (turn,) = row["choices"][0]["turns"]
        assert isinstance(turn["content"], str)
        assert turn["token_len"] >= len(turn["content"].split())
    assert len({row["answer_id"] for row in rows}) == 2


def test_other_shapes_of_prompts(model_dir, tmp_path):
    (tmp_path / "p.txt").write_text("why cat\n\nthe dog\nno\n")
    (tmp_path / "p.csv").write_text("n,ask\n1,why cat\n2,the dog\n")
    talk = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "no"}]
    (tmp_path / "p.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    common = [f"--model={model_dir}", "--max_new_tokens=3", "--temperature=0"]

    def prompts(name, *more):
        output = tmp_path / f"{name}.out.jsonl"
        assert main(["generate", *common, f"--prompts={tmp_path / name}", f"--output={output}", *more]) == 0
        return [row["prompt"] for row in rows_of(output)]

    assert prompts("p.txt", "--limit=2") == ["why cat", "the dog"]
    assert prompts("p.csv", "--column=ask") == ["why cat", "the dog"]
    assert prompts("p.jsonl") == ["why"]


def test_vllm_is_asked_with_the_prompts_of_training(model_dir, tmp_path, monkeypatch):
    """The real package is not there; this stands in for its two classes and sees what they are given."""
    calls = []

    class LLM:
        def __init__(self, **options):
            self.options = options

        def generate(self, prompts, params, use_tqdm):
            calls.extend(zip(prompts, params, strict=True))
            output = types.SimpleNamespace(token_ids=[9, 10, 2], finish_reason="stop")
            return [types.SimpleNamespace(outputs=[output]) for _ in prompts]

    fake = types.SimpleNamespace(LLM=LLM, SamplingParams=lambda **options: options)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    options = job(model_dir, tmp_path / "o.jsonl", engine="vllm", max_new_tokens=7, top_k=0, batch_size=2)
    generate_responses(options, PROMPTS[:3])
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    encoder = PromptTokenizer(tokenizer)
    assert [prompt["prompt_token_ids"] for prompt, _ in calls] == [encoder.encode(p) for p in PROMPTS[:3]]
    assert all(p["top_k"] == -1 and p["max_tokens"] == 7 and 2 in p["stop_token_ids"] for _, p in calls)
    assert len({p["seed"] for _, p in calls}) == 3
    assert {row["response"] for row in rows_of(tmp_path / "o.jsonl")} == {tokenizer.decode([9, 10])}


BAD = {
    "no model": (["--model=/no/such/dir"], "directory not found: /no/such/dir|no tokenizer could be loaded"),
    "no prompts": (["--prompts=nosuch.jsonl"], "nosuch.jsonl: no such file"),
    "no column": (["--column=nosuch"], "has no prompt: expected one of nosuch, found prompt"),
    "vllm": (["--engine=vllm"], "needs the package vllm, which is not installed; pip install"),
    "too long": (["--max_new_tokens=4000"], "beyond the model's 128 positions; lower it"),
    "top_p": (["--top_p=0"], "top_p: expected a number above 0"),
    "format": (["--format=alpaca"], "format"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_one_clear_error(case, model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "vllm" not in sys.modules
    (tmp_path / "p.jsonl").write_text('{"prompt": "why"}\n')
    args, message = BAD[case]
    try:
        status = main(["generate", f"--model={model_dir}", "--prompts=p.jsonl", "--output=o.jsonl", *args])
    except SystemExit as stop:  # a value that the parser refuses
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error
    assert not (tmp_path / "o.jsonl").exists()


def test_a_file_of_something_else_is_left_alone(model_dir, tmp_path):
    path = tmp_path / "o.jsonl"
    path.write_text('{"precious": 1}\n')
    with pytest.raises(UserError, match="is not an output of generate"):
        generate_responses(job(model_dir, path), PROMPTS)
    assert path.read_text() == '{"precious": 1}\n'


def test_rendered_prompts_are_not_rendered_again():
    tokenizer = make("chatml")
    asked = Prompt("What is the capital of France?", "0")
    text = tokenizer.apply_chat_template(as_messages(asked.text, "user"), add_generation_prompt=True, tokenize=False)
    plain = PromptTokenizer(tokenizer).encode(asked)
    encoder = PromptTokenizer(tokenizer)
    encoder.read([Prompt(text, "0")])
    assert encoder.encode(Prompt(text, "0")) == plain
    as_text = PromptTokenizer(tokenizer, special_tokens="text")
    as_text.read([Prompt(text, "0")])
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert as_text.encode(Prompt(text, "0")).count(start) == plain.count(start)
    assert len(as_text.encode(Prompt(text, "0"))) > 2 * len(plain)


def test_a_column_of_template_variables_takes_precedence_key_by_key(tmp_path):
    from adadpo_lightning.data.sources import SourceConfig
    from adadpo_lightning.generation.prompts import PromptTokenizer, read_prompts
    from tests.support.tiny import make_tokenizer, write_rows

    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}{{ one }} {{ two }}"
    rows = [{"prompt": "why"}, {"prompt": "how", "chat_template_kwargs": {"two": "fish"}}]
    prompts = read_prompts(SourceConfig(str(write_rows(tmp_path / "p.jsonl", rows))))
    encoder = PromptTokenizer(tokenizer, chat_template_kwargs={"one": "cat", "two": "dog"})
    assert [tokenizer.decode(encoder.encode(prompt)).split() for prompt in prompts] == [
        ["why", "cat", "dog"],
        ["how", "cat", "fish"],
    ]
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": "how", "chat_template_kwargs": {"tools": 1}}])
    with pytest.raises(UserError, match="'tools' is set by this package"):
        read_prompts(SourceConfig(str(bad)))


TOOLS = [{"type": "function", "function": {"name": "fish"}}]


def test_system_and_tools_columns_are_rendered_as_in_training(tmp_path, caplog):
    from adadpo_lightning.data.formats import read_pair
    from adadpo_lightning.data.options import TokenizeOptions
    from adadpo_lightning.data.sources import SourceConfig
    from adadpo_lightning.data.tokenize import PairTokenizer
    from adadpo_lightning.generation.prompts import PromptTokenizer, read_prompts
    from tests.support.tiny import make_tokenizer, write_rows

    tokenizer = make_tokenizer()
    plain = tokenizer.chat_template
    tokenizer.chat_template = "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}" + plain
    rows = [
        {"prompt": "why"},
        {"prompt": "why", "system": "the cat"},
        {"prompt": "why", "tools": TOOLS},
        {"prompt": [{"role": "system", "content": "the cat"}, {"role": "user", "content": "why"}]},
    ]
    prompts = read_prompts(SourceConfig(str(write_rows(tmp_path / "p.jsonl", rows))))
    encoder, trained = PromptTokenizer(tokenizer), PairTokenizer(tokenizer, TokenizeOptions())
    found = [encoder.encode(prompt) for prompt in prompts]
    answers = {"chosen": "yes", "rejected": "no"}
    pairs = [read_pair(row | answers, "text") for row in rows]
    assert found == [trained(pair).prompt_ids for pair in pairs]
    assert found[1] == found[3]
    assert len({tuple(ids) for ids in found}) == 3
    # Their own system message replaces the job's.
    asked = [encoder.encode(prompt.with_system("no")) for prompt in prompts]
    assert [asked[1], asked[3]] == [found[1], found[3]]
    assert asked[0] != found[0]
    with caplog.at_level("INFO", logger="adadpo_lightning"):
        encoder.say_own(prompts, "no")
        tokenizer.chat_template = plain
        PromptTokenizer(tokenizer).say_own(prompts, None)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "2 of 4 prompts have a system message of their own" in said
    assert "1 of 4 prompts have tools or tool calls that the chat template does not write" in said


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"prompt": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], "system": "c"},
            "two system",
        ),
        ({"prompt": "why", "tools": "not json"}, "tools is text but no JSON"),
        ({"prompt": "why", "system": 3}, "system is int"),
    ],
)
def test_bad_columns_of_prompts(row, problem, tmp_path):
    from adadpo_lightning.data.sources import SourceConfig
    from adadpo_lightning.generation.prompts import read_prompts
    from tests.support.tiny import write_rows

    with pytest.raises(UserError, match=problem) as caught:
        read_prompts(SourceConfig(str(write_rows(tmp_path / "p.jsonl", [row]))))
    assert "p.jsonl:1" in str(caught.value)


def test_other_template_variables_than_in_training_are_said(model_dir, tmp_path, caplog):
    export = shutil.copytree(model_dir, tmp_path / "export")
    for number, (made, given, said) in enumerate(
        [
            ({"fingerprint": {"options": {"data": {"chat_template_kwargs": {"a": 1}}}}}, None, True),
            ({"fingerprint": {"options": {"data": {"chat_template_kwargs": {"a": 1}}}}}, {"a": 1}, False),
            ({"fingerprint": {"options": {"data": {"chat_template_kwargs": None}}}}, None, False),
            ({"fingerprint": "odd"}, {"a": 1}, False),
        ]
    ):
        caplog.clear()
        (export / "training.json").write_text(json.dumps(made))
        options = job(export, tmp_path / f"{number}.jsonl", max_new_tokens=1, chat_template_kwargs=given)
        generate_responses(options, PROMPTS[:1])
        assert ("was trained with {'a': 1}" in caplog.text) == said


def test_template_variables_of_a_prompt_belong_to_the_record():
    from types import SimpleNamespace
    from unittest.mock import patch

    from adadpo_lightning.generation import record
    from adadpo_lightning.generation.prompts import Prompt

    options = SimpleNamespace(model="m", deciding=dict)
    with patch.object(record, "_model", return_value={}), patch.object(record.fingerprint, "of_tokenizer", dict):
        hashes = [
            record.make_record(options, [Prompt("a", "0", "", *more)], ())["prompts"]["content"]
            for more in ((None,), ({"x": 1},), ({"x": 2},), (None, TOOLS), ({"x": 1}, TOOLS))
        ]
    assert len(set(hashes)) == 5
