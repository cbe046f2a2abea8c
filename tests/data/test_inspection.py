"""What inspect-data finds in data with known faults."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from adadpo_lightning.cli import main
from adadpo_lightning.data.inspection import histogram, inspect_pairs, print_inspection, to_html
from adadpo_lightning.data.inspection.findings import pieces_of
from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.prepare import prepare
from adadpo_lightning.data.sources import SourceConfig
from tests.support.tiny import make_tokenizer, write_rows
from tests.support.tokenizers import make

ROWS = [
    {"prompt": "why cat", "chosen": "yes a dog", "rejected": "no"},
    {"prompt": "why cat", "chosen": "yes a dog", "rejected": "no"},  # a repeat
    {"prompt": "why cat", "chosen": "no", "rejected": "yes a dog"},  # the opposite
    {"prompt": "how bird", "chosen": "red fish in house", "rejected": "no"},
    {"prompt": "how dog", "chosen": "red fish in house tree", "rejected": "no"},
    {"prompt": "how fish", "chosen": "same", "rejected": "same"},  # dropped
    {"prompt": "how cat", "chosen": "a " * 60, "rejected": "no"},  # cut
    {"prompt": "how cat", "chosen": "", "rejected": "no"},  # bad
]


def inspected(path, rows=ROWS, **options):
    tokenizer = make_tokenizer()
    options = TokenizeOptions(**{"max_length": 40} | options)
    source = SourceConfig(str(write_rows(path / "pairs.jsonl", rows)))
    prepared = prepare("data", [source], tokenizer, options, on_bad_row="drop").with_passes(0)
    return inspect_pairs(prepared, tokenizer)


def test_every_fault_is_found(tmp_path):
    found = inspected(tmp_path)
    facts = dict(found.facts)
    assert facts["rows read"] == "8"
    assert facts["dropped: chosen equals rejected"] == "1"
    assert facts["dropped: empty answer"] == "1"
    assert facts["answer cut"] == "1"
    assert facts["pairs"] == "6"
    assert facts["duplicate pairs"] == "1"
    assert facts["pairs on a duplicate prompt"] == "2"
    assert facts["pairs that prefer what another rejects"] == "1"
    assert facts["prompts with 1 BOS"] == "6"
    assert facts["answers that end with '<eos>'"] == f"{11 / 12:.1%}"  # all but the one that is cut
    assert facts["chosen answer longer"] == "83%"
    assert facts["rejected answer longer"] == "17%"
    for hint in (
        "2 of 8 rows are dropped",
        "1 of 6 pairs are cut",
        "longer one in 83%",
        "1 pairs are exact duplicates",
    ):
        assert any(hint in line for line in found.hints), hint


def test_clean_data_have_no_hints(tmp_path):
    words = ["cat", "dog", "bird", "fish"]
    rows = [{"prompt": f"why {w}", "chosen": "yes a", "rejected": "no in"} for w in words]
    assert inspected(tmp_path, rows).hints == []


def test_a_second_bos_is_seen(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "<bos>" + tokenizer.chat_template
    source = SourceConfig(str(write_rows(tmp_path / "pairs.jsonl", ROWS[:2])))
    prepared = prepare("data", [source], tokenizer, TokenizeOptions()).with_passes(0)
    found = inspect_pairs(prepared, tokenizer)
    assert dict(found.facts)["prompts with 2 BOS"] == "2"
    assert any("more than one BOS" in hint for hint in found.hints)


def test_histograms_count_each_pair_once(tmp_path):
    lengths = np.random.default_rng(0).integers(3, 200, 500)
    bins = histogram(lengths)
    for first, last, count in bins:
        assert count == ((lengths >= first) & (lengths <= last)).sum()
    assert sum(count for _, _, count in bins) == 500
    assert histogram(np.array([7, 7])) == [(7, 7, 2)]


def test_examples_show_the_scored_tokens(tmp_path):
    found = inspected(tmp_path)
    first = found.examples[0]
    assert first.where.endswith("pairs.jsonl:1")
    assert first.texts["chosen"] == "yes a dog <eos>"
    assert first.tokens == {"prompt": 6, "chosen": 4, "rejected": 2}
    console = Console(record=True, width=100, force_terminal=True)
    print_inspection(found, console)
    colored = console.export_text(styles=True)
    assert re.search(r"\x1b\[32myes a dog <eos>", colored)
    assert re.search(r"\x1b\[31mno <eos>", colored)


def test_the_page_is_well_formed_and_escapes_the_data(tmp_path, model_dir, capsys):
    data = write_rows(tmp_path / "pairs.jsonl", [*ROWS, {"prompt": "why", "chosen": "a", "rejected": "dog"}])
    page = tmp_path / "page.html"
    args = ["inspect-data", f"--data={data}", f"--tokenizer={model_dir}", "--max_length=40", f"--html={page}"]
    assert main(args) == 0
    assert "pairs that prefer what" in capsys.readouterr().out
    text = page.read_text()
    assert "&lt;eos&gt;" in text
    assert "<eos>" not in text
    open_tags = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert not {name for name, _ in attrs} & {"src", "href"}
            if tag not in ("meta", "link"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Checker().feed(text)
    assert not open_tags


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--data=nosuch.jsonl"], "no such file"), (["--max_length=1"], "max_length: expected at least 2")],
)
def test_bad_input(options, message, tmp_path, model_dir, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    assert main(["inspect-data", "--data=p.jsonl", f"--tokenizer={model_dir}", *options]) == 2
    assert message in capsys.readouterr().err


def test_one_answer_rows_have_no_rejected_part(tmp_path):
    found = inspected(tmp_path, [{"prompt": "why", "chosen": "yes a"}, {"prompt": "how", "chosen": "no"}])
    assert set(found.histograms) == {"prompt", "chosen"}
    assert set(found.examples[0].texts) == {"prompt", "chosen"}
    assert found.hints == []


@pytest.mark.parametrize("style", ["chatml", "smollm2", "qwen3"])
def test_a_bos_that_opens_each_turn_is_no_second_bos(tmp_path, style):
    tokenizer = make(style)
    rows = [
        {"prompt": [{"role": r, "content": "a"} for r in ("user", "assistant", "user")], "chosen": "b", "rejected": "c"}
    ]
    source = SourceConfig(str(write_rows(tmp_path / "pairs.jsonl", rows)))
    prepared = prepare("data", [source], tokenizer, TokenizeOptions()).with_passes(0)
    assert not any("BOS" in hint for hint in inspect_pairs(prepared, tokenizer).hints)


def test_long_texts_are_cut_in_the_terminal_and_whole_on_the_page(tmp_path):
    rows = [{"prompt": "a " * 500 + "why", "chosen": "b " * 500 + "yes", "rejected": "no"}] * 3
    found = inspected(tmp_path, rows, max_length=4000)
    console = Console(record=True, width=100)
    print_inspection(found, console)
    text = console.export_text()
    assert len(text.splitlines()) < 90
    assert "characters left out; --html shows all" in text
    assert to_html({"data": found}, "x").count("<unk>") == 0
    assert to_html({"data": found}, "x").count(" a</span>") >= 499


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_as_many_examples_as_asked_for(tmp_path, count):
    rows = [{"prompt": "why", "chosen": "a " * n + "yes", "rejected": "no"} for n in range(1, 9)]
    source = SourceConfig(str(write_rows(tmp_path / "pairs.jsonl", rows)))
    prepared = prepare("data", [source], make_tokenizer(), TokenizeOptions()).with_passes(0)
    found = inspect_pairs(prepared, make_tokenizer(), count)
    assert len(found.examples) == count
    assert to_html({"data": found}, "x")


def test_pieces_are_the_text_token_by_token():
    for style, text in (("llama3", "a 日本 😀 é"), ("plain", "  a\nb")):
        tokenizer = make(style)
        ids = tokenizer(text + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        pieces = pieces_of(tokenizer, ids)
        assert "".join(piece.text for piece in pieces) == text + tokenizer.eos_token
        assert pieces[-1] == (tokenizer.eos_token, True, True)


def test_turns_that_are_not_scored_are_marked(tmp_path):
    def turns(*texts):
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]

    found = inspected(tmp_path, [{"chosen": turns("why", "yes", "how", "a dog"), "rejected": turns("why", "no")}])
    assert not any("terminator" in hint for hint in found.hints)  # two of them, of two turns
    (example,) = found.examples
    assert (example.tokens["chosen"], example.scored["chosen"]) == (9, 5)
    console = Console(record=True, width=100)
    print_inspection(found, console)
    text = console.export_text()
    assert "chosen, 9 tokens, 5 scored, not «this»:" in text
    assert "yes <eos>« <user> how <eos> <assistant>» a dog <eos>" in text
    assert "rejected, 2 tokens, scored:" in text
    assert to_html({"data": found}, "x").count("unscored") == 4 + 2


def test_several_sets_are_in_one_report(tmp_path, model_dir, capsys):
    files = [write_rows(tmp_path / f"{name}.jsonl", rows) for name, rows in (("a", ROWS[:3]), ("b", ROWS[2:5]))]
    page = tmp_path / "page.html"
    common = ["inspect-data", f"--tokenizer={model_dir}", f"--html={page}"]
    assert main([*common, f"--data={{train: {files[0]}, safety: {{path: {files[1]}, weight: 2}}}}"]) == 0
    said = capsys.readouterr().out
    train, safety = said.split("Preference data: ")[1:]
    assert train.startswith("train")
    assert safety.startswith("safety")
    assert re.search(r"rows read +│ 3", train)
    assert re.search(r"pairs +│ 6", safety)  # three rows, twice
    assert "has too" not in train
    assert re.search(r"prompts that train has too +│ 1", safety)
    text = page.read_text()
    assert text.index(">train</h2>") < text.index("a.jsonl:1") < text.index(">safety</h2>") < text.index("b.jsonl:1")
    # A list is one set, as in `data.train`.
    assert main([*common, f"--data=[{files[0]}, {files[1]}]"]) == 0
    assert re.search(r"rows read +│ 6", capsys.readouterr().out)
    assert "</h2>" not in page.read_text()


def test_options_of_the_command_are_those_of_each_set(tmp_path, model_dir, capsys):
    named = [{"question": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]} for row in ROWS[:2]]
    files = [write_rows(tmp_path / f"{name}.jsonl", named) for name in "ab"]
    args = ["inspect-data", f"--data={{a: {files[0]}, b: {files[1]}}}", f"--tokenizer={model_dir}"]
    assert main([*args, "--columns.prompt=question"]) == 0
    assert capsys.readouterr().out.count("Preference data: ") == 2


@pytest.mark.parametrize("data", ["{}", "{a/b: x.jsonl}", "{path: x.jsonl, wieght: 2}", "[]"])
def test_sets_that_cannot_be(data, model_dir, capsys):
    assert main(["inspect-data", f"--data={data}", f"--tokenizer={model_dir}"]) == 2
    assert "data" in capsys.readouterr().err.partition("\n")[0]
