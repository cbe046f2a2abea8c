"""Lightning callbacks that have no effect, or a wrong one, in preference training."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging

from adadpo_lightning.errors import UserError

# For each class: the reason, and what to use instead.
REFUSED: dict[type[Callback], tuple[str, str]] = {
    StochasticWeightAveraging: (
        "StochasticWeightAveraging copies the module before its weights are loaded, so it would average nothing; it "
        "also averages once an epoch and replaces the learning-rate schedule",
        "use lightning.pytorch.callbacks.EMAWeightAveraging or WeightAveraging, which average optimizer steps",
    ),
}


def refuse_unsupported(callbacks: Iterable[Callback]) -> None:
    """Reject callbacks that would not work, before training.

    Raises:
        UserError: Naming the callback and a replacement.
    """
    for callback in callbacks:
        for kind, (reason, remedy) in REFUSED.items():
            if isinstance(callback, kind):
                raise UserError("trainer.callbacks", reason, remedy)
