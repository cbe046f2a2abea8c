"""Whole runs over a real model against TRL's DPOTrainer: the same pairs, order, optimizer and initial adapters."""

import importlib
from pathlib import Path

import pytest

from adadpo_lightning.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.real_model]
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Largest differences over four steps in float32, relative where the value is above 1.
TOLERANCES = {
    "loss": 1e-5,
    "rewards/chosen": 3e-5,
    "rewards/rejected": 3e-5,
    "rewards/margins": 3e-5,
    "grad_norm": 1e-4,
}
# Short texts of at most so many tokens, and one run over the lengths of judged pairs with few pairs a step.
CASES = {
    "dpo": {"longest": 12},
    "ipo": {"longest": 12, "loss": "ipo"},
    "dpo, smoothed labels": {"longest": 12, "options": {"label_smoothing": 0.1}},
    "dpo, LoRA": {"longest": 12, "lora": True, "lr": 1e-4},
    "ipo, LoRA": {"longest": 12, "lora": True, "lr": 1e-4, "loss": "ipo"},
    "dpo, accumulated": {"longest": 12, "micro_pairs": 2},
    "dpo, real lengths": {"longest": None, "step_pairs": 2, "micro_pairs": 1},
}


@pytest.fixture
def end_to_end(monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("end_to_end")


@pytest.mark.parametrize("case", CASES)
def test_four_steps_are_those_of_trl(case, end_to_end, real_model_dir, tmp_path):
    from transformers import AutoTokenizer
    from trl_dpo import Settings, train

    options = dict(CASES[case])
    longest, step_pairs = options.pop("longest"), options.setdefault("step_pairs", 8)
    pairs = tmp_path / "pairs.jsonl"
    tokenizer = AutoTokenizer.from_pretrained(real_model_dir)
    end_to_end.write_pairs(pairs, tokenizer, 4 * step_pairs, longest=longest)
    files = {"model": str(real_model_dir), "pairs": str(pairs)}
    assert main(end_to_end.fit_arguments(Settings(**files, output=str(tmp_path / "ours"), **options))) == 0
    ours = end_to_end.our_metrics(tmp_path / "ours")
    theirs = train(Settings(**files, output=str(tmp_path / "trl"), **options))
    assert len(ours) == len(theirs) == 4
    found = end_to_end.differences(ours, theirs)
    if options.get("loss") == "ipo":  # whose rewards are per token here, and sums in TRL
        found = {name: found[name] for name in ("loss", "grad_norm")}
    assert len({round(row["loss"], 3) for row in ours}) > 2  # there is something to compare
    assert {name: value for name, value in found.items() if value > TOLERANCES[name]} == {}
