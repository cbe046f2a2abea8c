"""Trainer state that affects the data: ranks, position, limits and accumulation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.trainer.states import TrainerStatus

from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from adadpo_lightning.data.plan import StepPlan


def sharing(trainer: Trainer | None) -> tuple[int, int]:
    """Number of data-parallel ranks, and the index of this rank."""
    options = (trainer.distributed_sampler_kwargs if trainer is not None else None) or {}
    return options.get("num_replicas", 1), options.get("rank", 0)


def position(trainer: Any) -> tuple[int, int]:
    """The trainer's position as (epoch, finished micro-batches in it); (0, 0) outside of a run."""
    if trainer is None or trainer.state.status != TrainerStatus.RUNNING:
        return 0, 0
    start = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    # Overfitting repeats the same batches in each epoch.
    return 0 if trainer.overfit_batches else trainer.current_epoch, start


def translate_position(progress: dict[str, Any], then: dict[str, Any], plan: StepPlan) -> None:
    """Convert a checkpoint's position in its epoch to this run's ranks and micro-batches.

    The pairs of a step depend on neither, so the position is determined by the number of optimizer steps.

    Args:
        progress: Lightning's ``epoch_loop.batch_progress`` of the checkpoint; modified in place.
        then: `StepPlan.identity` of the run that wrote the checkpoint; modified in place.
        plan: This run's plan.

    Raises:
        UserError: If the checkpoint is from the middle of an optimizer step.
    """
    split = {"accumulate_grad_batches": plan.accumulate, "ranks": plan.ranks}
    if then == then | split:
        return
    before = progress["current"]["ready"]
    steps, inside = divmod(before, then["accumulate_grad_batches"])
    if progress["is_last_batch"]:
        now = len(plan)
    elif inside:
        raise UserError(
            "ckpt_path",
            f"the checkpoint is from the middle of an optimizer step ({before} micro-batches of "
            f"{then['accumulate_grad_batches']} per step), which requires the same ranks and micro-batches",
            "resume with the same micro-batches and number of ranks",
        )
    else:
        now = steps * plan.accumulate
    # "completed" may lag by one; the differences between the counts are kept.
    for counts in (progress["current"], progress["total"]):
        counts.update({name: count - before + now for name, count in counts.items()})
    then.update(split)


def check_same_plan(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that a checkpoint from the middle of an epoch was written under the same plan.

    Args:
        then: `StepPlan.identity` of the run that wrote the checkpoint.
        now: `StepPlan.identity` of this run.

    Raises:
        UserError: If they differ, naming the differences.
    """
    then = {"grouped": False} | then  # checkpoints of release 0.1.0 do not say
    if then != now:
        changed = ", ".join(f"{name} {then.get(name)} -> {now[name]}" for name in now if now[name] != then.get(name))
        raise UserError(
            "ckpt_path",
            f"the checkpoint is from the middle of an epoch with different data or batch sizes ({changed})",
            "resume with the same data options",
        )


def check_position(start: int, plan: StepPlan) -> None:
    """Check that a checkpoint's position is in the epoch: beyond it there is nothing to train on.

    Raises:
        UserError: If it is not.
    """
    if start > len(plan):
        raise UserError(
            "ckpt_path",
            f"the checkpoint is {start} micro-batches into an epoch of {len(plan)}",
            "give another checkpoint of the same run",
        )


def epochs(trainer: Trainer | None, steps_an_epoch: int) -> int:
    """Maximum number of epochs of the run.

    Raises:
        UserError: If nothing limits the run.
    """
    if trainer is None:
        return 1
    # Lightning represents "no limit" as -1 in both options.
    bounds = [trainer.max_epochs] if trainer.max_epochs is not None and trainer.max_epochs >= 0 else []
    bounds += [-(-trainer.max_steps // max(steps_an_epoch, 1))] if trainer.max_steps >= 0 else []
    if not bounds:
        raise UserError("trainer.max_epochs", "neither max_epochs nor max_steps limits the run", "set one of them")
    return min(bounds)


def micro_batches(trainer: Trainer | None, plan: StepPlan) -> int:
    """Number of micro-batches per rank and epoch, limited by ``trainer.limit_train_batches``."""
    limit = None if trainer is None else trainer.limit_train_batches
    if limit is None:
        return len(plan)
    return min(len(plan), limit if isinstance(limit, int) else int(len(plan) * limit))


def optimizer_steps(trainer: Trainer | None, plan: StepPlan) -> int:
    """Number of optimizer steps in the run.

    Raises:
        UserError: If nothing limits the run.
    """
    steps = -(-micro_batches(trainer, plan) // plan.accumulate)
    total = steps * epochs(trainer, steps)
    return total if trainer is None or trainer.max_steps < 0 else min(total, trainer.max_steps)


def set_accumulation(trainer: Trainer, plan: StepPlan) -> None:
    """Set the trainer's number of micro-batches per optimizer step.

    Raises:
        UserError: If the user set a different number.
    """
    asked = trainer.accumulate_grad_batches
    if asked not in (1, plan.accumulate):
        raise UserError(
            "trainer.accumulate_grad_batches",
            f"{asked} contradicts global_batch_size {plan.global_batch_size} over {plan.ranks} ranks with "
            f"micro_batch_size {plan.micro_batch_size}, which require {plan.accumulate}",
            "remove it",
        )
    trainer.accumulate_grad_batches = plan.accumulate


def check_validation_interval(trainer: Any, plan: StepPlan) -> None:
    """Reject an interval at which Lightning validates never, always, or ends with a division by zero.

    Raises:
        UserError: If ``trainer.val_check_interval`` is 0, negative, or longer than an epoch.
    """
    interval = getattr(trainer, "val_check_interval", None)  # not set where the interval is a time
    if not isinstance(interval, (int, float)) or trainer.fast_dev_run or trainer.limit_val_batches == 0:
        return
    field, remedy = "trainer.val_check_interval", "set trainer.limit_val_batches to 0 for no validation"
    if interval <= 0:
        raise UserError(field, f"expected more than 0, got {interval}", remedy)
    taken = micro_batches(trainer, plan)
    if isinstance(interval, int) and interval > taken and trainer.check_val_every_n_epoch is not None:
        raise UserError(
            field,
            f"{interval} micro-batches are more than an epoch's {taken}",
            f"set it to at most {taken}, or trainer.check_val_every_n_epoch to null to count over epochs",
        )


def check_limit(trainer: Any, plan: StepPlan) -> None:
    """Reject a limit in the middle of an optimizer step, whose counts would then be wrong.

    Raises:
        UserError: If ``trainer.limit_train_batches`` ends an epoch inside a step.
    """
    taken = micro_batches(trainer, plan)
    if trainer is not None and not trainer.fast_dev_run and taken < len(plan) and taken % plan.accumulate:
        raise UserError(
            "trainer.limit_train_batches",
            f"ends an epoch after {taken} micro-batches, in the middle of an optimizer step of {plan.accumulate}",
            f"set it to a multiple of {plan.accumulate}, or use trainer.max_steps",
        )
