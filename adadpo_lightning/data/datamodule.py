"""The LightningDataModule: sources to loaders of micro-batches, in the order of the step plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, Dataset, Sampler

from adadpo_lightning.data.collate import collate
from adadpo_lightning.data.plan import MicroBatch, StepPlan, eval_plan
from adadpo_lightning.data.prepare import DataReport, lengths, prepare, report_table, split_by_prompt
from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.data.tokenize import TokenizeOptions
from adadpo_lightning.errors import UserError
from adadpo_lightning.types import EncodedPair, PreferenceBatch

if TYPE_CHECKING:
    from datasets import Dataset as ArrowDataset
    from transformers import PreTrainedTokenizerBase

Sources = str | SourceConfig | list[SourceConfig]


class PreferenceDataModule(LightningDataModule):
    """Preference pairs from files or the hub to micro-batches whose split never changes the gradient.

    Args:
        train: Training pairs: a path or hub id, a source with options, or a list of sources to mix.
        val: Validation pairs; null and `val_size` 0 for none.
        test: Test pairs.
        predict: Pairs to score with ``predict``; null takes those of `test`, else of `val`.
        val_size: Hold out this many training pairs (or this share, if below 1) for validation; no prompt is in both.
        tokenizer: Directory or hub id; null takes the policy's.
        chat_template: Jinja template, or a file that holds one, in place of the tokenizer's own.
        chat: ``auto`` renders the chat template where there is one, ``always`` demands it, ``never`` joins texts as is.
        max_length: Tokens of prompt plus longer answer at most.
        max_prompt_length: Tokens of the prompt at most; null for no bound of its own.
        truncation: For pairs that are too long: ``drop`` them, ``keep_start`` of their answers, ``keep_end`` of their
            prompt.
        on_bad_row: ``error`` stops at the first unusable row, ``drop`` drops and counts them. Pairs with identical
            answers are always dropped and counted.
        global_batch_size: Pairs an optimizer step, over all ranks.
        micro_batch_size: Pairs a forward pass on one rank; accumulation follows from it.
        max_tokens: Tokens a forward pass on one rank at most; then as many pairs as fit, and `micro_batch_size` is not
            used in training.
        eval_batch_size: Pairs a forward pass in validation; null takes `micro_batch_size`.
        seed: Seed of the order of pairs, of splits and of source weights.
        shuffle: Draw a new order in each epoch.
        drop_last: Leave out the last step of an epoch if it is not full.
        num_workers: Processes that collate ahead.
        num_proc: Processes that tokenise.
    """

    def __init__(
        self,
        train: Sources | None = None,
        val: Sources | None = None,
        test: Sources | None = None,
        predict: Sources | None = None,
        val_size: float = 0.0,
        tokenizer: str | None = None,
        chat_template: str | None = None,
        chat: Literal["auto", "always", "never"] = "auto",
        max_length: int = 2048,
        max_prompt_length: int | None = None,
        truncation: Literal["drop", "keep_start", "keep_end"] = "keep_start",
        on_bad_row: Literal["error", "drop"] = "error",
        global_batch_size: int = 128,
        micro_batch_size: int = 1,
        max_tokens: int | None = None,
        eval_batch_size: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        num_workers: int = 0,
        num_proc: int | None = None,
    ) -> None:
        super().__init__()
        self.sources = {"train": train, "val": val, "test": test, "predict": predict or test or val}
        self.val_size = val_size
        self.tokenizer_path = tokenizer
        self.chat_template = chat_template
        self.options = TokenizeOptions(max_length, max_prompt_length, truncation, chat)
        self.on_bad_row = on_bad_row
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.max_tokens = max_tokens
        self.eval_batch_size = eval_batch_size or micro_batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.num_workers = num_workers
        self.num_proc = num_proc
        self.datasets: dict[str, ArrowDataset] = {}
        self.reports: dict[str, DataReport] = {}
        self.plan: StepPlan | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None

    # What the trainer and its module decide.

    @property
    def _ranks(self) -> tuple[int, int]:
        """(data-parallel ranks, this one's number)."""
        options = (self.trainer.distributed_sampler_kwargs if self.trainer else None) or {}
        return options.get("num_replicas", 1), options.get("rank", 0)

    @property
    def _module(self) -> Any:
        return self.trainer.lightning_module if self.trainer else None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of this module's pairs."""
        if self._tokenizer is None:
            if self.tokenizer_path is not None:
                from adadpo_lightning.models.loading import PolicyConfig, load_tokenizer

                self._tokenizer = load_tokenizer(PolicyConfig(path=self.tokenizer_path))
            elif self._module is not None:
                self._tokenizer = self._module.tokenizer
            else:
                raise UserError("data.tokenizer", "there is no policy to take it from", "give a directory or hub id")
            if self.chat_template is not None:
                self._tokenizer.chat_template = _template_text(self.chat_template)
        return self._tokenizer

    # Lightning's hooks.

    def setup(self, stage: str) -> None:
        """Load and tokenise what the stage needs, say what was dropped, and plan the steps."""
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}[stage]
        new = [name for name in wanted if name not in self.datasets and self._has(name)]
        for name in new:
            self._prepare(name)
        _print_reports([self.reports[name] for name in new if name in self.reports])
        if stage == "fit":
            if "train" not in self.datasets:
                raise UserError("data.train", "there is nothing to train on", "give a file, directory or hub id")
            self._plan_steps()
        elif wanted[0] not in self.datasets:
            raise UserError(f"data.{wanted[0]}", f"'{stage}' needs it, got null", "give a file, directory or hub id")

    def train_dataloader(self) -> DataLoader[PreferenceBatch]:
        """This rank's micro-batches, from the trainer's own position on: a resumed run replays nothing."""
        plan, (_, rank) = self._step_plan, self._ranks
        accumulate = self._accumulate
        sampler = PlanSampler(
            lambda epoch, start: plan.rank_batches(epoch, rank, accumulate, start),
            length=plan.rank_length(accumulate),
            position=self._position,
        )
        return self._loader("train", sampler)

    def val_dataloader(self) -> list[DataLoader[PreferenceBatch]] | DataLoader[PreferenceBatch]:
        """Each validation pair once over all ranks; nothing if there are none."""
        return self._eval_loader("val") if "val" in self.datasets else []

    def test_dataloader(self) -> DataLoader[PreferenceBatch]:
        """Each test pair once over all ranks."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[PreferenceBatch]:
        """Each pair once over all ranks."""
        return self._eval_loader("predict")

    # How they are done.

    def _has(self, name: str) -> bool:
        return self.sources[name] is not None or (name == "val" and self.val_size > 0)

    def _prepare(self, name: str) -> None:
        if self.sources[name] is None:  # val, held out of train
            if "train" not in self.datasets:
                self._prepare("train")
            return
        dataset, report = prepare(
            name,
            _as_list(self.sources[name]),
            self.tokenizer,
            self.options,
            on_bad_row=self.on_bad_row,
            seed=self.seed,
            num_proc=self.num_proc,
        )
        self._check_rejected(name, dataset)
        self.reports[name] = report
        if name == "train" and self.sources["val"] is None and self.val_size > 0:
            dataset, self.datasets["val"] = split_by_prompt(dataset, self.val_size, self.seed)
        self.datasets[name] = dataset

    def _check_rejected(self, name: str, dataset: ArrowDataset) -> None:
        if not self._needs_rejected:
            return
        missing = np.flatnonzero(lengths(dataset)[2] == 0)
        if len(missing):
            raise UserError(
                f"data.{name}",
                f"{len(missing)} of {len(dataset)} rows have no rejected answer, and the loss compares two answers",
                "give pairs, or train with sft",
            )

    @property
    def _needs_rejected(self) -> bool:
        return self._module is None or bool(self._module.loss.needs_rejected)

    def _row_lengths(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        prompts, chosen, rejected = lengths(self.datasets[name])
        return prompts + chosen + (rejected if self._needs_rejected else 0), chosen

    def _plan_steps(self) -> None:
        ranks, _ = self._ranks
        total, chosen = self._row_lengths("train")
        self.plan = StepPlan(
            total,
            chosen,
            global_batch_size=self.global_batch_size,
            micro_batch_size=self.micro_batch_size,
            ranks=ranks,
            max_tokens=self.max_tokens,
            seed=self.seed,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
        )
        self._accumulate = self.plan.accumulate(epochs=self._epochs)
        if self.trainer is None:
            return
        asked = self.trainer.accumulate_grad_batches
        if asked not in (1, self._accumulate):
            raise UserError(
                "trainer.accumulate_grad_batches",
                f"{asked} contradicts data.global_batch_size {self.global_batch_size} over {ranks} ranks, which makes "
                f"it {self._accumulate}",
                "leave it out: it follows from the batch sizes",
            )
        self.trainer.accumulate_grad_batches = self._accumulate
        self._check_sampler_stays()

    @property
    def _epochs(self) -> int:
        """Epochs that the plan has to hold for; only `max_tokens` depends on it."""
        if self.trainer is None or self.plan is None:
            return 1
        if self.trainer.max_steps and self.trainer.max_steps > 0:
            return -(-self.trainer.max_steps // max(self.plan.steps, 1))
        return max(self.trainer.max_epochs or 1, 1)

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of the whole run, by the trainer's limits."""
        if self.trainer is None:
            return self._step_plan.steps
        batches = self._step_plan.rank_length(self._accumulate)
        limit = self.trainer.limit_train_batches
        limit = batches if limit is None else limit if isinstance(limit, int) else int(batches * limit)
        steps = -(-min(batches, limit) // self._accumulate)
        # Lightning writes "no bound" as -1 in both places.
        epochs, most = self.trainer.max_epochs, self.trainer.max_steps
        bounds = [steps * epochs] if epochs is not None and epochs >= 0 else []
        bounds += [most] if most >= 0 else []
        if not bounds:
            raise UserError("trainer.max_epochs", "neither max_epochs nor max_steps bounds the run", "set one of them")
        return min(bounds)

    def _check_sampler_stays(self) -> None:
        """Lightning would put a DistributedSampler in the place of the plan."""
        if (
            self.trainer is not None
            and self._ranks[0] > 1
            and self.trainer._accelerator_connector.use_distributed_sampler
        ):
            raise UserError(
                "trainer.use_distributed_sampler",
                "is true, which would replace the step plan's own sharing out over ranks",
                "set it to false",
            )

    @property
    def _step_plan(self) -> StepPlan:
        if self.plan is None:
            raise RuntimeError("call setup('fit') first, as Lightning's Trainer does")
        return self.plan

    def _position(self) -> tuple[int, int]:
        """(epoch, micro-batches taken in it), by the trainer's own count.

        Asked for whenever an iterator is made. Lightning makes a resumed run's first one before it announces the epoch.
        """
        if self.trainer is None:
            return 0, 0
        loop = self.trainer.fit_loop
        taken = loop.epoch_loop.batch_progress.current.ready
        if taken >= self._step_plan.rank_length(self._accumulate):
            # A checkpoint from the very end of an epoch: Lightning moves its count of epochs on a moment later.
            return loop.epoch_progress.current.ready, 0
        return self.trainer.current_epoch, taken

    def _eval_loader(self, name: str) -> DataLoader[PreferenceBatch]:
        ranks, rank = self._ranks
        _, chosen = self._row_lengths(name)
        batches = eval_plan(chosen, micro_batch_size=self.eval_batch_size, ranks=ranks)[rank]
        sampler = PlanSampler(lambda epoch, start: iter(batches[start:]), length=len(batches))
        return self._loader(name, sampler)

    def _loader(self, name: str, sampler: PlanSampler) -> DataLoader[PreferenceBatch]:
        pad = self.tokenizer.pad_token_id
        dataset = MicroBatchDataset(
            self.datasets[name],
            layout=self._module.layout if self._module is not None else "packed",
            pad_id=self.tokenizer.eos_token_id if pad is None else pad,
            with_rejected=self._needs_rejected,
        )
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return PlanLoader(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=False,
            pin_memory=on_gpu,
        )


class PlanSampler(Sampler[MicroBatch]):
    """Yields the plan's micro-batches.

    Args:
        batches: From (epoch, start) to the micro-batches that are left of the epoch.
        length: Micro-batches of a whole epoch.
        position: Says (epoch, start) when an iterator is made; None for (0, 0).
    """

    def __init__(
        self,
        batches: Callable[[int, int], Iterator[MicroBatch]],
        length: int,
        position: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        self._batches = batches
        self._length = length
        self._position = position

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[MicroBatch]:
        epoch, start = self._position() if self._position else (0, 0)
        return self._batches(epoch, start)


class PlanLoader(DataLoader[PreferenceBatch]):
    """A loader that goes on where the trainer stands.

    `state_dict` is empty: the position is the trainer's own count, which its checkpoints hold. That the methods are
    there tells Lightning that the loader can resume.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


class MicroBatchDataset(Dataset[PreferenceBatch]):
    """Collates the pairs of a micro-batch.

    Args:
        pairs: Tokenised pairs.
        layout: Layout of the batches.
        pad_id: Token id of padding.
        with_rejected: Whether the loss reads the rejected answers; else they are left out of the forward pass.
    """

    def __init__(
        self, pairs: ArrowDataset, *, layout: Literal["packed", "padded"], pad_id: int, with_rejected: bool
    ) -> None:
        self.pairs = pairs.select_columns(["prompt_ids", "chosen_ids", "rejected_ids", "weight", "margin"])
        self.layout: Literal["packed", "padded"] = layout
        self.pad_id = pad_id
        self.with_rejected = with_rejected

    def __len__(self) -> int:
        return len(self.pairs)

    def encoded(self, row: int) -> EncodedPair:
        """One pair."""
        values = self.pairs[row]
        if not self.with_rejected:
            values["rejected_ids"] = []
        return EncodedPair(row_id=row, **values)

    def __getitem__(self, batch: MicroBatch) -> PreferenceBatch:
        """The micro-batch that the plan names."""
        return collate(
            [self.encoded(row) for row in batch.rows],
            layout=self.layout,
            pad_id=self.pad_id,
            step_pairs=batch.step_pairs,
            step_chosen_tokens=batch.step_chosen_tokens,
            filler=batch.filler,
        )


def _as_list(sources: Sources | None) -> list[SourceConfig]:
    items = sources if isinstance(sources, list) else [sources]
    return [SourceConfig(path=item) if isinstance(item, str) else item for item in items if item is not None]


def _template_text(template: str) -> str:
    from pathlib import Path

    if "{" in template:
        return template
    if not Path(template).is_file():
        raise UserError("data.chat_template", f"is no template and there is no file {template}", "give one of the two")
    return Path(template).read_text(encoding="utf-8")


@rank_zero_only
def _print_reports(reports: list[DataReport]) -> None:
    from rich.console import Console

    if reports:
        Console().print(report_table(reports))
