"""The hashed lock, and the bill of materials of a release."""

import json
import re
from types import SimpleNamespace

import pytest

from scripts import sbom
from scripts.lock import CONSTRAINTS, LOCK, lock, pins

WHEEL = {
    "metadata": {"name": "A_b", "version": "1.0"},
    "download_info": {"url": "x/A_b-1.0-py3-none-any.whl", "archive_info": {"hashes": {"sha256": "00"}}},
}


def test_the_lock_has_the_pins_of_the_constraints():
    text = LOCK.read_text(encoding="utf-8")
    assert pins(text) == pins(CONSTRAINTS.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    assert "/" not in "".join(lines)  # no index, no file


def test_pins_are_exact_and_apply_here():
    text = "# a\nA.b==1.0 # why\nc==2; python_version < '3'\ntorch==2.13.0\nd==3 --hash=sha256:00\n"
    assert pins(text) == {"a-b": "1.0", "d": "3"}
    with pytest.raises(ValueError, match="is not an exact version"):
        pins("a>=1")


def test_what_is_built_is_no_lock():
    assert lock([WHEEL]).splitlines()[-1] == "a-b==1.0 --hash=sha256:00"
    source = {**WHEEL, "download_info": {**WHEEL["download_info"], "url": "x/A_b-1.0.tar.gz"}}
    with pytest.raises(SystemExit, match="is no wheel"):
        lock([source])


@pytest.fixture
def installed(monkeypatch):
    """Four distributions, one of them needed by an extra of another only."""
    requires = {
        "a": ["B[x]>=1", "e; python_version < '3'", "f; extra == 'dev'"],
        "b": ["c", "d; extra == 'x'"],
        "c": ["b"],
        "d": None,
    }

    def distribution(name):
        meta = SimpleNamespace(get={"License": "MIT"}.get, get_all=lambda key: [])
        return SimpleNamespace(requires=requires[name], version="1+cpu", metadata=meta)

    monkeypatch.setattr(sbom, "distribution", distribution)


def test_a_bill_lists_what_is_required(installed):
    document = sbom.bill("A", "c==1+cpu --hash=sha256:ff\n")
    assert [c["name"] for c in document["components"]] == ["b", "c", "d"]
    assert document["components"][1]["hashes"] == [{"alg": "SHA-256", "content": "ff"}]
    graph = {entry["ref"]: entry["dependsOn"] for entry in document["dependencies"]}
    ref = "pkg:pypi/{}@1%2Bcpu".format
    assert graph == {ref("a"): [ref("b")], ref("b"): [ref("c"), ref("d")], ref("c"): [ref("b")], ref("d"): []}
    assert document == sbom.bill("A", "c==1+cpu --hash=sha256:ff\n")


def test_the_bill_of_this_package_is_valid(tmp_path):
    pytest.importorskip("cyclonedx")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    from packaging.requirements import Requirement

    from tests.test_dependencies import PROJECT, normal

    path = tmp_path / "sbom.json"
    assert sbom.write(path) > 40
    text = path.read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    listed = {entry["name"] for entry in json.loads(text)["components"]}
    assert {normal(Requirement(line).name) for line in PROJECT["dependencies"]} <= listed
