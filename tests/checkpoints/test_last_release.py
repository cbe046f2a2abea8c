"""A checkpoint that an earlier release wrote, in ``tests/fixtures``, resumes and ends with that release's weights."""

from pathlib import Path

import pytest
import torch

from adadpo_lightning.cli import main
from tests.support.tiny import make_model_dir, make_rows, write_rows

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.parametrize("release", sorted(path.name for path in FIXTURES.glob("release_*")))
def test_it_resumes_in_the_middle_of_an_epoch(tmp_path, release, capsys):
    """Step 4 of 6 of an AdaDPO run over 23 pairs in steps of 8; `tests.support.tiny` makes the same model and pairs."""
    write_rows(tmp_path / "pairs.jsonl", make_rows(23))
    status = main(
        [
            "fit",
            f"--output_dir={tmp_path / 'out'}",
            f"--ckpt_path={FIXTURES / release / 'step4.ckpt'}",
            f"--model.policy.path={make_model_dir(tmp_path / 'model')}",
            f"--data.train={tmp_path / 'pairs.jsonl'}",
            "--data.global_batch_size=8",
            "--data.micro_batch_size=2",
            "--data.max_length=40",
            "--model.loss=adadpo",
            "--model.optimizer.lr=1e-2",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
            "--trainer.max_epochs=2",
            "--trainer.log_every_n_steps=1",
            "--trainer.enable_progress_bar=false",
        ]
    )
    assert status == 0, capsys.readouterr().err
    assert "cannot be" in capsys.readouterr().err  # it holds no fingerprint, and that is said
    expected = torch.load(FIXTURES / release / "final_weights.pt", weights_only=True)
    found = torch.load(tmp_path / "out" / "checkpoints" / "last.ckpt", weights_only=True)
    assert found["global_step"] == expected["global_step"] == 6
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    for name, weight in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], weight, rtol=0, atol=1e-6)
