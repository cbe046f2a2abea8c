"""Before the first step of a run: find its reference caches, or compute them with a reference that is freed again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from adadpo_lightning import fingerprint, log
from adadpo_lightning.compat import attention_of
from adadpo_lightning.errors import UserError
from adadpo_lightning.models.adapters import is_adapter, is_reference
from adadpo_lightning.reference.cache import ReferenceCache, fill, locked
from adadpo_lightning.reference.live import AdapterReference, FrozenReference, build_reference
from adadpo_lightning.reference.modes import source_of
from adadpo_lightning.strategies.capabilities import sharding_of

if TYPE_CHECKING:
    from torch import Tensor

    from adadpo_lightning.data.datamodule import PreferenceDataModule
    from adadpo_lightning.models.policy import PolicyModel
    from adadpo_lightning.reference.live import Reference
    from adadpo_lightning.training.module import PreferenceLitModule


def provide_cached_reference(
    module: PreferenceLitModule, data: PreferenceDataModule | None, names: Sequence[str]
) -> None:
    """Hand the datamodule the caches of its datasets, computing what is missing.

    Args:
        module: Its policy config says what the reference is: the policy as it is before training.
        data: The run's datamodule.
        names: Datasets of it; those it does not have are passed over.

    Raises:
        UserError: If the run has no `PreferenceDataModule`, or a cache is damaged.
    """
    if data is None:
        raise UserError("model.reference", "cached needs a PreferenceDataModule, got none", "set it to frozen")
    wanted = [name for name in names if name in data.prepared and name not in data.reference_caches]
    if not wanted:
        return
    # One live reference for all datasets; with adapters it is the policy itself and no second model.
    mode = source_of(module.policy_config, module.reference_path)
    sharding = sharding_of(module.trainer.strategy)
    reference = build_reference(
        mode, module.built_policy, module.policy_config, module.tokenizer, sharding, path=module.reference_path
    )
    depends_on = {
        "reference": reference_fingerprint(reference),
        "precision": str(module.trainer.precision),
        "sharded_dtype": str(sharding.param_dtype) if sharding is not None and sharding.param_dtype else None,
        "device": module.device.type,
        "numerics": fingerprint.NUMERICS_VERSION,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    for name in wanted:
        data.reference_caches[name] = _provide(module, data, name, reference, depends_on)


def reference_fingerprint(reference: Any) -> dict[str, Any]:
    """What the numbers of a live reference depend on: weights, model config, layout and attention.

    Adapters that the reference does not compute with do not count.
    """
    policy: PolicyModel = reference.model if isinstance(reference, FrozenReference) else reference.policy
    model = policy.causal_lm

    def used(name: str) -> bool:
        if isinstance(reference, FrozenReference) or not is_adapter(name):
            return True
        return isinstance(reference, AdapterReference) and is_reference(name)

    named = ((name, p) for name, p in model.named_parameters() if used(name))
    return {
        "config": fingerprint.of_config(json.loads(model.config.to_json_string(use_diff=False))),
        "weights": fingerprint.of_weights((name.replace(".base_layer.", "."), _whole(p)) for name, p in named),
        "layout": policy.layout,
        "attention": policy.packed_attention if policy.layout == "packed" else attention_of(model.config),
        "head_chunk_size": policy.head_chunk_size,
        "compiled": policy.compiled,
    }


def _whole(parameter: Tensor) -> Tensor:
    """A sharded parameter gathered; all ranks call this for the same parameters in the same order."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _provide(
    module: PreferenceLitModule, data: PreferenceDataModule, name: str, reference: Any, depends_on: dict[str, Any]
) -> ReferenceCache:
    strategy, pairs = module.trainer.strategy, data.prepared[name].pairs
    key = fingerprint.of_data({**depends_on, "token_ids": fingerprint.of_pairs(pairs)["token_ids"]})
    _, chosen, rejected = data.prepared[name].counts()
    dtype = next(module.built_policy.parameters()).dtype
    cache = ReferenceCache(module.reference_cache / key, chosen, rejected, dtype)
    if module.trainer.is_global_zero:
        with locked(cache.folder):
            cache.create()
    strategy.barrier("reference cache created")
    if cache.is_complete():
        log.info(f"Reference log-probabilities of {name}: reusing {cache.folder}")
        return cache
    _compute(module, data, name, cache, reference)
    return cache


def _any_rank(device: torch.device, flags: list[bool]) -> list[bool]:
    """For each position whether the flag of any rank is set; all ranks have equally many."""
    import torch.distributed as dist

    joined = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(joined, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in joined.tolist()]


def _compute(
    module: PreferenceLitModule, data: PreferenceDataModule, name: str, cache: ReferenceCache, reference: Reference
) -> None:
    from tqdm import tqdm

    collate, plan = data.scoring_loader(name)
    trainer = module.trainer
    total = sum(len(batch.rows) for batch in plan if not batch.filler)
    log.info(f"Reference log-probabilities of {name}: {len(cache.missing())} of {len(cache)} pairs to compute")
    hide = not trainer.is_global_zero or trainer.progress_bar_callback is None
    with (
        tqdm(total=total, desc=f"Reference of {name}", unit="pair", disable=hide) as bar,
        trainer.precision_plugin.forward_context(),
    ):
        in_step = None if sharding_of(trainer.strategy) is None else partial(_any_rank, module.device)
        fill(cache, plan, collate.__getitem__, reference, module.device, bar.update, in_step)
    trainer.strategy.barrier("reference cache filled")
    if trainer.is_global_zero:
        cache.finish()
    trainer.strategy.barrier("reference cache finished")
