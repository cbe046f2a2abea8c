"""Compares an architecture without test coverage with its own forward pass before training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from adadpo_lightning.data.collate import collate
from adadpo_lightning.errors import UserError
from adadpo_lightning.types import EncodedPair

if TYPE_CHECKING:
    from adadpo_lightning.models.policy import PolicyModel
    from adadpo_lightning.types import PreferenceBatch

# Largest mean difference of log-probabilities in nats. An unsupported head (scale, cap, extra layer) makes it much
# larger, the order of summation only much less.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-2, torch.float16: 0.1, torch.bfloat16: 0.3}
PAIRS = (EncodedPair([1, 2, 3], [4, 5], [6], 0), EncodedPair([7], [2], [3, 1, 8], 1))


def check_forward(policy: PolicyModel) -> None:
    """Compare the padded forward pass with the architecture's own on a few tokens.

    Args:
        policy: A policy in the padded layout. The check is skipped on the meta device.

    Raises:
        UserError: If they differ, because the architecture transforms its logits in an unsupported way.
    """
    like = next(policy.parameters())
    if like.is_meta:
        return
    kind = policy.causal_lm.config.model_type
    batch = collate(PAIRS, layout="padded", pad_id=0, step_pairs=2, step_chosen_tokens=3).to(like.device)
    try:
        difference = _difference(policy, batch)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise UserError(
            "model.policy", f"the architecture {kind!r} cannot be run: {error}", "use a causal language model"
        ) from error
    if not difference <= TOLERANCE[like.dtype]:
        raise UserError(
            "model.policy",
            f"log-probabilities of the architecture {kind!r} differ from those of its own forward by "
            f"{difference:.2g} nats: it transforms its logits in an unsupported way, or is not deterministic",
            "use another architecture",
        )


def _difference(policy: PolicyModel, batch: PreferenceBatch) -> float:
    with torch.no_grad():
        actual = policy(batch)
        plain = policy.causal_lm(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    expected = plain.logits.flatten(0, 1)[batch.predict].to(actual.dtype).log_softmax(-1)
    return float((actual - expected.gather(1, batch.targets[:, None]).squeeze(1)).abs().mean())
