"""The report of `gpu.py` as a page."""

from __future__ import annotations

from typing import Any


def page(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    lines = ["# GPU acceptance", ""]
    if report["rehearsal"]:
        lines += ["**A rehearsal on a CPU with tiny sizes: it shows that the parts run, and no figure counts.**", ""]
    lines += [f"- {name}: {report[name]}" for name in ("device", "python", "torch", "date") if name in report]
    lines += ["", "| part | status | s | share, s | shows |", "|---|---|---|---|---|"]
    for name, row in report["parts"].items():
        lines.append(f"| {name} | {row['status']} | {row['seconds']:.0f} | {row['share_s']:.0f} | {row['what']} |")
    for name, row in report["parts"].items():
        lines += ["", f"## {name}: {row['status']}", ""]
        if row.get("measured"):
            lines += ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in flat(row["measured"]))]
        if row.get("log"):
            lines += ["", "```text", row["log"].replace("```", "'''"), "```"]
    return "\n".join(lines) + "\n"


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested values as rows of dotted names."""
    if isinstance(value, dict):
        return [row for key, item in value.items() for row in flat(item, f"{name}.{key}" if name else str(key))]
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return [(name, shown.replace("|", "\\|").replace("\n", " "))]
