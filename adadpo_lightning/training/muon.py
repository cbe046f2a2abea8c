"""Muon for the hidden matrices and AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch


class MuonWithAdamW(torch.optim.Optimizer):
    """``torch.optim.Muon`` updates the hidden matrices, ``torch.optim.AdamW`` embedding, head, norms and biases.

    Both are torch's own; this class lets one schedule, one checkpoint and one step serve them. Weights of experts that
    a model stores as one tensor of three dimensions are no matrices and go to AdamW.

    Args:
        params: Groups of parameters; those with ``use_muon: false`` go to AdamW.
        lr: Peak learning rate of both.
        weight_decay: Decoupled weight decay of both; never applied to norms and biases.
        momentum: Momentum of Muon.
        nesterov: Whether its momentum is Nesterov's.
        ns_steps: Newton-Schulz iterations that orthogonalize an update.
        adjust_lr_fn: How the rate of a matrix follows from its shape: ``match_rms_adamw`` gives updates the size of
            AdamW's, so that both share `lr` (arXiv 2502.16982); ``original`` is the first implementation's, whose rate
            is larger and needs an `adamw_lr`.
        adamw_lr: Peak learning rate of AdamW; null is `lr`.
        betas: Decay rates of AdamW's two moments.
        eps: AdamW's term for numerical stability.

    Raises:
        ValueError: If a parameter for Muon has not two dimensions, or a number is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-7,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
        adamw_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        groups = [dict(item) if isinstance(item, dict) else {"params": [item]} for item in params]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "use_muon": True})
        own = self.param_groups
        rates: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        muon: dict[str, Any] = {
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        # An optimizer adds its own settings to the groups that it is given: they stay one set of dictionaries.
        self._parts: dict[bool, torch.optim.Optimizer] = {}
        if matrices := [group for group in own if group["use_muon"]]:
            self._parts[True] = torch.optim.Muon(matrices, **rates, **muon)
        if others := [group for group in own if not group["use_muon"]]:
            for group in others:
                group["lr"] = lr if adamw_lr is None else adamw_lr
            self._parts[False] = torch.optim.AdamW(others, **rates, betas=betas, eps=eps)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for use_muon, part in self._parts.items():
            # Loading a state dict replaces both.
            part.param_groups = [group for group in self.param_groups if group["use_muon"] is use_muon]
            part.state = self.state
            part.step()
        return loss
