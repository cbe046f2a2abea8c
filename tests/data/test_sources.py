import csv
import json
import os

import pytest
from datasets import Dataset

from adadpo_lightning.data.cache import cache_folder
from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.prepare import prepare
from adadpo_lightning.data.sources import SourceConfig, decode, load_rows
from adadpo_lightning.errors import UserError
from tests.support.tiny import make_rows, make_tokenizer, write_rows

ROWS = [{"prompt": f"p{i}", "chosen": f"good, {i}", "rejected": "bad\nline"} for i in range(3)]


def as_csv(path):
    Dataset.from_list(ROWS).to_csv(path)


def as_parquet(path):
    Dataset.from_list(ROWS).to_parquet(path)


def as_arrow(path):
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
    "missing file": (config("nowhere.jsonl"), r"nowhere.jsonl: no such file"),
    "missing relative": (lambda _: SourceConfig("./nowhere"), r"./nowhere: no such file"),
    "empty file": (config("empty.jsonl"), r"empty.jsonl: the file is empty"),
    "only blank lines": (config("blank.jsonl"), r"blank.jsonl: contains no rows"),
    "malformed line": (config("broken.jsonl"), r"broken.jsonl:3: malformed JSON: Expecting ',' delimiter"),
    "line of no object": (config("list.jsonl"), r"list.jsonl:2: malformed JSON: expected an object, got list"),
    "not UTF-8": (config("latin.jsonl"), r"latin.jsonl:1: 'utf-8' codec"),
    "malformed array": (config("broken.json"), r"broken.json: malformed JSON: .*line 2"),
    "empty array": (config("none.json"), r"none.json: contains no rows"),
    "header only": (config("header.csv"), r"header.csv: contains no rows"),
    "no parquet": (config("fake.parquet"), r"fake.parquet: cannot be read as parquet: "),
    "unknown type": (config("notes.txt"), r"unknown file type '.txt'; use one of .jsonl, .json"),
    "split of a file": (config("list.jsonl", split="train"), r"split: is for hub datasets and directories"),
    "split that is not there": (config("two", split="val"), r"split: split .val. not found; name one of train, test"),
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


def test_a_file_that_changed_at_the_same_time_is_read_anew(tmp_path):
    path = tmp_path / "pairs.jsonl"
    for ending in ("jsonl", "json", "csv", "parquet"):
        path = tmp_path / f"pairs.{ending}"
        found = []
        for word in ("old", "new"):
            row = {"prompt": "a", "chosen": word, "rejected": "c"}
            texts = {"json": json.dumps([row]), "csv": f"prompt,chosen,rejected\na,{word},c\n"}
            if ending == "parquet":
                Dataset.from_list([row]).to_parquet(path)
            else:
                path.write_text(texts.get(ending, json.dumps(row) + "\n"))
            os.utime(path, (1_000_000, 1_000_000))
            found.append(read(path)[0]["chosen"])
        assert found == ["old", "new"], ending


def test_a_directory_that_changed_at_the_same_time_is_read_anew(tmp_path):
    for other in (False, True):  # as this package reads it, and as `load_dataset` does
        folder = tmp_path / str(other)
        folder.mkdir()
        if other:
            (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: p.jsonl\n---\n")
        for word in ("old", "new"):
            (folder / "p.jsonl").write_text(json.dumps({"prompt": "a", "chosen": word, "rejected": "c"}) + "\n")
            os.utime(folder / "p.jsonl", (1_000_000, 1_000_000))
            assert read(folder)[0]["chosen"] == word


def test_tokenised_pairs_follow_the_content(tmp_path):
    tokenizer, path = make_tokenizer(), tmp_path / "pairs.jsonl"
    for word in ("red", "big"):
        path.write_text(json.dumps({"prompt": "a", "chosen": word, "rejected": "no"}) + "\n")
        os.utime(path, (1_000_000, 1_000_000))
        pairs = prepare("train", [SourceConfig(str(path))], tokenizer, TokenizeOptions()).pairs
        assert tokenizer.decode(pairs[0]["chosen_ids"]).startswith(word)


def test_a_name_that_exists_is_a_name_and_a_pattern_takes_all(tmp_path):
    names = ("pairs[1].jsonl", "pairs1.jsonl", "a*b.jsonl", "aXb.jsonl")
    for i, name in enumerate(names):
        write_rows(tmp_path / name, [{"prompt": str(i), "chosen": "yes", "rejected": "no"}])
    assert [row["prompt"] for row in read(tmp_path / "pairs[1].jsonl")] == ["0"]
    assert [row["prompt"] for row in read(tmp_path / "a*b.jsonl")] == ["2"]
    rows = load_rows(SourceConfig(str(tmp_path / "?[X*]b.jsonl")))
    assert [rows.where(0), rows.where(1)] == [f"{tmp_path / 'a*b.jsonl'}:1", f"{tmp_path / 'aXb.jsonl'}:1"]
    pattern = str(tmp_path / "pairs*.jsonl")
    report = prepare("train", [SourceConfig(pattern)], make_tokenizer(), TokenizeOptions()).report
    assert report.notes[f"files of {pattern}"] == 2
    with pytest.raises(UserError, match="no file matches this pattern"):
        read(tmp_path / "none*.jsonl")
    (tmp_path / "a.csv").write_text("prompt\n1\n")
    with pytest.raises(UserError, match=r"matches files of several types: .csv, .jsonl"):
        read(tmp_path / "a*")


def test_directories_read_as_files_do(tmp_path):
    (tmp_path / "csv").mkdir()
    for i in range(2):
        (tmp_path / "csv" / f"{i}.csv").write_text(f"prompt,chosen,rejected\n{i},007,NA\n")
    rows = load_rows(SourceConfig(str(tmp_path / "csv")))
    assert list(rows.table) == [{"prompt": str(i), "chosen": "007", "rejected": "NA"} for i in range(2)]
    assert rows.where(1) == f"{tmp_path}/csv/1.csv, row 1"
    (tmp_path / "json").mkdir()
    write_rows(tmp_path / "json" / "train-0.jsonl", [{"prompt": "2020-01-01"}, {"prompt": 3}])
    write_rows(tmp_path / "json" / "my_dev.jsonl", [{"prompt": "b"}])
    assert read(SourceConfig(str(tmp_path / "json"), split="validation")) == [{"prompt": "b"}]
    assert read(SourceConfig(str(tmp_path / "json"), split="train")) == [{"prompt": "2020-01-01"}, {"prompt": 3}]
    last = load_rows(SourceConfig(str(tmp_path / "json"), split="train[50%:]"))
    assert (len(last.table), last.where(0)) == (1, f"{tmp_path}/json/train-0.jsonl:2")


BROKEN = {
    "latin-1 array": (
        "a.json",
        '[{"a": "b"}, {"a": "é"}]'.encode("latin-1"),
        r"row 2: is not UTF-8: byte 0xe9 at offset 20",
    ),
    "latin-1 array after a BOM": ("a.json", b'\xef\xbb\xbf[{"a": "\xe9"}]', r"row 1: .*0xe9 at offset 11"),
    "latin-1 CSV": ("a.csv", "a\nb\né\n".encode("latin-1"), r"is not UTF-8: byte 0xe9 at offset 4"),
    "deep array": ("a.json", b"[" * 200_000 + b"]" * 200_000, r"malformed JSON: nested too deep"),
    "deep line": ("a.jsonl", b'{"a":' * 200_000 + b"1" + b"}" * 200_000, r"a.jsonl:1: malformed JSON: nested too deep"),
    "more cells than columns": ("a.csv", b"a,b\n1,2\n1,2,3\n", r"row 2: has 3 cells, and the header has 2"),
    "open quote": ("a.csv", b'a,b\n1,"2\n', r"row 1: malformed CSV: unexpected end of data"),
    "two columns of one name": ("a.csv", b"a,a\n1,2\n", r"duplicate column 'a'"),
}


@pytest.mark.parametrize(("name", "content", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_named_with_row_and_byte(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_rows(SourceConfig(str(tmp_path / name)))


def test_long_cells_of_csv_are_read(tmp_path):
    long = "a " * 100_000
    (tmp_path / "a.csv").write_text(f"prompt,chosen\n{long},b\n")
    before = csv.field_size_limit()
    assert read(tmp_path / "a.csv") == [{"prompt": long, "chosen": "b"}]
    assert csv.field_size_limit() == before


def answers(chosen):
    return {"chosen": [{"role": "assistant", "content": chosen}], "rejected": [{"role": "assistant", "content": "no"}]}


SURROGATES = {
    "prompt": {"prompt": "a\ud800"},
    "message": answers("a\udfff"),
    "tools": {"tools": [{"\ud800": 1}]},
    "system": {"system": "\ud800"},
    "a name": {"chosen": [{"\ud800": "assistant"}]},
}


@pytest.mark.parametrize("change", SURROGATES.values(), ids=SURROGATES)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_half_a_surrogate_pair_is_a_bad_row(tmp_path, change, ending):
    good = {"prompt": "a", **answers("yes")}
    path, rows = tmp_path / f"a.{ending}", [good, good | change]
    path.write_text(json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows)))
    source = [SourceConfig(str(path))]
    with pytest.raises(UserError, match=r"a.jsonl:2|a.json, row 2"):
        prepare("train", source, make_tokenizer(), TokenizeOptions())
    report = prepare("train", source, make_tokenizer(), TokenizeOptions(), on_bad_row="drop").report
    assert (report.rows, report.dropped.total()) == (2, 1)


def test_deep_tools_are_a_bad_row(tmp_path):
    deep = "[" * 900 + "]" * 900
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "a", "chosen": "yes", "rejected": "no", "tools": deep}])
    with pytest.raises(UserError, match=r"a.jsonl:1: (nested too deep|chat template refused|bad tools)"):
        prepare("train", [SourceConfig(str(path))], make_tokenizer(), TokenizeOptions())


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_nothing_is_written_beside_the_data(tmp_path, kind):
    data = tmp_path / "data"
    Dataset.from_list(make_rows(3)).save_to_disk(data)
    path = data if kind == "folder" else next(data.glob("*.arrow"))
    before = {file: file.read_bytes() for file in sorted(data.rglob("*"))}
    for max_length in (50, 60):
        prepare("train", [SourceConfig(str(path))], make_tokenizer(), TokenizeOptions(max_length)).with_passes(0)
    assert {file: file.read_bytes() for file in sorted(data.rglob("*"))} == before


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    write_rows(tmp_path / "a.jsonl", [{"prompt": "full disk"}])
    monkeypatch.setattr("pyarrow.ipc.new_stream", full)
    with pytest.raises(UserError, match="the cache of tokenized data cannot be written: No space left"):
        load_rows(SourceConfig(str(tmp_path / "a.jsonl")))
    assert not list(cache_folder().glob(".*.tmp"))
