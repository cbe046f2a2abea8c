"""More bad data, slow: each case builds a parser and a run."""

import gzip
import json

from datasets import Dataset

from tests.support.bad_input.case import GOOD, ROW, TRAIN, Case, D, folder_of, messages, rows, text
from tests.support.tiny import make_tokenizer

HALF = '{"prompt": "a\\ud800", "chosen": "b", "rejected": "c"}\n'


def stored(how, name, share=1.0, rows=GOOD):
    """A data set as `datasets` stores it, of which each data file is cut."""

    def write(folder, model):
        path = folder / name
        getattr(Dataset.from_list(rows), how)(path)
        for part in [path] if path.is_file() else path.glob("*.arrow"):
            part.write_bytes(part.read_bytes()[: int(share * part.stat().st_size)])
        return path

    return write


def saved_with(name, content):
    """A `save_to_disk` directory of which one file is replaced."""

    def write(folder, model):
        path = stored("save_to_disk", "saved")(folder, model)
        (path / name).write_text(content)
        return path

    return write


def other_tokenizer(folder, model):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


CASES = [
    # Files that only look whole.
    Case(
        "array of numbers",
        {TRAIN: text("[1, 2]", "pairs.json")},
        "pairs.json",
        "missing columns: expected prompt, chosen and",
    ),
    Case(
        "latin-1 array",
        {TRAIN: text('[{"prompt": "é"}]'.encode("latin-1"), "pairs.json")},
        "pairs.json",
        "is not UTF-8: byte 0xe9 at offset 13 cannot be",
    ),
    Case(
        "deep array",
        {TRAIN: text("[" * 200_000 + "]" * 200_000, "pairs.json")},
        "pairs.json",
        "malformed JSON: nested too deep",
    ),
    Case(
        "deep row",
        {TRAIN: text('{"a":' * 200_000 + "1" + "}" * 200_000)},
        "pairs.jsonl:1",
        "malformed JSON: nested too deep",
    ),
    Case(
        "one object over lines",
        {TRAIN: text(json.dumps(ROW, indent=1), "pairs.json")},
        "pairs.json:1",
        "malformed JSON: Expecting property name",
    ),
    Case(
        "latin-1 CSV",
        {TRAIN: text("prompt,chosen,rejected\né,b,c\n".encode("latin-1"), "pairs.csv")},
        "pairs.csv",
        "is not UTF-8: byte 0xe9 at offset 23 cannot be",
    ),
    Case(
        "CSV of NUL bytes",
        {TRAIN: text(b"prompt,chosen,rejected\n\x00,\x00,\x00\n", "pairs.csv")},
        "data.train",
        "no pair is left of 1 rows",
    ),
    Case(
        "CSV with a column twice",
        {TRAIN: text("prompt,chosen,chosen\na,b,c\n", "pairs.csv")},
        "pairs.csv",
        "duplicate column 'chosen' in the header",
    ),
    Case(
        "CSV with an open quote",
        {TRAIN: text('prompt,chosen,rejected\na,"b,c\n', "pairs.csv")},
        "pairs.csv",
        "malformed CSV: unexpected end of data",
    ),
    Case(
        "truncated parquet",
        {TRAIN: stored("to_parquet", "pairs.parquet", 0.5)},
        "pairs.parquet",
        "cannot be read as parquet: Parquet magic bytes",
    ),
    Case(
        "truncated arrow",
        {TRAIN: stored("save_to_disk", "saved", 0.5)},
        "saved",
        "cannot be read: Expected to read 280 metadata",
    ),
    Case(
        "parquet of numbers",
        {TRAIN: stored("to_parquet", "pairs.parquet", rows=[{"prompt": 1, "chosen": 2, "rejected": 3}])},
        "pairs.parquet",
        "not text: prompt is int '1', expected text",
    ),
    Case(
        "saved data with an empty state",
        {TRAIN: saved_with("state.json", "")},
        "saved",
        "cannot be read: Expecting value: line 1 column",
    ),
    Case(
        "saved data with a list as state", {TRAIN: saved_with("state.json", "[]")}, "saved", "cannot be read: TypeError"
    ),
    Case(
        "saved data with an empty info",
        {TRAIN: saved_with("dataset_info.json", "")},
        "saved",
        "cannot be read: Expecting value: line 1 column",
    ),
    Case(
        "files of different columns",
        {TRAIN: folder_of(**{"a.jsonl": '{"prompt": "a"}\n', "b.jsonl": '{"chosen": "b"}\n'})},
        "data",
        "missing columns: expected prompt, chosen and",
    ),
    Case(
        "csv of different columns",
        {TRAIN: folder_of(**{"a.csv": "a,b\n1,2\n", "b.csv": "a,c\n1,2\n"})},
        "data",
        "have different columns",
    ),
    Case(
        "directory of two kinds",
        {TRAIN: folder_of(**{"a.jsonl": json.dumps(ROW), "b.csv": "a,b\n1,2\n"})},
        "data",
        "holds files of several types, .csv, .jsonl",
    ),
    Case(
        "card with broken configs",
        {TRAIN: folder_of(**{"README.md": "---\nconfigs: [\n---\n", "b.csv": "a,b\n1,2\n"})},
        "data",
        "cannot be read: ",
    ),
    Case(
        "pattern that matches nothing",
        {TRAIN: lambda f, m: f / "none-*.jsonl"},
        "none-*.jsonl",
        "no file matches this pattern",
    ),
    Case(
        "compressed under a plain name",
        {TRAIN: text(gzip.compress(json.dumps(ROW).encode()))},
        "pairs.jsonl:1",
        "utf-8' codec can't decode byte 0x8b in position",
    ),
    # Rows that no loss can use.
    Case(
        "half a surrogate pair in each row",
        {D + "on_bad_row": "drop", TRAIN: text(HALF)},
        "data.train",
        "no pair is left of 1 rows",
    ),
    Case(
        "uneven lists",
        {TRAIN: rows({"prompt": "a", "responses": ["b", "c"], "scores": [1]})},
        "pairs.jsonl:1",
        "uneven lists: 2 responses and 1 scores",
    ),
    Case(
        "scores null",
        {TRAIN: rows({"prompt": "a", "responses": ["b", "c"], "scores": [1, None]})},
        "pairs.jsonl:1",
        "bad number: scores[1] is empty, expected a",
    ),
    Case(
        "score infinite",
        {TRAIN: text('{"prompt": "a", "responses": ["b", "c"], "scores": [1, Infinity]}')},
        "pairs.jsonl:1",
        "bad number: scores[1] is inf, expected a finite",
    ),
    Case(
        "one response",
        {TRAIN: rows({"prompt": "a", "responses": ["b"], "scores": [1]})},
        "data.train",
        "no pair is left of 1 rows",
    ),
    Case(
        "equal scores",
        {TRAIN: rows({"prompt": "a", "responses": ["b", "c"], "scores": [1, 1]})},
        "data.train",
        "no pair is left of 1 rows",
    ),
    Case("weight true", {TRAIN: rows(weight=True)}, "pairs.jsonl:1", "bad number: weight is True, expected a finite"),
    Case("all weights zero", {TRAIN: rows(weight=0.0)}, "data.train", "all 4 pairs have weight 0"),
    Case("margin a list", {TRAIN: rows(margin=[1])}, "pairs.jsonl:1", "bad number: margin is [1], expected a finite"),
    Case(
        "template variables reserved",
        {TRAIN: rows(chat_template_kwargs={"messages": []})},
        "pairs.jsonl:1",
        "bad chat_template_kwargs: 'messages' is set by",
    ),
    Case(
        "content a list of numbers",
        {TRAIN: rows(messages(content=[1, 2]))},
        "pairs.jsonl:1",
        "not text: a message in chosen has no text as",
    ),
    Case(
        "label of text",
        {TRAIN: rows({"prompt": "a", "completion": "b", "label": "maybe"})},
        "data.train",
        "1 of 1 rows have no rejected answer, and the",
    ),
    # Options of the data.
    Case(
        "second source missing",
        {TRAIN: lambda f, m: json.dumps([str(rows()(f, m)), "nowhere.jsonl"])},
        "nowhere.jsonl",
        "no such file or directory",
    ),
    Case("source option misspelt", {TRAIN: None, "data.train.path": rows(), "data.train.wieght": 2}, "data.train", ""),
    Case("source weight NaN", {TRAIN: None, "data.train.path": rows(), "data.train.weight": "nan"}, "data.train", ""),
    Case(
        "column unknown to the package",
        {TRAIN: None, "data.train.path": rows(), "data.train.columns": '{"promt": "prompt"}'},
        "pairs.jsonl:1",
        "not a dialogue: expected turns that begin with",
    ),
    Case(
        "named set with a slash",
        {D + "val": '{"a/b": "x.jsonl"}'},
        "data.val",
        "a/b' cannot name a validation set: it is part",
    ),
    Case(
        "named set called loss",
        {D + "val": '{"loss": "x.jsonl"}'},
        "data.val",
        "loss' cannot name a validation set: it is part",
    ),
    Case("named set missing", {D + "val": '{"a": "nowhere.jsonl"}'}, "nowhere.jsonl", "no such file or directory"),
    Case("test without data", {}, "data.test", "test' needs it, got null", command="test"),
    Case(
        "predict a missing file",
        {D + "predict": "nowhere.jsonl"},
        "nowhere.jsonl",
        "no such file or directory",
        command="predict",
    ),
    Case("validate without data", {}, "data.val", "validate' needs it, got null", command="validate"),
    Case("val_size NaN", {D + "val_size": "nan"}, "data.val_size", ""),
    Case("eval batch zero", {D + "eval_batch_size": 0}, "data.eval_batch_size", "expected at least 1, and less"),
    Case("global batch huge", {D + "global_batch_size": 10**30}, "data.global_batch_size", "less than 2**31"),
    Case("workers negative", {D + "num_workers": -1}, "data.num_workers", "expected 0 or more, got -1"),
    Case("processes zero", {D + "num_proc": 0}, "data.num_proc", "expected at least 1, got 0"),
    Case("data seed negative", {D + "seed": -1}, "data.seed", "expected 0 or more, got -1"),
    Case("tokenizer missing", {D + "tokenizer": "./nowhere"}, "data.tokenizer", "directory not found: ./nowhere"),
    Case(
        "tokenizer of another vocabulary",
        {D + "tokenizer": other_tokenizer},
        "data.tokenizer",
        "has tokens that the policy's tokenizer lacks or",
    ),
    Case(
        "gap negative",
        {D + "lists.min_gap": -1},
        "data.lists.min_gap",
        "expected a finite number of 0 or more, got -1.0",
    ),
    Case(
        "template variables of the option reserved",
        {D + "chat_template_kwargs": '{"messages": 1}'},
        "data.chat_template_kwargs",
        "messages' is set by this package",
    ),
    Case(
        "template variables of the option a list", {D + "chat_template_kwargs": "[1]"}, "data.chat_template_kwargs", ""
    ),
    # Templates.
    Case(
        "template file of Latin-1",
        {D + "chat_template": text("é".encode("latin-1"), "t.jinja")},
        "data.chat_template",
        "cannot be read: 'utf-8' codec",
    ),
    Case(
        "template a directory",
        {D + "chat_template": lambda f, m: f},
        "data.chat_template",
        "is no template, and the file",
    ),
    Case(
        "template with a huge range",
        {D + "chat_template": "{% for i in range(10 ** 12) %}x{% endfor %}"},
        "data.chat_template",
        "chat template refused: OverflowError: Range too",
    ),
    Case(
        "template that calls itself",
        {D + "chat_template": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"},
        "data.chat_template",
        "chat template refused: RecursionError: maximum",
    ),
    Case(
        "template of 3 GB",
        {D + "chat_template": "{{ 'abc' * 1000000000 }}"},
        "data.chat_template",
        "chat template refused: MemoryError",
    ),
    Case(
        "template that includes a file",
        {D + "chat_template": "{% include '/etc/passwd' %}"},
        "pairs.jsonl:1",
        "chat template refused: TypeError: no loader for",
    ),
    Case(
        "template without answers",
        {D + "chat_template": "{{ messages[0]['content'] }}", TRAIN: rows()},
        "data.train",
        "no pair is left of 4 rows",
    ),
]
