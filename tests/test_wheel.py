"""Wheel and sdist: built, installed in an environment of their own, and run from another directory."""

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command, cwd, **options):
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=280, check=False, **options
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel, and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    script = (
        "import sys\nfrom hatchling.build import build_sdist, build_wheel\n"
        "print(build_wheel(sys.argv[1]))\nprint(build_sdist(sys.argv[1]))\n"
    )
    pytest.importorskip("hatchling")
    wheel, sdist = run(sys.executable, "-c", script, folder, cwd=ROOT).split()[-2:]
    return folder / wheel, folder / sdist


@pytest.mark.slow
def test_wheel_and_sdist_hold_what_they_should(built):
    wheel, sdist = built
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "py.typed",
        "configs/quickstart.yaml",
        "configs/schema.json",
        "configs/study/embedded_grid.yaml",
        "losses/dpo.py",
    ):
        assert f"adadpo_lightning/{name}" in names
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]
    with tarfile.open(sdist) as archive:
        inside = [name.partition("/")[2] for name in archive.getnames()]
    for name in (
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "tests/test_wheel.py",
        "configs/base.yaml",
        "constraints.txt",
    ):
        assert name in inside


@pytest.mark.slow
def test_the_packaged_quickstart_runs_from_any_directory(built, tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env/bin/python"
    # The dependencies are those of this environment; the package itself is the wheel's.
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    with zipfile.ZipFile(built[0]) as archive:
        archive.extractall(site)  # noqa: S202  # our own wheel, just built
    here = Path(sysconfig.get_path("purelib"))
    # A plain line adds the directory and does not read its .pth files, so the checkout stays out.
    (site / "dependencies.pth").write_text(f"{here}\n")
    where = run(python, "-c", "import adadpo_lightning; print(adadpo_lightning.__file__)", cwd=tmp_path)
    assert where.strip().startswith(str(site))
    said = run(python, "-m", "adadpo_lightning", "quickstart", "--output_dir=out", cwd=tmp_path)
    assert "gold win rate against warm-up" in said
    again = [
        "fit",
        "--config=quickstart",  # a shipped config by its name
        "--output_dir=again",
        f"--model.policy.path={tmp_path / 'out/warmup/export'}",
        f"--data.train={tmp_path / 'out/pairs/pairs.jsonl'}",
        f"--data.val={tmp_path / 'out/pairs/pairs_val.jsonl'}",
        "--trainer.max_steps=2",
        "--trainer.enable_progress_bar=false",
    ]
    run(python, "-m", "adadpo_lightning", *again, cwd=tmp_path)
    assert (tmp_path / "again/export/README.md").is_file()
