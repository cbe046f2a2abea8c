"""Options by their natural names are not accepted, and the error names the option that was meant."""

import pytest

from adadpo_lightning.cli import main
from adadpo_lightning.cli.fit_options import known_options
from adadpo_lightning.cli.messages import GROUPS, NATURAL_NAMES

MEANT = {
    "--trainer.default_root_dir=x": "trainer.default_root_dir follows from output_dir: set --output_dir instead",
    "--checkpoint.dirpath=x": "checkpoint.dirpath follows from output_dir: set --output_dir instead",
    "--output-dir=x": "did you mean --output_dir?",
    "--trainer.max-epochs=3": "did you mean --trainer.max_epochs?",
    "--lr=1e-5": "did you mean --model.optimizer.lr?",
    "--beta=0.1": "did you mean --model.loss.beta?",
    "--epochs=3": "did you mean --trainer.max_epochs?",
    "--data.train_file=x": "did you mean --data.train?",
    "--model=gpt2": "--model takes a config file\n  did you mean --model.policy.path?",
    "--model.scheduler=cosine": "did you mean --model.scheduler.name?",
    "--model.policy.lora=true": "did you mean --model.policy.lora.r?",
    "--data=x.jsonl": "did you mean --data.train?",
    "--model.loss.betta=1": "did you mean --model.loss.beta?",
}


@pytest.mark.parametrize("option", MEANT)
def test_a_natural_name_leads_to_the_option(option, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--model.policy.path=x", "--model.loss=adadpo", "--data.train=x.jsonl", option]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: config: ")
    assert MEANT[option] in said


def test_every_option_that_is_advised_exists():
    known = {*known_options(), "model.loss", "model.policy.lora"}
    assert {*NATURAL_NAMES.values(), *GROUPS.values()} <= known
