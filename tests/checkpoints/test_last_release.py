"""A checkpoint that an earlier release wrote, in ``tests/fixtures``, resumes and ends with that release's weights."""

import pytest
import torch

from adadpo_lightning.checkpoints.record import KEY
from adadpo_lightning.cli import main
from scripts.make_release_fixture import FIXTURES, PAIRS, SAVED_STEP, arguments
from tests.support.tiny import make_model_dir, make_rows, write_rows


def resume(folder, release, *options):
    """With the model and the pairs of the fixture; the oldest one has none, and they are made again."""
    kept = FIXTURES / release
    model, pairs = kept / "model", kept / "pairs.jsonl"
    if not model.is_dir():
        model, pairs = make_model_dir(folder / "model"), write_rows(folder / "pairs.jsonl", make_rows(PAIRS))
    return main([*arguments(model, pairs, folder / "out"), f"--ckpt_path={kept / f'step{SAVED_STEP}.ckpt'}", *options])


def record(release):
    return torch.load(FIXTURES / release / f"step{SAVED_STEP}.ckpt", weights_only=True)[KEY]


@pytest.mark.parametrize("release", sorted(path.name for path in FIXTURES.glob("release_*")))
def test_it_resumes_in_the_middle_of_an_epoch(tmp_path, release, capsys):
    assert resume(tmp_path, release) == 0
    # The oldest holds no fingerprint, and that is said.
    assert ("cannot be checked" in capsys.readouterr().err) is ("fingerprint" not in record(release))
    expected = torch.load(FIXTURES / release / "final_weights.pt", weights_only=True)
    found = torch.load(tmp_path / "out" / "checkpoints" / "last.ckpt", weights_only=True)
    assert found["global_step"] == expected["global_step"] == 6
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    for name, weight in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("release", sorted(path.name for path in FIXTURES.glob("release_*_format_*")))
def test_it_says_its_format_and_is_compared(tmp_path, release, capsys):
    assert release == f"release_{record(release)['version']}_format_{record(release)['format']}"
    assert resume(tmp_path, release, "--model.loss.beta=0.2") == 2
    assert "model.loss.init_args.beta: 0.1 -> 0.2" in capsys.readouterr().err
