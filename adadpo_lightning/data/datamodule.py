"""The LightningDataModule: sources to loaders of micro-batches, in the order of the step plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only

from adadpo_lightning.data import position as run
from adadpo_lightning.data.loader import MicroBatches, PlanLoader
from adadpo_lightning.data.plan import MicroBatch, StepPlan, eval_plan
from adadpo_lightning.data.prepare import DataReport, Prepared, prepare, report_table, split_by_prompt
from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.data.tokenize import TokenizeOptions
from adadpo_lightning.data.tokenizer import read_tokenizer
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adadpo_lightning.reference.cache import ReferenceCache

Sources = str | SourceConfig | list[str | SourceConfig]
STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class PreferenceDataModule(LightningDataModule):
    """Preference pairs from files or the hub to micro-batches whose split never changes the gradient.

    Args:
        train: Training pairs: a path or hub id, a source with options, or a list of these to mix.
        val: Validation pairs; null and `val_size` 0 for none.
        test: Test pairs.
        predict: Pairs to score with ``predict``; null takes those of `test`, else of `val`.
        val_size: Hold out this many training pairs (or this share, if below 1) for validation; no prompt is in both.
        tokenizer: Directory or hub id; null takes the policy's.
        chat_template: Jinja template, or a file that holds one, in place of the tokenizer's own.
        chat: ``auto`` renders the chat template where there is one, ``always`` demands it, ``never`` joins texts as is.
        max_length: Tokens of prompt plus longer answer at most.
        max_prompt_length: Tokens of the prompt at most; null for no bound of its own.
        truncation: For pairs that are too long: ``drop`` them; ``keep_start`` of their answers (a prompt that leaves no
            room is a bad row); ``keep_end`` of their prompt.
        on_bad_row: ``error`` stops at the first unusable row, ``drop`` drops and counts them. Pairs with identical
            answers are always dropped and counted.
        global_batch_size: Pairs an optimizer step, over all ranks.
        micro_batch_size: Pairs a forward pass on one rank; ``trainer.accumulate_grad_batches`` follows from it.
        max_tokens: Tokens a forward pass on one rank at most: as many pairs as fit, in place of `micro_batch_size`.
        eval_batch_size: Pairs a forward pass in validation, test and predict; null takes `micro_batch_size`.
        seed: Seed of the order of pairs, of splits and of source weights.
        shuffle: Draw a new order in each epoch.
        drop_last: Leave out the last step of an epoch if it is not full.
        num_workers: Processes that collate ahead.
        num_proc: Processes that tokenise.
        special_tokens: Special tokens that the data spell out: ``text`` keeps them as text, ``parse`` reads them as
            tokens, ``auto`` decides for each column (see `adadpo_lightning.data.special.decide`).
        chat_template_kwargs: Variables of the chat template, such as ``enable_thinking``; a column of that name takes
            precedence.

    Raises:
        UserError: If an option is out of its range; in `setup`, if the data cannot serve.

    Example:
        To look at the data without a trainer (``PATH`` is a tokenizer's directory)::

            data = PreferenceDataModule(train="pairs.jsonl", tokenizer="PATH")
            data.setup("fit")
            data.prepared["train"].pairs[0]
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
        special_tokens: Literal["auto", "text", "parse"] = "auto",
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.sources = {"train": _listed(train), "val": _listed(val), "test": _listed(test)}
        self.sources["predict"] = _listed(predict) or self.sources["test"] or self.sources["val"]
        self.val_size = val_size
        self.tokenizer_path = tokenizer
        self.chat_template = chat_template
        self.options = TokenizeOptions(
            max_length,
            max_prompt_length,
            truncation,
            chat,
            special_tokens=special_tokens,
            chat_template_kwargs=chat_template_kwargs,
        )
        self.on_bad_row: Literal["error", "drop"] = on_bad_row
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.max_tokens = max_tokens
        self.eval_batch_size = micro_batch_size if eval_batch_size is None else eval_batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.num_workers = num_workers
        self.num_proc = num_proc
        self.prepared: dict[str, Prepared] = {}
        self.plan: StepPlan | None = None
        self.reference_caches: dict[str, ReferenceCache] = {}
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._resumed_plan: dict[str, Any] | None = None
        self._reported: set[str] = set()
        self._prepared_for: tuple[Any, bool] | None = None
        _check_options(self)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the pairs; set it to use one that is loaded already.

        `chat_template` is put into the policy's tokenizer too, so that generation and export use the same.
        """
        tokenizer = self._tokenizer
        if tokenizer is None and self.tokenizer_path is None:
            # Not kept: the next run may train another policy.
            if self._module is None:
                raise UserError("data.tokenizer", "there is no policy to take one from", "give a directory or hub id")
            tokenizer = self._module.tokenizer
        elif tokenizer is None:
            tokenizer = self._tokenizer = self._load_tokenizer()
        if self.chat_template is not None:
            tokenizer.chat_template = _template_text(self.chat_template)
        return tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        own = None if self._module is None else self._module.tokenizer
        tokenizer = read_tokenizer(str(self.tokenizer_path))
        if own is not None and not tokenizer.get_vocab().items() <= own.get_vocab().items():
            raise UserError(
                "data.tokenizer",
                f"{self.tokenizer_path!r} has tokens that the policy's tokenizer lacks or numbers otherwise",
                "leave it out to use the policy's",
            )
        return tokenizer

    # Lightning's hooks.

    def prepare_data(self) -> None:
        """Tokenise on one process, so that the others find the result in the cache of `datasets`."""
        if self.trainer is not None and self.trainer.state.fn is not None:
            self._load(str(self.trainer.state.fn.value))

    def setup(self, stage: str) -> None:
        """Load and tokenise what the stage needs, say what was dropped, and plan the steps.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            UserError: If the data cannot be read or do not fit the loss, the batch sizes or the trainer.
        """
        self._load(stage)
        new = [name for name in STAGES[stage] if name in self.prepared and name not in self._reported]
        self._reported.update(new)
        _print([self.prepared[name].report for name in new])
        if stage == "fit":
            self.plan = self._make_plan(self.prepared["train"])
            if self.trainer is not None:
                run.set_accumulation(self.trainer, self.plan)

    def train_dataloader(self) -> PlanLoader:
        """This rank's micro-batches, from the trainer's own position on: a resumed run replays nothing."""
        run.check_limit(self.trainer, self._step_plan)
        return self._loader("train", self._train_batches, len(self._step_plan), partial(run.position, self.trainer))

    def val_dataloader(self) -> PlanLoader | list[PlanLoader]:
        """Each validation pair once over all ranks; nothing if there are none."""
        return self._eval_loader("val") if "val" in self.prepared else []

    def test_dataloader(self) -> PlanLoader:
        """Each test pair once over all ranks."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> PlanLoader:
        """Each pair once over all ranks."""
        return self._eval_loader("predict")

    def scoring_loader(self, name: str) -> tuple[MicroBatches, list[MicroBatch]]:
        """This rank's pairs of a dataset to compute something of each once: how to collate, and the plan.

        Training pairs come in the micro-batches of the first epoch, because how pairs are batched shows in the
        rounding.
        """
        loader = self._eval_loader(name)
        plan = list(loader.plan(0, 0))
        if name == "train" and self.plan is not None:
            # The plan above is for the pairs that `drop_last` leaves out of the epoch.
            rest = plan if self.plan.drop_last else []
            plan = [*self.plan.rank_batches(run.sharing(self.trainer)[1], 0, 0), *rest]
        return loader.batches, plan

    def state_dict(self) -> dict[str, Any]:
        """What the order of pairs depends on, for checkpoints."""
        return {} if self.plan is None else {"plan": self.plan.identity()}

    def translate_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let a run with another number of ranks, or other micro-batches, go on where a checkpoint ends.

        The module calls it while the trainer restores; what the checkpoint says of the split is then that of this run.
        """
        then = checkpoint.get(type(self).__qualname__, {}).get("plan")
        loops = checkpoint.get("loops")
        if self.plan is not None and then is not None and loops is not None:
            run.translate_position(loops["fit_loop"]["epoch_loop.batch_progress"], then, self.plan)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the plan of the run that is resumed."""
        self._resumed_plan = state_dict.get("plan")

    # What the trainer and its module decide.

    @property
    def _module(self) -> Any:
        return self.trainer.lightning_module if self.trainer is not None else None

    @property
    def _needs_rejected(self) -> bool:
        return self._module is None or bool(self._module.loss.needs_rejected)

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of the whole run, by the trainer's limits; known after ``setup("fit")``.

        Raises:
            UserError: If nothing bounds the run.
        """
        return run.optimizer_steps(self.trainer, self._step_plan)

    @property
    def _step_plan(self) -> StepPlan:
        if self.plan is None:
            raise RuntimeError("call setup('fit') first, as Lightning's Trainer does")
        return self.plan

    def _train_batches(self, epoch: int, start: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches from a position on; asked for once an epoch."""
        then, self._resumed_plan = self._resumed_plan, None
        now = self._step_plan.identity()
        if start and then is not None and then != now:
            changed = ", ".join(
                f"{name} {then.get(name)} -> {now[name]}" for name in now if now[name] != then.get(name)
            )
            raise UserError(
                "ckpt_path",
                f"the checkpoint is from the middle of an epoch of other data or batch sizes ({changed})",
                "resume with the same data options",
            )
        return self._step_plan.rank_batches(run.sharing(self.trainer)[1], epoch, start)

    # Loading and planning.

    def _load(self, stage: str) -> None:
        if self._prepared_for != (now := (self.tokenizer, self._needs_rejected)):
            # Another policy or loss than in the run before.
            self.prepared, self._reported, self._prepared_for = {}, set(), now
        for name in STAGES[stage]:
            if name not in self.prepared and (self.sources[name] or (name == "val" and self.val_size)):
                self._prepare(name)
        needed = STAGES[stage][0]
        if needed not in self.prepared:
            raise UserError(f"data.{needed}", f"'{stage}' needs it, got null", "give a file, directory or hub id")

    def _prepare(self, name: str) -> None:
        if not self.sources[name]:  # val, held out of train
            self._prepare("train")
            return
        options = TokenizeOptions(**{**vars(self.options), "with_rejected": self._needs_rejected})
        prepared = prepare(
            name,
            self.sources[name],
            self.tokenizer,
            options,
            on_bad_row=self.on_bad_row,
            num_proc=self.num_proc,
        )
        if name == "train" and self.val_size:
            prepared, val = split_by_prompt(prepared, self.val_size, self.seed)
            self.prepared["val"] = self._checked("val", val)
        self.prepared[name] = self._checked(name, prepared)
        if name == "val" and "train" in self.prepared:
            keys = [set(self.prepared[part].pairs["prompt_key"]) for part in ("train", "val")]
            prepared.report.notes["prompts that train has too"] = len(keys[0] & keys[1])

    def _checked(self, name: str, prepared: Prepared) -> Prepared:
        prepared = prepared.with_passes(self.seed)
        missing = np.flatnonzero(prepared.counts()[2] == 0)
        if self._module is not None and self._needs_rejected and len(missing):
            raise UserError(
                f"data.{name}",
                f"{len(missing)} of {len(prepared.pairs)} rows have no rejected answer, and the loss compares two "
                f"(the first is {prepared.where(int(missing[0]))})",
                "give pairs, or train with the loss sft",
            )
        return prepared

    def _make_plan(self, train: Prepared) -> StepPlan:
        prompt, chosen, rejected = train.counts()
        lengths = prompt + chosen + rejected
        longest = int(lengths.argmax())
        if self.max_tokens is not None and lengths[longest] > self.max_tokens:
            raise UserError(
                "data.max_tokens",
                f"the pair at {train.where(longest)} alone has {lengths[longest]} tokens, more than {self.max_tokens}",
                "raise it or lower data.max_length",
            )
        return StepPlan(
            lengths,
            chosen,
            global_batch_size=self.global_batch_size,
            micro_batch_size=self.micro_batch_size,
            max_tokens=self.max_tokens,
            ranks=run.sharing(self.trainer)[0],
            seed=self.seed,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
            # Only `max_tokens` makes the plan depend on the length of the run.
            epochs=run.epochs(self.trainer, len(lengths) // self.global_batch_size) if self.max_tokens else 1,
        )

    def _eval_loader(self, name: str) -> PlanLoader:
        prompt, chosen, rejected = self.prepared[name].counts()
        ranks, rank = run.sharing(self.trainer)
        plan = eval_plan(prompt + chosen + rejected, chosen, micro_batch_size=self.eval_batch_size, ranks=ranks)[rank]
        return self._loader(name, lambda epoch, start: iter(plan), len(plan))

    def _loader(self, name: str, plan: Any, length: int, *position: Any) -> PlanLoader:
        pad = self.tokenizer.pad_token_id
        batches = MicroBatches(
            self.prepared[name].pairs,
            layout="packed" if self._module is None else self._module.layout,
            pad_id=self.tokenizer.eos_token_id if pad is None else pad,
            with_rejected=self._needs_rejected,
            reference=self.reference_caches,
            name=name,
        )
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return PlanLoader(batches, plan, length, *position, num_workers=self.num_workers, pin_memory=on_gpu)


def _check_options(data: PreferenceDataModule) -> None:
    for name in ("global_batch_size", "micro_batch_size", "eval_batch_size"):
        if getattr(data, name) < 1:
            raise UserError(f"data.{name}", f"expected at least 1, got {getattr(data, name)}")
    if data.on_bad_row not in ("error", "drop"):
        raise UserError("data.on_bad_row", f"expected error or drop, got {data.on_bad_row!r}")
    if data.val_size < 0:
        raise UserError("data.val_size", f"expected a number of pairs or a share, got {data.val_size}")
    if data.val_size and data.sources["val"]:
        raise UserError("data.val_size", "is for runs without data.val, got both", "leave one of them out")


def _listed(sources: Sources | None) -> list[SourceConfig]:
    items: Sequence[str | SourceConfig | None] = sources if isinstance(sources, list) else [sources]
    return [SourceConfig(path=item) if isinstance(item, str) else item for item in items if item is not None]


def _template_text(template: str) -> str:
    if "{" in template:
        return template
    if not Path(template).is_file():
        raise UserError("data.chat_template", f"no template, and there is no file {template!r}", "give one of the two")
    return Path(template).read_text(encoding="utf-8")


@rank_zero_only
def _print(reports: list[DataReport]) -> None:
    from rich.console import Console

    if reports:
        Console().print(report_table(reports))
