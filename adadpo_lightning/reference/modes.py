"""Reference modes, and how ``auto`` selects one for a policy and a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from adadpo_lightning.losses import PreferenceLoss
    from adadpo_lightning.models.loading import PolicyConfig

ReferenceMode = Literal["none", "frozen", "path", "adapter_off", "adapter", "synced", "cached"]
AskedMode = Literal["auto", "none", "frozen", "path", "adapter_off", "adapter", "synced", "cached"]


def resolve_reference(
    asked: AskedMode, loss: PreferenceLoss, policy: PolicyConfig, reference_path: str | None = None
) -> ReferenceMode:
    """Choose the source of the reference log-probabilities.

    ``auto`` selects ``path`` if `reference_path` is given, ``adapter`` for a policy that starts from a trained adapter,
    ``adapter_off`` for one with a new adapter, and ``frozen`` for a full model. Except for ``path``, rewards are then
    exactly 0 at step 0.

    Raises:
        UserError: If the mode contradicts the loss or the policy.

    Example:
        >>> from adadpo_lightning.losses import DPO, SimPO
        >>> from adadpo_lightning.models.loading import LoraOptions, PolicyConfig
        >>> resolve_reference("auto", DPO(), PolicyConfig("model", lora=LoraOptions()))
        'adapter_off'
        >>> resolve_reference("auto", DPO(), PolicyConfig("model", lora=LoraOptions(adapter="sft-adapter")))
        'adapter'
        >>> resolve_reference("auto", SimPO(), PolicyConfig("model"))
        'none'
    """
    if not loss.needs_reference:
        # An unused reference would waste memory and time.
        return "none"
    _check_path(asked, reference_path)
    if asked == "auto":
        return source_of(policy, reference_path)
    if asked == "none":
        raise UserError(
            "model.reference",
            f"{type(loss).__name__} needs a reference, got none",
            "set it to auto, frozen, adapter_off or cached, or use a loss without a reference: simpo, cpo, orpo",
        )
    if asked in ("adapter_off", "adapter") and policy.lora is None:
        raise UserError(
            "model.reference", f"{asked} needs a policy with LoRA, got a full model", "set model.policy.lora"
        )
    return asked


def source_of(policy: PolicyConfig, reference_path: str | None) -> ReferenceMode:
    """The live reference of ``auto``, which also computes the values of ``cached``."""
    if reference_path is not None:
        return "path"
    if policy.lora is None:
        return "frozen"
    return "adapter_off" if policy.lora.adapter is None else "adapter"


def uses_reference_adapter(mode: ReferenceMode, policy: PolicyConfig, reference_path: str | None = None) -> bool:
    """Whether the policy needs a frozen second adapter in addition to the trained one."""
    if mode == "cached":
        mode = source_of(policy, reference_path)
    return mode == "adapter" or (mode == "synced" and policy.lora is not None)


def starts_at_zero(mode: ReferenceMode, policy: PolicyConfig, reference_path: str | None = None) -> bool:
    """Whether rewards must be 0 at step 0, because the reference equals the initial policy."""
    if mode == "cached":
        mode = source_of(policy, reference_path)
    if mode == "adapter_off":
        return policy.lora is not None and policy.lora.adapter is None
    return mode in ("frozen", "adapter", "synced")


def reference_note(mode: ReferenceMode, policy: PolicyConfig, reference_path: str | None = None) -> str | None:
    """Note for the user if the reference differs from the initial policy, otherwise None.

    Example:
        >>> from adadpo_lightning.models.loading import PolicyConfig
        >>> reference_note("path", PolicyConfig("model"), "other")
        'the reference is other, not the initial policy: rewards at step 0 are not 0'
    """
    if mode == "none" or starts_at_zero(mode, policy, reference_path):
        return None
    what = reference_path if mode != "adapter_off" else "the base model without its trained adapter"
    return f"the reference is {what}, not the initial policy: rewards at step 0 are not 0"


def _check_path(asked: AskedMode, reference_path: str | None) -> None:
    if asked == "path" and reference_path is None:
        raise UserError(
            "model.reference_path", "expected a directory or hub id, got null", "set it to the reference model"
        )
    if reference_path is not None and asked not in ("auto", "path", "cached"):
        raise UserError(
            "model.reference_path",
            f"is set, but model.reference is {asked}, which does not use it",
            "set model.reference to path or cached, or remove reference_path",
        )
