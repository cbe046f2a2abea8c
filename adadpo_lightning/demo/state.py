"""What a demo has done so far, in a file beside its results: a restart takes up where it was interrupted."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adadpo_lightning.errors import UserError
from adadpo_lightning.fingerprint import differences
from adadpo_lightning.generation.responses import write_atomically

FILE = "demo.json"


class State:
    """Options of a demo, and its finished stages with their times.

    Args:
        root: The demo's directory.
        options: What its results depend on.

    Raises:
        UserError: If the directory holds a demo with other options, or something else.
    """

    def __init__(self, root: Path, options: Mapping[str, Any]) -> None:
        self.path = root / FILE
        self.seconds: dict[str, float] = {}
        self.done: list[str] = []
        if self.path.is_file():
            self._read(options)
        elif root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UserError("output_dir", f"{root} exists and holds no demo", "choose another directory")
        self.options = dict(options)

    def _read(self, options: Mapping[str, Any]) -> None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            before, self.seconds, self.done = found["options"], dict(found["seconds"]), list(found["done"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(str(self.path), f"cannot be read: {error}", "choose another directory") from error
        if changed := differences(before, options):
            raise UserError(
                "output_dir",
                f"{self.path.parent} holds a demo with other options: {'; '.join(changed)}",
                "give the same options, or choose another directory",
            )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measure a stage, interrupted attempts included, and note its end."""
        begun = time.perf_counter()
        try:
            yield
            self.done.append(stage)
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begun
            self._write()

    def _write(self) -> None:
        content = {"options": self.options, "seconds": self.seconds, "done": self.done}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(content, indent=1) + "\n")


def shown(seconds: float) -> str:
    """A duration as text.

    Example:
        >>> shown(3.21), shown(192)
        ('3.2 s', '3 min 12 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
