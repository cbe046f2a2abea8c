"""The losses of TRL's trainers, and of SimPO's own, as losses of this package.

Formulas were read in TRL 1.16 (`DPOTrainer._compute_loss`, `CPOTrainer.cpo_loss`, `ORPOTrainer`) and in SimPO's
`SimPOTrainer`; the tests compare values. Every option is written out, since defaults differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adadpo_lightning.convert.converted import Converted, mixture, names_of, shown, spec
from adadpo_lightning.errors import UserError

Values = dict[str, Any]

BATCH_STATISTICS = "sorts the pairs of a batch, so that the gradient depends on how a batch is split; not offered here"
# Losses of TRL's DPOTrainer that read nothing but beta and the pair.
DPO_LOSSES: dict[str, Callable[[Values], dict[str, Any]]] = {
    "sigmoid": lambda v: spec("dpo", beta=v["beta"], label_smoothing=0.0),
    "hinge": lambda v: spec("hinge", beta=v["beta"]),
    "ipo": lambda v: spec("ipo", tau=v["beta"], length_normalize=True),
    "exo_pair": lambda v: spec("exo", beta=v["beta"], label_smoothing=v["label_smoothing"]),
    "nca_pair": lambda v: spec("nca", beta=v["beta"]),
    "robust": lambda v: spec("robust", beta=v["beta"], label_smoothing=v["label_smoothing"]),
    "bco_pair": lambda v: spec("bco", beta=v["beta"]),
    "sppo_hard": lambda v: spec("sppo", beta=v["beta"]),
    "apo_zero": lambda v: spec("apozero", beta=v["beta"]),
    "apo_down": lambda v: spec("apodown", beta=v["beta"]),
    "discopop": lambda v: spec("discopop", beta=v["beta"], tau=v["discopop_tau"]),
    "sft": lambda v: spec("sft"),
    "sigmoid_norm": lambda v: spec("lndpo", beta=v["beta"]),
}
REFUSED = {
    "aot": BATCH_STATISTICS,
    "aot_unpaired": BATCH_STATISTICS,
    "kto_pair": "was removed from TRL's DPOTrainer: its baseline is a statistic of the batch",
}
DIVERGENCES = {"forward_kl": "forward_kl", "js_divergence": "js", "alpha_divergence": "alpha"}
# Options that change `sigmoid` into a loss of its own here, and the loss.
VARIANTS = {"f_divergence_type": "fdpo", "ld_alpha": "lddpo", "use_weighting": "wpo"}


def dpo(values: Values, out: Converted) -> dict[str, Any]:
    """`DPOConfig`: one loss, or a `Mixture`.

    Raises:
        UserError: If a loss, or a combination of options, has no counterpart.
    """
    types = values["loss_type"]
    types = [types] if isinstance(types, str) else names_of("loss_type", types)
    weights = values.get("loss_weights") or [1.0] * len(types)
    if not isinstance(weights, (list, tuple)):
        raise UserError("loss_weights", f"expected a list of numbers, got {shown(weights)}")
    if not types or len(types) != len(weights):
        raise UserError("loss_weights", f"expected one weight for each of {len(types)} losses, got {len(weights)}")
    if values.get("rpo_alpha"):  # older versions of TRL
        types, weights = [*types, "sft"], [*weights, values["rpo_alpha"]]
    variant = _variant(types, values)
    specs = [variant(values) if kind == "sigmoid" and variant else _dpo_part(kind, values, out) for kind in types]
    return _weighted(specs, list(weights), "loss_weights", out)


def _dpo_part(kind: str, values: Values, out: Converted) -> dict[str, Any]:
    if kind in REFUSED:
        raise UserError("loss_type", f"{shown(kind)} has no counterpart: it {REFUSED[kind]}", "choose another loss")
    if kind not in DPO_LOSSES:
        raise UserError("loss_type", f"{shown(kind)} is no loss of DPOConfig", f"choose from {', '.join(DPO_LOSSES)}")
    smoothing = values["label_smoothing"]
    if kind == "exo_pair" and smoothing == 0:
        raise UserError("label_smoothing", "exo_pair needs a number above 0, as in TRL", "the paper uses 1e-3")
    if smoothing and kind == "sigmoid":
        out.differs.append(
            f"label_smoothing {smoothing:g}: TRL 1.16's sigmoid ignores it, and so does this config; older versions "
            "smoothed the labels (cDPO): for these, set model.loss.init_args.label_smoothing"
        )
    return DPO_LOSSES[kind](values)


def _variant(types: list[str], values: Values) -> Callable[[Values], dict[str, Any]] | None:
    """The loss that stands for `sigmoid` under `f_divergence_type`, `ld_alpha` or `use_weighting`; None without.

    Raises:
        UserError: If two of them are set, or one with a loss whose combination has no counterpart.
    """
    divergence = values["f_divergence_type"]
    if divergence == "alpha_divergence" and values["f_alpha_divergence_coef"] == 1:
        divergence = "reverse_kl"  # the limit, as in TRL
    set_ones = [
        *(["f_divergence_type"] if divergence != "reverse_kl" else []),
        *(["ld_alpha"] if values["ld_alpha"] not in (None, 1) else []),
        *(["use_weighting"] if values["use_weighting"] else []),
    ]
    if not set_ones:
        return None
    key = set_ones[0]
    if len(set_ones) > 1:
        raise UserError(" and ".join(set_ones), "have no counterpart together", "choose one of them")
    # TRL weights the sft term of a pair too; divergence and length leave it alone.
    allowed = {"sigmoid"} if key == "use_weighting" else {"sigmoid", "sft"}
    if others := sorted(set(types) - allowed):
        raise UserError(key, f"has no counterpart with the loss {shown(others[0])}", f"only with {', '.join(allowed)}")
    if key == "f_divergence_type" and str(divergence) not in DIVERGENCES:
        raise UserError(
            key, f"unknown divergence {shown(divergence)}", f"choose from reverse_kl, {', '.join(DIVERGENCES)}"
        )
    return {"f_divergence_type": _fdpo, "ld_alpha": _lddpo, "use_weighting": _wpo}[key]


def _fdpo(v: Values) -> dict[str, Any]:
    divergence, alpha = DIVERGENCES[v["f_divergence_type"]], 0.5
    if divergence == "alpha":
        alpha = 1 - v["f_alpha_divergence_coef"]  # TRL's coefficient is 1 minus the paper's alpha
        if alpha == 1:
            divergence, alpha = "forward_kl", 0.5
        elif not 0 < alpha < 1:
            raise UserError(
                "f_alpha_divergence_coef", f"expected a number in [0, 1], got {1 - alpha:g}", "the default is 0.5"
            )
    return spec("fdpo", beta=v["beta"], divergence=divergence, alpha=alpha)


def _lddpo(v: Values) -> dict[str, Any]:
    return spec("lddpo", beta=v["beta"], label_smoothing=0.0, alpha=v["ld_alpha"])


def _wpo(v: Values) -> dict[str, Any]:
    return spec("wpo", beta=v["beta"], label_smoothing=0.0, max_weight=None)


def cpo(values: Values, out: Converted) -> dict[str, Any]:
    """`CPOConfig`: CPO, SimPO (with a likelihood term unless ``cpo_alpha`` is 0) or AlphaPO.

    Raises:
        UserError: If the loss has no counterpart.
    """
    kind, shape = values["loss_type"], values["alpha"]
    if isinstance(kind, list):
        kind = kind[0] if len(kind) == 1 else str(kind)
    nll = values["cpo_alpha"]
    if kind == "alphapo":
        kind, nll = "simpo", 0.0
    common = {"beta": values["beta"], "label_smoothing": values["label_smoothing"]}
    if kind == "sigmoid" and not shape:
        return spec("cpo", **common, nll_weight=nll)
    if kind != "simpo":
        problem = "on log-probabilities without a reference" if kind in ("hinge", "ipo") else f"with alpha {shape}"
        raise UserError("loss_type", f"{shown(kind)} {problem} has no counterpart", "choose sigmoid, simpo or alphapo")
    ratio = values["simpo_gamma"] / values["beta"]
    if shape:
        if values["label_smoothing"]:
            raise UserError("label_smoothing", "has no counterpart together with alpha", "set it to 0")
        first = spec("alphapo", beta=values["beta"], alpha=shape, gamma=values["simpo_gamma"])
    else:
        first = spec("simpo", **common, gamma_beta_ratio=ratio)
    if nll:
        out.differs.append(f"cpo_alpha {nll:g} adds a likelihood term to {kind}; SimPO's paper has none (cpo_alpha 0)")
    return _weighted([first, spec("sft")], [1.0, nll], "cpo_alpha", out)


def orpo(values: Values, out: Converted) -> dict[str, Any]:
    """`ORPOConfig`: ORPO, whose ``beta`` is the paper's lambda."""
    out.differs.append("ORPO's likelihood term: the answer's tokens here, the prompt's as well in TRL")
    return spec("orpo", lam=values["beta"])


def simpo(values: Values, out: Converted) -> dict[str, Any]:
    """`SimPOConfig` of SimPO's own repository.

    Raises:
        UserError: If the loss has no counterpart.
    """
    kind = values["loss_type"]
    if kind not in ("sigmoid", ["sigmoid"]):
        raise UserError("loss_type", f"SimPO's {shown(kind)} has no counterpart", "set it to sigmoid")
    options = {key: values[key] for key in ("beta", "gamma_beta_ratio", "label_smoothing")}
    return _weighted([spec("simpo", **options), spec("sft")], [1.0, values["sft_weight"]], "sft_weight", out)


def _weighted(specs: list[dict[str, Any]], weights: list[Any], key: str, out: Converted) -> dict[str, Any]:
    """A mixture without its parts of weight 0."""
    for weight in weights:
        if type(weight) not in (int, float) or weight < 0:
            raise UserError(key, f"expected numbers of at least 0, got {shown(weight)}")
    kept = [(part, float(weight)) for part, weight in zip(specs, weights, strict=True) if weight]
    if not kept:
        raise UserError(key, "all weights are 0", "set one above 0")
    if len(kept) > 1 and any(part["class_path"].endswith((".SFT", ".CPO")) for part, _ in kept):
        out.differs.append(
            "likelihood term: mean over the tokens of the global batch; TRL's of each rank's micro-batch"
        )
    return mixture([part for part, _ in kept], [weight for _, weight in kept])


LOSS_OF: dict[str, Callable[[Values, Converted], dict[str, Any]]] = {
    "dpo": dpo,
    "cpo": cpo,
    "orpo": orpo,
    "simpo": simpo,
}
