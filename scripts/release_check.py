"""A dry run of a release: sdist and wheel are built, checked, installed and compared with the changelog.

The software bill of materials is left in ``build/``.

Usage: python -m scripts.release_check
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

from scripts.make_release_fixture import fixture_folder
from scripts.sbom import write as write_bill

ROOT = Path(__file__).parent.parent
IN_WHEEL = ("py.typed", "configs/base.yaml", "configs/loss/adadpo.yaml", "configs/study/embedded_grid.yaml")
IN_SDIST = ("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "mkdocs.yml", "docs/index.md", "tests/conftest.py")


def run(*command: str | Path) -> str:
    """Run a command and return what it printed.

    Raises:
        SystemExit: If it fails, with its output.
    """
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def released_version(changelog: str) -> str | None:
    """The version of the changelog's first numbered section, such as ``## [0.2.0] - 2026-01-01``; None without one."""
    found = re.search(r"^## \[(\d[^]]*)\]", changelog, re.MULTILINE)
    return found.group(1) if found else None


def missing(names: list[str], wanted: tuple[str, ...], prefix: str) -> list[str]:
    """Files of `wanted` that an archive lacks."""
    return [name for name in wanted if f"{prefix}{name}" not in names]


def check_contents(wheel: Path, sdist: Path) -> None:
    """Both archives hold what they must, and the wheel neither tests nor docs.

    Raises:
        SystemExit: Naming the files.
    """
    inside = zipfile.ZipFile(wheel).namelist()
    with tarfile.open(sdist) as archive:
        source = archive.getnames()
    lacking = missing(inside, IN_WHEEL, "adadpo_lightning/") + missing(source, IN_SDIST, f"{source[0].split('/')[0]}/")
    stray = [name for name in inside if name.startswith(("tests/", "docs/", "scripts/"))]
    if lacking or stray:
        raise SystemExit(f"archives: missing {lacking}, not expected {stray}")


def installed_version(wheel: Path, folder: Path) -> str:
    """The version that the wheel reports in an environment of its own, without its dependencies."""
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    code = (
        "import importlib.metadata as metadata, adadpo_lightning as package\n"
        "assert metadata.version('adadpo-lightning') == package.__version__\n"
        "print(package.__version__)"
    )
    return run(python, "-I", "-c", code).strip()


def main() -> None:
    """Build, check, install, compare.

    Raises:
        SystemExit: If anything does not fit.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", ROOT)
        (wheel,), (sdist,) = (list((folder / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
        check_contents(wheel, sdist)
        version = installed_version(wheel, folder / "env")
    expected = released_version((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    if version != expected:
        raise SystemExit(f"the wheel is version {version}, the newest version in CHANGELOG.md is {expected}")
    if not fixture_folder(version).is_dir():
        raise SystemExit(f"no checkpoint of {version} in tests/fixtures: run python -m scripts.make_release_fixture")
    materials = ROOT / "build" / f"{sdist.name.removesuffix('.tar.gz')}.cdx.json"
    packages = write_bill(materials)
    print(f"{wheel.name}, {sdist.name}, {materials.name} ({packages} packages): ready to release {version}")


if __name__ == "__main__":
    main()
