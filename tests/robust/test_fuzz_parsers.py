"""A few examples of each target of ``scripts/fuzz.py``, and the inputs that it has found."""

import math

import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.fuzz_inputs import FACTORY, FIT, RESULT, STUDY
from tests.support.fuzz_targets import TARGETS, holds

EXAMPLES = 25
SLOW = {
    "index": 8,
    "model_config": 8,
    "tokenizer": 8,
    "fit_config": 6,
    "study_config": 6,
    "shard": 8,
    "checkpoint": 8,
    "template": 15,
}


@pytest.mark.parametrize("name", TARGETS)
def test_reads_it_or_says_what_is_wrong(name):
    target = TARGETS[name]

    @settings(
        max_examples=SLOW.get(name, EXAMPLES),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def check(value):
        holds(target, value)

    check()


FOUND = {
    "a template that is no Python": ("template", "{% break %}{% break %}"),
    "a template with half of a surrogate pair": ("template", "\ud800{{ bos_token }}"),
    "a template that is too long for a path": ("template", "a" * 3000),
    "a section of fit that is null": ("fit_config", {**FIT, "model": {**FIT["model"], "policy": None}}),
    "a text that is no template and very long": ("template", "a" * 9000),
    "TRL's loss_type with a list in its list": ("trl", {"loss_type": [["sigmoid"]]}),
    "TRL's loss_type that is null": ("trl", {"loss_type": None}),
    "TRL's loss_weights that are a number": ("trl", {"loss_weights": 1}),
    "TRL's f_divergence_type that is a list": ("trl", {"f_divergence_type": ["js"]}),
    "LLaMA-Factory's loss that is an object": ("factory", {**FACTORY, "pref_loss": {}}),
    "LLaMA-Factory's number that is infinite": ("factory", {**FACTORY, "save_steps": math.inf}),
    "LLaMA-Factory's number that no float holds": ("factory", {**FACTORY, "save_steps": 10**400}),
    "LLaMA-Factory's number that is long": ("factory", {**FACTORY, "simpo_gamma": "a" * 9000}),
    "LLaMA-Factory's dataset that is true": ("factory", {**FACTORY, "dataset": True}),
    "LLaMA-Factory's dataset with a list": ("factory", {**FACTORY, "dataset": [["a"]]}),
    "LLaMA-Factory's lora_target that is true": ("factory", {**FACTORY, "lora_target": True}),
    "a metric of a study that no float holds": ("result", {**RESULT, "metrics": {"win_rate": 10**400}}),
    "a value of a study that is long": ("study_config", {**STUDY, "betas": [{"a" * 7000: 1}]}),
    "a section of fit that is a NUL character": ("fit_config", {**FIT, "data": "\0"}),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_repaired(name):
    target, value = FOUND[name]
    holds(TARGETS[target], value)
