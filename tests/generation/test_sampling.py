"""One sampler: one seed gives one answer, whichever way it is asked for; finished rows leave a batch unnoticed."""

import json
from itertools import chain

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adadpo_lightning.errors import UserError
from adadpo_lightning.generation.answers import answer_prompts
from adadpo_lightning.generation.generate import generate_responses
from adadpo_lightning.generation.options import GenerateOptions, SamplingOptions
from adadpo_lightning.generation.prompts import Prompt, PromptTokenizer
from adadpo_lightning.generation.sampling import sample
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig, load_model
from adadpo_lightning.models.policy import PolicyModel
from tests.support.tiny import make_rows

TEXTS = [row["prompt"] for row in make_rows(7)]
OPTIONS = SamplingOptions(max_new_tokens=40, temperature=1.0, seed=3, batch_size=4)


@pytest.fixture(scope="module")
def loaded(model_dir):
    return AutoModelForCausalLM.from_pretrained(model_dir).eval(), AutoTokenizer.from_pretrained(model_dir)


def draw(loaded, **options):
    model, tokenizer = loaded
    encoder = PromptTokenizer(tokenizer)
    prompts = [encoder.encode(Prompt(text, "")) for text in TEXTS]
    options = {"stop_ids": encoder.stop_ids(), "pad_id": tokenizer.pad_token_id, "options": OPTIONS, **options}
    return prompts, sample(model, prompts, **options)


@pytest.mark.parametrize("samples", [1, 3])
def test_rows_that_leave_a_batch_change_nothing(loaded, samples):
    _, whole = draw(loaded, samples=samples, with_logps=True)
    _, blocks = draw(loaded, samples=samples, with_logps=True, block=2)
    for a, b in zip(chain(*whole), chain(*blocks), strict=True):
        assert (a.ids, a.finished) == (b.ids, b.finished)
        assert a.logps == pytest.approx(b.logps, abs=1e-5)
    assert {a.finished for a in chain(*whole)} == {True, False}


def test_log_probabilities_are_those_of_a_plain_forward_pass(loaded):
    prompts, drawn = draw(loaded, with_logps=True, block=4)
    for prompt, (answer,) in zip(prompts, drawn, strict=True):
        logits = loaded[0](torch.tensor([prompt + answer.ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert answer.logps == pytest.approx(
            logits.gather(1, torch.tensor(answer.ids)[:, None])[:, 0].tolist(), abs=1e-4
        )


def test_samples_of_a_prompt_differ_and_the_first_is_that_of_one_sample(loaded):
    _, one = draw(loaded)
    _, three = draw(loaded, samples=3)
    assert [answers[0] for answers in three] == [answers[0] for answers in one]
    assert all(len({tuple(a.ids) for a in answers}) > 1 for answers in three)
    _, numbered = draw(loaded, numbers=[1, 0, 2, 3, 4, 5, 6])
    assert numbered[2:] == one[2:]
    assert numbered[0] != one[0]


def test_the_command_and_a_live_policy_give_the_same_answers(model_dir, loaded, tmp_path):
    asked = GenerateOptions(
        str(model_dir), "", str(tmp_path / "o.jsonl"), max_new_tokens=40, temperature=1.0, seed=3, batch_size=2
    )
    generate_responses(asked, [Prompt(text, "") for text in TEXTS])
    written = [json.loads(line)["response"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [a.response for (a,) in answer_prompts(*loaded, TEXTS, OPTIONS)] == written
    config = PolicyConfig(str(model_dir), lora=LoraOptions(r=2))
    policy = PolicyModel(load_model(config), config).train()
    before = policy.causal_lm.config._attn_implementation, policy.causal_lm.generation_config
    assert [a.response for (a,) in answer_prompts(policy, loaded[1], TEXTS, OPTIONS)] == written
    assert before == (policy.causal_lm.config._attn_implementation, policy.causal_lm.generation_config)
    assert all(module.training for module in policy.modules())


def test_what_a_live_model_refuses(loaded):
    for prompts in ([], "one text"):
        with pytest.raises(UserError, match="expected a list of at least one prompt"):
            answer_prompts(*loaded, prompts)
    with pytest.raises(UserError, match="beyond the model's 128 positions"):
        answer_prompts(*loaded, ["why"], SamplingOptions(max_new_tokens=128))
