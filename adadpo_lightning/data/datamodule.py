"""The LightningDataModule: turns sources into loaders of micro-batches, in the order of the step plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from lightning.pytorch import LightningDataModule

from adadpo_lightning import log
from adadpo_lightning.data import position as run
from adadpo_lightning.data.batching import BatchOptions, evaluation_plan, scoring_plan, training_plan
from adadpo_lightning.data.datasets import PairSets
from adadpo_lightning.data.lists import BEST_AGAINST_WORST, ListOptions
from adadpo_lightning.data.loader import MicroBatches, PairsToScore, PlanLoader
from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.tokenizer import check_subset, read_tokenizer, template_text
from adadpo_lightning.data.validation import NamedSources, Sources, listed, validation_sources
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adadpo_lightning.data.loader import CachedLogps
    from adadpo_lightning.data.plan import MicroBatch, StepPlan
    from adadpo_lightning.data.prepare import Prepared
    from adadpo_lightning.types import ModuleNeeds


class PreferenceDataModule(LightningDataModule):
    """Loads preference pairs from files or the hub into micro-batches; the split never changes the gradient.

    Args:
        train: Training pairs: a path or hub id, a source with options, or a list of these to mix.
        val: Validation pairs, as `train`, or several sets by name (``{helpful: a.jsonl, safety: b.jsonl}``): each has
            its own metrics ``val/<name>/...``, and none are ``val/...``. Null with `val_size` 0 means no validation.
        test: Test pairs.
        predict: Pairs to score with ``predict``; null means those of `test`, otherwise of `val`, set after set.
        val_size: Number (or fraction, if below 1) of training pairs to hold out for validation, split by prompt.
        tokenizer: Directory or hub id; null means the policy's.
        chat_template: Jinja template or path of a template file, which replaces the tokenizer's.
        chat: ``auto`` uses the chat template if there is one, ``always`` requires it, ``never`` joins plain texts.
        max_length: Maximum number of tokens of the prompt plus the longer answer.
        max_prompt_length: Maximum number of prompt tokens; null means no separate limit.
        truncation: For pairs that are too long: ``drop`` them; ``keep_start`` of their answers (a prompt that leaves no
            room is a bad row); ``keep_end`` of their prompt.
        on_bad_row: ``error`` stops at the first unusable row, ``drop`` drops and counts them. Pairs with identical
            answers are always dropped and counted.
        global_batch_size: Number of pairs per optimizer step, over all ranks. For a loss over ranked lists (``pldpo``)
            this and the next sizes are numbers of lists, which are never split.
        micro_batch_size: Number of pairs per forward pass and rank; determines ``trainer.accumulate_grad_batches``.
        max_tokens: Maximum number of tokens per forward pass and rank; replaces `micro_batch_size`. In the padded
            layout these are not counted: a prompt's second copy and padding.
        eval_batch_size: Number of pairs per forward pass and rank in validation, test and predict; null means
            `micro_batch_size`, or tokens where `max_tokens` is set.
        eval_max_tokens: Maximum number of tokens per forward pass and rank in validation, test and predict; replaces
            `eval_batch_size`. A longer pair is alone in a forward pass. Null means `max_tokens`, unless
            `eval_batch_size` is set. The metrics are the same, up to rounding; predictions keep the dataset's order.
        seed: Seed of the order of pairs, of splits and of source weights.
        shuffle: Shuffle the pairs in each epoch.
        drop_last: Drop the last step of an epoch if it is incomplete.
        num_workers: Number of worker processes that collate batches.
        num_proc: Number of processes that tokenize.
        special_tokens: Special tokens that the data spell out: ``text`` keeps them as text, ``parse`` reads them as
            tokens, ``auto`` decides for each column (see `adadpo_lightning.data.special.decide`).
        chat_template_kwargs: Variables of the chat template, such as ``enable_thinking``; a column of that name takes
            precedence, key by key.
        lists: Which pairs a ranked list is made into.
        score: Scored tokens of answers of several turns: those of the ``assistant``, or ``all``, also those of the user
            and of tools in between.
        group: ``auto`` computes a prompt that several pairs share, and their equal answers, once. It keeps such pairs
            together in the order of an epoch, in one step and in one forward pass where their sizes permit. ``never``
            shuffles and computes pair by pair. The gradient of a given step is the same.

    Raises:
        UserError: If an option is out of its range; in `setup`, if the data are not usable.

    Example:
        To look at the data without a trainer (``PATH`` is a tokenizer's directory)::

            data = PreferenceDataModule(train="pairs.jsonl", tokenizer="PATH")
            data.setup("fit")
            data.prepared["train"].pairs[0]
    """

    RESUME: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("train", "val", "tokenizer", "chat_template"), "by_content"),
        **dict.fromkeys(("test", "predict", "micro_batch_size", "max_tokens"), "ignored"),
        **dict.fromkeys(("eval_batch_size", "eval_max_tokens", "num_workers", "num_proc"), "ignored"),
    }

    def __init__(
        self,
        train: Sources | None = None,
        val: Sources | NamedSources | None = None,
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
        lists: ListOptions = BEST_AGAINST_WORST,
        score: Literal["assistant", "all"] = "assistant",
        group: Literal["auto", "never"] = "auto",
        eval_max_tokens: int | None = None,
    ) -> None:
        super().__init__()
        validation = validation_sources(val)
        self.sources = {"train": listed(train), **validation, "test": listed(test)}
        every = [source for sources in validation.values() for source in sources]
        self.sources["predict"] = listed(predict) or self.sources["test"] or every
        self.tokenizer_path = tokenizer
        self.chat_template = chat_template
        # Used by the run summary and the memory estimate.
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.max_tokens = max_tokens
        self.seed = seed
        self.options = TokenizeOptions(
            max_length,
            max_prompt_length,
            truncation,
            chat,
            special_tokens=special_tokens,
            chat_template_kwargs=chat_template_kwargs,
            lists=lists,
            score=score,
        )
        self.batching = BatchOptions(
            global_batch_size,
            micro_batch_size,
            max_tokens,
            micro_batch_size if eval_batch_size is None else eval_batch_size,
            seed,
            shuffle,
            drop_last,
            group,
            max_tokens if eval_batch_size is None and eval_max_tokens is None else eval_max_tokens,
        )
        self.sets = PairSets(
            self.sources, self.options, val_size=val_size, seed=seed, on_bad_row=on_bad_row, num_proc=num_proc
        )
        if num_workers < 0:
            raise UserError("data.num_workers", f"expected 0 or more, got {num_workers}")
        self.num_workers = num_workers
        self.plan: StepPlan | None = None
        self._needs: ModuleNeeds | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._caches: dict[str, CachedLogps] = {}
        self._resumed_plan: dict[str, Any] | None = None

    @property
    def prepared(self) -> Mapping[str, Prepared]:
        """The tokenized pairs by stage: ``train``, ``val`` or ``val/<name>``, ``test`` and ``predict``."""
        return self.sets.prepared

    @property
    def val_names(self) -> list[str]:
        """The validation sets that are prepared, in the order of their loaders: ``val``, or ``val/<name>`` of each."""
        return [name for name in self.sets.val_names if name in self.prepared]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the pairs; can be set to one that is already loaded.

        `chat_template` is also set on the policy's tokenizer, so that generation and export use it.
        """
        tokenizer = self._tokenizer
        if tokenizer is None and self.tokenizer_path is None:
            # Not stored: the next run may train a different policy.
            if self._needs is None:
                raise UserError(
                    "data.tokenizer", "not set, and there is no policy to take it from", "set a directory or hub id"
                )
            tokenizer = self._needs.tokenizer
        elif tokenizer is None:
            tokenizer = self._tokenizer = read_tokenizer(str(self.tokenizer_path))
            if self._needs is not None:
                check_subset(tokenizer, self._needs.tokenizer, str(self.tokenizer_path))
        if self.chat_template is not None:
            tokenizer.chat_template = template_text(self.chat_template)
        return tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def connect(self, needs: ModuleNeeds) -> None:
        """Set the requirements of the module, all that the datamodule knows about it.

        With a Trainer, `prepare_data` and `setup` do this. Without one, call ``data.connect(module.data_needs())`` to
        inspect the data of a module.

        Args:
            needs: Requirements of the module.
        """
        if self._needs is None or self._needs.tokenizer is not needs.tokenizer:
            # A different policy has a different reference.
            self._caches.clear()
        self._needs = needs

    # Lightning's hooks.

    def prepare_data(self) -> None:
        """Tokenize in one process, so that the others find the result in the cache of `datasets`."""
        if self.trainer is not None and self.trainer.state.fn is not None:
            self._load(str(self.trainer.state.fn.value))

    def setup(self, stage: str) -> None:
        """Load and tokenize the data of the stage, report dropped pairs, and plan the steps.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            UserError: If the data cannot be read or do not fit the loss, the batch sizes or the trainer.
        """
        self._load(stage)
        self.sets.report(stage)
        if stage == "fit":
            train, options = self.prepared["train"], self.batching
            items = len(train.chains().members) if self._with_lists else len(train.pairs)
            steps_an_epoch = items // options.global_batch_size
            epochs = run.epochs(self.trainer, steps_an_epoch) if options.max_tokens else 1
            self.plan = training_plan(
                train,
                options,
                ranks=run.sharing(self.trainer)[0],
                epochs=epochs,
                with_rejected=self._with_rejected,
                lists=self._with_lists,
            )
            if self.trainer is not None:
                run.set_accumulation(self.trainer, self.plan)
                run.check_validation_interval(self.trainer, self.plan)

    def _load(self, stage: str) -> None:
        module = self.trainer.lightning_module if self.trainer is not None else None
        if module is not None:
            self.connect(module.data_needs())  # type: ignore[operator]  # a `PreferenceLitModule`, or one like it
        needs = self._needs
        self.sets.load(
            stage,
            self.tokenizer,
            with_rejected=self._with_rejected,
            # Inspection of the data also accepts rows without a rejected answer.
            needs_rejected=needs is not None and needs.rejected,
        )
        if needs is not None and not needs.margins:
            self.sets.refuse_margins(stage)
        if self._with_lists:
            self.sets.check_lists(stage)

    def train_dataloader(self) -> PlanLoader:
        """This rank's micro-batches, starting at the trainer's position: a resumed run replays nothing."""
        run.check_limit(self.trainer, self._step_plan)
        if self.max_tokens is not None and self._layout == "padded":
            log.info(
                f"data.max_tokens: {self.max_tokens} tokens of pairs are more in the padded layout, which repeats the "
                "prompt for each answer and pads all rows to the longest; lower it if memory runs out"
            )
        return self._loader("train", self._train_batches, len(self._step_plan), partial(run.position, self.trainer))

    def val_dataloader(self) -> PlanLoader | list[PlanLoader]:
        """Each validation pair once over all ranks: one loader, or a list of one for each named set."""
        return self._eval_loader("val") if "val" in self.prepared else [*map(self._eval_loader, self.val_names)]

    def test_dataloader(self) -> PlanLoader:
        """Each test pair once over all ranks."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> PlanLoader:
        """Each pair once over all ranks."""
        return self._eval_loader("predict")

    def scoring_loader(self, name: str) -> tuple[MicroBatches, list[MicroBatch]]:
        """This rank's pairs of a dataset for scoring each once, with the plan and how to collate it."""
        ranks, rank = run.sharing(self.trainer)
        train = self.plan if name == "train" else None
        return self._batches(name), scoring_plan(
            self.prepared[name], self.batching, ranks=ranks, rank=rank, train=train, **self._how(name)
        )

    def unscored(self, names: Iterable[str]) -> dict[str, PairsToScore]:
        """The named datasets that are prepared and have no reference log-probabilities yet."""
        wanted = [name for name in names if name in self.prepared and name not in self._caches]
        found = {}
        for name in wanted:
            batches, plan = self.scoring_loader(name)
            prepared = self.prepared[name]
            groups = prepared.groups(self.batching.group, with_rejected=self._with_rejected)
            lengths = np.stack(prepared.scored()[: groups.answer.shape[1]], axis=1)
            found[name] = PairsToScore(prepared.pairs, groups.answer, lengths, batches.__getitem__, plan)
        return found

    def add_reference(self, caches: Mapping[str, CachedLogps]) -> None:
        """Add reference log-probabilities by dataset; batches of existing loaders include them, too."""
        self._caches.update(caches)

    def state_dict(self) -> dict[str, Any]:
        """The identity of the step plan, for checkpoints."""
        return {} if self.plan is None else {"plan": self.plan.identity()}

    def translate_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Translate the position of a checkpoint to this run's number of ranks and micro-batches.

        Must be called while the trainer restores the checkpoint, which is modified in place.
        """
        then = checkpoint.get(type(self).__qualname__, {}).get("plan")
        loops = checkpoint.get("loops")
        if self.plan is not None and then is not None and loops is not None:
            run.translate_position(loops["fit_loop"]["epoch_loop.batch_progress"], then, self.plan)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the plan of the resumed run."""
        self._resumed_plan = state_dict.get("plan")

    @property
    def optimizer_steps(self) -> int:
        """Number of optimizer steps in the run, under the trainer's limits; available after ``setup("fit")``.

        Raises:
            UserError: If nothing limits the run.
        """
        return run.optimizer_steps(self.trainer, self._step_plan)

    @property
    def _with_rejected(self) -> bool:
        return self._needs is None or self._needs.rejected

    @property
    def _with_lists(self) -> bool:
        return self._needs is not None and self._needs.lists

    @property
    def _layout(self) -> Literal["packed", "padded"]:
        return "packed" if self._needs is None else self._needs.layout()

    @property
    def _step_plan(self) -> StepPlan:
        if self.plan is None:
            raise RuntimeError("call setup('fit') first, as Lightning's Trainer does")
        return self.plan

    def _train_batches(self, epoch: int, start: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches, starting at a position; called once per epoch."""
        then, self._resumed_plan = self._resumed_plan, None
        if start and then is not None:
            run.check_same_plan(then, self._step_plan.identity())
            run.check_position(start, self._step_plan)
        return self._step_plan.rank_batches(run.sharing(self.trainer)[1], epoch, start)

    def _how(self, name: str) -> dict[str, bool]:
        return {"with_rejected": self._with_rejected, "in_order": name == "predict", "lists": self._with_lists}

    def _eval_loader(self, name: str) -> PlanLoader:
        ranks, rank = run.sharing(self.trainer)
        plan = evaluation_plan(self.prepared[name], self.batching, ranks=ranks, rank=rank, **self._how(name))
        return self._loader(name, lambda epoch, start: iter(plan), len(plan))

    def _batches(self, name: str) -> MicroBatches:
        pad = self.tokenizer.pad_token_id
        return MicroBatches(
            self.prepared[name].pairs,
            layout=self._layout,
            pad_id=self.tokenizer.eos_token_id if pad is None else pad,
            with_rejected=self._with_rejected,
            share=self.batching.group == "auto",
            reference=self._caches,
            name=name,
            list_rest=self.prepared[name].chains().rest if self._with_lists else None,
        )

    def _loader(self, name: str, plan: Any, length: int, *position: Any) -> PlanLoader:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return PlanLoader(self._batches(name), plan, length, *position, num_workers=self.num_workers, pin_memory=on_gpu)
