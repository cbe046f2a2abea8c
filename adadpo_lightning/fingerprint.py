"""Fingerprints: what a result depends on, as plain data that is stored beside the result and compared before reuse.

A fingerprint is a nested mapping. Its leaves are plain values if they are readable (``rope_theta``), otherwise hashes
(weights, token ids), so that `differences` can show what changed, with old and new values.
Hashes are XXH3 of 128 bits: they protect against mistakes, not against an attacker who controls the files.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

# Increase when the keys or the hashes of a fingerprint change their meaning.
FORMAT_VERSION = 1
# Increase when the forward pass gives other numbers, even by rounding, for the same weights and token ids.
NUMERICS_VERSION = 2

CHUNK = 1 << 22
REMEMBERED_BYTES = 1 << 22  # hashing a smaller file takes less time than looking its hash up
SETTLED_SECONDS = 2.0
PAIR_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
PAIR_MASKS = ("chosen_mask", "rejected_mask")
PAIR_NUMBERS = ("weight", "margin")
# Written by transformers for the record; no number depends on them.
NOTES = ("transformers_version", "_name_or_path")
SHOWN_DIGITS = 12
DATA_FILES = (".jsonl", ".json", ".parquet", ".csv", ".arrow")


def of_file(path: str | Path) -> str:
    """Hash of a file's content.

    The hash of a large file is remembered under ``$XDG_CACHE_HOME`` with the file's device, inode, size, modification
    time and change time. The change time cannot be set by a program, so that ``cp -p``, rsync or tar do not
    deceive it. A file that changed within the last seconds is not remembered: a second change might leave the same
    times.

    Raises:
        OSError: If the file cannot be read.
    """
    source = Path(path).resolve()
    status = source.stat()
    if status.st_size < REMEMBERED_BYTES:
        return _content_hash(source)
    identity = _identity(status)
    memory = _memory_folder() / f"{xxhash.xxh3_128_hexdigest(str(source).encode())}.json"
    with suppress(OSError, ValueError):
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["identity"] == identity:
            return str(known["hash"])
    found = _content_hash(source)
    if _identity(source.stat()) == identity and time.time() - status.st_ctime > SETTLED_SECONDS:
        with suppress(OSError):  # a home directory that cannot be written only costs time
            _write(memory, {"identity": identity, "hash": found})
    return found


def _memory_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "adadpo_lightning" / "hashes"


def _identity(status: os.stat_result) -> list[int]:
    return [FORMAT_VERSION, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _content_hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(buffer):
            digest.update(view[:read])
    return digest.hexdigest()


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        json.dump(content, file)
    Path(file.name).replace(path)


def of_data(data: Any) -> str:
    """Hash of plain data (mappings, sequences, strings, numbers, paths): equal data have equal hashes.

    The order of keys does not count; that of sequences does.

    Raises:
        TypeError: If there is something else in it.

    Example:
        >>> of_data({"a": 1, "b": [2, 3]}) == of_data({"b": (2, 3), "a": 1}) != of_data({"a": 1, "b": [3, 2]})
        True
    """
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=_plain)
    return xxhash.xxh3_128_hexdigest(text.encode())


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "item"):  # a numpy scalar
        return value.item()
    raise TypeError(f"a fingerprint is made of plain data, got {type(value).__name__}")


def of_model_folder(path: str | Path, *, sampling: bool = True) -> dict[str, Any]:
    """Fingerprint of a Hugging Face directory, of a model or of an adapter; the path itself is not part of it.

    Args:
        path: Directory with ``config.json`` or ``adapter_config.json``.
        sampling: Whether defaults of sampling, ``generation_config.json``, are part of it.

    Returns:
        ``config``, ``generation_config`` and ``adapter_config``, their values as they are; ``weights`` and ``code``,
        the hash of each file by name. What the directory lacks is left out.

    Raises:
        UserError: If a JSON file cannot be read.
    """
    folder = Path(path)
    found: dict[str, Any] = {}
    for name in ("config", *(["generation_config"] if sampling else []), "adapter_config"):
        if (folder / f"{name}.json").is_file():
            found[name] = of_config(_read_json(folder / f"{name}.json"))
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    for kind, files in (("weights", weights), ("code", sorted(folder.glob("*.py")))):
        if files:
            found[kind] = {file.name: of_file(file) for file in files}
    return found


def of_path(name: str) -> Any:
    """Hash of a data file, hashes of the data files in a directory, or fingerprint of a model; None for other text."""
    try:
        path = Path(name)
        if path.is_file():
            return of_file(path)
        if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
            return of_model_folder(path)
        if name and path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix in DATA_FILES and file.is_file())
            return {file.name: of_file(file) for file in files} or None
    except (OSError, ValueError):  # not a path: too long, or with a null character
        return None
    return None


def of_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """A model config without what says only who wrote it."""
    return {name: value for name, value in values.items() if name not in NOTES}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(str(path), f"cannot be read as JSON: {error}", "restore the file") from error
    if not isinstance(values, dict):
        raise UserError(str(path), f"expected a JSON object, got {type(values).__name__}", "restore the file")
    return values


def of_weights(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of loaded weights: each one's name, type, shape and bytes.

    Args:
        weights: Names and whole tensors on any device, read one at a time.
    """
    import torch

    digest = xxhash.xxh3_128()
    for name, tensor in weights:
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def of_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Fingerprint of a tokenizer: vocabulary and rules, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = of_data(tokenizer.get_vocab())
    else:
        text = backend.to_str()
        # What stands before are padding and truncation, which each call may set.
        rules = xxhash.xxh3_128_hexdigest(text[max(text.find('"added_tokens"'), 0) :].encode())
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    template = tokenizer.chat_template
    return {
        "class": type(tokenizer).__name__.removesuffix("Fast"),
        "vocabulary": rules,
        "special_tokens": special,
        "chat_template": None if template is None else of_data(template),
    }


def of_pairs(pairs: Dataset) -> dict[str, Any]:
    """Fingerprint of tokenised pairs in their order.

    Args:
        pairs: With the columns ``prompt_ids``, ``chosen_ids``, ``rejected_ids``, ``chosen_mask``, ``rejected_mask``,
            ``weight`` and ``margin``. Masks count only where some token is not scored.
    """
    import pyarrow.compute as pc

    hashes = {name: xxhash.xxh3_128() for name in ("token_ids", *PAIR_NUMBERS)}
    masks = [name for name in PAIR_MASKS if name in pairs.column_names]
    table = pairs.select_columns([*PAIR_IDS, *masks, *PAIR_NUMBERS]).with_format("arrow")
    for batch in table.iter(batch_size=4096):
        for name in PAIR_IDS:
            for column in (pc.list_value_length(batch[name]), pc.list_flatten(batch[name])):
                hashes["token_ids"].update(column.to_numpy().astype("int32", copy=False).data)
        for name in masks:
            scored = pc.list_flatten(batch[name])
            if len(scored):
                hashes["token_ids"].update(pc.list_value_length(batch[name]).to_numpy().astype("int32").data)
                hashes["token_ids"].update(scored.to_numpy(zero_copy_only=False).astype("uint8").data)
        for name in PAIR_NUMBERS:
            hashes[name].update(batch[name].cast("float64").to_numpy().astype("float64").tobytes())
    return {"pairs": len(pairs), **{name: digest.hexdigest() for name, digest in hashes.items()}}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, one line each: ``key: old -> new``.

    Example:
        >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}, "d": None})
        ['a.b: 1 -> 3']
    """
    before, after = dict(_leaves(old)), dict(_leaves(new))
    return [
        f"{key}: {_shown(before.get(key))} -> {_shown(after.get(key))}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:  # null says the same as a key that is absent
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    """A hash by its first digits, as git shows one."""
    if value is None:
        return "null"
    text = str(value)
    is_hash = len(text) == 32 and all(digit in "0123456789abcdef" for digit in text)
    return text[:SHOWN_DIGITS] if is_hash else text
