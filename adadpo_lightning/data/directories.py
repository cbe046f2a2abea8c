"""Directories of data files: the files of each split, and the rows of a slice."""

from __future__ import annotations

import re
from pathlib import Path

from adadpo_lightning.data.files import FILE_TYPES
from adadpo_lightning.errors import UserError

# Files that a repository of data has beside them.
BESIDE = re.compile(r"(?i)(README|LICENSE|CHANGELOG|NOTICE)(\..*)?|\..*|__.*")
# Written by `datasets` beside its data.
INFOS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def splits_of(folder: Path) -> dict[str, list[Path]] | None:
    """The data files of a directory by split, in the order of their names.

    A file belongs to the split whose name is a word of its path inside the directory, as `datasets` has it; files
    without such a word are ``train``.

    Returns:
        None for a directory that this package does not read itself: one with other files, or with a card that
        configures them.

    Raises:
        UserError: If it holds data files of several types, of which `datasets` would read one and ignore the others.
    """
    card = folder / "README.md"
    if card.is_file() and re.search(r"(?m)^configs:", card.read_text(encoding="utf-8", errors="replace")):
        return None
    inside = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in inside if not any(BESIDE.fullmatch(part) for part in path.parts)]
    kinds = {path.suffix for path in files}
    data = sorted({path.suffix for path in files if path.name not in INFOS} & set(FILE_TYPES))
    if len(data) > 1:
        problem = f"holds files of several types, {', '.join(data)}, of which only one would be read"
        raise UserError(str(folder), problem, f"give a pattern, such as {folder}/*{data[0]}")
    if len(kinds) != 1 or not kinds <= set(FILE_TYPES):
        return None
    found: dict[str, list[Path]] = {}
    for path in files:
        words = re.split(r"[^a-z]+", path.with_suffix("").as_posix().lower())
        split = next((name for name, known in SPLIT_WORDS.items() if set(words) & set(known)), "train")
        found.setdefault(split, []).append(folder / path)
    return found


def choose_split(path: str, split: str | None, names: list[str]) -> str:
    """The only split, or the requested one.

    Raises:
        UserError: If it does not exist, or there are several and none is asked for.
    """
    if split in names:
        return str(split)
    if split is None and len(names) == 1:
        return names[0]
    problem = f"there are several: {', '.join(names)}" if split is None else f"split {split!r} not found"
    raise UserError(f"{path}: split", problem, f"name one of {', '.join(names)}")


def slice_of(path: str, split: str, rows: int) -> tuple[str, range]:
    """Name and row numbers of a split such as ``train[:10%]``.

    Args:
        path: For the error.
        split: Name of a split, with or without a slice in the form that `datasets` has.
        rows: Rows of the split.

    Raises:
        UserError: If it cannot be read.

    Example:
        >>> slice_of("data", "train[10%:3]", 20)
        ('train', range(2, 3))
    """
    found = re.fullmatch(r"([\w-]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if found is None:
        raise UserError(f"{path}: split", f"cannot be read: {split!r}", "write it as train or train[:10%]")
    name, *bounds = found.groups()
    first, last = (_bound(bound, rows, default) for bound, default in zip(bounds, (0, rows), strict=True))
    return name, range(first, max(first, last))


def _bound(text: str | None, rows: int, default: int) -> int:
    if text is None:
        return default
    number = round(int(text[:-1]) * rows / 100) if text.endswith("%") else int(text)
    return min(max(number + rows if number < 0 else number, 0), rows)
