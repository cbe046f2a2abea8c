"""Rounds of iterative preference training: ``make-pairs`` with the policy of the round before, then ``fit``."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from adadpo_lightning import fingerprint, log
from adadpo_lightning.errors import UserError, did_you_mean
from adadpo_lightning.generation.responses import write_atomically
from adadpo_lightning.preferences.options import MakePairsOptions
from adadpo_lightning.runs.lock import lock_directory
from adadpo_lightning.shipped import config_path
from adadpo_lightning.study.commands import option_value
from adadpo_lightning.study.directory import content_of, plain
from adadpo_lightning.study.rounds_report import result_of, write_rounds_report

Reference = Literal["previous", "first"]
RoundPrompts = Literal["all", "part"]
SAVED = "rounds.json"
# Options of `fit` that a round sets itself.
OWN = ("output_dir", "auto_resume", "ckpt_path", "model.policy.path", "model.reference_path", "data.train")
# Options that say where things are and how fast; and those whose content is compared instead of their name.
BESIDE = ("output_dir", "device", "batch_size", "rounds", "model", "prompts", "fit_configs")


@dataclass(frozen=True)
class RoundsOptions(MakePairsOptions):
    """Iterative preference training: in each round pairs of the policy's own answers, and a ``fit`` on them.

    Args:
        output_dir: Directory to write: rounds.md, and round1, round2, ... with pairs and fit.
        model: The model that the first round starts from: Hugging Face directory (of ``export``) or hub id. Each later
            round starts from the export of the round before.
        rounds: Number of rounds. A finished round is skipped, so the same command with a larger number adds rounds.
        fit_configs: Configs of ``fit`` for every round, in order, such as base.yaml and loss/adadpo.
        fit_options: Options of ``fit`` for every round by their dotted names, such as model.optimizer.lr.
        reference: Reference of the loss: previous is the model that the round starts from, first is `model` in every
            round. Losses without a reference ignore it.
        round_prompts: all asks every prompt in every round, part divides the prompts among the rounds.
        seed: Seed of sampling in the first round; each later round adds 1. The seeds of ``fit`` are in its configs.

    Raises:
        UserError: If a value is out of range, or `fit_options` sets what a round sets itself.
    """

    _: KW_ONLY
    rounds: int = 3
    fit_configs: list[str] = field(default_factory=list)
    fit_options: dict[str, Any] = field(default_factory=dict)
    reference: Reference = "previous"
    round_prompts: RoundPrompts = "all"

    def __post_init__(self) -> None:
        """Check the choices and the ranges."""
        super().__post_init__()
        for name, known in (("reference", get_args(Reference)), ("round_prompts", get_args(RoundPrompts))):
            if (given := getattr(self, name)) not in known:
                raise UserError(name, f"unknown choice {given!r}", did_you_mean(given, known))
        if self.rounds < 1:
            raise UserError("rounds", f"expected at least 1, got {self.rounds}")
        if not self.fit_configs and not self.fit_options:
            raise UserError("fit_configs", "expected configs of fit, got none", "name base.yaml and a loss/*.yaml")
        for name in OWN:
            if name in self.fit_options:
                raise UserError(f"fit_options.{name}", "is set by each round itself", "remove it")

    def folder(self, number: int) -> Path:
        """Directory of a round, from 1."""
        return self.root / f"round{number}"

    def start(self, number: int) -> str:
        """The model that a round starts from."""
        return self.model if number == 1 else str(self.folder(number - 1) / "fit" / "export")


def run_rounds(options: RoundsOptions) -> Generator[list[str], None, list[dict[str, Any]]]:
    """Run all rounds that are not finished, and write ``rounds.json`` and ``rounds.md`` after each.

    Yields:
        The arguments of each command line that has to be run next, in its own process and before the next is asked for.
        Stop at one that fails: the same call resumes there.

    Returns:
        The results of all rounds, see `result_of`.

    Raises:
        UserError: If another process runs the rounds, the directory holds rounds with other settings, or a launcher
            started several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "rounds",
            f"was started {os.environ['WORLD_SIZE']} times by a launcher",
            "start it once: fit starts its ranks",
        )
    with lock_directory(options.root, "output_dir"):
        made_under = settings_of(options)
        results = _finished(options, made_under)
        for number in range(1, options.rounds + 1):
            if number <= len(results):
                log.info(f"round {number} is finished")
                continue
            prompts = _prompts(options, number)
            yield make_pairs_arguments(options, number, prompts)
            yield fit_arguments(options, number)
            results.append(result_of(options.folder(number), number))
            _save(options, made_under, results)
        write_rounds_report(options.root, results)
    return results


def make_pairs_arguments(options: RoundsOptions, number: int, prompts: str) -> list[str]:
    """The ``make-pairs`` command of a round.

    Args:
        options: The rounds.
        number: Number of the round, from 1.
        prompts: Its prompts.
    """
    defaults = {each.name: each.default for each in fields(MakePairsOptions)}
    given = {name: getattr(options, name) for name in defaults} | {
        "model": options.start(number),
        "prompts": prompts,
        "output_dir": options.folder(number) / "pairs",
        "seed": options.seed + number - 1,
    }
    if prompts != options.prompts:  # a file of its own, with one column
        given |= {"column": None, "subset": None, "split": None, "limit": None}
    changed = {name: value for name, value in given.items() if value != defaults[name]}
    return ["make-pairs", *(f"--{name}={option_value(value)}" for name, value in changed.items())]


def fit_arguments(options: RoundsOptions, number: int) -> list[str]:
    """The ``fit`` command of a round; it resumes, and it exports a full model, adapters merged."""
    first = options.reference == "first" and number > 1
    return [
        "fit",
        *(f"--config={config}" for config in options.fit_configs),
        f"--output_dir={options.folder(number) / 'fit'}",
        f"--model.policy.path={options.start(number)}",
        f"--data.train={options.folder(number) / 'pairs' / 'pairs.jsonl'}",
        *([f"--model.reference_path={options.model}"] if first else []),
        "--auto_resume=true",
        "--trainer.callbacks+=adadpo_lightning.callbacks.ExportHF",
        "--trainer.callbacks.merge=true",
        *(f"--{name}={option_value(value)}" for name, value in options.fit_options.items()),
    ]


def settings_of(options: RoundsOptions) -> dict[str, Any]:
    """What the rounds depend on: options, and the contents of configs, data and models."""
    values = asdict(options)
    deciding = {name: value for name, value in values.items() if name not in BESIDE}
    if options.round_prompts == "part":
        deciding["rounds"] = options.rounds  # another number divides the prompts otherwise
    named = {name: fingerprint.of_path(values[name]) or values[name] for name in ("model", "prompts")}
    runs = content_of([config_path(name) for name in options.fit_configs], options.fit_options)
    found: dict[str, Any] = plain({**deciding, **named, **runs})
    return found


def _finished(options: RoundsOptions, made_under: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of the finished rounds.

    Raises:
        UserError: If they were made with other settings.
    """
    path = options.root / SAVED
    if not path.is_file():
        return []
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        before, results = dict(saved["settings"]), list(saved["rounds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"not a record of rounds: {type(error).__name__}: {error}"
        raise UserError(str(path), problem, "remove it: finished stages are found again") from error
    if results and (changed := fingerprint.differences(before, made_under)):
        raise UserError(
            "output_dir",
            f"{options.root} holds rounds with other settings: {'; '.join(changed[:5])}",
            "restore them, or choose another directory",
        )
    return results


def _save(options: RoundsOptions, made_under: dict[str, Any], results: list[dict[str, Any]]) -> None:
    text = json.dumps({"settings": made_under, "rounds": results}, indent=1, ensure_ascii=False)
    write_atomically(options.root / SAVED, text + "\n")
    write_rounds_report(options.root, results)


def _prompts(options: RoundsOptions, number: int) -> str:
    """The prompts of a round; its part of them is written to a file of its own."""
    if options.round_prompts == "all":
        return options.prompts
    from adadpo_lightning.data.sources import SourceConfig
    from adadpo_lightning.generation.prompts import read_prompts

    source = SourceConfig(options.prompts, subset=options.subset, split=options.split)
    prompts = read_prompts(source, options.column, options.limit)
    if len(prompts) < options.rounds:
        raise UserError("prompts", f"{len(prompts)} prompts cannot be divided among {options.rounds} rounds")
    rows = [
        {"prompt": each.messages, "uid": each.uid}
        | ({"dataset": each.dataset} if each.dataset else {})
        | ({"chat_template_kwargs": each.chat_template_kwargs} if each.chat_template_kwargs else {})
        | ({"tools": each.tools} if each.tools else {})
        for each in prompts[number - 1 :: options.rounds]
    ]
    path = options.folder(number) / "prompts.jsonl"
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)
