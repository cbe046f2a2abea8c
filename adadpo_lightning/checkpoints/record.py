"""What a checkpoint says of its run: how to rebuild the policy, and a fingerprint of everything the run depends on."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.trainer.states import TrainerFn

from adadpo_lightning import fingerprint, gguf, log
from adadpo_lightning._version import __version__
from adadpo_lightning.checkpoints.parts import KEY, check_parts, read_checkpoint
from adadpo_lightning.checkpoints.settings import plain, settings, with_defaults
from adadpo_lightning.errors import UserError
from adadpo_lightning.hub import is_hub_id
from adadpo_lightning.models.weights import config_values

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from adadpo_lightning.models.loading import PolicyConfig
    from adadpo_lightning.training.module import PreferenceLitModule
    from adadpo_lightning.training.policy_module import PolicyModule

# Increase when an older version of the package could no longer read what is written.
FORMAT_VERSION = 1


class RunRecord:
    """Kept by a module: writes the record of its run into checkpoints, and compares it when one is loaded.

    Args:
        allow_changed: Resume although something differs; the differences are then listed.
    """

    def __init__(self, allow_changed: bool = False) -> None:
        self.allow_changed = allow_changed
        self.run = uuid.uuid4().hex  # a resumed run keeps that of its checkpoint
        self.changed: list[str] = []
        self._seed: int | None = None
        self._made_of: list[Any] = []
        self._inputs: dict[str, Any] = {}

    @property
    def seed(self) -> int:
        """Seed of the run's dropout masks: ``seed_everything``'s, or 0; a resumed run keeps that of its checkpoint."""
        if self._seed is None:
            self._seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        return self._seed

    def content(self, module: PreferenceLitModule) -> dict[str, Any]:
        """The record of a checkpoint, as plain data; every rank must call this."""
        return {
            "format": FORMAT_VERSION,
            "version": __version__,
            "run": self.run,
            "seed": self.seed,
            "policy": portable(module.policy_config),
            "loss": repr(module.loss),
            "reference": module.reference_mode,
            "hub": hub_ids(module),
            "chat_template": plain(training_tokenizer(module).chat_template),
            "fingerprint": self.fingerprint(module),
        }

    def fingerprint(self, module: PreferenceLitModule) -> dict[str, Any]:
        """Options, and what lies behind paths: model, adapter, tokenizer, token ids, weights and margins of the pairs.

        Files and pairs are hashed once on rank zero; every rank must call this.
        """
        trainer = module.trainer
        made_of = [module.policy_config, training_tokenizer(module), *_pairs(module).values()]
        if len(made_of) != len(self._made_of) or any(a is not b for a, b in zip(made_of, self._made_of, strict=True)):
            found = inputs(module) if trainer.is_global_zero else {}
            self._made_of, self._inputs = made_of, trainer.strategy.broadcast(found)
        return {"options": settings(trainer, module, getattr(trainer, "datamodule", None)), "inputs": self._inputs}

    def check(self, module: PreferenceLitModule, checkpoint: Mapping[str, Any]) -> None:
        """Compare a checkpoint that is being loaded with this run.

        A resume compares everything; validation, test and prediction compare model and tokenizer.

        Raises:
            UserError: If the checkpoint lacks parts, was written by a newer version, or something differs.
        """
        fits = module.trainer.state.fn == TrainerFn.FITTING
        check_parts(checkpoint, resume=fits)
        record = checkpoint.get(KEY, {})
        check_version(record)
        if fits:
            self.run = record.get("run", self.run)
            self._seed = record.get("seed", self._seed)
            check_epochs(module.trainer.max_epochs, checkpoint)
            log.info(f"Resuming from {module.trainer.ckpt_path}, step {checkpoint['global_step']}.")
        if "fingerprint" not in record:
            written = f"version {record['version']}" if "version" in record else "another program"
            log.info(
                f"The checkpoint, written by {written}, has no fingerprint of data, weights and options. {UNCHECKED}"
            )
            return
        now, then = self.fingerprint(module), record["fingerprint"]
        options = with_defaults(then["options"], module, getattr(module.trainer, "datamodule", None))
        parts = [merged(options, then["inputs"]), merged(now["options"], now["inputs"])]
        if not fits:
            parts = [_model_part(part) for part in parts]
        old, new = (without_unused(part, module) for part in parts)
        self.compare(old, new)

    def check_options(self, path: str, trainer: Trainer, module: PreferenceLitModule, data: Any) -> None:
        """Compare the options of a run that is about to resume, before any model or data are loaded.

        Args:
            path: The checkpoint, a file or a directory of shards.
            trainer: The trainer of the run.
            module: Its module, not built.
            data: Its datamodule.

        Raises:
            UserError: Naming each option that differs, unless that is allowed.
        """
        content = read_checkpoint(Path(path))
        check_parts(content, resume=True, path=path)
        record = content.get(KEY, {})
        check_version(record)
        if "fingerprint" in record and not self.allow_changed:
            then = with_defaults(record["fingerprint"]["options"], module, data)
            self.compare(then, settings(trainer, module, data))

    def compare(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """Stop where two fingerprints differ, or list the differences if that is allowed.

        Raises:
            UserError: Naming each difference.
        """
        self.changed = fingerprint.differences(old, new)
        if not self.changed:
            return
        lines = "\n  ".join(self.changed)
        if not self.allow_changed:
            raise UserError(
                "ckpt_path",
                f"the checkpoint is of a run with other options or inputs:\n  {lines}\n",
                "restore what the run was started with, or continue with the new ones by --allow_changed_config true",
            )
        log.info(f"Continuing with other options or inputs than before (allow_changed_config):\n  {lines}")


UNCHECKED = "It cannot be checked that they are the same."


def check_version(record: Mapping[str, Any]) -> None:
    """A checkpoint of a later format may say what this version would misread.

    Raises:
        UserError: If it is one.
    """
    if record.get("format", 0) > FORMAT_VERSION:
        raise UserError(
            "ckpt_path",
            f"the checkpoint has format {record['format']}, written by version {record.get('version')}; this version "
            f"({__version__}) reads formats up to {FORMAT_VERSION}",
            "upgrade adadpo-lightning",
        )


def check_epochs(max_epochs: int | None, checkpoint: Mapping[str, Any]) -> None:
    """Stop at a checkpoint that is beyond the end of the run.

    Raises:
        UserError: If it was saved after more epochs than the run has.
    """
    if max_epochs is not None and 0 <= max_epochs < checkpoint["epoch"]:
        raise UserError(
            "trainer.max_epochs",
            f"the checkpoint was saved after {checkpoint['epoch']} complete epochs, and the run has {max_epochs}",
            "raise it, or resume from an earlier checkpoint",
        )


def portable(config: PolicyConfig) -> dict[str, Any]:
    """A policy config as plain data, with local directories as absolute paths: valid from any working directory."""
    values = asdict(config)

    def absolute(value: Any) -> Any:
        return str(Path(value).resolve()) if isinstance(value, str) and Path(value).exists() else value

    for name in ("path", "config", "tokenizer"):
        values[name] = absolute(values[name])
    if values["lora"] is not None:
        values["lora"]["adapter"] = absolute(values["lora"]["adapter"])
    return values


def hub_ids(module: PreferenceLitModule) -> list[str]:
    """Names of policy and training data that are hub ids; a local name may look like one from another directory."""
    train = getattr(getattr(module.trainer, "datamodule", None), "sources", {}).get("train", [])
    names = (module.policy_config.path, *(source.path for source in train))
    return [name for name in names if name and is_hub_id(name)]


def training_tokenizer(module: PolicyModule) -> Any:
    """The tokenizer whose chat template renders the pairs."""
    data = getattr(getattr(module, "_trainer", None), "datamodule", None)  # not `trainer`, which raises without one
    return module.tokenizer if data is None else getattr(data, "tokenizer", module.tokenizer)


def inputs(module: PreferenceLitModule) -> dict[str, Any]:
    """Fingerprints of what options name by path, under the names of the options."""
    path = getattr(module, "reference_path", None)
    folder, file = gguf.split(path or "")
    return {
        "model": {
            "policy": of_policy(module.policy_config),
            **({} if path is None else {"reference_path": of_model(folder, None, file)}),
        },
        "tokenizer": fingerprint.of_tokenizer(training_tokenizer(module)),
        "data": {name: fingerprint.of_pairs(pairs) for name, pairs in _pairs(module).items()},
    }


def of_policy(config: PolicyConfig) -> dict[str, Any]:
    """Fingerprint of the files that a policy is built from."""
    found: dict[str, Any] = {}
    if config.path is not None:
        found["path"] = of_model(config.path, config.revision, config.gguf_file)
    else:
        found["config"] = fingerprint.of_config(config_values(config.config))
    if config.lora is not None and config.lora.adapter is not None:
        found["lora"] = {"adapter": of_model(config.lora.adapter)}
    return found


def of_model(path: str, revision: str | None = None, gguf_file: str | None = None) -> dict[str, Any]:
    """Fingerprint of a model or adapter by directory or hub id, or of a GGUF file; sampling defaults do not count.

    Raises:
        UserError: If it is not found.
    """
    if gguf_file is not None:
        # One file holds weights and config, so it counts even where weights alone would not.
        return {"gguf": fingerprint.of_file(gguf.locate(path, gguf_file, revision=revision))}
    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        # It has been loaded, so that it is in the local cache.
        try:
            folder = Path(snapshot_download(path, revision=revision, local_files_only=True))
        except (OSError, ValueError) as error:
            raise UserError(
                path, "not found: neither a directory nor a model in the local cache", "restore it, or give its place"
            ) from error
    return fingerprint.of_model_folder(folder, sampling=False)


def _pairs(module: PreferenceLitModule) -> dict[str, Any]:
    """The tokenised pairs of a run, as far as they are loaded."""
    prepared = getattr(getattr(module.trainer, "datamodule", None), "prepared", {})
    return {name: prepared[name].pairs for name in prepared if name == "train" or name.partition("/")[0] == "val"}


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one; where both have a value, the second wins.

    Example:
        >>> merged({"a": {"b": 1}}, {"a": {"c": 2}, "d": 3})
        {'a': {'b': 1, 'c': 2}, 'd': 3}
    """
    result = dict(one)
    for name, value in other.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if both else value
    return result


def _model_part(found: Mapping[str, Any]) -> dict[str, Any]:
    policy = found.get("model", {}).get("policy", {})
    return {"model": {"policy": policy}, "tokenizer": found.get("tokenizer")}


def without_unused(found: Mapping[str, Any], module: PreferenceLitModule) -> dict[str, Any]:
    """Leave out base weights that nothing reads once a checkpoint is loaded: of a full model without a reference."""
    if module.reference_mode != "none" or module.policy_config.lora is not None:
        return dict(found)
    policy = found.get("model", {}).get("policy", {})
    path = {name: value for name, value in policy.get("path", {}).items() if name != "weights"}
    return {**found, "model": {**found.get("model", {}), "policy": {**policy, "path": path}}}
