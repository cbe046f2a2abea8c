"""`benchmarks/gpu.py`: parts do not depend on each other; and what of it a CPU can show."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = Path(sys.executable)
SLEEPS = "import time, pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{\"first\": 1}'); time.sleep(60)"
PASSES = "import json, sys; json.dump({'answer': {'of': 0.5}}, open(sys.argv[1], 'w'))"
# Leaves a child that outlives it, as a killed benchmark does.
LEAVES = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); print('oh')"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


@pytest.fixture
def fake_cuda(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("fake_cuda")


def test_no_part_depends_on_another(benchmark, tmp_path):
    def part(name, code, share=5.0):
        return benchmark.Part(name, share, name, ("-c", code, "{output}"))

    parts = (
        part("sleeps", SLEEPS, 1.5),
        part("fails", "print('the reason'); 1 / 0"),
        part("lacks", "raise SystemExit(3)"),
        part("leaves", LEAVES),
        part("passes", PASSES),
    )
    report = benchmark.run_all(parts, PYTHON, tmp_path, 60.0, False, {"device": "none"})
    found = {name: row["status"] for name, row in report["parts"].items()}
    assert found == {
        "sleeps": "out of time",
        "fails": "failed",
        "lacks": "needs what is missing",
        "leaves": "passed",
        "passes": "passed",
    }
    assert report["parts"]["sleeps"]["measured"] == {"first": 1}  # what it had by then
    assert "the reason" in report["parts"]["fails"]["log"]
    assert json.loads((tmp_path / "gpu.json").read_text()) == report
    page = (tmp_path / "gpu.md").read_text()
    assert "| answer.of | 0.5 |" in page
    assert "ZeroDivisionError" in page


def test_time_that_is_left_passes_on_and_the_budget_holds(benchmark, tmp_path):
    parts = tuple(benchmark.Part(f"p{n}", 20.0, "", ("-c", PASSES, "{output}")) for n in range(3))
    report = benchmark.run_all(parts, PYTHON, tmp_path, 41.0, False, {})
    limits = [row.get("limit_s") for row in report["parts"].values()]
    assert limits[0] == 20.0
    assert limits[0] < limits[1] <= 40.0
    assert limits[2] <= 41.0
    report = benchmark.run_all(parts, PYTHON, tmp_path, 0.5, False, {})
    assert {row["status"] for row in report["parts"].values()} == {"out of time"}


def test_all_parts_fit_the_nine_minutes(benchmark):
    assert sum(part.share_s for part in benchmark.PARTS) <= benchmark.BUDGET_S <= 540


def test_a_model_has_the_same_weights_in_every_data_type(benchmark):
    case = importlib.import_module("gpu_case")
    exact, *others = (case.small_policy("llama", dtype, "padded", True) for dtype in ("float64", "float32", "bfloat16"))
    for policy in others:
        for value, expected in zip(policy.parameters(), exact.parameters(), strict=True):
            assert value.dtype != expected.dtype
            assert value.equal(expected.to(value.dtype))


def test_backends_are_not_compared_with_a_wrong_measure(benchmark, monkeypatch, tmp_path):
    checks, case = importlib.import_module("gpu_checks"), importlib.import_module("gpu_case")
    comparison = checks.Comparison("llama", 2, case.Report(tmp_path / "out.json", True))
    monkeypatch.setattr(checks.Comparison, "distances", lambda *_: {"logps": 0.1, "gradient": 1.4})
    with pytest.raises(AssertionError, match="no measure"):
        comparison.check("float32", "segments")


def rehearse(folder, *options):
    command = [sys.executable, "benchmarks/gpu.py", "--rehearse", "--python", sys.executable, f"--output={folder}"]
    result = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr + (folder / "gpu.md").read_text()
    return json.loads((folder / "gpu.json").read_text())["parts"]


@pytest.mark.slow
def test_rehearsal_of_the_backends(tmp_path):
    parts = rehearse(tmp_path, "--parts", "backends", "four_bit", "--budget", "300")
    assert parts["four_bit"]["status"] == "needs a GPU"
    measured = parts["backends"]["measured"]
    assert set(measured) == {
        f"llama, {answers} answers, {dtype}, {backend}"
        for answers in (2, 4)
        for dtype in ("float32", "bfloat16")
        for backend in ("segments", "tree")
    }
    assert all(0 < row["gradient"] < 0.1 for row in measured.values())


@pytest.mark.slow
def test_rehearsal_of_all_parts(tmp_path):
    pytest.importorskip("trl")
    parts = rehearse(tmp_path, "--budget", "1500")
    assert [name for name, row in parts.items() if row["status"] == "needs a GPU"] == ["tests", "four_bit"]
    assert all(row["measured"] for row in parts.values() if row["status"] == "passed")
    assert parts["speed"]["measured"]["plain"]["step_s"] > 0


@pytest.mark.parametrize(("backend", "dtype"), [("padded", "bfloat16"), ("segments", "float32")])
def test_no_value_is_waited_for_in_a_step(fake_cuda, backend, dtype):
    fake_cuda.forward("llama", backend, dtype, 4, "cpu")


def test_a_wait_would_be_found(fake_cuda, monkeypatch):
    from adadpo_lightning.types import PreferenceBatch

    def waits(batch):
        return batch.answer_len.repeat_interleave(batch.answer_len)  # no output_size

    monkeypatch.setattr(PreferenceBatch, "tokens_of_sides", waits)
    with pytest.raises(Exception, match=r"data-dependent|dynamic shape|DynamicOutputShape|repeat_interleave"):
        fake_cuda.forward("llama", "padded", "float32", 4, "cpu")


def test_fake_cuda_says_so_without_the_cuda_build(fake_cuda, monkeypatch, capsys):
    monkeypatch.setattr("torch.version.cuda", None)
    assert fake_cuda.main() == fake_cuda.NO_CUDA
    assert "CPU build" in capsys.readouterr().out
