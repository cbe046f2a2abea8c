"""Checks of hyper-parameters, with one wording for all losses."""

from __future__ import annotations

from adadpo_lightning.errors import UserError


def require(condition: bool, option: str, expected: str, got: object) -> None:
    """Check one hyper-parameter.

    Raises:
        UserError: If the condition is false; names the option, what was expected and what was given.
    """
    if not condition:
        raise UserError(f"loss.{option}", f"expected {expected}, got {got!r}")


def require_number(
    option: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Check that a hyper-parameter is a finite number within its bounds.

    Args:
        option: Name of the hyper-parameter.
        value: What was given.
        above: Lower bound that is not allowed itself.
        least: Lower bound.
        below: Upper bound that is not allowed itself.
        most: Upper bound.

    Raises:
        UserError: If it is not; names the option, what was expected and what was given.
    """
    bounds = {" above {}": above, " of at least {}": least, " below {}": below, " of at most {}": most}
    expected = "a finite number" + " and".join(text.format(v) for text, v in bounds.items() if v is not None)
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
    require(fine, option, expected, value)
    number: float = value  # type: ignore[assignment]  # checked above
    fine = (above is None or number > above) and (least is None or number >= least)
    fine = fine and (below is None or number < below) and (most is None or number <= most)
    require(fine, option, expected, value)


def check_beta_and_smoothing(beta: float, label_smoothing: float) -> None:
    """Validate the options that the logistic losses share."""
    require_number("beta", beta, above=0)
    require_number("label_smoothing", label_smoothing, least=0, below=0.5)
