"""Layout of TensorBoard's custom scalars page for a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adadpo_lightning.metrics import names

if TYPE_CHECKING:
    from adadpo_lightning.losses import PreferenceLoss

Layout = dict[str, dict[str, list[Any]]]

_BOTH = "(train|val(/[^/]+)?)/"  # named validation sets too


def dashboard(loss: PreferenceLoss, *, experts: bool = False) -> Layout:
    """The custom scalars page for a loss, in the form that `SummaryWriter.add_custom_scalars` expects.

    Charts without data for this loss are omitted. Tags are regular expressions, matched from the start of a tag.

    Args:
        loss: The loss.
        experts: Whether the model is a mixture of experts.

    Example:
        >>> from adadpo_lightning.losses import SFT, SimPO
        >>> list(dashboard(SFT())), list(dashboard(SimPO()))
        (['Likelihood', 'Optimisation'], ['Balance', 'Rewards', 'Likelihood', 'Optimisation'])
    """
    page: Layout = {}
    if loss.needs_rejected:
        page["Balance"] = _charts(
            {
                "Gradient ratio, chosen to rejected": names.BALANCE_RATIO,
                "Coefficient on the chosen score": names.BALANCE_COEFFICIENT,
                "Fraction of pairs at the ceiling": names.BALANCE_CLIPPED,
                "Gradient norm ratio at the hidden states": names.GRAD_NORM_RATIO,
                "Gradient ratio in policy space": names.BALANCE_RATIO_POLICY,
            }
        )
        page["Rewards"] = _charts(
            {
                "Rewards of chosen and rejected": _either(names.REWARDS_CHOSEN, names.REWARDS_REJECTED),
                "Margin": names.REWARDS_MARGINS,
                "Accuracy": names.REWARDS_ACCURACIES,
            }
        )
    page["Likelihood"] = _charts(
        {"Log-probability per token": _either(names.LOGPS_CHOSEN_PER_TOKEN, names.LOGPS_REJECTED_PER_TOKEN)}
    )
    if loss.needs_rejected:
        page["Likelihood"] |= _charts(
            {
                "Change of log-probability since step 0": _either(
                    names.DISPLACEMENT_CHOSEN, names.DISPLACEMENT_REJECTED
                ),
                "Fraction of chosen answers that fell": names.DISPLACEMENT_CHOSEN_FELL,
            }
        )
    if loss.needs_reference:
        page["KL"] = _charts(
            {
                "KL per token": _either(names.KL_CHOSEN, names.KL_REJECTED, names.KL_POLICY),
                "Margin of log-ratios": names.KL_MARGIN,
            }
        )
    page["Optimisation"] = _charts(
        {
            "Loss": names.LOSS,
            "Learning rate": names.LEARNING_RATE,
            "Gradient norm before clipping": names.GRAD_NORM_TOTAL,
            "Gradient norms at the hidden states": _either(
                names.GRAD_NORM_CHOSEN, names.GRAD_NORM_REJECTED, names.GRAD_NORM_PROMPT
            ),
            "Tokens per second": names.TOKENS_PER_SECOND,
        }
    )
    if experts:
        page["Experts"] = _charts(
            {
                "Load of the busiest expert over the mean, by layer": "moe/layer_[0-9]+/max_load",
                "Entropy of the experts' load, by layer": "moe/layer_[0-9]+/entropy",
                "Load-balancing loss": names.AUX_LOSS,
            }
        )
    return page


def _either(*tags: str) -> str:
    return f"({'|'.join(tags)})"


def _charts(tags: dict[str, str]) -> dict[str, list[Any]]:
    return {title: ["Multiline", [f"{_BOTH}{tag}$"]] for title, tag in tags.items()}
