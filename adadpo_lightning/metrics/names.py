"""Names of all logged metrics. The logged name is ``<stage>/<name>``, see `train` and `val`."""

from __future__ import annotations

# The objective.
LOSS = "loss"
NLL_LOSS = "nll_loss"
# Load-balancing loss of the routers of a mixture of experts, without its coefficient.
AUX_LOSS = "aux_loss"

# Log-probabilities per answer and per token, nats.
LOGPS_CHOSEN = "logps/chosen"
LOGPS_REJECTED = "logps/rejected"
LOGPS_CHOSEN_PER_TOKEN = "logps/chosen_per_token"  # noqa: S105  # a token of text
LOGPS_REJECTED_PER_TOKEN = "logps/rejected_per_token"  # noqa: S105  # a token of text

# Implicit rewards; accuracies are fractions.
REWARDS_CHOSEN = "rewards/chosen"
REWARDS_REJECTED = "rewards/rejected"
REWARDS_MARGINS = "rewards/margins"
REWARDS_ACCURACIES = "rewards/accuracies"

# Mean weight that a loss such as wpo gives its pairs.
PAIR_WEIGHT = "pair_weight/mean"

# Ratio of chosen to rejected gradient, geometric means; the adaptive coefficient.
BALANCE_RATIO = "grad_balance/ratio"
BALANCE_RATIO_POLICY = "grad_balance/ratio_policy"
BALANCE_COEFFICIENT = "grad_balance/coefficient"
BALANCE_CLIPPED = "grad_balance/clipped_fraction"

# Gradient norms of an optimizer step before clipping: at the last hidden states, over all parameters, by part.
GRAD_NORM_CHOSEN = "grad_norm/chosen"
GRAD_NORM_REJECTED = "grad_norm/rejected"
GRAD_NORM_PROMPT = "grad_norm/prompt"
GRAD_NORM_RATIO = "grad_norm/ratio"
GRAD_NORM_TOTAL = "grad_norm/total"
GRAD_NORM_PARAMS = "grad_norm/params"

# Distance to the reference, nats per token; the margin is per pair.
KL_CHOSEN = "kl/chosen"
KL_REJECTED = "kl/rejected"
KL_MARGIN = "kl/margin"
KL_POLICY = "kl/policy"
KL_POLICY_STDERR = "kl/policy_stderr"

# Change of log-probabilities since step 0, nats; `DISPLACEMENT_CHOSEN_FELL` is a fraction.
DISPLACEMENT_CHOSEN = "displacement/chosen"
DISPLACEMENT_REJECTED = "displacement/rejected"
DISPLACEMENT_CHOSEN_FELL = "displacement/chosen_fell"

# Lengths in tokens, and their correlation with the margin.
LENGTH_DIFFERENCE = "length/difference"
LENGTH_MARGIN_CORRELATION = "length/margin_correlation"

# Entropy of the predictions, nats per token.
ENTROPY_CHOSEN = "entropy/chosen"
ENTROPY_REJECTED = "entropy/rejected"

# Answers that the policy generates at validations: tokens, the fraction that ends with a terminator, and how likely the
# reference finds them, nats per token.
GENERATION_LENGTH = "generation/length"
GENERATION_EOS_RATE = "generation/eos_rate"
GENERATION_REFERENCE_LOGPS = "generation/reference_logps_per_token"

# The run.
LEARNING_RATE = "learning_rate"
SKIPPED_STEPS = "skipped_steps"
TOKENS_PER_SECOND = "tokens_per_second"
PAIRS_PER_SECOND = "pairs_per_second"
MEMORY_GIB = "memory_gib"
SLOWEST_RANK_OVER_MEDIAN = "slowest_rank_over_median"


def expert_load(layer: int, measure: str) -> str:
    """The name of a measure of how evenly a router spreads tokens over its experts.

    Example:
        >>> train(expert_load(3, "max_load"))
        'train/moe/layer_03/max_load'
    """
    return f"moe/layer_{layer:02d}/{measure}"


def loss_option(name: str) -> str:
    """The name of an option of the loss that changes over the run.

    Example:
        >>> train(loss_option("beta"))
        'train/loss_options/beta'
    """
    return f"loss_options/{name}"


def train(name: str) -> str:
    """The name under which a training metric is logged.

    Example:
        >>> train(LOSS)
        'train/loss'
    """
    return f"train/{name}"


def val(name: str) -> str:
    """The name under which a validation metric is logged."""
    return f"val/{name}"
