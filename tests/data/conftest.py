import json

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from adadpo_lightning.types import ModuleNeeds
from tests.support.tiny import make_tokenizer


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """What `datasets` builds and tokenises stays out of the user's cache."""
    import datasets

    datasets.disable_progress_bars()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def write(tmp_path):
    """Write rows as JSON lines."""

    def _write(rows, name="pairs.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return _write


class Recorder(LightningModule):
    """Trains one number and notes the rows of each micro-batch and optimizer step."""

    def __init__(self, tokenizer, *, needs_rejected=True, layout="packed"):
        super().__init__()
        self.data_needs = lambda: ModuleNeeds(tokenizer, needs_rejected, lambda: layout)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.steps = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, self.global_step, tuple(batch.row_ids.tolist())))
        return self.weight * batch.targets.float().sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        # As the real module does: this makes Lightning build its loader before it restores a checkpoint.
        self.steps.append(self.trainer.estimated_stepping_batches)
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def recorder(tokenizer):
    return lambda **options: Recorder(tokenizer, **options)


@pytest.fixture
def make_trainer(tmp_path):
    def _make(**options):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        where = {"default_root_dir": tmp_path, "accelerator": "cpu", "devices": 1}
        return Trainer(**{**quiet, **where, "enable_checkpointing": False, "use_distributed_sampler": False, **options})

    return _make
