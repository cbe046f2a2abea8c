"""Load a tokenizer from a local directory or the hub, with errors that name the option."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adadpo_lightning import hub
from adadpo_lightning.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_tokenizer(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False, field: str = "data.tokenizer"
) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Args:
        path: Directory or hub id.
        revision: Revision of the hub id.
        trust_remote_code: Run code that comes with the tokenizer.
        field: The option that names it, for errors.

    Raises:
        UserError: If it cannot be loaded.
    """
    from transformers import AutoTokenizer

    check_exists(path, field)
    try:
        with hub.loading(path):
            return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(
            field,
            f"no tokenizer could be loaded from {path!r}: {first_line(error)}",
            "give a directory with tokenizer.json or a hub id",
        ) from error


def check_exists(path: str, field: str) -> None:
    """Reject a path that is neither a directory nor a valid hub id.

    Raises:
        UserError: Naming `field`.
    """
    local = Path(path)
    if not local.is_dir() and (local.is_absolute() or path.startswith((".", "~"))):
        raise UserError(field, f"directory not found: {path}", "give an existing directory or a hub id")


def check_subset(tokenizer: PreTrainedTokenizerBase, policys: PreTrainedTokenizerBase, path: str) -> None:
    """Check that every token of the data's tokenizer has the same id in the policy's.

    Raises:
        UserError: If one is not.
    """
    if not tokenizer.get_vocab().items() <= policys.get_vocab().items():
        raise UserError(
            "data.tokenizer",
            f"{path!r} has tokens that the policy's tokenizer lacks or numbers differently",
            "leave it out to use the policy's",
        )


def template_text(template: str) -> str:
    """Read a chat template, given as text or as the path of a file.

    Raises:
        UserError: If it is neither.
    """
    if "{" in template:
        return template
    if not Path(template).is_file():
        raise UserError(
            "data.chat_template", f"is no template, and the file {template!r} was not found", "give one of the two"
        )
    return Path(template).read_text(encoding="utf-8")
