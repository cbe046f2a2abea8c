"""Write a policy as a Hugging Face directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adadpo_lightning import log
from adadpo_lightning.checkpoints.directory import check_free, new_directory
from adadpo_lightning.checkpoints.integrity import damage
from adadpo_lightning.checkpoints.parts import KEY, check_record, read_checkpoint
from adadpo_lightning.checkpoints.record import check_version, of_policy
from adadpo_lightning.checkpoints.shards import converts_weights, export_shards, is_sharded, read_weights, write_live
from adadpo_lightning.errors import UserError, one_line
from adadpo_lightning.fingerprint import differences
from adadpo_lightning.gguf import SUFFIX
from adadpo_lightning.models.adapters import TRAINED
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig, load_model, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.models.policy import PolicyModel
    from adadpo_lightning.training.module import PreferenceLitModule

POLICY_PREFIX = "policy.model."
MADE_OF = "training.json"
# What an export says of its run; paths of the machine stay in the checkpoint.
RECORDED = ("format", "version", "run", "loss", "reference", "hub", "fingerprint")


def export_model(
    model: Any,
    tokenizer: Any,
    path: str | Path,
    *,
    merge: bool = False,
    replace: bool = False,
    made_of: Mapping[str, Any] | None = None,
) -> None:
    """Write weights (safetensors), config and tokenizer, all or nothing.

    Args:
        model: Causal language model, with or without adapters.
        tokenizer: Its tokenizer.
        path: Directory to write; must not exist or be empty.
        merge: Merge adapters into the base model (which changes `model`) instead of writing them as adapters.
        replace: Replace a directory that exists.
        made_of: What to write to ``training.json``.

    Raises:
        UserError: If the directory holds something already and `replace` is false.
    """
    target = Path(path)
    if not replace:
        check_free(target)
    if merge and hasattr(model, "merge_and_unload"):
        model = _merged(model)
    elif _reads_wrongly(model):
        log.warn(
            f"{target}: transformers' own from_pretrained and load_adapter drop DoRA's magnitudes (with a table of "
            "missing keys); load it by peft's PeftModel.from_pretrained, or export it merged"
        )
    with new_directory(target, replace=replace) as partial:
        # A reference adapter beside the trained one stays where it is.
        only = {"selected_adapters": [TRAINED]} if hasattr(model, "peft_config") else {}
        model.save_pretrained(partial, safe_serialization=True, **only)
        _write_beside(tokenizer, made_of, partial)


def _merged(model: Any) -> Any:
    """The base model with the adapter in its weights.

    Raises:
        UserError: If the adapter has biases where the base model has none.
    """
    base = model.get_base_model()
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    if base.config.tie_word_embeddings and any(hasattr(end, "get_base_layer") for end in ends):
        # Embedding and head are one matrix, and an adapter of one of them would be merged into both.
        head = ends[1].get_base_layer() if hasattr(ends[1], "get_base_layer") else ends[1]
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        base.config.tie_word_embeddings = False
    try:
        return model.merge_and_unload()
    except RuntimeError as error:
        raise UserError("export", one_line(error), "export the adapter without --merge") from error


def _reads_wrongly(model: Any) -> bool:
    """Whether transformers would read the adapter wrongly: peft 0.21 gives it wrong names for DoRA's magnitudes."""
    return any(getattr(config, "use_dora", False) for config in getattr(model, "peft_config", {}).values())


def _write_beside(tokenizer: Any, made_of: Mapping[str, Any] | None, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    if made_of is not None:
        (folder / MADE_OF).write_text(json.dumps(made_of, indent=1), encoding="utf-8")


def export_policy(
    policy: PolicyModel,
    tokenizer: Any,
    path: str | Path,
    *,
    merge: bool,
    write: bool,
    replace: bool = False,
    made_of: Mapping[str, Any] | None = None,
) -> None:
    """As `export_model`, for a policy that may be sharded: every rank must call it, and one of them writes.

    Args:
        policy: The policy.
        tokenizer: Its tokenizer.
        path: Directory to write; must not exist or be empty.
        merge: Merge adapters into the base model.
        write: Whether this rank writes.
        replace: Replace a directory that exists.
        made_of: What to write to ``training.json``.

    Raises:
        UserError: If the directory holds something already and `replace` is false, or a sharded model would have to be
            gathered.
    """
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(policy, FSDPModule):
        if write:
            export_model(policy.model, tokenizer, path, merge=merge, replace=replace, made_of=made_of)
        return
    if not replace:
        check_free(Path(path))
    if merge or converts_weights(policy.causal_lm):
        raise UserError(
            "export", "a sharded model would have to be gathered", "export a checkpoint with the command export"
        )
    torch.distributed.barrier()  # every rank has checked the path before one writes
    policy.reshard()  # what the last validation left gathered has the dtype of the computation
    if not write:
        write_live(policy.model, None)
        return
    with new_directory(Path(path), replace=replace) as partial:
        write_live(policy.model, partial)
        _write_beside(tokenizer, made_of, partial)


def export_module(module: PreferenceLitModule, path: str | Path, *, merge: bool = False, replace: bool = False) -> None:
    """Write a module's policy, its tokenizer with the chat template of the training pairs, and what it was made of.

    Every rank must call this; rank zero writes.

    Args:
        module: A module with its trainer.
        path: Directory to write.
        merge: Merge adapters into the base model.
        replace: Replace a directory that exists.

    Raises:
        UserError: If the directory holds something already and `replace` is false.
    """
    record = module.run_record.content(module)
    tokenizer = with_template(module.tokenizer, record["chat_template"])
    described = {name: record[name] for name in RECORDED} | {"step": module.trainer.global_step}
    write = module.trainer.is_global_zero
    export_policy(module.built_policy, tokenizer, path, merge=merge, write=write, replace=replace, made_of=described)


def with_template(tokenizer: Any, template: Any) -> Any:
    """A tokenizer with the chat template that the training pairs were rendered with; without one, as it is."""
    if template is None or tokenizer.chat_template == template:
        return tokenizer
    own = deepcopy(tokenizer)
    own.chat_template = template
    return own


def exported_by(path: Path) -> str | None:
    """The run that wrote an export; None if nothing says so."""
    return made_of(path).get("run")


def made_of(path: Path) -> dict[str, Any]:
    """What an export says that it was made of; empty if it does not."""
    try:
        found = json.loads((path / MADE_OF).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def export_checkpoint(checkpoint: str, output: str, *, merge: bool = False, base: str | None = None) -> None:
    """Write the policy of a checkpoint of ``fit``, a file or a directory of shards, as a Hugging Face directory.

    Shards are put together one output file at a time; no more of the model is ever in memory.

    Args:
        checkpoint: The checkpoint.
        output: Directory to write; must not exist or be empty.
        merge: Merge LoRA adapters into the base model.
        base: Where the model is that training started from; None takes the path that the checkpoint names.

    Raises:
        UserError: If the checkpoint is missing, damaged, or was not written by this package, or if the model that
            training started from has changed.
    """
    source, target = Path(checkpoint), Path(output)
    check_free(target)
    content = _content(source)
    record = content[KEY]
    config = recorded_policy(record)
    if base is not None:
        file = None if base.endswith(SUFFIX) else config.gguf_file
        config = replace(config, path=base, revision=None, gguf_file=file)
    check_base(record, config)
    tokenizer = with_template(load_tokenizer(config), record.get("chat_template"))
    described = {name: record[name] for name in RECORDED if name in record} | {"step": content.get("global_step")}
    sharded = is_sharded(source)
    if sharded and config.lora is None and not config.trust_remote_code:
        empty = load_model(config, tokenizer, empty=True)
        if not converts_weights(empty):
            with new_directory(target) as partial:
                export_shards(source, empty, POLICY_PREFIX, partial)
                _write_beside(tokenizer, described, partial)
            return
    model = load_model(config, tokenizer)
    load_policy_weights(model, read_weights(source) if sharded else content["state_dict"])
    export_model(model, tokenizer, output, merge=merge, made_of=described)


def _content(source: Path) -> Any:
    if not is_sharded(source) and not source.is_file():
        raise UserError(
            "checkpoint", f"no file or directory of shards {source} found", "give one from a run's checkpoints/"
        )
    if (reason := damage(source)) is not None:
        raise UserError("checkpoint", f"{source} is damaged: {reason}", "give another one from the run's checkpoints/")
    content = read_checkpoint(source)
    if not isinstance(content, dict) or KEY not in content:
        raise UserError("checkpoint", f"{source} was not written by adadpo_lightning")
    check_record(content, "checkpoint", str(source))
    if not is_sharded(source) and not isinstance(content.get("state_dict"), Mapping):
        raise UserError("checkpoint", f"{source} is not a checkpoint of fit: it has no weights", "give another one")
    return content


def recorded_policy(record: Mapping[str, Any]) -> PolicyConfig:
    """The policy config of a checkpoint's record.

    Raises:
        UserError: If this version does not know what it says.
    """
    check_version(record)
    try:
        values = dict(record["policy"])
        lora = values.pop("lora")
        return PolicyConfig(**values, lora=None if lora is None else LoraOptions(**lora))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        written = record.get("version", "an unknown version")
        raise UserError(
            "checkpoint", f"its record of the policy, written by {written}, cannot be read: {error}"
        ) from error


def check_base(record: Mapping[str, Any], config: PolicyConfig) -> None:
    """Stop if the model that training started from has changed: config, and for adapters the weights.

    Raises:
        UserError: Naming what differs.
    """
    if "fingerprint" not in record:
        return
    parts = [record["fingerprint"]["inputs"]["model"]["policy"], of_policy(config)]
    if config.lora is None:
        parts = [{**part, "path": {**part.get("path", {}), "weights": None}} for part in parts]
    if changed := differences(parts[0], parts[1]):
        lines = "\n  ".join(changed)
        raise UserError(
            "checkpoint",
            f"the model at {config.where} is not the one that training started from:\n  {lines}\n",
            "restore it, or give its place as --base",
        )


def load_policy_weights(model: Any, state_dict: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's policy weights into a model; with adapters the checkpoint holds only them.

    Raises:
        UserError: If a trained weight is missing, or the model has no such weight or one of another shape.
    """
    weights = {k.removeprefix(POLICY_PREFIX): v for k, v in state_dict.items() if str(k).startswith(POLICY_PREFIX)}
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # torch's word for weights of another shape
        raise UserError("checkpoint", f"does not fit the model it names: {one_line(error)}") from error
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    lost = trained.intersection(missing)
    if lost or unexpected:
        raise UserError(
            "checkpoint",
            f"does not fit the model it names: missing {sorted(lost)[:3]}, not in the model {sorted(unexpected)[:3]}",
        )
