"""Write ``requirements.lock``: the pins of ``constraints.txt`` with the hash of the wheel that pip chooses here.

Usage: python scripts/lock.py

It covers one Python and platform, which its first line names, and all pins but torch: the builds of torch for CPU and
CUDA have the same version and different bytes, and come from different indexes. The file names no index. A package
without a wheel is an error, so what installs from the lock builds nothing.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
CONSTRAINTS, LOCK = ROOT / "constraints.txt", ROOT / "requirements.lock"
NOT_HASHED = frozenset({"torch"})


def pins(text: str) -> dict[str, str]:
    """Name to version of the lines of a requirements file that apply here, without those that are `NOT_HASHED`.

    Raises:
        ValueError: If a line has no exact version.
    """
    found = {}
    for line in filter(None, (re.sub(r"(^|\s)(#|--hash).*", "", line).strip() for line in text.splitlines())):
        requirement = Requirement(line)
        versions = [spec.version for spec in requirement.specifier if spec.operator == "=="]
        if len(versions) != 1:
            raise ValueError(f"{line} is not an exact version")
        if requirement.marker is None or requirement.marker.evaluate():
            found[canonicalize_name(requirement.name)] = versions[0]
    return {name: version for name, version in found.items() if name not in NOT_HASHED}


def chosen_wheels(pinned: Mapping[str, str]) -> list[dict[str, Any]]:
    """Pip's report of what it would install, from wheels alone and without looking at what is installed.

    Raises:
        SystemExit: With pip's message, for example about a package without a wheel.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text("".join(f"{name}=={version}\n" for name, version in pinned.items()), encoding="utf-8")
        options = ["--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", "--quiet", "--report=-"]
        command = [sys.executable, "-m", "pip", "install", *options, f"--requirement={wanted}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # fixed
    if done.returncode:
        raise SystemExit(done.stderr)
    report: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    return report


def lock(report: Iterable[Mapping[str, Any]]) -> str:
    """The text of the lock.

    Raises:
        SystemExit: For what would have to be built.
    """
    lines = []
    for item in report:
        name, version = canonicalize_name(item["metadata"]["name"]), item["metadata"]["version"]
        origin = item["download_info"]
        if "dir_info" in origin or not origin["url"].endswith(".whl"):
            raise SystemExit(f"{name}: {origin['url']} is no wheel")
        lines.append(f"{name}=={version} --hash=sha256:{origin['archive_info']['hashes']['sha256']}\n")
    return header() + "".join(sorted(lines))


def header() -> str:
    """What the lock covers."""
    where = f"{platform.python_implementation()} {'.'.join(platform.python_version_tuple()[:2])}"
    return (
        f"# {where} on {platform.system()} {platform.machine()}, all pins of constraints.txt but torch; `make locked` "
        "installs it.\n# Written by scripts/lock.py.\n"
    )


def main() -> None:
    """Write the file."""
    LOCK.write_text(lock(chosen_wheels(pins(CONSTRAINTS.read_text(encoding="utf-8")))), encoding="utf-8")


if __name__ == "__main__":
    main()
