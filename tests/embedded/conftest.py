"""A small task with a model of random weights: what sampling and evaluation are tested on."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from adadpo_lightning.embedded import make_task


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    return make_task(
        tmp_path_factory.mktemp("task"), seed=0, corpus_size=50, prompts=16, val_prompts=8, heldout_prompts=12
    )


def random_model(task, path, seed):
    """As the warm-up run begins; its answers are noise, and differ between seeds."""
    config = AutoConfig.from_pretrained(task.model)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(task.model).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def warmup_dir(task, tmp_path_factory):
    return random_model(task, tmp_path_factory.mktemp("warmup"), seed=0)


@pytest.fixture(scope="session")
def other_dir(task, tmp_path_factory):
    return random_model(task, tmp_path_factory.mktemp("other"), seed=1)
