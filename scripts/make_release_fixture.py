"""Write the checkpoint of this version that later ones must resume: ``python -m scripts.make_release_fixture``.

``tests/checkpoints/test_last_release.py`` reads it. Run it once for each release; ``make release-check`` asks for it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

from adadpo_lightning import __version__
from adadpo_lightning.checkpoints.record import FORMAT_VERSION
from adadpo_lightning.cli import main as command_line

FIXTURES = Path(__file__).parent.parent / "tests/fixtures"
PAIRS, SAVED_STEP = 23, 4


def fixture_folder(version: str) -> Path:
    """The fixture of a release; its name also has the format of its checkpoints."""
    return FIXTURES / f"release_{version}_format_{FORMAT_VERSION}"


def arguments(model: Path, pairs: Path, out: Path) -> list[str]:
    """Six AdaDPO steps of up to 8 pairs, over two epochs."""
    return [
        "fit",
        f"--output_dir={out}",
        f"--model.policy.path={model}",
        f"--data.train={pairs}",
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


def main() -> None:
    """Train, and keep the fourth step, the final weights, the model and the pairs.

    Raises:
        SystemExit: If the run fails.
    """
    from tests.support.tiny import make_model_dir, make_rows, write_rows

    target = fixture_folder(__version__)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:  # the checkpoint names its model's path
        work = Path(name)
        model, pairs = make_model_dir(work / "model"), write_rows(work / "pairs.jsonl", make_rows(PAIRS))
        every_step = ["--checkpoint.every_n_train_steps=1", "--checkpoint.save_top_k=-1"]
        if command_line([*arguments(model, pairs, work / "out"), *every_step]):
            raise SystemExit("the run failed")
        saved = work / "out/checkpoints"
        shutil.copytree(model, target / "model")
        shutil.copy(pairs, target)
        shutil.copy(saved / f"step{SAVED_STEP}.ckpt", target)
        last = torch.load(saved / "last.ckpt", weights_only=True)
    torch.save({name: last[name] for name in ("global_step", "state_dict")}, target / "final_weights.pt")
    print(f"{target}: {sum(file.stat().st_size for file in target.rglob('*') if file.is_file()):,} bytes")


if __name__ == "__main__":
    main()
