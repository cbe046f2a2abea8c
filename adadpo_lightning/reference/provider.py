"""Load the reference caches of a run before its first step, or compute them with a temporary reference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adadpo_lightning import fingerprint, log
from adadpo_lightning.compat import attention_of
from adadpo_lightning.models.adapters import is_adapter, is_reference
from adadpo_lightning.models.build import base_name
from adadpo_lightning.models.shards import whole
from adadpo_lightning.reference.cache import ReferenceCache, fill, locked
from adadpo_lightning.reference.live import AdapterReference, FrozenReference, build_reference
from adadpo_lightning.reference.modes import source_of
from adadpo_lightning.strategies.capabilities import sharding_of

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from adadpo_lightning.data.loader import PairsToScore
    from adadpo_lightning.models.loading import PolicyConfig
    from adadpo_lightning.models.policy import PolicyModel
    from adadpo_lightning.reference.live import Reference


def provide_cached_reference(
    datasets: Mapping[str, PairsToScore],
    *,
    policy: PolicyModel,
    config: PolicyConfig,
    tokenizer: Any,
    path: str | None,
    folder: Path,
    trainer: Trainer,
) -> dict[str, ReferenceCache]:
    """Load the caches of datasets, and compute missing values.

    Args:
        datasets: Datasets to score, by name.
        policy: The policy of the run.
        config: Config that the policy was loaded with.
        tokenizer: Tokenizer of the policy.
        path: The reference model, if it is not the initial policy.
        folder: Folder of all caches.
        trainer: Trainer, which provides device, precision and ranks.

    Returns:
        A complete cache for each dataset.

    Raises:
        UserError: If a cache is damaged.
    """
    if not datasets:
        return {}
    # One live reference for all datasets; with adapters it is the policy itself, not a second model.
    mode = source_of(config, path)
    sharding = sharding_of(trainer.strategy)
    reference = build_reference(mode, policy, config, tokenizer, sharding, path=path)
    assert reference is not None  # noqa: S101  # neither source is "none"
    first = next(policy.parameters())
    depends_on = {
        "reference": reference_fingerprint(reference),
        "precision": str(trainer.precision),
        "sharded_dtype": str(sharding.param_dtype) if sharding is not None and sharding.param_dtype else None,
        "device": trainer.strategy.root_device.type,
        "numerics": fingerprint.NUMERICS_VERSION,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    if sharding is not None and sharding.tensor is not None:  # sums over ranks round differently
        depends_on["tensor_parallel"] = sharding.tensor.size()
    caches = {}
    for name, pairs in datasets.items():
        stored = {"token_ids": fingerprint.of_pairs(pairs.pairs)["token_ids"], "answers": int(pairs.answers.max()) + 1}
        cache = ReferenceCache(
            folder / fingerprint.of_data({**depends_on, **stored}), pairs.answers, pairs.lengths, first.dtype
        )
        caches[name] = _complete(cache, name, pairs, reference, trainer)
    return caches


def reference_fingerprint(reference: Any) -> dict[str, Any]:
    """Everything that the values of a live reference depend on: weights, model config, layout and attention.

    Adapters that the reference does not use are excluded.
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
        "weights": fingerprint.of_weights((base_name(name), whole(p)) for name, p in named),
        "layout": policy.layout,
        "attention": policy.packed_attention if policy.layout == "packed" else attention_of(model.config),
        "head_chunk_size": policy.head_chunk_size,
        "compiled": policy.compiled,
    }


def _complete(
    cache: ReferenceCache, name: str, pairs: PairsToScore, reference: Reference, trainer: Trainer
) -> ReferenceCache:
    """Complete a cache, unless an earlier run already has."""
    if trainer.is_global_zero:
        with locked(cache.folder):
            cache.create()
    trainer.strategy.barrier("reference cache created")
    if cache.is_complete():
        log.info(f"Reference log-probabilities of {name}: reusing {cache.folder}")
    else:
        _compute(cache, name, pairs, reference, trainer)
    return cache


def _any_rank(device: torch.device, flags: list[bool]) -> list[bool]:
    """For each position, whether the flag is set on any rank; all ranks have the same number of flags."""
    import torch.distributed as dist

    joined = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(joined, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in joined.tolist()]


def _compute(cache: ReferenceCache, name: str, pairs: PairsToScore, reference: Reference, trainer: Trainer) -> None:
    from tqdm import tqdm

    device = trainer.strategy.root_device
    total = sum(len(batch.rows) for batch in pairs.plan if not batch.filler)
    log.info(f"Reference log-probabilities of {name}: {len(cache.missing())} of {len(cache)} pairs to compute")
    hide = not trainer.is_global_zero or trainer.progress_bar_callback is None
    with (
        tqdm(total=total, desc=f"Reference of {name}", unit="pair", disable=hide) as bar,
        trainer.precision_plugin.forward_context(),
    ):
        in_step = None if sharding_of(trainer.strategy) is None else partial(_any_rank, device)
        fill(cache, pairs.plan, pairs.collate, reference, device, bar.update, in_step)
    trainer.strategy.barrier("reference cache filled")
    if trainer.is_global_zero:
        cache.finish()
    trainer.strategy.barrier("reference cache finished")
