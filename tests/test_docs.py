"""Documentation: generated pages are up to date, links work, examples run, commands and options exist."""

import importlib.util
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest

import adadpo_lightning
from adadpo_lightning.cli.fit_options import known_options
from adadpo_lightning.data.formats import FORMATS
from adadpo_lightning.data.lists import ListOptions
from adadpo_lightning.evaluation.judges import base as judges
from adadpo_lightning.losses import registry

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
GENERATED = (
    "configuration.md",
    "from_trl.md",
    "from_llama_factory.md",
    "recipes.md",
    *(f"api/{name}.md" for name in ("losses", "data", "models", "training", "callbacks", "metrics", "evaluation")),
)


def by_path(page):
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def make_docs():
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts/make_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generated(make_docs):
    return make_docs.pages()


def test_the_list_of_generated_pages(generated):
    assert sorted(generated) == sorted(GENERATED)


def test_every_root_name_is_in_the_api_reference(generated):
    directives = set(re.findall(r"^::: (?:\w+\.)*(\w+)$", "".join(generated.values()), re.MULTILINE))
    assert set(adadpo_lightning.__all__) - {"__version__"} <= directives


@pytest.mark.parametrize("name", GENERATED)
def test_the_committed_page_is_up_to_date(generated, name):
    assert (DOCS / name).read_text(encoding="utf-8") == generated[name], "run python scripts/make_docs.py"


def test_every_key_of_model_and_data_is_explained(generated):
    rows = dict(re.findall(r"^\| `([\w.]+)` \|(.*)\|$", generated["configuration.md"], re.MULTILINE))
    for name in known_options():
        if name.startswith(("model.", "data.")):
            assert name in rows, name
            assert rows[name].rpartition("|")[2].strip(), f"{name} has no text"


@pytest.mark.parametrize("page", PAGES, ids=by_path)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def commands(page):
    """Each ``python -m adadpo_lightning ...`` of a page's shell blocks, as words."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "adadpo_lightning" in words:
                yield words[words.index("adadpo_lightning") + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=by_path)
def test_configs_of_commands_exist_and_options_of_fit_are_known(page):
    known = set(known_options()) | {f"data.lists.{field.name}" for field in fields(ListOptions)}
    for command, *words in commands(page):
        for option, value in pairwise([*words, ""]):
            if option == "--config" and value.endswith(".yaml") and "/" in value:
                assert (ROOT / value).exists(), value
            name = option.removeprefix("--").partition("=")[0]
            if command in ("fit", "validate") and option.startswith("--") and name not in ("config", "print_config"):
                assert name in known or name.startswith(("model.loss.", "trainer.")), option


@pytest.mark.parametrize("page", [DOCS / "losses.md", DOCS / "extending.md"], ids=by_path)
def test_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_losses", dict(registry._losses))
    monkeypatch.setattr(judges, "_judges", dict(judges._judges))
    monkeypatch.syspath_prepend(str(tmp_path))
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    assert code
    (tmp_path / f"page_{page.stem}.py").write_text(code, encoding="utf-8")
    importlib.import_module(f"page_{page.stem}")
    del sys.modules[f"page_{page.stem}"]
    FORMATS.pop("question", None)


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=280)
    assert (tmp_path / "site/index.html").is_file()
