"""Sampling with a cache against plain forward passes."""

from collections import Counter

import pytest
import torch

from adadpo_lightning.embedded import sampling
from adadpo_lightning.embedded.sampling import encode_prompts, load_exported, sample_answers, score_answers

PROMPTS = ["what is 3 plus 4", "sort 4 1 9", "now what is 1 plus 1", "tell me 2 facts about oak", "sort 3 2 1 8"]


@pytest.fixture(scope="module")
def exported(warmup_dir):
    return load_exported(str(warmup_dir))


def _plain_logps(model, prompt, answer):
    logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return [logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer)]


def test_the_cached_log_probabilities_are_those_of_a_plain_forward_pass(exported):
    model, tokenizer = exported
    drawn = sample_answers(model, tokenizer, PROMPTS, samples=3, seed=0, max_new_tokens=12)
    assert [len(samples) for samples in drawn] == [3] * len(PROMPTS)
    for prompt, samples in zip(encode_prompts(tokenizer, PROMPTS), drawn, strict=True):
        for sample in samples:
            assert sample.logps == pytest.approx(_plain_logps(model, prompt, sample.ids), abs=1e-4)


def test_scores_of_given_answers_are_those_of_a_plain_forward_pass(exported):
    model, tokenizer = exported
    prompts = encode_prompts(tokenizer, PROMPTS)
    answers = [[5 + i, 9, 3][: 1 + i % 3] for i in range(len(PROMPTS))]
    for prompt, answer, logps in zip(prompts, answers, score_answers(model, prompts, answers), strict=True):
        assert logps.tolist() == pytest.approx(_plain_logps(model, prompt, answer), abs=1e-4)


def test_the_seed_decides(exported):
    model, tokenizer = exported
    first, again, other = (sample_answers(model, tokenizer, PROMPTS, seed=s, max_new_tokens=8) for s in (5, 5, 6))
    assert first == again
    assert first != other


def test_answers_end_at_the_terminator_or_are_cut_off(exported):
    model, tokenizer = exported
    eos = tokenizer.eos_token_id
    samples = [s for drawn in sample_answers(model, tokenizer, PROMPTS, samples=200, max_new_tokens=20) for s in drawn]
    assert {s.finished for s in samples} == {True, False}
    for sample in samples:
        assert sample.ids.count(eos) == sample.finished
        assert len(sample.ids) == len(sample.logps) == sample.length + sample.finished
        assert len(sample.ids) == 20 or sample.finished
        assert len(sample.text.split()) == sample.length


def test_tokens_come_as_often_as_the_model_says(exported):
    model, tokenizer = exported
    count = 6000
    drawn = sample_answers(model, tokenizer, PROMPTS[:1], samples=count, max_new_tokens=1)[0]
    prompt = torch.tensor(encode_prompts(tokenizer, PROMPTS[:1]))
    expected = model(prompt).logits[0, -1].softmax(-1)
    seen = Counter(sample.ids[0] for sample in drawn)
    for token in expected.topk(5).indices.tolist():
        assert seen[token] / count == pytest.approx(expected[token].item(), abs=0.02)


def test_small_batches_cover_every_prompt(exported, monkeypatch):
    model, tokenizer = exported
    monkeypatch.setattr(sampling, "ROWS", 4)
    drawn = sample_answers(model, tokenizer, PROMPTS * 2, samples=2, max_new_tokens=3)
    assert [len(samples) for samples in drawn] == [2] * 10
    prompts = encode_prompts(tokenizer, PROMPTS * 2)
    scored = score_answers(model, prompts, [samples[0].ids for samples in drawn])
    assert [len(logps) for logps in scored] == [len(samples[0].ids) for samples in drawn]
