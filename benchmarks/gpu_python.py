"""The interpreter of the parts of `gpu.py`: the one that is there, or a new environment. Standard library only."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("adadpo_lightning", "lightning", "peft", "pytest", "torch", "transformers", "trl", "gguf", "matplotlib")


def interpreter(asked: Path | None, limit_s: float, log: Path) -> Path:
    """The interpreter for the parts: the one asked for, this one if it has all that is needed, or a new environment.

    The environment sees the packages of this Python, so that a CUDA build of torch is not installed again.

    Raises:
        SystemExit: If the installation fails or takes too long.
    """
    if asked is not None:
        return asked
    if not lacking(Path(sys.executable)):
        return Path(sys.executable)
    folder = ROOT / ".venv-gpu"
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True, system_site_packages=True)
    if lacking(python):
        constraints = ["--constraint", str(ROOT / "constraints.txt")]
        install = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            *constraints,
            "--editable",
            f"{ROOT}[dev,bench,qlora]",
        ]
        with log.open("w", encoding="utf-8") as sink:
            try:
                subprocess.run(install, check=True, timeout=limit_s, stdout=sink, stderr=subprocess.STDOUT)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                raise SystemExit(f"gpu: the installation failed, see {log}: {error}") from error
    return python


def lacking(python: Path) -> list[str]:
    """Packages that an interpreter lacks."""
    code = f"import importlib.util as u; print(*[n for n in {NEEDED!r} if u.find_spec(n) is None])"
    found = subprocess.run([str(python), "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return found.stdout.split()


def describe(python: Path) -> dict[str, Any]:
    """Device and versions, as the parts will see them."""
    code = (
        "import json, torch; c = torch.cuda.is_available(); "
        "print(json.dumps([torch.__version__, torch.cuda.get_device_name() if c else None]))"
    )
    found = subprocess.run([str(python), "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    torch_version, device = json.loads(found.stdout.splitlines()[-1])
    return {
        "device": device,
        "torch": torch_version,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
