"""Preference losses: plain ones, the adaptive twin of each, and the registry that names them."""

from adadpo_lightning.losses.alphapo import AdaAlphaPO, AlphaPO
from adadpo_lightning.losses.apo import AdaAPODown, AdaAPOZero, APODown, APOZero
from adadpo_lightning.losses.balance import Adaptive, AdaptiveGradient
from adadpo_lightning.losses.base import ContrastiveLoss, PairwiseLoss, PreferenceLoss
from adadpo_lightning.losses.bco import BCO, AdaBCO
from adadpo_lightning.losses.bdpo import BDPO, AdaBDPO
from adadpo_lightning.losses.bpo import BPO, AdaBPO
from adadpo_lightning.losses.caldpo import AdaCalDPO, CalDPO
from adadpo_lightning.losses.cpo import CPO, AdaCPO
from adadpo_lightning.losses.discopop import AdaDiscoPOP, DiscoPOP
from adadpo_lightning.losses.dpo import DPO, RDPO, AdaDPO, AdaRDPO
from adadpo_lightning.losses.dpop import DPOP, AdaDPOP
from adadpo_lightning.losses.dposhift import AdaDPOShift, DPOShift
from adadpo_lightning.losses.exo import EXO, AdaEXO
from adadpo_lightning.losses.fdpo import FDPO, AdaFDPO
from adadpo_lightning.losses.functional import logistic_link
from adadpo_lightning.losses.hinge import AdaHinge, Hinge
from adadpo_lightning.losses.ipo import IPO, AdaIPO
from adadpo_lightning.losses.lddpo import LDDPO, AdaLDDPO
from adadpo_lightning.losses.lndpo import LNDPO, AdaLNDPO
from adadpo_lightning.losses.minordpo import AdaMinorDPO, MinorDPO
from adadpo_lightning.losses.mixture import Mixture
from adadpo_lightning.losses.nca import NCA, AdaNCA
from adadpo_lightning.losses.orpo import ORPO, AdaORPO
from adadpo_lightning.losses.pldpo import PLDPO, AdaPLDPO
from adadpo_lightning.losses.registry import (
    adaptive_twin,
    available_losses,
    build_loss,
    loss_class,
    register_loss,
)
from adadpo_lightning.losses.robust import AdaRobustDPO, RobustDPO
from adadpo_lightning.losses.schedule import Schedule
from adadpo_lightning.losses.sft import SFT
from adadpo_lightning.losses.sides import Sides, log_ratios, logps, per_token
from adadpo_lightning.losses.simper import AdaSimPER, SimPER
from adadpo_lightning.losses.simpo import AdaSimPO, SimPO
from adadpo_lightning.losses.sppo import SPPO, AdaSPPO
from adadpo_lightning.losses.variables import ImplicitReward, LogisticLoss, MeanLogp
from adadpo_lightning.losses.wpo import WPO, AdaWPO

__all__ = [
    "BCO",
    "BDPO",
    "BPO",
    "CPO",
    "DPO",
    "DPOP",
    "EXO",
    "FDPO",
    "IPO",
    "LDDPO",
    "LNDPO",
    "NCA",
    "ORPO",
    "PLDPO",
    "RDPO",
    "SFT",
    "SPPO",
    "WPO",
    "APODown",
    "APOZero",
    "AdaAPODown",
    "AdaAPOZero",
    "AdaAlphaPO",
    "AdaBCO",
    "AdaBDPO",
    "AdaBPO",
    "AdaCPO",
    "AdaCalDPO",
    "AdaDPO",
    "AdaDPOP",
    "AdaDPOShift",
    "AdaDiscoPOP",
    "AdaEXO",
    "AdaFDPO",
    "AdaHinge",
    "AdaIPO",
    "AdaLDDPO",
    "AdaLNDPO",
    "AdaMinorDPO",
    "AdaNCA",
    "AdaORPO",
    "AdaPLDPO",
    "AdaRDPO",
    "AdaRobustDPO",
    "AdaSPPO",
    "AdaSimPER",
    "AdaSimPO",
    "AdaWPO",
    "Adaptive",
    "AdaptiveGradient",
    "AlphaPO",
    "CalDPO",
    "ContrastiveLoss",
    "DPOShift",
    "DiscoPOP",
    "Hinge",
    "ImplicitReward",
    "LogisticLoss",
    "MeanLogp",
    "MinorDPO",
    "Mixture",
    "PairwiseLoss",
    "PreferenceLoss",
    "RobustDPO",
    "Schedule",
    "Sides",
    "SimPER",
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
