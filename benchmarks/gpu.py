"""What a GPU has to show, in one command: at most 9 minutes on one H100 or H200, with a bare Python 3.12.

    python benchmarks/gpu.py                       # makes .venv-gpu where this Python lacks something
    python benchmarks/gpu.py --python PATH         # uses that interpreter as it is and installs nothing
    python benchmarks/gpu.py --parts sync backends
    python benchmarks/gpu.py --rehearse            # the same on a CPU with tiny sizes; no figure of it says anything

Each part is a process with a time limit, so that no part depends on another: the limit is its share of the budget plus
what earlier parts left. A part that is out of time, fails or needs what is missing is reported as such, with what it
had measured by then. Written to `--output`, after every part: `gpu.json`, `gpu.md` and a log for each part. Exit
status: 0 if no part failed or ran out of time, 1 if one did, 3 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu_page import page
from gpu_python import ROOT, describe, interpreter

HERE = Path(__file__).resolve().parent
BUDGET_S = 525  # of 540: the rest is for ending processes and for writing
INSTALL_S = 100
FAILURES = ("failed", "out of time")
END_OF_LOG = 1500


@dataclass(frozen=True)
class Part:
    """One process.

    Args:
        name: Name in the report.
        share_s: Its share of the budget, seconds.
        what: What it shows.
        command: Arguments of the interpreter; ``{output}`` stands for the JSON file to write.
        rehearsal: The same for a CPU; None if only a GPU can show anything.
    """

    name: str
    share_s: float
    what: str
    command: tuple[str, ...]
    rehearsal: tuple[str, ...] | None = None


def script(name: str, *arguments: str) -> tuple[str, ...]:
    """Arguments of the interpreter for one of the benchmarks."""
    return (str(HERE / name), *arguments, "--output", "{output}")


def own(home: str, name: str, share_s: float, what: str, *, on_cpu: bool = True) -> Part:
    """A part that is no benchmark of its own."""
    command = script(f"gpu_{home}.py", name)
    return Part(name, share_s, what, command, (*command, "--rehearse") if on_cpu else None)


CUDA = ("--device", "cuda", "--dtype", "bfloat16")
TINY = ("--models", "tiny", "--rounds", "1", "--pairs", "2", "--lengths", "short", "--threads", "1")
# By importance: what makes training wrong first, then what makes it slow.
PARTS = (
    own("checks", "sync", 45, "a training step never waits for the device, known exceptions aside"),
    own("checks", "backends", 65, "all attention backends agree, float32 and bfloat16, pairs and groups"),
    Part(
        "tests", 75, "the tests that are marked gpu",
        ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--junitxml", "{output}", "tests"),
    ),
    own("figures", "memory", 40, "peak memory of a step against `estimate`, within 15 %"),
    Part(
        "vs_trl", 85, "a step of a 1B model in bfloat16, here and in TRL",
        # Two bfloat16 runs differ by rounding; their losses start at log 2.
        script("vs_trl.py", *CUDA, "--models", "1b", "--lengths", "real", "--pairs", "2", "--rounds", "5",
               "--variants", "trl", "trl_chunked", "packed", "--tolerance", "0.05"),
        script("vs_trl.py", *TINY, "--variants", "trl", "packed"),
    ),
    Part(
        "end_to_end", 90, "whole runs on SmolLM2-135M-Instruct, here and in TRL, full and LoRA",
        script("end_to_end.py", "--device", "cuda", "--rounds", "1", "--pairs", "64"),
        script("gpu_figures.py", "end_to_end", "--rehearse"),
    ),
    own("figures", "speed", 50, "model FLOP utilisation of a 1B model in bfloat16, plain and with torch.compile"),
    own("figures", "four_bit", 25, "LoRA on a 4-bit base model: its memory, and a loss that falls", on_cpu=False),
    Part(
        "diagnostics", 25, "what the default diagnostics add to a step",
        script("diagnostics_cost.py", *CUDA, "--model", "1b", "--rounds", "10"),
        script("diagnostics_cost.py", "--model", "tiny", "--rounds", "2", "--pairs", "2", "--threads", "1"),
    ),
)  # fmt: skip


def run_part(part: Part, python: Path, folder: Path, limit_s: float, rehearse: bool) -> dict[str, Any]:
    """Run one part in a process group of its own and end all of it at the limit.

    Returns:
        Its row of the report: status, seconds, limit, measured values and the end of its log if it did not pass.
    """
    command = part.rehearsal if rehearse else part.command
    row: dict[str, Any] = {"what": part.what, "share_s": part.share_s, "limit_s": round(limit_s, 1)}
    if command is None:
        return {**row, "status": "needs a GPU", "seconds": 0.0}
    output, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    output.unlink(missing_ok=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), str(ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as sink:
        process = subprocess.Popen(
            [str(python), *(argument.replace("{output}", str(output)) for argument in command)],
            cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(timeout=max(limit_s, 0.1))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # Also what it started itself, such as the processes that a benchmark compares.
            end_group(process)
    row |= {"status": status_of(code), "seconds": round(time.monotonic() - start, 1), "measured": read(output)}
    if code != 0:
        row["log"] = log.read_text(encoding="utf-8", errors="replace")[-END_OF_LOG:]
    return row


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process and of all that it started."""
    with suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# Exit status of a part that finds that something it needs is missing.
MISSING = 3


def status_of(code: int | None) -> str:
    """In words; None is a process that was ended at its limit."""
    return {None: "out of time", 0: "passed", MISSING: "needs what is missing"}.get(code, "failed")


def read(path: Path) -> Any:
    """What a part has written: JSON, or pytest's XML as counts; None if there is nothing."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        if not text.startswith("<"):
            return json.loads(text)
        suite = ElementTree.fromstring(text).find("testsuite")  # noqa: S314  # written by our own pytest
    except (ValueError, ElementTree.ParseError):
        return {"unreadable": text[:200]}  # the part was ended while it wrote
    return {} if suite is None else {name: int(suite.get(name, 0)) for name in COUNTS}


COUNTS = ("tests", "failures", "errors", "skipped")


def run_all(
    parts: tuple[Part, ...], python: Path, folder: Path, budget_s: float, rehearse: bool, note: dict[str, Any]
) -> dict[str, Any]:
    """Run the parts in order; what one does not use of its share the next ones may use."""
    start = time.monotonic()
    report: dict[str, Any] = {**note, "rehearsal": rehearse, "budget_s": budget_s, "parts": {}}
    shares_so_far = 0.0
    for part in parts:
        shares_so_far += part.share_s
        left = min(shares_so_far, budget_s) - (time.monotonic() - start)
        if left < 1.0:
            row: dict[str, Any] = {"what": part.what, "share_s": part.share_s, "status": "out of time", "seconds": 0.0}
        else:
            row = run_part(part, python, folder, left, rehearse)
        report["parts"][part.name] = row
        print(f"{part.name:12}{row['status']:22}{row['seconds']:7.1f} s", flush=True)
        (folder / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (folder / "gpu.md").write_text(page(report), encoding="utf-8")
    return report


def main() -> int:
    """Print the budget, run the parts, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="default: all, by importance")
    parser.add_argument("--python", type=Path, help="interpreter to use as it is")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for all, the installation included")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny sizes")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu", help="folder for the report")
    args = parser.parse_args()
    start = time.monotonic()
    folder = args.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    parts = tuple(part for part in PARTS if args.parts is None or part.name in args.parts)
    print(f"budget {args.budget:.0f} s: " + ", ".join(f"{part.name} {part.share_s:.0f}" for part in parts))
    python = interpreter(args.python, min(INSTALL_S, args.budget), folder / "install.log")
    note = describe(python)
    if note["device"] is None and not args.rehearse:
        print("gpu: torch finds no CUDA device; --rehearse tries the parts on the CPU")
        return MISSING
    report = run_all(parts, python, folder, args.budget - (time.monotonic() - start), args.rehearse, note)
    print(f"written: {folder / 'gpu.json'}, {folder / 'gpu.md'}")
    return int(any(row["status"] in FAILURES for row in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
