"""The documentation that is written from docstrings is what the docstrings say, and its links lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

from adadpo_lightning.cli.app import known_options

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def make_docs():
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts/make_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "function"), [("configuration.md", "configuration"), ("from_trl.md", "from_trl")])
def test_the_committed_page_is_up_to_date(make_docs, name, function):
    expected = getattr(make_docs, function)()
    assert (DOCS / name).read_text(encoding="utf-8") == expected, "run python scripts/make_docs.py"


def test_every_key_of_model_and_data_is_explained(make_docs):
    text = make_docs.configuration()
    rows = dict(re.findall(r"^\| `([\w.]+)` \|(.*)\|$", text, re.MULTILINE))
    for name in known_options():
        if name.startswith(("model.", "data.")):
            assert name in rows, name
            assert rows[name].rpartition("|")[2].strip(), f"{name} has no text"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link
