"""The command line: Lightning's ``fit``, ``validate``, ``test`` and ``predict``, and this package's own subcommands.

Wiring only: which classes a config configures, where a run writes, and which errors end a run with exit code 2.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from adadpo_lightning.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from jsonargparse import Namespace

TRAINER_COMMANDS = {
    "fit": "train a policy with a preference loss",
    "validate": "metrics of a checkpoint on the validation pairs",
    "test": "metrics of a checkpoint on the test pairs",
    "predict": "rewards and log-probabilities of every pair, as JSON lines",
}
ESTIMATE = "memory on each rank and work of a step that a config of fit would take"
STUDY = "a grid of fit runs over losses, learning rates, betas and seeds, and its report"
DOCTOR = "versions, devices and, for a config of fit, a check of its first step and its memory"


def main(argv: Sequence[str]) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name. ``--debug`` anywhere shows the traceback of a user error.

    Returns:
        The exit status: 0, or 2 for input that the user can mend.
    """
    args = [arg for arg in argv if arg != "--debug"]
    try:
        _dispatch(args)
    except UserError as error:
        if len(args) != len(argv):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _dispatch(args: list[str]) -> None:
    own = _own_commands()
    if not args or args[0] in ("-h", "--help"):
        _print_help(own)
    elif args[0] in POSITIONAL:
        POSITIONAL[args[0]](args[1:], own[args[0]])
    elif args[0] in own:
        from jsonargparse import auto_cli

        auto_cli(own[args[0]], args=args[1:], prog=f"adadpo_lightning {args[0]}", as_positional=False)
    elif args[0] == "estimate":
        _with_parser_errors(args, _estimate)
    elif args[0] == "doctor":
        _with_parser_errors(args, _doctor)
    elif args[0] == "study":
        _with_parser_errors(args, _study)
    elif args[0] in TRAINER_COMMANDS:
        _with_parser_errors(args, _fit)
    else:
        known = [*TRAINER_COMMANDS, "estimate", "doctor", "study", *own]
        raise UserError("command", f"unknown command {args[0]!r}", did_you_mean(args[0], known))


def _own_commands() -> dict[str, Callable[..., None]]:
    from adadpo_lightning.cli.own import evaluate, export, from_trl, generate, inspect_data, losses, plot, quickstart

    return {
        "losses": losses,
        "export": export,
        "quickstart": quickstart,
        "plot": plot,
        "generate": generate,
        "evaluate": evaluate,
        "inspect-data": inspect_data,
        "from-trl": from_trl,
    }


def _print_help(own: dict[str, Callable[..., None]]) -> None:
    print("usage: python -m adadpo_lightning COMMAND [--config FILE ...] [--OPTION VALUE ...]\n\ncommands:")
    for name, text in TRAINER_COMMANDS.items():
        print(f"  {name:<14}{text}")
    print(f"  {'estimate':<14}{ESTIMATE}")
    print(f"  {'doctor':<14}{DOCTOR}")
    print(f"  {'study':<14}{STUDY}")
    for name, command in own.items():
        print(f"  {name:<14}{(command.__doc__ or '').splitlines()[0]}")
    print("\nCOMMAND --help lists its options; --debug shows the traceback of an error.")


def _plot(args: list[str], command: Callable[..., None]) -> None:
    """Take runs without an option's name in front, as many as there are."""
    from argparse import ArgumentParser

    parser = ArgumentParser("adadpo_lightning plot", description=(command.__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output directory of a run, or one that holds several")
    parser.add_argument("--output", default="figures", metavar="DIR", help="directory to write to (default: figures)")
    parser.add_argument(
        "--metric",
        dest="metrics",
        action="append",
        metavar="NAME",
        help="balance, logps, margin, accuracy, kl, or any logged metric such as grad_norm/total; may be repeated "
        "(default: all of the named ones that there are)",
    )
    command(**vars(parser.parse_args(args)))


def _from_trl(args: list[str], command: Callable[..., None]) -> None:
    """Take TRL's file without an option's name in front: ``--config`` would be read as a config of ours."""
    from argparse import ArgumentParser

    parser = ArgumentParser("adadpo_lightning from-trl", description=(command.__doc__ or "").splitlines()[0])
    parser.add_argument("config", metavar="DPO_CONFIG", help="YAML or JSON: DPOConfig, ModelConfig and ScriptArguments")
    parser.add_argument("--output", metavar="FILE", help="file to write (default: print it)")
    parser.add_argument(
        "--ranks", type=int, default=1, help="devices that TRL ran on, for the global batch (default 1)"
    )
    command(**vars(parser.parse_args(args)))


POSITIONAL = {"plot": _plot, "from-trl": _from_trl}


def _fit(args: list[str]) -> None:
    from adadpo_lightning.cli.trainer import PreferenceCLI

    PreferenceCLI.run(args)


def _estimate(args: list[str]) -> None:
    from adadpo_lightning.cli.commands.estimate import run_estimate

    run_estimate(args[1:])


def _doctor(args: list[str]) -> None:
    from adadpo_lightning.cli.commands.doctor import run_doctor

    run_doctor(args[1:])


def _study(args: list[str]) -> None:
    from adadpo_lightning.cli.commands.study import run_study_command

    run_study_command(args[1:], main)


def _with_parser_errors(args: list[str], command: Callable[[list[str]], None]) -> None:
    """Run a command over configs of ``fit``; what the parser raises becomes an error of ours."""
    # Imported late: these take seconds, and `--help` of the other commands should not.
    from argparse import ArgumentError

    from adadpo_lightning.losses.registry import load_plugins

    load_plugins()
    args = [shipped_config(arg, previous) for arg, previous in zip(args, ["", *args], strict=False)]
    check_config_files(args)
    try:
        command([_loss_by_class(arg, args[i - 1]) for i, arg in enumerate(args)])
    except ArgumentError as error:
        raise UserError("config", _advised(str(error)), f"{args[0]} --help lists every option") from error
    except ValueError as error:
        if found := _user_error_in(error):
            raise found from error
        if "Union subtypes" in str(error):  # jsonargparse, of a class that refused its values
            raise UserError(
                "config", _advised(_innermost(str(error))), f"{args[0]} --help lists every option"
            ) from error
        raise


def _user_error_in(error: BaseException | None) -> UserError | None:
    """The error of ours that a parser has wrapped into its own."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _loss_by_class(arg: str, previous: str) -> str:
    """Let ``--model.loss`` take a key of the registry, such as adadpo, beside a class name."""
    from adadpo_lightning.losses import available_losses, loss_class

    name, equals, value = arg.rpartition("=")
    if (name == "--model.loss" or (not equals and previous == "--model.loss")) and value in available_losses():
        return f"{name}{equals}{loss_class(value).__name__}"
    return arg


def _innermost(message: str) -> str:
    """What the classes of a union have to say, without the union around it."""
    errors = message.partition("Errors:")[2].partition("Given value type")[0] or message
    said = [line.strip(" -") for line in errors.splitlines() if line.strip() and "Expected a <class" not in line]
    return " ".join(said) or message


def shipped_config(arg: str, previous: str) -> str:
    """Let ``--config`` take the name of a shipped config, such as loss/adadpo, from any directory."""
    from adadpo_lightning.shipped import find_config

    flag, equals, name = arg.rpartition("=") if arg.startswith("--config=") else ("", "", arg)
    if not (equals or previous == "--config") or Path(name).exists():
        return arg
    try:
        return f"{flag}{equals}{find_config(name if name.endswith('.yaml') else f'{name}.yaml')}"
    except UserError:
        return arg  # the parser says that there is no such file


def check_config_files(args: Sequence[str]) -> None:
    """Look at the files that ``--config`` names, before a parser says what is wrong without saying where.

    Raises:
        UserError: If one cannot be read, or holds no mapping.
    """
    import yaml

    named = [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
    named += [value for flag, value in pairwise(args) if flag == "--config"]
    for name in named:
        path = Path(name)
        if not path.is_file():
            continue  # the parser says so, or it is no path
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(name, f"is no YAML: {' '.join(str(error).split())}", "mend the file") from error
        if not isinstance(content, dict):
            raise UserError(name, f"expected keys and values, got {type(content).__name__}", "see configs/base.yaml")


def known_options() -> list[str]:
    """Dotted names of the options of ``fit``, for advice."""
    from inspect import signature

    from adadpo_lightning.cli.trainer import FIT_CLASSES
    from adadpo_lightning.losses import available_losses, loss_class
    from adadpo_lightning.models.loading import PolicyConfig
    from adadpo_lightning.training.optim import OptimizerConfig, SchedulerConfig

    parts = {"model.policy": PolicyConfig, "model.optimizer": OptimizerConfig, "model.scheduler": SchedulerConfig}
    classes: dict[str, Any] = {**FIT_CLASSES, **parts}
    named = [f"{prefix}.{name}" for prefix, made in classes.items() for name in signature(made).parameters]
    losses: set[str] = {name for key in available_losses() for name in signature(loss_class(key)).parameters}
    return [*named, *(f"model.loss.{name}" for name in losses), "output_dir", "seed_everything", "ckpt_path", "config"]


def _did_you_mean_option(message: str) -> str:
    found = re.search(r"unrecognized arguments: --([\w.]+)|option '([\w.]+)'|Option '(\w+)' is not accepted", message)
    if found is None:
        return ""
    name = found[1] or found[2] or f"model.loss.{found[3]}"
    close = get_close_matches(name, known_options(), n=1, cutoff=0.7)
    return f"\n  did you mean {close[0]}?" if close else ""


def _advised(message: str) -> str:
    """A parser's message with the option that was meant; where the loss is at fault, with the losses there are."""
    from adadpo_lightning.losses import available_losses, loss_class

    message += _did_you_mean_option(message)
    if '"model.loss"' not in message:
        return message
    names = ", ".join(f"{key} ({loss_class(key).__name__})" for key in available_losses())
    return f"{message}\n  losses: {names}, Mixture, or the import path of your own"


@contextmanager
def whole_class_options() -> Iterator[None]:
    """Make a config that names another class forget ALL options of the class named before it.

    jsonargparse keeps those options that the new class has too: a loss named later would silently train with the beta
    of the loss named earlier.
    """
    from jsonargparse import _typehints

    def forget(parser: Any, previous: Any, value: Any) -> None:
        if not previous or "init_args" not in previous or _class_name(previous) == _class_name(value):
            return
        for name in list(previous["init_args"].keys()):
            previous["init_args"].pop(name)

    with patch.object(_typehints, "discard_init_args_on_class_path_change", forget):
        yield


def _class_name(spec: Namespace | dict[str, Any]) -> str:
    """A class may be named in short or by its import path."""
    return str(spec["class_path"]).rpartition(".")[2]


def check_output_dir(output_dir: str, *, resuming: bool) -> None:
    """Refuse to write a new run over an older one.

    Raises:
        UserError: If the directory holds a run and this one does not resume it, or is no directory.
    """
    path = Path(output_dir)
    if path.exists() and not path.is_dir():
        raise UserError("output_dir", f"expected a directory, {output_dir} is a file", "choose another path")
    if not resuming and (path / "config.yaml").exists():
        raise UserError(
            "output_dir",
            f"{output_dir} already holds a run",
            "resume it with --ckpt_path last, or choose another directory",
        )
    _check_writable(path)


def _check_writable(path: Path) -> None:
    """Make the directory, write a byte, and take away what was not there before."""
    from lightning.pytorch.utilities import rank_zero_only

    if getattr(rank_zero_only, "rank", 0):  # the ranks of one machine would take it away from each other
        return
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path) as file:
            file.write(b"0")
    except OSError as error:
        raise UserError("output_dir", f"{path} cannot be written: {error.strerror}", "choose another path") from error
    finally:
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()
