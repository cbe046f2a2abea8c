"""Preference losses: plain ones, the adaptive twin of each, and the registry that names them."""

from adadpo_lightning.losses.balance import Adaptive, AdaptiveGradient
from adadpo_lightning.losses.base import ContrastiveLoss, PairwiseLoss, PreferenceLoss
from adadpo_lightning.losses.cpo import CPO, AdaCPO
from adadpo_lightning.losses.dpo import DPO, RDPO, AdaDPO, AdaRDPO
from adadpo_lightning.losses.dposhift import AdaDPOShift, DPOShift
from adadpo_lightning.losses.functional import logistic_link
from adadpo_lightning.losses.hinge import AdaHinge, Hinge
from adadpo_lightning.losses.ipo import IPO, AdaIPO
from adadpo_lightning.losses.mixture import Mixture
from adadpo_lightning.losses.nca import NCA, AdaNCA
from adadpo_lightning.losses.orpo import ORPO, AdaORPO
from adadpo_lightning.losses.registry import (
    adaptive_twin,
    available_losses,
    build_loss,
    loss_class,
    register_loss,
)
from adadpo_lightning.losses.schedule import Schedule
from adadpo_lightning.losses.sft import SFT
from adadpo_lightning.losses.sides import Sides, log_ratios, logps, per_token
from adadpo_lightning.losses.simpo import AdaSimPO, SimPO
from adadpo_lightning.losses.variables import ImplicitReward, MeanLogp

__all__ = [
    "CPO",
    "DPO",
    "IPO",
    "NCA",
    "ORPO",
    "RDPO",
    "SFT",
    "AdaCPO",
    "AdaDPO",
    "AdaDPOShift",
    "AdaHinge",
    "AdaIPO",
    "AdaNCA",
    "AdaORPO",
    "AdaRDPO",
    "AdaSimPO",
    "Adaptive",
    "AdaptiveGradient",
    "ContrastiveLoss",
    "DPOShift",
    "Hinge",
    "ImplicitReward",
    "MeanLogp",
    "Mixture",
    "PairwiseLoss",
    "PreferenceLoss",
    "Schedule",
    "Sides",
    "SimPO",
    "adaptive_twin",
    "available_losses",
    "build_loss",
    "log_ratios",
    "logistic_link",
    "logps",
    "loss_class",
    "per_token",
    "register_loss",
]
