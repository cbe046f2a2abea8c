"""The record beside a response file: what its answers depend on, compared before a job resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadpo_lightning import fingerprint, gguf
from adadpo_lightning.errors import UserError
from adadpo_lightning.generation.responses import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from adadpo_lightning.generation.options import GenerateOptions
    from adadpo_lightning.generation.prompts import Prompt


def record_path(output: Path) -> Path:
    """The record of a response file."""
    return output.with_name(f"{output.name}.settings.json")


def make_record(
    options: GenerateOptions, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """What the answers of a job depend on: model, tokenizer, options and prompts.

    Raises:
        UserError: If the model cannot be found.
    """
    # What only some prompts have, only where they have it: records without it stay as they are.
    asked = [
        [
            *(prompt.messages, prompt.uid, prompt.dataset),
            *filter(None, [prompt.chat_template_kwargs, prompt.tools and {"tools": prompt.tools}]),
        ]
        for prompt in prompts
    ]
    return {
        "version": fingerprint.FORMAT_VERSION,
        "model": _model(options.model),
        "tokenizer": fingerprint.of_tokenizer(tokenizer),
        "options": options.deciding(),
        "prompts": {"number": len(prompts), "content": fingerprint.of_data(asked)},
    }


def check_record(output: Path, record: dict[str, Any], field: str = "output", maker: str = "generate") -> None:
    """Write the record of a new output, or compare with that of an existing one.

    Args:
        output: The output.
        record: What it is about to be made from.
        field: The option that named it, for errors.
        maker: The command that makes it, for errors.

    Raises:
        UserError: If the output was produced from something else; names what differs.
    """
    beside = record_path(output)
    if not output.exists():
        write_atomically(beside, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        return
    if not beside.exists():
        raise UserError(field, f"{output} exists and is not an output of {maker}", "choose another path")
    try:
        before = json.loads(beside.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(str(beside), f"malformed JSON: {error}", f"delete it and {output.name}") from error
    if not isinstance(before, dict) or "version" not in before:
        raise UserError(
            str(beside), "was written by another version and cannot be compared", f"delete it and {output.name}"
        )
    changed = fingerprint.differences(before, record)
    if changed:
        raise UserError(
            field,
            f"{output} was started with other inputs: {'; '.join(changed)}",
            "restore them, delete the output, or choose another path",
        )


def _model(path: str) -> dict[str, Any]:
    """Fingerprint of a local directory or GGUF file; of a hub id the commit, which names all of its files."""
    folder, file = gguf.split(path)
    if file is not None:
        return {"gguf": fingerprint.of_file(gguf.locate(folder, file, field="model"))}
    if Path(path).is_dir():
        return fingerprint.of_model_folder(path)
    from transformers.utils import cached_file

    try:
        config = cached_file(path, "config.json")
    except OSError as error:
        raise UserError("model", f"not found: {path!r} is neither a directory nor an available hub id") from error
    return {"hub_id": path, "commit": Path(str(config)).parent.name}
