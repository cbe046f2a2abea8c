"""Likelihood displacement: detect chosen answers that become less likely while the margin grows, and explain it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback

from adadpo_lightning import log
from adadpo_lightning.callbacks.stages import val_stage, val_stages
from adadpo_lightning.compat import ends_logged_step
from adadpo_lightning.fingerprint import of_pairs
from adadpo_lightning.losses.balance import Adaptive
from adadpo_lightning.metrics import names
from adadpo_lightning.metrics.aggregate import WeightedMeans
from adadpo_lightning.metrics.preference import displacement
from adadpo_lightning.ranks import gather

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from adadpo_lightning.types import PreferenceBatch

POINTS = 3
Pairs = dict[tuple[int, ...], tuple[float, float]]


class LikelihoodDisplacement(Callback):
    """Logs ``val/displacement/...`` for losses without a reference, and explains displacement when it sets in.

    With a reference, which equals the policy at step 0, `PreferenceMetrics` logs the drift at no extra cost. Without
    one, this callback scores the validation pairs once before the first step and stores the result, also in
    checkpoints. Nothing is logged for runs with neither a reference nor validation pairs.

    Args:
        baseline: Score the validation pairs before the first step if the loss has no reference.
        hint: Log one explanation when chosen log-probabilities fall while the margin rises.
        hint_nats: Drop of the mean chosen log-probability since step 0, in nats, that triggers the hint.
    """

    def __init__(self, baseline: bool = True, hint: bool = True, hint_nats: float = 1.0) -> None:
        self.baseline = baseline
        self.hint = hint
        self.hint_nats = hint_nats
        self._initial: dict[str, Pairs] = {}  # by validation set and pair
        self._scored: dict[str, Any] = {}  # fingerprint of each set, as it was at step 0
        self._means: dict[str, WeightedMeans] = {}
        self._history: dict[str, list[tuple[float, float]]] = {}

    def state_dict(self) -> dict[str, Any]:
        """The log-probabilities at step 0, what they are of, and whether the hint is still pending."""
        plain = self._initial.get("val") if self._initial.keys() <= {"val"} else None
        return {"initial": self._initial if plain is None else plain, "scored": self._scored, "hint": self.hint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the log-probabilities and the pending hint."""
        found = state_dict["initial"]
        if not any(isinstance(key, str) for key in found):  # one set, without a name
            # Checkpoints of release 0.1.0 have the row alone.
            found = {"val": {(pair, 0, 1) if isinstance(pair, int) else pair: values for pair, values in found.items()}}
        self._initial = {stage: pairs for stage, pairs in found.items() if pairs}
        self._scored = state_dict.get("scored", {})
        self.hint = self.hint and state_dict["hint"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the validation pairs, unless a reference or a checkpoint provides the baseline."""
        module: Any = pl_module
        data = getattr(trainer, "datamodule", None)
        wanted = self.baseline and not module.loss.needs_reference and module.loss.needs_rejected
        if not wanted or data is None or not trainer.enable_validation:
            return
        prepared = getattr(data, "prepared", {})
        now = {stage: of_pairs(prepared[stage].pairs) for stage in val_stages(trainer) if stage in prepared}
        if self._initial or trainer.global_step:  # a policy that has been trained is no baseline
            self._keep(now)
            return
        self._scored = now
        loaders = data.val_dataloader()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for stage, loader in zip(
                val_stages(trainer), loaders if isinstance(loaders, list) else [loaders], strict=True
            ):
                mine: Pairs = {}
                for batch in loader:
                    placed = trainer.strategy.batch_to_device(batch)
                    _, output = module.step(placed)
                    if not batch.filler:
                        sides = zip(output.pairs.chosen.tolist(), output.pairs.rejected.tolist(), strict=True)
                        mine.update(zip(_pairs_of(batch), sides, strict=True))
                # After resuming, the rows may be distributed over the ranks differently.
                self._initial[stage] = {pair: values for part in gather(mine) for pair, values in part.items()}

    def _keep(self, now: Mapping[str, Any]) -> None:
        """After a resume, drop the baselines of other pairs; the policy of step 0, which could score these, is gone."""
        changed = [stage for stage in now if now[stage] != self._scored.get(stage, now[stage])]
        for stage in changed:
            self._initial.pop(stage, None)
        if missing := sorted(now.keys() - self._initial.keys()):
            log.warn(
                f"{', '.join(missing)}: no displacement is logged, because these validation pairs are not those that "
                "were scored at step 0"
            )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: PreferenceBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the drift of a micro-batch."""
        stage = val_stage(trainer, dataloader_idx)
        known = self._initial.get(stage)
        if known is None or trainer.sanity_checking:
            return
        pairs = outputs["step"].pairs
        # A checkpoint of an earlier version does not say which pairs it has scored.
        initial = [known.get(pair, (math.nan, math.nan)) for pair in _pairs_of(batch)]
        then = torch.tensor(initial, dtype=pairs.chosen.dtype, device=pairs.chosen.device)
        count = 0 if batch.filler else len(batch)
        statistics = displacement(pairs.chosen - then[:, 0], pairs.rejected - then[:, 1], count)
        if stage not in self._means:
            self._means[stage] = WeightedMeans().to(pl_module.device)
        if batch.filler:
            statistics = {name: (total * 0.0, 0.0) for name, (total, _) in statistics.items()}
        self._means[stage].update(statistics)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means over each validation set."""
        found, self._means = self._means, {}
        for stage, means in found.items():
            values = {f"{stage}/{name}": value for name, value in means.compute().items()}
            pl_module.log_dict(values, batch_size=1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the drift of the validation pairs if the training pairs have no baseline."""
        if not _needs_reference(pl_module):
            for stage in val_stages(trainer):
                self._look(trainer, pl_module, stage)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Check the drift of the training pairs at logged steps."""
        logged = ends_logged_step(trainer)
        if logged and _needs_reference(pl_module):
            self._look(trainer, pl_module, "train")

    def _look(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        seen = trainer.callback_metrics
        drift, margin = seen.get(f"{stage}/{names.DISPLACEMENT_CHOSEN}"), seen.get(f"{stage}/{names.REWARDS_MARGINS}")
        if not self.hint or drift is None or margin is None:
            return
        history = [*self._history.get(stage, [])[1 - POINTS :], (float(drift), float(margin))]
        self._history[stage] = history
        if displaced(history, self.hint_nats):
            self.hint = False
            log.info(explain(*history[-1], adaptive=isinstance(module.loss, Adaptive)))


def _needs_reference(module: Any) -> bool:
    needed: bool = module.loss.needs_reference
    return needed


def displaced(history: Sequence[tuple[float, float]], nats: float) -> bool:
    """Whether the chosen log-probability is down by `nats` and falling while the margin rises.

    Args:
        history: (drift of the chosen log-probability since step 0 in nats, reward margin) of the most recent log lines.
        nats: Minimum drop in nats.

    Example:
        >>> displaced([(-0.5, 0.1), (-0.9, 0.2), (-1.5, 0.4)], 1.0)
        True
        >>> displaced([(0.1, 0.1), (0.2, 0.2), (0.3, 0.3)], 1.0)
        False
    """
    if len(history) < POINTS or history[-1][0] > -nats:
        return False
    drifts, margins = zip(*history, strict=True)
    falls = all(later < earlier for earlier, later in pairwise(drifts))
    return falls and all(later > earlier for earlier, later in pairwise(margins))


def explain(drift: float, margin: float, *, adaptive: bool) -> str:
    """The text of the hint."""
    helps = ["an NLL term (cpo, or a mixture with sft)", "a lower learning rate"]
    if not adaptive:
        helps.insert(0, "the loss's adaptive twin (adadpo, adasimpo, ...)")
    return (
        f"Likelihood displacement: chosen answers are {-drift:.1f} nats less likely than at step 0, while the reward "
        f"margin has risen to {margin:.3g}; rejected ones fall faster. If that is not intended, try: "
        f"{', '.join(helps)}. (LikelihoodDisplacement, hint: false, silences this.)"
    )


def _pairs_of(batch: PreferenceBatch) -> list[tuple[int, ...]]:
    """Identity of each pair: its row, and which answers of the row it compares."""
    return list(map(tuple, torch.column_stack([batch.row_ids, batch.answer_ids]).tolist()))
