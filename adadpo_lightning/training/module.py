"""The LightningModule: policy, reference and loss to one scalar, and what callbacks read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning.pytorch.plugins import HalfPrecision
from lightning.pytorch.trainer.states import TrainerFn

from adadpo_lightning import log
from adadpo_lightning.callbacks.defaults import complete
from adadpo_lightning.callbacks.refused import refuse_rounded_average, refuse_unsupported
from adadpo_lightning.checkpoints.export import check_base
from adadpo_lightning.checkpoints.parts import CURRENT_WEIGHTS, KEY
from adadpo_lightning.checkpoints.record import RunRecord
from adadpo_lightning.data.position import sharing
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import PreferenceLoss
from adadpo_lightning.metrics.functional import kl_terms
from adadpo_lightning.models.adapters import is_reference
from adadpo_lightning.models.checks import note_slow_bfloat16
from adadpo_lightning.models.loading import PolicyConfig
from adadpo_lightning.models.routing import check_router_loss
from adadpo_lightning.reference.cache import default_folder
from adadpo_lightning.reference.modes import AskedMode, resolve_reference
from adadpo_lightning.reference.sync import SyncOptions, sync
from adadpo_lightning.strategies.capabilities import shards_parameters, splits_matrices
from adadpo_lightning.training import rebuild
from adadpo_lightning.training.dropout import masks_of_this_micro_batch
from adadpo_lightning.training.optim import (
    OptimizerConfig,
    SchedulerConfig,
    as_config,
    build_optimizer,
    build_scheduler,
    follow_config,
)
from adadpo_lightning.training.optimizer_class import OptimizerCallable
from adadpo_lightning.training.policy_module import PolicyModule
from adadpo_lightning.training.position import TOTAL_STEPS, Position, position_of, total_steps
from adadpo_lightning.training.step import detached, pair_logps, sum_by_answer
from adadpo_lightning.types import ModuleNeeds, PreferenceBatch, StepOutput

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
    from torch import Tensor
    from typing_extensions import Self

    from adadpo_lightning.checkpoints.settings import Treatment
    from adadpo_lightning.models.sharding import Sharding


class PreferenceLitModule(PolicyModule):
    """Trains a policy with a preference loss.

    Args:
        policy: Which model to train and how to load it.
        loss: The loss; one of `adadpo_lightning.losses`. Each number in it may change over the run, as in
            ``beta: {from: 0.1, to: 0.01, schedule: linear}``.
        optimizer: AdamW's numbers, see `OptimizerConfig`; or any optimizer by ``class_path`` and ``init_args``, in
            Python a `functools.partial` of its class. Norms and biases never decay.
        scheduler: Learning-rate schedule.
        reference: What yields the reference log-probabilities. ``frozen``: a copy of the initial policy. ``path``:
            the model at `reference_path`. ``adapter_off``: the policy without its adapter. ``adapter``: the policy with
            a frozen copy of its initial adapter. ``synced``: a copy that follows the policy (TR-DPO, see
            `sync`). ``cached``: the numbers of ``auto`` from disk, computed once before the first step and shared by
            all runs over the same weights and pairs; no second model stays in memory. ``auto``: none if the loss needs
            none, else ``path`` if there is one, ``adapter`` for a trained adapter (``lora.adapter``), ``adapter_off``
            for a new one, ``frozen`` for a full model: rewards start at exactly 0, except with ``path``.
        reference_path: Directory or hub id of the reference, of the policy's vocabulary; for ``path`` and ``cached``.
        sync: How a ``synced`` reference follows the policy.
        reference_cache: Folder of the caches; null takes ``$XDG_CACHE_HOME/adadpo_lightning/reference``.
        router_aux_loss_coef: Coefficient of the load-balancing loss of a mixture of experts, which is added to the
            policy's loss: the mean over a step's pairs of each micro-batch's own, over all tokens that it computes. A
            shared prompt counts as often as it is computed: once in the packed layout. Not with ``policy.compile``. 0
            adds none.

    Raises:
        UserError: If the loss needs a reference and `reference` is ``none``, or ``adapter_off`` without an adapter, or
            `router_aux_loss_coef` is negative or not finite.
    """

    RESUME: ClassVar[dict[str, Treatment]] = {"reference_cache": "ignored", "reference_path": "by_content"}

    def __init__(
        self,
        policy: PolicyConfig,
        loss: PreferenceLoss,
        optimizer: OptimizerCallable | None = None,
        scheduler: SchedulerConfig | None = None,
        reference: AskedMode = "auto",
        reference_cache: str | None = None,
        reference_path: str | None = None,
        sync: SyncOptions | None = None,
        router_aux_loss_coef: float = 0.0,
    ) -> None:
        if not 0 <= router_aux_loss_coef < math.inf:
            raise UserError("model.router_aux_loss_coef", f"expected a number from 0 up, got {router_aux_loss_coef}")
        super().__init__(policy, resolve_reference(reference, loss, policy, reference_path), reference_path)
        self.loss = loss
        self.optimizer_config = as_config(optimizer)
        self.scheduler_config = scheduler or SchedulerConfig()
        self.sync = sync or SyncOptions()
        if self.reference_mode == "synced":
            self.sync.check(policy)
        self.reference_cache = Path(reference_cache) if reference_cache is not None else default_folder()
        self.router_aux_loss_coef = router_aux_loss_coef
        self.run_record = RunRecord()
        self._saved_position: Position | None = None

    def data_needs(self) -> ModuleNeeds:
        """What a datamodule has to know of this module; see `PreferenceDataModule.connect`."""
        loss = self.loss
        return ModuleNeeds(
            self.tokenizer, loss.needs_rejected, lambda: self.layout, loss.takes_margin, lists=loss.needs_lists
        )

    def configure_callbacks(self) -> list[Callback]:
        """The default callbacks that the trainer lacks; one that the user passed to it replaces its default.

        Raises:
            UserError: For a callback that would do nothing, or something else than it says.
        """
        trainer: Any = self.trainer
        refuse_unsupported(trainer, self)
        trainer.callbacks, added = complete(trainer.callbacks, predict=trainer.state.fn == TrainerFn.PREDICTING)
        return added

    def setup(self, stage: str) -> None:
        """Refuse a precision that would spoil the model without a word.

        Raises:
            UserError: For ``bf16-true`` and ``16-true``, for inference mode under FSDP2, for averages in 16 bits, and
                for another optimizer than AdamW with tensor parallelism.
        """
        refuse_rounded_average(self.trainer, self)
        if shards_parameters(self.trainer.strategy) and self.trainer.validate_loop.inference_mode:
            raise UserError(
                "trainer.inference_mode",
                "weights that are gathered in inference mode cannot be trained afterwards",
                "set it to false, as configs/strategy/fsdp2.yaml does",
            )
        if splits_matrices(self.trainer.strategy) and not isinstance(self.optimizer_config, OptimizerConfig):
            raise UserError(
                "model.optimizer",
                f"{self.optimizer_config.class_path} has not been compared with one process under tensor parallelism",
                "use AdamW, without class_path, or set trainer.strategy.tensor_parallel_size to 1",
            )
        if isinstance(self.trainer.precision_plugin, HalfPrecision):
            raise UserError(
                "trainer.precision",
                f"{self.trainer.precision!r} would round the rotary embedding's buffers to half precision too",
                "set model.policy.dtype for half-precision weights, or bf16-mixed to keep float32 master weights",
            )
        half = self.trainer.precision == "bf16-mixed" or self.policy_config.dtype == "bfloat16"
        note_slow_bfloat16(self.trainer.strategy.root_device, used=half)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # no hparams_file: the checkpoint holds all arguments
        cls, checkpoint_path: str | Path, map_location: Any = None, **overrides: Any
    ) -> Self:
        """Rebuild the module that wrote a checkpoint, with its weights.

        The base model (``policy.path``) must still be where it was; of a policy with LoRA the checkpoint holds the
        adapters alone. Nothing that a checkpoint holds is executed.

        Args:
            checkpoint_path: A file of a run's checkpoints.
            map_location: Device to move the module to.
            **overrides: Arguments of the module in place of the checkpoint's.

        Raises:
            UserError: If the file is missing, damaged, sharded or of another program, if its loss is not found, or if
                the base model has changed.

        Example:
            ::

                module = PreferenceLitModule.load_from_checkpoint("runs/mine/checkpoints/last.ckpt")
                module.generate(["What is 2 plus 3?"])
        """
        content = rebuild.read(checkpoint_path)
        record = content[KEY]
        module = cls(**rebuild.arguments_of(record, overrides))
        if "policy" not in overrides:
            check_base(record, module.policy_config)
        if record.get("chat_template") is not None:
            module.tokenizer.chat_template = record["chat_template"]
        options = record.get("fingerprint", {}).get("options", {})
        module._recorded_kwargs = options.get("data", {}).get("chat_template_kwargs")
        module._build_policy()
        if module.reference_mode == "synced":
            module._build_reference()
        rebuild.load_weights(module, content["state_dict"])
        module._saved_position = position_of(content, record)
        return module if map_location is None else module.to(map_location)

    def _build_policy(self, sharding: Sharding | None = None) -> None:
        super()._build_policy(sharding)
        policy = self.built_policy
        check_router_loss(self.router_aux_loss_coef, policy.causal_lm, compiled=policy.compiled)

    def on_train_start(self) -> None:
        """Let the config decide what a restored optimizer would remember: its rate and other numbers."""
        for optimizer, scheduler in zip(self.trainer.optimizers, self.trainer.lr_scheduler_configs, strict=False):
            follow_config(self.built_policy, optimizer, scheduler.scheduler, self.optimizer_config)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer and its schedule over all optimizer steps of the run.

        Raises:
            UserError: If nothing bounds the run.
        """
        optimizer = build_optimizer(self.built_policy, self.optimizer_config)
        scheduler = build_scheduler(optimizer, self.scheduler_config, total_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step; a ``synced`` reference then follows, before any callback validates or saves."""
        super().optimizer_step(*args, **kwargs)
        if self.reference_mode == "synced" and self.sync.due(self.trainer.global_step + 1):
            sync(self.built_policy, getattr(self, "synced_reference", None), self.sync.alpha)

    def forward(self, batch: PreferenceBatch, *, log_collisions: bool = False, routes: bool = False) -> Tensor:
        """Log-probability of each scored token of the batch, nats, shape (N,); see `PolicyModel.forward`."""
        with masks_of_this_micro_batch(self):
            logps: Tensor = self.built_policy(batch, log_collisions=log_collisions, routes=routes)
        return logps

    @property
    def is_fitting(self) -> bool:
        """Whether a trainer is fitting this module."""
        return self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING

    def position(self) -> Position:
        """Optimizer steps taken and those of the whole run: in training the trainer's, otherwise the checkpoint's.

        Without a checkpoint it is the start of a run; a loss with schedules then says so.
        """
        if self.is_fitting:
            return Position(self.trainer.global_step, total_steps(self.trainer))
        if self._saved_position is None:
            log.warn("model.loss: no checkpoint says which step this is; its schedules have their first values")
            self._saved_position = Position(0, 1)
        return self._saved_position

    def current_loss(self) -> PreferenceLoss:
        """The loss of the current optimizer step: with numbers in place of its schedules."""
        return self.loss.at(*self.position()) if self.loss.scheduled else self.loss

    def step(self, batch: PreferenceBatch) -> tuple[Tensor, StepOutput]:
        """One micro-batch's share of its optimizer step's loss, and what callbacks read."""
        if self.loss.needs_lists and batch.list_rest is None:
            raise UserError(
                "model.loss",
                "this loss needs whole ranked lists, and the batch does not say which pairs are one",
                "use PreferenceDataModule, connected to this module, or set PreferenceBatch.list_rest",
            )
        logps = self(batch, log_collisions=self.loss.needs_collisions, routes=True)
        statistics, routing = self.built_policy.take_statistics(), self.built_policy.take_routing()
        reference = batch.ref_logps
        if reference is None and self._reference is not None:
            # Outside `inference_mode` tensors of either mode mix freely, and no graph is wanted.
            with torch.no_grad():
                reference = self._reference(batch)
        pairs = pair_logps(
            batch, logps, reference, tails=self.loss.needs_tails, log_collisions=statistics.log_collisions
        )
        output = self.current_loss()(pairs)
        share = output.reduce(batch.step_pairs, batch.step_chosen_tokens)
        aux_loss = None if routing is None else routing.aux_loss()
        if aux_loss is not None and self.router_aux_loss_coef:
            share = share + self.router_aux_loss_coef * aux_loss * (len(batch) / batch.step_pairs)
        if batch.filler:
            share = share * 0.0
        kl = None if reference is None else sum_by_answer(kl_terms(logps.detach() - reference), batch)
        entropy = None if statistics.entropies is None else sum_by_answer(statistics.entropies, batch)
        options = self.loss.scheduled_values(*self.position()) if self.loss.scheduled else {}
        return share, StepOutput(
            detached(pairs),
            detached(output),
            share.detach(),
            kl,
            entropy,
            options,
            aux_loss=None if aux_loss is None else aux_loss.detach(),
            aux_coefficient=self.router_aux_loss_coef,
            expert_tokens=None if routing is None else routing.assigned,
        )

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Any]:
        """Loss for the backward pass, scaled so that the gradient is that of the global batch.

        Lightning divides by `accumulate_grad_batches` and the strategy averages over ranks. Both are undone here,
        because the share is already normalised by the global counts of the step.
        """
        share, output = self.step(batch)
        ranks, _ = sharing(self.trainer)
        return {"loss": share * (self.trainer.accumulate_grad_batches * ranks), "step": output}

    def validation_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Everything that callbacks make metrics of; they know the validation set by the number of its loader."""
        return {"step": self.step(batch)[1]}

    def test_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Any]:
        """As validation."""
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Tensor]:
        """Per pair: dataset row, positions of the answers in its list, summed log-probabilities, implicit rewards.

        Each is a tensor of shape (B,).
        """
        output = self.step(batch)[1]
        if batch.filler:
            return {}
        return {
            "row_id": batch.row_ids,
            "chosen_index": batch.answer_ids[:, 0],
            "rejected_index": batch.answer_ids[:, 1],
            "logps_chosen": output.pairs.chosen,
            "logps_rejected": output.pairs.rejected,
            "reward_chosen": output.loss.chosen_rewards,
            "reward_rejected": output.loss.rejected_rewards,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that this is the run that the checkpoint is of."""
        if self._trainer is not None:
            self.run_record.check(self, checkpoint)
        self._saved_position = position_of(checkpoint, checkpoint.get(KEY, {}))
        if CURRENT_WEIGHTS in checkpoint and not self.strict_loading:
            # `WeightAveraging` restores its average strictly, and with LoRA a checkpoint lacks the base model.
            for part in ("state_dict", CURRENT_WEIGHTS):
                checkpoint[part] = self.state_dict() | checkpoint[part]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record how to rebuild the module and what the run depends on; with LoRA keep only what is trained."""
        checkpoint[KEY] = self.run_record.content(self) | {"module": rebuild.describe(self)}
        if self.loss.scheduled:
            checkpoint[KEY][TOTAL_STEPS] = self.position().total_steps
        if self.policy_config.lora is not None:
            synced = self.saves_frozen_weights
            kept = {name for name, p in self.named_parameters() if p.requires_grad or (synced and is_reference(name))}
            for part in {"state_dict", CURRENT_WEIGHTS} & checkpoint.keys():
                checkpoint[part] = {name: w for name, w in checkpoint[part].items() if name in kept}
