import json

import pytest

from adadpo_lightning.data.sources import SourceConfig, decode, load_rows
from adadpo_lightning.errors import UserError

ROWS = [{"prompt": f"p{i}", "chosen": f"good, {i}", "rejected": "bad\nline"} for i in range(3)]


def as_csv(path):
    from datasets import Dataset

    Dataset.from_list(ROWS).to_csv(path)


def as_parquet(path):
    from datasets import Dataset

    Dataset.from_list(ROWS).to_parquet(path)


def as_arrow(path):
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(path.parent / "saved")
    (path.parent / "saved" / "data-00000-of-00001.arrow").rename(path)


WRITERS = {
    "a.jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
    "b.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "lines.json": lambda path: path.write_text("\n".join(map(json.dumps, ROWS))),
    "c.csv": as_csv,
    "d.parquet": as_parquet,
    "e.arrow": as_arrow,
}


def read(source):
    rows = load_rows(source if isinstance(source, SourceConfig) else SourceConfig(str(source)))
    return [row for values in rows.table if (row := decode(values, is_json=rows.is_json)) is not None]


@pytest.mark.parametrize("name", WRITERS)
def test_files(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert read(tmp_path / name) == ROWS


def test_rows_of_json_need_not_have_the_same_types(tmp_path):
    """Arrow would want one type a column; the error about a row's type is the schema's to make, with its line."""
    rows = [{"prompt": "a", "tools": [{"x": 1}]}, {"prompt": 3}, {"prompt": [{"role": "user"}], "tools": None}]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\ufeff" + json.dumps(rows[0]) + "\n\n" + "\r\n".join(map(json.dumps, rows[1:])), encoding="utf-8")
    assert read(path) == rows
    assert load_rows(SourceConfig(str(path))).where(2) == f"{path}:3"


def test_cells_of_csv_stay_text(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected,weight\n1,007,NA,0.5\n")
    assert read(path) == [{"prompt": "1", "chosen": "007", "rejected": "NA", "weight": "0.5"}]


def test_saved_datasets_and_directories_of_files(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    DatasetDict(train=rows, test=rows.select([1])).save_to_disk(tmp_path / "two")
    (tmp_path / "files").mkdir()
    WRITERS["a.jsonl"](tmp_path / "files" / "train.jsonl")
    WRITERS["d.parquet"](tmp_path / "hub" / "train.parquet") if (tmp_path / "hub").mkdir() is None else None
    assert read(tmp_path / "one") == ROWS
    assert read(SourceConfig(str(tmp_path / "two"), split="test")) == ROWS[1:2]
    assert read(tmp_path / "files") == ROWS
    assert read(SourceConfig(str(tmp_path / "hub"), split="train[:2]")) == ROWS[:2]


def config(path, **options):
    return lambda tmp_path: SourceConfig(str(tmp_path / path), **options)


BAD = {
    "missing file": (config("nowhere.jsonl"), r"nowhere.jsonl: there is no such file"),
    "missing relative": (lambda _: SourceConfig("./nowhere"), r"./nowhere: there is no such file"),
    "empty file": (config("empty.jsonl"), r"empty.jsonl: the file is empty"),
    "only blank lines": (config("blank.jsonl"), r"blank.jsonl: holds no rows"),
    "malformed line": (config("broken.jsonl"), r"broken.jsonl:3: malformed JSON: Expecting ',' delimiter"),
    "line of no object": (config("list.jsonl"), r"list.jsonl:2: malformed JSON: expected an object, got list"),
    "not UTF-8": (config("latin.jsonl"), r"latin.jsonl:1: 'utf-8' codec"),
    "malformed array": (config("broken.json"), r"broken.json: malformed JSON: .*line 2"),
    "empty array": (config("none.json"), r"none.json: holds no rows"),
    "header only": (config("header.csv"), r"header.csv: holds no rows"),
    "no parquet": (config("fake.parquet"), r"fake.parquet: cannot be read as parquet: "),
    "unknown type": (config("notes.txt"), r"unknown file type '.txt'; use one of .jsonl, .json"),
    "split of a file": (config("list.jsonl", split="train"), r"split: is for hub datasets and directories"),
    "split that is not there": (config("two", split="val"), r"split: there is no 'val'; name one of train, test"),
    "several splits": (config("two"), r"split: there are several: train, test"),
    "split of one": (config("one", split="train"), r"split: this directory holds a dataset without splits"),
    "directory of nothing": (config("nothing"), r"nothing: cannot be read"),
    "hub id": (lambda _: SourceConfig("no-one/nothing-of-the-kind"), r"is no local path, and the hub has no answer"),
}


@pytest.mark.parametrize(("source", "message"), BAD.values(), ids=BAD)
def test_bad_sources(tmp_path, source, message):
    from datasets import Dataset, DatasetDict

    one = Dataset.from_list(ROWS)
    one.save_to_disk(tmp_path / "one")
    DatasetDict(train=one, test=one).save_to_disk(tmp_path / "two")
    (tmp_path / "nothing").mkdir()
    texts = {
        "empty.jsonl": "",
        "blank.jsonl": "\n \n",
        "broken.jsonl": '{"a": 1}\n\n{"a": 1 "b"}\n',
        "list.jsonl": '{"a": 1}\n[1]\n',
        "broken.json": '[{"a": 1},\n{"a" 1}]',
        "none.json": "[]",
        "header.csv": "prompt,chosen,rejected\n",
        "fake.parquet": "no parquet",
        "notes.txt": "hello",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.jsonl").write_bytes('{"a": "é"}\n'.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        load_rows(source(tmp_path))


def test_config_is_checked():
    with pytest.raises(UserError, match="weight: expected a number above 0, got -1"):
        SourceConfig("x", weight=-1)
    with pytest.raises(UserError, match="unknown format 'texts'; did you mean 'text'"):
        SourceConfig("x", format="texts")
