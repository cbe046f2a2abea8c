"""Errors that a user can fix: each names the field, what was expected, what was given and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input, reported before any training time is spent; the command line prints it and exits with status 2.

    Args:
        field: The option, file or column at fault, as the user wrote it (``loss.beta``, ``pairs.jsonl:3``).
        problem: What was expected and what was given, in one sentence.
        fix: How to fix it, in one sentence; empty if the problem makes it obvious.

    Example:
        >>> str(UserError("loss.beta", "expected a number above 0, got -0.1", "set it to 0.1"))
        'loss.beta: expected a number above 0, got -0.1; set it to 0.1'
    """

    def __init__(self, field: str, problem: str, fix: str = "") -> None:
        self.field = field
        self.problem = problem
        self.fix = fix
        separator = "" if problem.endswith("\n") else "; "  # after a list of lines the fix is a line of its own
        super().__init__(f"{field}: {problem}" + (f"{separator}{fix}" if fix else ""))

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        """Rebuild from the three parts, so that the error survives a worker process."""
        return type(self), (self.field, self.problem, self.fix)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """List the known names, and the one that `name` was probably meant to be.

    Example:
        >>> did_you_mean("adapdo", ["dpo", "adadpo"])
        "did you mean 'adadpo'? available: adadpo, dpo"
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"available: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    r"""The first line of an error's text, or its type if it has none.

    Example:
        >>> first_line(ValueError("no file\n\nsee the manual")), first_line(KeyError())
        ('no file', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(error: BaseException, most: int = 400) -> str:
    r"""All of an error's text in one line, cut at `most` characters, after its type where the text alone says little.

    Example:
        >>> one_line(KeyError("vocab")), one_line(ValueError("no field\n  in the file"))
        ("KeyError: 'vocab'", 'no field in the file')
    """
    text = " ".join(str(error).split())
    text = text if len(text) <= most else f"{text[:most]}..."
    if not text or isinstance(error, (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)):
        return f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text
