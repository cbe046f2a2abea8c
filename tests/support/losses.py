"""Which losses the tests of other rooms run through in each run."""

import pytest

from adadpo_lightning.losses import available_losses

# One twin of a loss with two scores and one of a side-wise loss stand for the rest, which share all their code.
_ALWAYS = {"dpo", "rdpo", "ipo", "simpo", "cpo", "orpo", "sft", "adanca", "adabdpo"}


def loss_keys():
    """All keys as parameters of a test; those that differ from others in a formula only are slow."""
    return [
        key if {key, key.removeprefix("ada")} & _ALWAYS else pytest.param(key, marks=pytest.mark.slow)
        for key in available_losses()
    ]
