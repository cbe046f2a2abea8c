"""The table over rounds: what was made of the policy's answers, and how it was trained on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adadpo_lightning.generation.responses import write_atomically
from adadpo_lightning.metrics import names
from adadpo_lightning.runs.logs import last_metrics

METRICS = (names.LOSS, names.REWARDS_ACCURACIES, names.REWARDS_MARGINS, names.BALANCE_RATIO, names.KL_CHOSEN)
COLUMNS = {
    "prompts": "prompts",
    "pairs": "pairs",
    "score": "mean score",
    "tokens": "mean tokens",
    "cut_off": "cut off",
    "chosen_longer": "chosen longer",
    names.LOSS: "loss",
    names.REWARDS_ACCURACIES: "reward accuracy",
    names.REWARDS_MARGINS: "reward margin",
    names.BALANCE_RATIO: "balance ratio",
}
PERCENT = ("cut_off", "chosen_longer", names.REWARDS_ACCURACIES)


def result_of(folder: Path, number: int) -> dict[str, Any]:
    """What a finished round made and measured.

    Args:
        folder: Directory of the round.
        number: Its number, from 1.

    Returns:
        Counts of prompts and pairs; mean score (None for judges that compare two answers: their mean win rate is 0.5
        by definition) and tokens of the answers at the start of the round; the share that was cut off; the share of
        pairs whose chosen answer is longer; and the last values of `METRICS`, of validation if there was one.
    """
    made = json.loads((folder / "pairs" / "report.json").read_text(encoding="utf-8"))
    found = last_metrics(folder / "fit")
    measured = {name: found.get(names.val(name), found.get(names.train(name))) for name in METRICS}
    return {
        "round": number,
        "prompts": made["prompts"],
        "pairs": made["pairs"],
        "score": made["scores"]["answers"]["mean"] if made["pointwise"] else None,
        "tokens": made["tokens"]["answers"]["mean"],
        "cut_off": made["answers_left_out"].get("cut off", 0) / made["answers"],
        "chosen_longer": made["length_bias"]["chosen_longer"],
        "metrics_of": "val" if any(name.startswith("val/") for name in found) else "train",
        **measured,
    }


def rounds_table(results: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown; columns without any value are left out."""
    columns = {name: title for name, title in COLUMNS.items() if any(row.get(name) is not None for row in results)}
    lines = [["round", *columns.values()], ["---:"] * (1 + len(columns))]
    lines += [[str(row["round"]), *(_shown(name, row.get(name)) for name in columns)] for row in results]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name in PERCENT:
        return f"{100 * value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def write_rounds_report(root: Path, results: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``rounds.md``."""
    stage = "validation" if results and results[-1]["metrics_of"] == "val" else "training"
    text = (
        "# Rounds\n\n"
        f"{rounds_table(results)}\n\n"
        "Score, tokens, cut off: of the answers that a round sampled from the model it started from, so the row of a "
        "round shows what the rounds before it have done. Cut off: answers that reached max_new_tokens. Loss, rewards "
        f"and balance: the last value of {stage} in the round's `fit`. Each `roundN/pairs/report.md` has more.\n"
    )
    path = root / "rounds.md"
    write_atomically(path, text)
    return path
