"""A software bill of materials (CycloneDX 1.6, JSON) of this package and what it requires, as installed here.

Usage: python scripts/sbom.py FILE

Its versions are those that the release was tested with; ``pyproject.toml`` allows ranges. The same environment gives
the same bytes.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGE = "adadpo-lightning"


def required(dist: Distribution, extras: frozenset[str] = frozenset()) -> Iterator[Requirement]:
    """The requirements of a distribution that apply here."""
    for line in dist.requires or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def closure(name: str) -> dict[str, tuple[Distribution, list[str]]]:
    """All distributions that one needs, itself included, each with the names of those that it requires.

    Raises:
        SystemExit: If one is not installed.
    """
    found: dict[str, tuple[Distribution, list[str]]] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(canonicalize_name(name), frozenset())]
    done: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        item = waiting.pop(0)
        if item in done:
            continue
        done.add(item)
        name, extras = item
        try:
            dist = distribution(name)
        except PackageNotFoundError as error:
            raise SystemExit(f"{name} is required and not installed") from error
        needs = [(canonicalize_name(r.name), frozenset(r.extras)) for r in required(dist, extras)]
        before = found[name][1] if name in found else []
        found[name] = (dist, sorted({*before, *(other for other, _ in needs)}))
        waiting += needs
    return found


def licenses(dist: Distribution) -> list[dict[str, Any]]:
    """What a distribution says of its licence: an SPDX expression, a short name, or its classifiers."""
    meta = dist.metadata
    if expression := meta.get("License-Expression"):
        return [{"expression": expression}]
    text = (meta.get("License") or "").strip()
    if text and "\n" not in text and len(text) < 80:
        return [{"license": {"name": text}}]
    classified = [line.rpartition(" :: ")[2] for line in meta.get_all("Classifier") or [] if line.startswith("License")]
    return [{"license": {"name": name}} for name in classified]


def purl(name: str, dist: Distribution) -> str:
    """The package URL, which is also the reference inside the document; a local version (``+cpu``) is escaped."""
    return f"pkg:pypi/{name}@{dist.version.replace('+', '%2B')}"


def component(name: str, dist: Distribution, hashes: dict[str, str]) -> dict[str, Any]:
    """One entry; with the hash of its wheel where ``requirements.lock`` has it."""
    entry: dict[str, Any] = {"type": "library", "name": name, "version": dist.version}
    entry |= {"bom-ref": purl(name, dist), "purl": purl(name, dist)}
    if found := licenses(dist):
        entry["licenses"] = found
    if content := hashes.get(f"{name}=={dist.version}"):
        entry["hashes"] = [{"alg": "SHA-256", "content": content}]
    return entry


def bill(name: str, lock: str = "") -> dict[str, Any]:
    """The document.

    Args:
        name: The distribution that is released.
        lock: Text of ``requirements.lock``.
    """
    hashes = dict(re.findall(r"^(\S+) --hash=sha256:(\w+)", lock, re.MULTILINE))
    found = closure(name)
    refs = {key: purl(key, dist) for key, (dist, _) in found.items()}
    root = canonicalize_name(name)
    body: dict[str, Any] = {
        "metadata": {"component": component(root, found[root][0], hashes)},
        "components": [component(key, found[key][0], hashes) for key in sorted(found) if key != root],
        "dependencies": [{"ref": refs[key], "dependsOn": [refs[n] for n in found[key][1]]} for key in sorted(found)],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1, **body}


def write(path: Path) -> int:
    """Write the bill of this package.

    Returns:
        The number of packages that it lists.
    """
    lock = ROOT / "requirements.lock"
    document = bill(PACKAGE, lock.read_text(encoding="utf-8") if lock.exists() else "")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return len(document["components"])


if __name__ == "__main__":
    print(f"{sys.argv[1]}: {write(Path(sys.argv[1]))} packages")
