"""Errors of the parser as errors of the user, with advice on the option that was meant."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from adadpo_lightning.errors import UserError

SHOWN = 1000  # characters at each end of a long message
# Commands whose options are those of `fit`.
FIT_LIKE = ("fit", "validate", "test", "predict", "estimate", "doctor")
# How jsonargparse reports an option that does not exist: on the command line, in a config, in a group, of a class.
UNKNOWN = (
    (re.compile(r"unrecognized arguments: --([\w.-]+)"), "{}"),
    (re.compile(r"Group '([\w.]+)' does not accept option '([\w.]+)'"), "{}.{}"),
    (re.compile(r"option '([\w.]+)'"), "{}"),
    (re.compile(r"Option '(\w+)' is not accepted"), "model.loss.{}"),
)
# The natural name of an option, and what the option is called.
NATURAL_NAMES = {
    "trainer.root_dir": "output_dir",
    "output": "output_dir",
    "out": "output_dir",
    "lr": "model.optimizer.lr",
    "learning_rate": "model.optimizer.lr",
    "model.lr": "model.optimizer.lr",
    "model.learning_rate": "model.optimizer.lr",
    "weight_decay": "model.optimizer.weight_decay",
    "warmup_ratio": "model.scheduler.warmup_ratio",
    "beta": "model.loss.beta",
    "loss": "model.loss",
    "model": "model.policy.path",
    "model_name_or_path": "model.policy.path",
    "model.path": "model.policy.path",
    "policy": "model.policy.path",
    "reference": "model.reference",
    "ref_model": "model.reference",
    "epochs": "trainer.max_epochs",
    "num_train_epochs": "trainer.max_epochs",
    "trainer.epochs": "trainer.max_epochs",
    "max_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "trainer.steps": "trainer.max_steps",
    "max_steps": "trainer.max_steps",
    "devices": "trainer.devices",
    "gpus": "trainer.devices",
    "precision": "trainer.precision",
    "bf16": "trainer.precision",
    "strategy": "trainer.strategy",
    "batch_size": "data.global_batch_size",
    "data": "data.train",
    "dataset": "data.train",
    "dataset_name": "data.train",
    "train": "data.train",
    "train_file": "data.train",
    "data.train_file": "data.train",
    "data.path": "data.train",
    "data.batch_size": "data.global_batch_size",
    "max_length": "data.max_length",
    "max_prompt_length": "data.max_prompt_length",
    "seed": "seed_everything",
    "resume": "auto_resume",
    "resume_from_checkpoint": "ckpt_path",
    "checkpoint_path": "ckpt_path",
    "lora": "model.policy.lora",
    "lora_r": "model.policy.lora.r",
    "gradient_checkpointing": "model.policy.gradient_checkpointing",
    "gradient_accumulation_steps": "data.micro_batch_size",
}
# Groups that take a config file, and the option that was meant where they are given something else.
GROUPS = {
    "model": "model.policy.path",
    "model.policy": "model.policy.path",
    "model.policy.lora": "model.policy.lora.r",
    "model.optimizer": "model.optimizer.lr",
    "model.scheduler": "model.scheduler.name",
    "data": "data.train",
}
NO_CONFIG = re.compile(r'Parser key "([\w.]+)":\s+(?:Unable to load config|- Expected a path but)')
# A value that follows from another option.
LINKED = re.compile(r"argument (?:\w+\()?([\w.]+)\)? --> ([\w.]+):")


@contextmanager
def readable_errors(command: str) -> Iterator[None]:
    """Turn what jsonargparse raises into errors of the user.

    Args:
        command: Name of the command, for the advice.

    Raises:
        UserError: For an argument that is wrong, and in place of an exception that wraps a `UserError`.
    """
    try:
        yield
    except ArgumentError as error:
        if found := _user_error_in(error):
            raise found from error
        raise UserError("config", _advised(str(error), command), f"{command} --help lists every option") from error
    except ValueError as error:
        if found := _user_error_in(error):
            raise found from error
        if str(error) == "embedded null byte":  # the parser asks whether a text is a path
            raise UserError("config", "a value holds a NUL character", "remove it") from error
        if "Union subtypes" not in str(error):  # jsonargparse, of a class that refused its values
            raise
        problem = _advised(_innermost(str(error)), command)
        raise UserError("config", problem, f"{command} --help lists every option") from error


def _user_error_in(error: BaseException | None) -> UserError | None:
    """The error of ours that a parser has wrapped in its own."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _innermost(message: str) -> str:
    """What the classes of a union report, without the union around it."""
    errors = message.partition("Errors:")[2].partition("Given value type")[0] or message
    said = [line.strip(" -") for line in errors.splitlines() if line.strip() and "Expected a <class" not in line]
    return " ".join(said) or message


def _advised(message: str, command: str) -> str:
    """A parser's message with the option that was meant and, where the loss is wrong, the losses that exist."""
    if len(message) > 2 * SHOWN:  # it repeats the whole value
        message = f"{message[:SHOWN]} ... {message[-SHOWN:]}"
    if command not in FIT_LIKE:
        return message
    from adadpo_lightning.losses import available_losses, loss_class

    if found := LINKED.search(message):
        return f"{found[2]} follows from {found[1]}: set --{found[1]} instead"
    if (found := NO_CONFIG.search(message)) and found[1] in GROUPS:
        return f"--{found[1]} takes a config file\n  did you mean --{GROUPS[found[1]]}?"
    message += advice(message)
    if '"model.loss"' not in message:
        return message
    names = ", ".join(f"{key} ({loss_class(key).__name__})" for key in available_losses())
    return f"{message}\n  losses: {names}, Mixture, or the import path of your own"


def advice(message: str) -> str:
    """Advice on an option of ``fit`` that the parser does not know; empty if there is none."""
    name = _unknown_option(message)
    if name is None:
        return ""
    if meant := NATURAL_NAMES.get(name):
        return f"\n  did you mean --{meant}?"
    from adadpo_lightning.cli.fit_options import known_options

    close = get_close_matches(name, known_options(), n=1, cutoff=0.7)
    return f"\n  did you mean --{close[0]}?" if close else ""


def _unknown_option(message: str) -> str | None:
    for pattern, name in UNKNOWN:
        if found := pattern.search(message):
            return name.format(*found.groups()).replace("-", "_")
    return None
