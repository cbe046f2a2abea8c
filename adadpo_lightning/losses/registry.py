"""Losses by name; registering a pairwise loss also registers its adaptive twin."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from adadpo_lightning.errors import UserError, did_you_mean
from adadpo_lightning.losses.balance import Adaptive, AdaptiveGradient
from adadpo_lightning.losses.base import ContrastiveLoss, PairwiseLoss, PreferenceLoss
from adadpo_lightning.plugins import load_plugins

ENTRY_POINT_GROUP = "adadpo_lightning.losses"

_losses: dict[str, type[PreferenceLoss]] = {}
_templates: dict[str, str] = {}  # formulas of plain losses, with the place of the coefficient

L = TypeVar("L", bound=type[PreferenceLoss])


def register_loss(key: str, *, twin: bool = True) -> Callable[[L], L]:
    """Class decorator: register a loss under `key`, and its adaptive twin under ``"ada" + key``.

    The class must be a frozen dataclass whose fields are the loss's hyper-parameters. The twin ``Ada<ClassName>`` has
    these fields and those of `Adaptive`, lives in the class's own module, and is available on the command line like any
    other loss.

    A twin made here is invisible to static type checkers. To make it visible, write it out and register it as well; its
    formula, and its `Args` unless its docstring has some, are filled in::

        @register_loss("mine", twin=False)
        @dataclass(frozen=True)
        class Mine(ContrastiveLoss): ...

        @register_loss("adamine")
        @dataclass(frozen=True)
        class AdaMine(Adaptive, Mine):
            \"\"\"Mine's adaptive, gradient-balanced counterpart.\"\"\"

    Args:
        key: Lower-case name for `build_loss`.
        twin: Whether to make the adaptive twin of a pairwise loss.

    Raises:
        UserError: If another class already uses the key, or the class is not a frozen dataclass.
    """

    def register(cls: L) -> L:
        _add(key, cls)
        if issubclass(cls, Adaptive):
            _describe_twin(cls)
        elif issubclass(cls, PairwiseLoss):
            _templates[key] = cls.formula
            cls.formula = cls.formula.replace("{c}", "")
            if twin:
                register_loss(f"ada{key}")(_make_twin(cls))
        return cls

    return register


def available_losses() -> list[str]:
    """Keys of all losses, plug-ins included, in order of registration, each followed by its twin.

    Example:
        >>> [key for key in available_losses() if key.endswith("simpo")]
        ['simpo', 'adasimpo']
    """
    load_plugins(ENTRY_POINT_GROUP)
    return list(_losses)


def loss_class(key: str) -> type[PreferenceLoss]:
    """The class registered under `key`.

    Raises:
        UserError: If the key is unknown; lists the known ones.
    """
    load_plugins(ENTRY_POINT_GROUP)
    if key not in _losses:
        raise UserError("loss", f"unknown loss {key!r}", did_you_mean(key, _losses))
    return _losses[key]


def build_loss(key: str, **options: Any) -> PreferenceLoss:
    """Build a loss from its key.

    Args:
        key: One of `available_losses`.
        **options: Hyper-parameters; the defaults are those of the paper the loss comes from.

    Raises:
        UserError: For an unknown key or option, or a value out of range.

    Example:
        >>> build_loss("adadpo", beta=0.05)
        AdaDPO(beta=0.05, label_smoothing=0.0, ceiling=2.0, floor=None, apply='margin', space=None, normalize='token', \
target_ratio=1.0, alpha_w=1.0, alpha_l=1.0)
    """
    cls: Any = loss_class(key)
    known = [f.name for f in dataclasses.fields(cls)]
    for name in options:
        if name not in known:
            raise UserError(f"loss.{name}", f"{key!r} has no option {name!r}", did_you_mean(name, known))
    return cls(**options)  # type: ignore[no-any-return]  # registered classes are losses


def adaptive_twin(cls: type[PreferenceLoss]) -> type[Adaptive]:
    """The registered adaptive twin of a loss class.

    Raises:
        UserError: If the class itself is not registered, or has no twin.
    """
    twin = _losses.get(f"ada{vars(cls).get('key')}")
    if twin is None or not issubclass(twin, Adaptive):
        raise UserError(cls.__name__, "has no adaptive twin", "only pairwise losses under @register_loss have one")
    return twin


def plain_class(cls: type[Adaptive]) -> type[PairwiseLoss]:
    """The class that an adaptive twin is the twin of."""
    return next(c for c in cls.__mro__ if issubclass(c, PairwiseLoss) and not issubclass(c, Adaptive))


def _add(key: str, cls: Any) -> None:
    params = vars(cls).get("__dataclass_params__")
    if params is None or not params.frozen:
        raise UserError(
            f"loss {key!r}", "a loss must be a frozen dataclass", "put @dataclass(frozen=True) below the decorator"
        )
    other = _losses.get(key)
    # The same class again: a module that was reloaded, as notebooks do.
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise UserError(
            f"loss {key!r}", f"already used by {other.__module__}.{other.__qualname__}", "choose another key"
        )
    cls.key = key
    _losses[key] = cls


def _make_twin(cls: type[PairwiseLoss]) -> type[Adaptive]:
    name = f"Ada{cls.__name__}"
    mixin = Adaptive if issubclass(cls, ContrastiveLoss) else AdaptiveGradient
    twin: Any = dataclasses.make_dataclass(name, [], bases=(mixin, cls), frozen=True)
    twin.__module__, twin.__qualname__ = cls.__module__, name
    twin.__doc__ = f"{cls.__name__}'s adaptive, gradient-balanced counterpart."
    setattr(sys.modules[cls.__module__], name, twin)
    return twin  # type: ignore[no-any-return]  # make_dataclass is not generic


def _describe_twin(twin: type[Adaptive]) -> None:
    """Fill in formula, source and the docstring's `Args`, which the command line shows as help."""
    plain = plain_class(twin)
    formula = _templates.get(plain.key, plain.formula)
    # Without one margin, c scales a gradient and no term of the formula.
    twin.formula = formula.replace("{c}", "c*") if issubclass(plain, ContrastiveLoss) else f"{formula}; c*dL/dv_w"
    twin.source = f"arXiv 2605.28440 on {plain.source}"
    if "    Args:\n" not in (twin.__doc__ or ""):
        sections = "".join(_args_section(c.__doc__ or "") for c in (plain, Adaptive))
        twin.__doc__ = f"{twin.__doc__}\n\n    Args:\n{sections}"


def _args_section(doc: str) -> str:
    lines = doc.partition("    Args:\n")[2].splitlines()
    section = []
    for line in lines:
        if not line.startswith("        "):
            break
        section.append(line + "\n")
    return "".join(section)
