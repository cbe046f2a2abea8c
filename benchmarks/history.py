"""One line per release: the headline ratios of the committed results, and a figure of them over the releases.

    python benchmarks/history.py        # adds the line of this version, or replaces it, and draws
    python benchmarks/history.py --draw # only draws

`benchmarks/history.jsonl` has a JSON object per line, in the order of the releases: version, date and machine of the
results, and each ratio. Only ratios are kept, because seconds of two machines cannot be compared. A result file that
does not exist adds nothing to its line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from adadpo_lightning import __version__

FOLDER = Path(__file__).resolve().parent
# Name of a ratio, in the figure and in the history: the result file, and the keys that lead to it.
RATIOS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{
        f"{what} to TRL, {lengths}": ("vs_trl_cpu.json", (lengths, "packed", f"{key}_ratio_to_trl"))
        for lengths in ("short", "long", "real")
        for what, key in (("step", "step"), ("memory", "memory"))
    },
    "step with diagnostics to without": ("diagnostics_cost_cpu.json", ("step_ratio_with_to_without",)),
    "compiled step to plain": ("compile_cpu.json", ("warm", "step_ratio_to_plain")),
    "process to TRL, full": ("end_to_end_cpu.json", ("kinds", "full", "ratio", "wall_s")),
    "process to TRL, LoRA": ("end_to_end_cpu.json", ("kinds", "lora", "ratio", "wall_s")),
}


def value_at(record: Any, keys: tuple[str, ...]) -> float | None:
    """The number at a path of keys; None if there is none."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return None if record is None else float(record)


def line_of(version: str, results: Path) -> dict[str, Any]:
    """The line of a version, from a folder of results.

    Raises:
        SystemExit: If the results have none of the ratios.
    """
    files = {name: json.loads((results / name).read_text(encoding="utf-8")) for name in _existing(results)}
    found = {name: value_at(files.get(file), keys) for name, (file, keys) in RATIOS.items()}
    ratios = {name: round(value, 4) for name, value in found.items() if value is not None}
    if not ratios:
        raise SystemExit(f"{results} has no results: run the benchmarks first, see benchmarks/README.md")
    machines = {file: files[file]["machine"] for file in files}
    devices = sorted({f"{machine['device']}, {machine['cores']} cores" for machine in machines.values()})
    dates = sorted(machine["date"] for machine in machines.values())
    return {"version": version, "date": dates[-1], "machine": "; ".join(devices), "ratios": ratios}


def _existing(results: Path) -> list[str]:
    return sorted({file for file, _ in RATIOS.values() if (results / file).is_file()})


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a history; none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def updated(lines: list[dict[str, Any]], line: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines with one more, which replaces that of the same version at its place."""
    if line["version"] not in [old["version"] for old in lines]:
        return [*lines, line]
    return [line if old["version"] == line["version"] else old for old in lines]


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw each ratio over the releases."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = [name for name in RATIOS if any(name in line["ratios"] for line in lines)]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, name in enumerate(names):
        points = [(i, line["ratios"][name]) for i, line in enumerate(lines) if name in line["ratios"]]
        label = f"{name}: {points[-1][1]:.2f}"
        axes.plot(*zip(*points, strict=True), marker="osD^v<>PX*"[number % 10], linewidth=1.5, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(yscale="log", ylabel="ratio, lower is better", title="Headline ratios by release")
    axes.set_xticks(range(len(lines)), [line["version"] for line in lines])
    axes.set_xlim(-0.5, len(lines) - 0.5)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Add the line of this version and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="only draw")
    parser.add_argument("--results", type=Path, default=FOLDER / "results")
    parser.add_argument("--history", type=Path, default=FOLDER / "history.jsonl")
    args = parser.parse_args()
    lines = read(args.history)
    if not args.draw:
        lines = updated(lines, line_of(__version__, args.results))
        text = "".join(json.dumps(line) + "\n" for line in lines)
        args.history.write_text(text, encoding="utf-8")
    draw(lines, args.history.with_suffix(".svg"))


if __name__ == "__main__":
    main()
