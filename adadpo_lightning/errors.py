"""The errors that a user can mend: each names the field, what was expected, what was got and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input, found before any training time is spent; the command line prints it and exits with 2.

    Args:
        field: The option, file or column at fault, as the user wrote it (``loss.beta``, ``pairs.jsonl:3``).
        problem: What was expected and what was got, in one sentence.
        fix: How to mend it, in one sentence; empty where the problem says it already.

    Example:
        >>> str(UserError("loss.beta", "expected a number above 0, got -0.1", "set it to 0.1"))
        'loss.beta: expected a number above 0, got -0.1; set it to 0.1'
    """

    def __init__(self, field: str, problem: str, fix: str = "") -> None:
        self.field = field
        self.problem = problem
        self.fix = fix
        super().__init__(f"{field}: {problem}" + (f"; {fix}" if fix else ""))

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        """Rebuild from the three parts, so that the error survives a worker process."""
        return type(self), (self.field, self.problem, self.fix)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Say which names there are, and which of them `name` was probably meant to be.

    Example:
        >>> did_you_mean("adapdo", ["dpo", "adadpo"])
        "did you mean 'adadpo'? available: adadpo, dpo"
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"available: {', '.join(names)}"
