"""What the trainer decides about the data of a run: ranks, position, limits and accumulation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.trainer.states import TrainerStatus

from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from adadpo_lightning.data.plan import StepPlan


def sharing(trainer: Trainer | None) -> tuple[int, int]:
    """(data-parallel ranks, this one's number)."""
    options = (trainer.distributed_sampler_kwargs if trainer is not None else None) or {}
    return options.get("num_replicas", 1), options.get("rank", 0)


def position(trainer: Any) -> tuple[int, int]:
    """(epoch, micro-batches taken in it), by the trainer's own count; the start for who only looks at the data."""
    if trainer is None or trainer.state.status != TrainerStatus.RUNNING:
        return 0, 0
    start = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    # To overfit means to see the same batches in each epoch.
    return 0 if trainer.overfit_batches else trainer.current_epoch, start


def translate_position(progress: dict[str, Any], then: dict[str, Any], plan: StepPlan) -> None:
    """Count the running epoch of a checkpoint in this run's micro-batches, where ranks or micro-batches are others.

    Which pairs make a step depends on neither: the position is a number of optimizer steps.

    Args:
        progress: Lightning's ``epoch_loop.batch_progress`` of the checkpoint; changed in place.
        then: `StepPlan.identity` of the run that wrote it; changed in place.
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
            f"{then['accumulate_grad_batches']} a step), which other ranks or micro-batches cannot continue",
            "resume with the same micro-batches and number of ranks",
        )
    else:
        now = steps * plan.accumulate
    # "completed" may lag by one; the distances between the counts stay.
    for counts in (progress["current"], progress["total"]):
        counts.update({name: count - before + now for name, count in counts.items()})
    then.update(split)


def check_same_plan(then: dict[str, Any], now: dict[str, Any]) -> None:
    """A checkpoint from the middle of an epoch fits the plan that it was written under, and no other.

    Args:
        then: `StepPlan.identity` of the run that wrote the checkpoint.
        now: This run's.

    Raises:
        UserError: Naming what differs.
    """
    if then != now:
        changed = ", ".join(f"{name} {then.get(name)} -> {now[name]}" for name in now if now[name] != then.get(name))
        raise UserError(
            "ckpt_path",
            f"the checkpoint is from the middle of an epoch of other data or batch sizes ({changed})",
            "resume with the same data options",
        )


def epochs(trainer: Trainer | None, steps_an_epoch: int) -> int:
    """Maximum number of epochs of the run.

    Raises:
        UserError: If nothing bounds the run.
    """
    if trainer is None:
        return 1
    # Lightning writes "no bound" as -1 in both places.
    bounds = [trainer.max_epochs] if trainer.max_epochs is not None and trainer.max_epochs >= 0 else []
    bounds += [-(-trainer.max_steps // max(steps_an_epoch, 1))] if trainer.max_steps >= 0 else []
    if not bounds:
        raise UserError("trainer.max_epochs", "neither max_epochs nor max_steps bounds the run", "set one of them")
    return min(bounds)


def micro_batches(trainer: Trainer | None, plan: StepPlan) -> int:
    """Micro-batches that a rank takes in an epoch, under ``trainer.limit_train_batches``."""
    limit = None if trainer is None else trainer.limit_train_batches
    if limit is None:
        return len(plan)
    return min(len(plan), limit if isinstance(limit, int) else int(len(plan) * limit))


def optimizer_steps(trainer: Trainer | None, plan: StepPlan) -> int:
    """Optimizer steps of the whole run.

    Raises:
        UserError: If nothing bounds the run.
    """
    steps = -(-micro_batches(trainer, plan) // plan.accumulate)
    total = steps * epochs(trainer, steps)
    return total if trainer is None or trainer.max_steps < 0 else min(total, trainer.max_steps)


def set_accumulation(trainer: Trainer, plan: StepPlan) -> None:
    """Tell the trainer how many micro-batches make a step.

    Raises:
        UserError: If the user said another number.
    """
    asked = trainer.accumulate_grad_batches
    if asked not in (1, plan.accumulate):
        raise UserError(
            "trainer.accumulate_grad_batches",
            f"{asked} contradicts global_batch_size {plan.global_batch_size} over {plan.ranks} ranks with "
            f"micro_batch_size {plan.micro_batch_size}, which makes it {plan.accumulate}",
            "leave it out",
        )
    trainer.accumulate_grad_batches = plan.accumulate


def check_limit(trainer: Any, plan: StepPlan) -> None:
    """A limit in the middle of an optimizer step would leave it with counts that it never reaches.

    Raises:
        UserError: If ``trainer.limit_train_batches`` is such a limit.
    """
    taken = micro_batches(trainer, plan)
    if trainer is not None and not trainer.fast_dev_run and taken < len(plan) and taken % plan.accumulate:
        raise UserError(
            "trainer.limit_train_batches",
            f"ends an epoch after {taken} micro-batches, in the middle of an optimizer step of {plan.accumulate}",
            f"take a multiple of {plan.accumulate}, or trainer.max_steps",
        )
