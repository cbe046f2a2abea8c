"""Load a tokenizer from a local directory or the hub, with errors that name the option."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adadpo_lightning import gguf, hub
from adadpo_lightning.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_tokenizer(
    path: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    field: str = "data.tokenizer",
) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Args:
        path: Directory, hub id or GGUF file.
        revision: Revision of the hub id.
        trust_remote_code: Run code that comes with the tokenizer.
        gguf_file: GGUF file in `path` with the tokenizer.
        field: The option that names it, for errors.

    Raises:
        UserError: If it cannot be loaded.
    """
    from transformers import AutoTokenizer

    if gguf_file is None:
        path, gguf_file = gguf.split(path)
    if gguf_file is not None:
        file = gguf.locate(path, gguf_file, revision=revision, field=field)
        path, gguf_file, revision = str(file.parent), file.name, None
    check_exists(path, field)
    try:
        with hub.loading(path):
            tokenizer = AutoTokenizer.from_pretrained(
                path, revision=revision, trust_remote_code=trust_remote_code, gguf_file=gguf_file
            )
    except Exception as error:  # files of strangers make transformers and tokenizers raise errors of many types
        text = one_line(error)
        # transformers reads config.json first.
        of_config = "alidation error for" in text
        raise UserError(
            field,
            f"no tokenizer could be loaded from {path!r}: {text}",
            "correct config.json" if of_config else "give a directory with tokenizer.json, a GGUF file or a hub id",
        ) from error
    if not isinstance(tokenizer.chat_template, (str, dict, type(None))):
        problem = f"the chat template of {path!r} is a {type(tokenizer.chat_template).__name__}, expected text"
        raise UserError(field, problem, "correct chat_template in tokenizer_config.json")
    return tokenizer


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
    if not _is_file(template):
        raise UserError(
            "data.chat_template",
            f"is no template, and the file {template[:200]!r} was not found",
            "give one of the two",
        )
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            "data.chat_template", f"{template} cannot be read: {one_line(error)}", "save it as UTF-8"
        ) from error


def _is_file(name: str) -> bool:
    """Whether a text is the path of a file; it may be too long for one, or hold a null character."""
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False
