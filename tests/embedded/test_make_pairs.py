"""make-pairs with the gold judge: its scores are the gold rewards."""

from adadpo_lightning.embedded.gold import grade
from adadpo_lightning.embedded.task import read_rows
from adadpo_lightning.preferences import report
from adadpo_lightning.preferences.make import make_pairs
from adadpo_lightning.preferences.options import MakePairsOptions


def test_the_embedded_tasks_gold_judge(task, warmup_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    asked = task.root / "prompts_train.jsonl"
    options = MakePairsOptions(
        str(warmup_dir),
        str(asked),
        str(tmp_path),
        "gold",
        max_new_tokens=20,
        temperature=1.0,
        samples=4,
        limit=4,
        unfinished="keep",
        select="all",
    )
    made = make_pairs(options)
    answers = {(row["prompt"], row["response"]): row["finished"] for row in read_rows(tmp_path / "responses.jsonl")}
    for row in read_rows(made.pairs):
        for side in ("chosen", "rejected"):
            finished = answers[row["prompt"], row[side]]
            assert row[f"score_{side}"] == grade(row["prompt"], row[side], finished=finished).gold
