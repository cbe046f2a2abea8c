"""Training on answers of several turns, against transformers turn by turn."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama import modeling_llama

from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.prepare import prepare
from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.training.module import PreferenceLitModule
from tests.support.tiny import WORDS, write_rows
from tests.training.test_module import data, module, train, weights


@pytest.fixture
def rows():
    """Trajectories of 1 to 3 turns, of different numbers in chosen and rejected."""

    def turns(count, at):
        texts = [" ".join(WORDS[(at + i) % 20 : (at + i) % 20 + 2 + i % 3]) for i in range(2 * count - 1)]
        return [{"role": ("assistant", "user")[i % 2], "content": text} for i, text in enumerate(texts)]

    asked = {"role": "user", "content": "why cat"}
    return [{"chosen": [asked, *turns(1 + i % 3, i)], "rejected": [asked, *turns(1 + i % 2, i + 7)]} for i in range(11)]


@pytest.fixture
def file(rows, tmp_path):
    return write_rows(tmp_path / "turns.jsonl", rows)


def turn_logps(model_dir, rows):
    """Per answer the log-probability and length of its assistant turns: each turn after all that precedes it."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    found = []
    for row in rows:
        for side in ("chosen", "rejected"):
            total, count = torch.zeros((), dtype=torch.float64), 0
            for i, message in enumerate(row[side]):
                if message["role"] == "assistant":
                    before = tokenizer.apply_chat_template(row[side][:i], add_generation_prompt=True, return_dict=False)
                    turn = tokenizer(f"{message['content']} <eos>", add_special_tokens=False)["input_ids"]
                    logits = model(torch.tensor([[*before, *turn]])).logits[0].log_softmax(-1)
                    total = total + sum(logits[len(before) - 1 + k, token] for k, token in enumerate(turn))
                    count += len(turn)
            found.append((total.item(), count))
    return found


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_log_probabilities_and_lengths_are_those_of_the_assistants_turns(model_dir, rows, file, layout):
    lit, dm = module(model_dir, "simpo", layout=layout), data(file, micro_batch_size=11, global_batch_size=11)
    train(lit, dm, max_steps=0)
    batch = next(iter(dm.train_dataloader()))
    _, output = lit.step(batch)
    expected = turn_logps(model_dir, rows)
    for i, row in enumerate(batch.row_ids.tolist()):
        pairs = output.pairs
        assert pairs.chosen[i].item() == pytest.approx(expected[2 * row][0], rel=1e-9)
        assert pairs.rejected[i].item() == pytest.approx(expected[2 * row + 1][0], rel=1e-9)
        assert (int(pairs.chosen_len[i]), int(pairs.rejected_len[i])) == (
            expected[2 * row][1],
            expected[2 * row + 1][1],
        )
    assert batch.step_chosen_tokens == sum(count for _, count in expected[::2])


def with_reference(lit, reference, folder):
    given = (lit.policy_config, lit.loss, lit.optimizer_config, lit.scheduler_config)
    return PreferenceLitModule(*given, reference=reference, reference_cache=str(folder))


def exact_norm(self, x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon) * self.weight


def test_training_does_not_depend_on_micro_batches_layout_or_cache(model_dir, file, tmp_path, monkeypatch):
    # The norm of transformers rounds to float32; AdamW makes that visible.
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", exact_norm)
    results = []
    for micro, reference, options in ((8, "frozen", {}), (1, "cached", {}), (2, "cached", {"layout": "padded"})):
        lit = with_reference(module(model_dir, "adadpo", **options), reference, tmp_path)
        train(lit, data(file, micro_batch_size=micro, val=str(file)), max_epochs=2)
        results.append(weights(lit))
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-8, atol=1e-9)


def test_a_cache_of_the_same_tokens_scored_otherwise_is_another(model_dir, file, tmp_path):
    for score in ("assistant", "all"):
        lit = with_reference(module(model_dir, "dpo"), "cached", tmp_path / "cache")
        train(lit, data(file, micro_batch_size=8, score=score), max_steps=1)
    assert len(list((tmp_path / "cache").glob("*/complete.json"))) == 2


def test_the_table_counts_turns_and_scored_tokens(rows, file, model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    found = prepare("train", [SourceConfig(str(file))], tokenizer, TokenizeOptions()).with_passes(0)
    lines = dict(found.report.lines())
    assert lines["answers of several turns, the assistant's scored"] == str(
        sum(len(row["chosen"]) > 2 or len(row["rejected"]) > 2 for row in rows)
    )
    scored, _ = found.scored()
    whole = found.counts()[1]
    assert (scored <= whole).all()
    assert (scored < whole).sum() == sum(len(row["chosen"]) > 2 for row in rows)
    assert lines["tokens: chosen, scored, mean / longest"] == f"{scored.mean():.0f} / {scored.max()}"


def test_one_conversation_scores_its_last_turn_and_says_so(tmp_path, model_dir):
    path = tmp_path / "sft.jsonl"
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(["why", "a", "how", "b"])
    ]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    found = prepare("train", [SourceConfig(str(path))], tokenizer, TokenizeOptions()).with_passes(0)
    assert dict(found.report.lines())["one conversation, of whose assistant turns only the last is scored"] == "1"
