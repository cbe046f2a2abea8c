"""From two files and a judge to a report."""

import json
import math

import numpy as np
import pytest

from adadpo_lightning.cli import main
from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.comparisons import match_responses, read_difficulties
from adadpo_lightning.evaluation.judges.annotations import AnnotationsJudge
from adadpo_lightning.evaluation.judges.base import Judge, build_judge
from adadpo_lightning.evaluation.length_controlled import Anchor, length_controlled
from adadpo_lightning.evaluation.options import EvaluationOptions
from adadpo_lightning.evaluation.report import evaluate_responses
from adadpo_lightning.generation.responses import Response

RNG = np.random.default_rng(0)
N = 300
LENGTHS = RNG.integers(1, 60, (N, 2))
DIFFICULTY = RNG.normal(0, 1, N)
GAP = LENGTHS[:, 1] - LENGTHS[:, 0]
SOFT = 1 / (1 + np.exp(-(0.3 + 1.0 * np.tanh(GAP / GAP.std(ddof=1)) + 0.7 * DIFFICULTY)))


def annotations(path, *, difficulty=True, generators=("base", "mine"), soft=SOFT, lengths=LENGTHS):
    rows = [
        {
            "instruction": f"prompt {i}",
            "output_1": "x" * int(lengths[i, 0]),
            "output_2": "y" * int(lengths[i, 1]),
            "generator_1": generators[0],
            "generator_2": generators[1],
            "preference": 1 + float(soft[i]),
        }
        | ({"instruction_difficulty": float(DIFFICULTY[i])} if difficulty else {})
        for i in range(len(soft))
    ]
    path.write_text(json.dumps(rows))
    return path


def run(tmp_path, *args):
    assert main(["evaluate", f"--output={tmp_path / 'out.json'}", *map(str, args)]) == 0
    return json.loads((tmp_path / "out.json").read_text())


def test_annotations_to_a_report(tmp_path, capsys):
    file = annotations(tmp_path / "annotations.json")
    report = run(tmp_path, "--judge=annotations", f"--annotations={file}", "--bootstrap=200")
    assert (report["model"], report["baseline"], report["n"], report["n_no_verdict"]) == ("mine", "base", N, 0)
    assert report["win_rate"] == pytest.approx(SOFT.mean())
    assert report["rates"] == "fraction"
    assert report["win_rate_se"] == pytest.approx(SOFT.std(ddof=1) / np.sqrt(N))
    assert report["discrete_win_rate"] == pytest.approx((SOFT > 0.5).mean())
    expected = (1 / (1 + np.exp(-(0.3 + 0.7 * DIFFICULTY)))).mean()
    assert report["length_controlled_win_rate"] == pytest.approx(expected, abs=1e-6)
    without = length_controlled(SOFT, GAP).win_rate
    assert report["length_controlled_win_rate_no_difficulty"] == pytest.approx(without)
    for name in ("win_rate", "length_controlled_win_rate", "length_controlled_win_rate_no_difficulty"):
        low, high = report[f"{name}_ci"]
        assert low < report[name] < high
        assert high - low == pytest.approx(2 * 1.96 * report[f"{name}_se"], rel=0.25)
    assert report["mean_length"] == pytest.approx(LENGTHS[:, 1].mean())
    assert report["mean_length_baseline"] == pytest.approx(LENGTHS[:, 0].mean())
    assert len(report["per_prompt"]) == N
    first = {"prompt": "prompt 0", "preference": SOFT[0], "length": LENGTHS[0, 1], "length_baseline": LENGTHS[0, 0]}
    assert report["per_prompt"][0] == pytest.approx(first)
    assert f"win rate                    {100 * SOFT.mean():.2f} %" in capsys.readouterr().out


def test_the_other_side_has_the_complement(tmp_path):
    file = annotations(tmp_path / "annotations.json")
    args = ["--judge=annotations", f"--annotations={file}", "--bootstrap=0"]
    mine, base = run(tmp_path, *args), run(tmp_path, *args, "--judge_options.generator=base")
    for name in ("win_rate", "length_controlled_win_rate", "length_controlled_win_rate_no_difficulty"):
        assert mine[name] + base[name] == pytest.approx(1, abs=1e-6)
        assert mine[f"{name}_ci"] is None


def test_an_anchor_enters_the_fit(tmp_path):
    file = annotations(tmp_path / "annotations.json", difficulty=False)
    wide = np.random.default_rng(1).integers(1, 90, (200, 2))
    gap = wide[:, 1] - wide[:, 0]
    pinned = 1 / (1 + np.exp(-3.0 * np.tanh(gap / gap.std(ddof=1))))
    anchor = annotations(tmp_path / "a.json", difficulty=False, generators=("b", "b2"), soft=pinned, lengths=wide)
    args = ["--judge=annotations", f"--annotations={file}", "--bootstrap=0"]
    plain = run(tmp_path, *args)["length_controlled_win_rate"]
    anchored = run(tmp_path, *args, f"--length_anchor=[{anchor},{anchor}]")["length_controlled_win_rate"]
    rows = Anchor(np.tile(pinned, 2), np.tile(gap / gap.std(ddof=1), 2), None, weight=0.1)
    assert anchored == pytest.approx(length_controlled(SOFT, GAP, anchor=rows).win_rate)
    assert abs(plain - anchored) > 1e-4


@pytest.mark.parametrize("key", ["index", "instruction"])
def test_difficulties_from_a_file(tmp_path, key):
    args = ["--judge=annotations", f"--annotations={annotations(tmp_path / 'a.json')}", "--bootstrap=0"]
    anchor = [f"--length_anchor=[{annotations(tmp_path / 'b.json', soft=np.sqrt(SOFT))}]"]
    expected, anchored = run(tmp_path, *args), run(tmp_path, *args, *anchor)
    annotations(tmp_path / "a.json", difficulty=False)
    annotations(tmp_path / "b.json", difficulty=False, soft=np.sqrt(SOFT))
    names = [i if key == "index" else f"prompt {i}" for i in range(N)]
    lines = [f"{name},{value!r}" for name, value in zip(names, DIFFICULTY.tolist(), strict=True)]
    (tmp_path / "d.csv").write_text("\n".join([f"{key},instruction_difficulty", *lines]) + "\n")
    assert run(tmp_path, *args, f"--difficulty={tmp_path / 'd.csv'}") == expected
    assert run(tmp_path, *args, *anchor, f"--difficulty={tmp_path / 'd.csv'}") == anchored
    assert anchored["length_controlled_win_rate"] != expected["length_controlled_win_rate"]
    (tmp_path / "d.csv").write_text("\n".join([f"{key},instruction_difficulty", *lines[:-2]]) + "\n")
    out = f"--output={tmp_path / 'none.json'}"
    assert main(["evaluate", *args, f"--difficulty={tmp_path / 'd.csv'}", out]) == 2


@pytest.mark.parametrize("row", ["hard,1", "0.5,", "0.5,1.5", "0.5,x"])
def test_a_malformed_difficulty_is_named(tmp_path, row):
    (tmp_path / "d.csv").write_text(f"instruction_difficulty,index\n0.5,0\n{row}\n")
    with pytest.raises(UserError, match=r"d\.csv, row 2"):
        read_difficulties(str(tmp_path / "d.csv"))


def test_two_response_files_by_gold(tmp_path):
    asked = [f"what is {i} plus 3" for i in range(1, 7)]
    right = [f"{i} plus 3 is {i + 3} ." for i in range(1, 7)]
    wrong = [f"{i} plus 3 is {i + 4} . {i} plus 3 is {i + 4} ." for i in range(1, 7)]
    mine = [{"prompt": p, "response": r, "generator": "mine", "tokens": 7} for p, r in zip(asked, right, strict=True)]
    base = [
        {"instruction": p, "output": w if i < 4 else r, "generator": "base"}
        for i, (p, w, r) in enumerate(zip(asked, wrong, right, strict=True))
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mine))
    (tmp_path / "base.json").write_text(json.dumps(base[::-1]))  # matched by prompt, not by place
    files = [f"--responses={tmp_path / 'mine.jsonl'}", f"--baseline={tmp_path / 'base.json'}"]
    report = run(tmp_path, "--judge=gold", *files, "--bootstrap=20", "--length_unit=words")
    assert report["win_rate"] == pytest.approx(5 / 6)
    assert [row["preference"] for row in report["per_prompt"]] == [1, 1, 1, 1, 0.5, 0.5]
    assert (report["mean_length"], report["mean_length_baseline"]) == (6, 10)
    soft = run(tmp_path, "--judge=gold", *files, "--bootstrap=0", "--judge_options.temperature=2.5")
    assert 0.5 < soft["win_rate"] < report["win_rate"]


def test_prompts_that_come_twice_are_matched_in_order():
    ours = [Response("p", "1"), Response("q", "2"), Response("p", "3")]
    theirs = [Response("p", "a"), Response("p", "b"), Response("r", "c"), Response("q", "d")]
    matched = [(c.model.response, c.baseline.response) for c in match_responses(ours, theirs)]
    assert matched == [("1", "a"), ("2", "d"), ("3", "b")]
    with pytest.raises(UserError, match="has no answer to 1 of 4 prompts, the first: 'p'"):
        match_responses([*ours, Response("p", "4")], theirs)


@pytest.mark.parametrize(
    ("soft", "rate", "controlled"), [([1.0, 1.0, 1.0], 1, 1), ([0.0, 0.0], 0, 0), ([1.0], 1, None)]
)
def test_the_edges(tmp_path, soft, rate, controlled):
    judge = AnnotationsJudge(str(annotations(tmp_path / "a.json", difficulty=False, soft=np.array(soft))))
    report = evaluate_responses(judge, judge.comparisons(), EvaluationOptions(resamples=10))
    assert (report["win_rate"], report["length_controlled_win_rate"]) == (rate, controlled)
    assert bool(report["notes"]) == (controlled is None)
    json.dumps(report, allow_nan=False)


def test_several_answers_to_one_prompt_are_said():
    prompts = [f"why {i // 2}" for i in range(6)]
    ours, theirs = [Response(p, "a" * i) for i, p in enumerate(prompts)], [Response(p, "bb") for p in prompts]
    comparisons = match_responses(ours, theirs)
    notes = evaluate_responses(build_judge("length"), comparisons, EvaluationOptions(resamples=0))["notes"]
    assert any("6 comparisons are on 3 prompts" in note for note in notes)


def test_no_verdict_is_counted_and_left_out(tmp_path):
    rows = json.loads(annotations(tmp_path / "a.json").read_text())
    for row in rows[:10]:
        row["preference"] = None
    (tmp_path / "a.json").write_text(json.dumps(rows))
    judge = AnnotationsJudge(str(tmp_path / "a.json"))
    report = evaluate_responses(judge, judge.comparisons(), EvaluationOptions(resamples=0))
    assert (report["n"], report["n_no_verdict"]) == (N - 10, 10)
    assert report["win_rate"] == pytest.approx(SOFT[10:].mean())


@pytest.mark.parametrize(("verdicts", "got"), [([0.5], "1 for 2"), ([0.5, 2.0], "2.0"), ([math.nan] * 2, "nan")])
def test_a_judge_that_returns_nonsense_is_named(verdicts, got):
    class Odd(Judge):
        key = "odd"

        def preferences(self, comparisons):
            return verdicts

    pairs = match_responses([Response("p", "1")] * 2, [Response("p", "a")] * 2)
    with pytest.raises(UserError, match=rf"judge 'odd': expected a number in \[0, 1\] .*, got {got}"):
        evaluate_responses(Odd(), pairs)


BAD = {
    "no such judge": (["--judge=golf"], "did you mean 'gold'"),
    "no files": (["--judge=gold"], "'gold' needs two response files"),
    "one file": (["--judge=gold", "--responses=p.jsonl"], "baseline: two response files are needed, got one"),
    "no annotations": (["--judge=annotations"], "needs annotations"),
    "annotations for gold": (["--judge=gold", "--annotations=x"], "has no option 'annotations'"),
    "missing file": (["--judge=annotations", "--annotations=x.json"], "x.json: no such file"),
    "no answer": (["--judge=gold", "--responses=p.jsonl", "--baseline=p.jsonl"], "p.jsonl:1: has no answer"),
    "broken": (["--judge=annotations", "--annotations=broken.json"], "malformed JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_one_clear_error(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "why"}\n')
    (tmp_path / "broken.json").write_text('[{"instruction": ')
    args, message = BAD[case]
    assert main(["evaluate", "--output=out.json", *args]) == 2
    error = capsys.readouterr().err
    assert message in error, error
    assert not (tmp_path / "out.json").exists()


def test_difficulty_for_some_prompts_only(tmp_path):
    rows = json.loads(annotations(tmp_path / "a.json").read_text())
    del rows[3]["instruction_difficulty"]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    judge = AnnotationsJudge(str(tmp_path / "a.json"))
    with pytest.raises(UserError, match=f"given for {N - 1} of {N} prompts"):
        evaluate_responses(judge, judge.comparisons(), EvaluationOptions(resamples=0))
