"""Keys, classes, twins, and what is refused."""

import copy
import dataclasses
import pickle
from dataclasses import dataclass, replace

import pytest
import torch

import adadpo_lightning.losses as losses
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import (
    DPO,
    SFT,
    AdaDPO,
    Adaptive,
    ContrastiveLoss,
    PreferenceLoss,
    adaptive_twin,
    available_losses,
    build_loss,
    logps,
    loss_class,
    register_loss,
)
from adadpo_lightning.losses import registry as registry_module
from adadpo_lightning.losses.testing import sample_pairs

KEYS = available_losses()
ADAPTIVE = [key for key in KEYS if key.startswith("ada")]
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def registry(monkeypatch):
    """The registry, put back afterwards."""
    monkeypatch.setattr(registry_module, "_losses", dict(registry_module._losses))
    return registry_module._losses


def test_keys_and_classes():
    margins = "dpo rdpo ipo lndpo hinge robust exo discopop fdpo dposhift dpop bdpo minordpo lddpo wpo"
    reference_free, side_wise = "simpo cpo orpo alphapo simper", "bpo caldpo apozero apodown nca bco sppo"
    plain = f"{margins} {reference_free} {side_wise} pldpo".split()
    assert sorted(KEYS) == sorted([*plain, *(f"ada{key}" for key in plain), "sft"])
    for key in KEYS:
        cls = loss_class(key)
        assert cls.key == key
        assert getattr(losses, cls.__name__) is cls
        assert type(build_loss(key)) is cls
        assert cls.formula
        assert "{" not in cls.formula
        assert ("c*" in cls.formula) == issubclass(cls, Adaptive)


@pytest.mark.parametrize("key", ADAPTIVE)
def test_twins_are_full_classes(key):
    twin, plain = loss_class(key), loss_class(key.removeprefix("ada"))
    assert issubclass(twin, plain)
    assert issubclass(twin, Adaptive)
    assert adaptive_twin(plain) is twin
    assert twin.__name__ == f"Ada{plain.__name__}"
    assert twin.__module__ == plain.__module__
    for field in dataclasses.fields(twin):
        assert f"        {field.name}: " in twin.__doc__, f"{field.name} has no help"
    assert {f.name for f in dataclasses.fields(twin)} == {
        f.name for cls in (plain, Adaptive) for f in dataclasses.fields(cls)
    }


@pytest.mark.parametrize("key", KEYS)
def test_pickle_copy_and_equality(key):
    loss, x = build_loss(key), sample_pairs(4)
    for again in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):  # noqa: S301  # our own bytes
        assert again == loss
        assert torch.equal(again(x).per_pair, loss(x).per_pair)
    assert pickle.loads(pickle.dumps(type(loss))) is type(loss)  # noqa: S301
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.beta = 1.0


def test_unknown_key_lists_what_there_is():
    with pytest.raises(UserError) as error:
        build_loss("adadpoo")
    assert "did you mean 'adadpo'?" in str(error.value)
    assert all(key in str(error.value) for key in KEYS)
    with pytest.raises(UserError, match="unknown loss 'DPO'"):
        build_loss("DPO")


def test_unknown_option_lists_what_there_is():
    with pytest.raises(UserError) as error:
        build_loss("adadpo", cieling=2.0)
    text = str(error.value)
    assert "loss.cieling" in text
    assert "did you mean 'ceiling'?" in text
    assert all(f.name in text for f in dataclasses.fields(AdaDPO))
    with pytest.raises(UserError, match="'dpo' has no option 'ceiling'"):
        build_loss("dpo", ceiling=2.0)
    with pytest.raises(UserError, match="'sft' has no option 'beta'"):
        build_loss("sft", beta=2.0)


BETA = (
    "lndpo hinge robust exo discopop fdpo alphapo dposhift dpop bdpo minordpo bpo caldpo apozero nca bco sppo".split()
)
BAD_NUMBERS = [NAN, INF, -INF, "0.1", None, True, [0.1], 1j]
BAD = [
    *[(key, "beta", bad) for key in ("dpo", "rdpo", "simpo", "cpo", "adadpo") for bad in (0, -0.1, *BAD_NUMBERS)],
    *[(key, "label_smoothing", bad) for key in ("dpo", "rdpo", "simpo", "cpo") for bad in (-0.1, 0.5, 1, *BAD_NUMBERS)],
    *[(key, "ceiling", bad) for key in ADAPTIVE for bad in (0, -1.0, 1e7, *BAD_NUMBERS)],
    *[(key, "target_ratio", bad) for key in ADAPTIVE for bad in (0, -1.0, *BAD_NUMBERS)],
    *[(key, alpha, bad) for key in ADAPTIVE for alpha in ("alpha_w", "alpha_l") for bad in BAD_NUMBERS],
    *[("adadpo", "floor", bad) for bad in (-0.1, 2.1, *(b for b in BAD_NUMBERS if b is not None))],
    *[("adadpo", "apply", bad) for bad in ("backward", "", None, 1)],
    *[("adadpo", "space", bad) for bad in ("probability", "", 0, True)],
    *[("adadpo", "normalize", bad) for bad in ("mean", "", None, 1)],
    *[(key, "space", "ratio") for key in ("adasimpo", "adacpo", "adaorpo")],
    *[(key, "normalize", "sequence") for key in ("adasimpo", "adaipo", "adaorpo")],
    *[("rdpo", "alpha", bad) for bad in (-0.1, *BAD_NUMBERS)],
    *[("ipo", "tau", bad) for bad in (0, -0.1, *BAD_NUMBERS)],
    *[("ipo", "length_normalize", bad) for bad in (0, 1, "true", None)],
    *[("simpo", "gamma_beta_ratio", bad) for bad in (-0.1, *BAD_NUMBERS)],
    *[("cpo", "nll_weight", bad) for bad in (-0.1, *BAD_NUMBERS)],
    *[("orpo", "lam", bad) for bad in (0, -0.1, *BAD_NUMBERS)],
    *[(key, "beta", bad) for key in BETA for bad in (0, -0.1, *BAD_NUMBERS)],
    *[("robust", "label_smoothing", bad) for bad in (-0.1, 0.5, *BAD_NUMBERS)],
    *[("exo", "label_smoothing", bad) for bad in (0, 0.5, *BAD_NUMBERS)],
    *[("discopop", "tau", bad) for bad in (0, 1.1, *BAD_NUMBERS)],
    *[("fdpo", "divergence", bad) for bad in ("reverse_kl", "", None)],
    *[("fdpo", "alpha", bad) for bad in (0, 1, *BAD_NUMBERS)],
    *[("alphapo", "alpha", bad) for bad in BAD_NUMBERS],
    *[("alphapo", "gamma", bad) for bad in (-0.1, *BAD_NUMBERS)],
    *[("dposhift", "lam", bad) for bad in (0, 1.1, *BAD_NUMBERS)],
    *[("dpop", "lam", bad) for bad in (-0.1, *BAD_NUMBERS)],
    *[("bdpo", "lam", bad) for bad in (0, 1, *BAD_NUMBERS)],
    *[("bpo", "alpha", bad) for bad in (0, 1.1, *BAD_NUMBERS)],
    *[(key, "apply", "margin") for key in ("adabpo", "adacaldpo", "adaapozero", "adanca", "adabco", "adasppo")],
]


@pytest.mark.parametrize(("key", "option", "bad"), BAD)
def test_bad_values_are_refused_by_name(key, option, bad):
    with pytest.raises(UserError) as error:
        build_loss(key, **{option: bad})
    assert error.value.field == f"loss.{option}"
    assert repr(bad) in str(error.value)


def test_integers_are_numbers():
    x = sample_pairs(4)
    assert torch.equal(build_loss("adadpo", beta=1, ceiling=2)(x).per_pair, build_loss("adadpo", beta=1.0)(x).per_pair)


@pytest.mark.parametrize("key", [key for key in KEYS if build_loss(key).needs_reference])
@pytest.mark.parametrize("missing", ["ref_chosen", "ref_rejected"])
def test_missing_reference_is_told(key, missing):
    with pytest.raises(UserError, match=r"needs reference log-probabilities.*model\.reference"):
        build_loss(key)(replace(sample_pairs(2), **{missing: None}))


# Registering.


def a_loss(name="Mine", frozen=True):
    class Mine(ContrastiveLoss):
        """Mine.

        Args:
            scale: Scale.
        """

        formula = "-{c}scale*l_w + scale*l_l"
        scale: float = 1.0

        def variable(self, x):
            return logps(x)

        def link(self, margin):
            return -self.scale * margin

    Mine.__name__ = Mine.__qualname__ = name
    Mine.__annotations__ = {"scale": float}
    return dataclass(frozen=frozen)(Mine)


@pytest.fixture
def clean_module():
    yield
    globals().pop("AdaMine", None)


@pytest.mark.usefixtures("registry", "clean_module")
def test_a_key_is_taken_once():
    with pytest.raises(
        UserError, match=r"'dpo'.*already used by adadpo_lightning\.losses\.dpo\.DPO.*choose another key"
    ):
        register_loss("dpo")(a_loss())
    assert loss_class("dpo") is DPO
    first = register_loss("mine")(a_loss())
    assert isinstance(build_loss("adamine", scale=2.0), first)
    with pytest.raises(UserError, match="already used"):
        register_loss("mine")(a_loss("Other"))


@pytest.mark.usefixtures("registry", "clean_module")
def test_the_same_class_again_is_a_reload():
    register_loss("mine")(a_loss())
    again = register_loss("mine")(a_loss())
    assert loss_class("mine") is again
    assert issubclass(loss_class("adamine"), again)


@pytest.mark.parametrize("make", [lambda: a_loss(frozen=False), lambda: type("Bare", (DPO,), {})])
def test_a_loss_is_a_frozen_dataclass(registry, make):
    before = dict(registry)
    with pytest.raises(UserError, match=r"frozen dataclass; put @dataclass\(frozen=True\) below the decorator"):
        register_loss("mine")(make())
    assert registry_module._losses == before


def test_only_registered_contrastive_losses_have_a_twin():
    for cls in (SFT, AdaDPO, PreferenceLoss, type("Unregistered", (DPO,), {})):
        with pytest.raises(UserError, match="has no adaptive twin"):
            adaptive_twin(cls)
