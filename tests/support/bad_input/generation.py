"""Bad files and options of `generate`, `make-pairs`, `inspect-data` and `plot`."""

from tests.support.bad_input.case import Case, file, folder_of, link, rows, text
from tests.support.bad_input.evaluation import lines


def answered(name, options, names, says):
    """`generate` with the tiny model and good prompts, with some options changed."""
    given = {"model": lambda f, m: m, "prompts": text("a b\nc d\n", "prompts.txt"), "output": "o.jsonl"}
    given |= {"max_new_tokens": 3, "device": "cpu"}
    return Case(f"generate {name}", {**given, **options}, names, says, command="generate", bare=True)


def made(name, options, names, says):
    """`make-pairs` with the tiny model and good prompts, with some options changed."""
    given = {"model": lambda f, m: m, "prompts": text("a b\nc d\n", "prompts.txt"), "output_dir": "o"}
    given |= {"judge": "length", "samples": 2, "max_new_tokens": 3, "device": "cpu"}
    return Case(f"make-pairs {name}", {**given, **options}, names, says, command="make-pairs", bare=True)


def inspected(name, options, names, says):
    given = {"data": rows(), "tokenizer": lambda f, m: m, "max_length": 40}
    return Case(f"inspect-data {name}", {**given, **options}, names, says, command="inspect-data", bare=True)


def plotted(name, run, names, says, *options):
    return Case(f"plot {name}", {"": run, **dict(options)}, names, says, command="plot", bare=True)


def metrics(content):
    return folder_of(**{"csv/version_0/metrics.csv": content})


def with_record(folder, content):
    (folder / "o.jsonl").write_text("")
    (folder / "o.jsonl.settings.json").write_text(content)
    return folder / "o.jsonl"


def looped(folder):
    (folder / "run").mkdir()
    (folder / "run/again").symlink_to(folder / "run")
    return folder / "run"


CASES = [
    # Prompts and options of `generate`.
    answered("prompts missing", {"prompts": "nowhere.txt"}, "nowhere.txt", "file not found"),
    answered("prompts empty", {"prompts": text("\n\n", "prompts.txt")}, "prompts.txt", "contains no prompts"),
    answered(
        "prompts of Latin-1",
        {"prompts": text("é".encode("latin-1"), "prompts.txt")},
        "prompts.txt",
        "is not UTF-8: byte 0 cannot be decoded",
    ),
    answered(
        "prompts without a column",
        {"prompts": lines({"a": 1})},
        "responses.jsonl:1",
        "has no prompt: expected one of prompt,",
    ),
    answered(
        "prompt null",
        {"prompts": lines({"prompt": None})},
        "responses.jsonl:1",
        "has no prompt: expected one of prompt,",
    ),
    answered(
        "prompt of several turns",
        {"prompts": lines({"turns": [{"content": "a"}, {"content": "b"}]})},
        "responses.jsonl:1",
        "turns: expected text, messages with role and",
    ),
    answered(
        "prompt of the assistant",
        {"prompts": lines({"messages": [{"role": "assistant", "content": "a"}]})},
        "responses.jsonl:1",
        "messages: expected text, messages with role and",
    ),
    answered(
        "prompt with half a surrogate pair",
        {"prompts": text('{"prompt": "a \\ud800"}', "p.jsonl")},
        "p.jsonl:1",
        "lone surrogate",
    ),
    answered(
        "prompt variables of text",
        {"prompts": lines({"prompt": "a", "chat_template_kwargs": 5})},
        "responses.jsonl:1",
        "bad chat_template_kwargs: expected an object,",
    ),
    answered("column unknown", {"column": "nonesuch"}, "column", "a .txt file has no columns"),
    answered("limit zero", {"limit": 0}, "limit", "expected at least 1, got 0"),
    answered("no new tokens", {"max_new_tokens": 0}, "max_new_tokens", "expected at least 1, got 0"),
    answered("temperature negative", {"temperature": -1}, "temperature", "expected 0 or more, got -1.0"),
    answered("temperature NaN", {"temperature": "nan"}, "temperature", ""),
    answered("temperature infinite", {"temperature": "inf"}, "temperature", ""),
    answered("top_p zero", {"top_p": 0}, "top_p", "expected a number above 0 and at most 1, got"),
    answered("top_p two", {"top_p": 2}, "top_p", "expected a number above 0 and at most 1, got"),
    answered("top_k negative", {"top_k": -1}, "top_k", "expected 0 or more, got -1"),
    answered("batch zero", {"batch_size": 0}, "batch_size", "expected at least 1, got 0"),
    answered("samples zero", {"samples": 0}, "samples", "expected at least 1, got 0"),
    answered(
        "samples of a greedy model",
        {"samples": 2, "temperature": 0},
        "temperature",
        "0 always draws the same answer, and samples is",
    ),
    answered("device unknown", {"device": "gpu7"}, "device", "'gpu7' is no device of this machine"),
    answered("device that is not there", {"device": "cuda:0"}, "device", "'cuda:0' is no device of this machine"),
    answered("dtype unknown", {"dtype": "int8"}, "dtype", ""),
    answered("engine not installed", {"engine": "vllm"}, "engine", "vllm needs the package vllm, which is not"),
    answered("format unknown", {"format": "xml"}, "format", ""),
    answered("output a directory", {"output": lambda f, m: f}, "output", "expected a file, got"),
    answered(
        "output below a file", {"output": lambda f, m: file("x")(f, m) / "o.jsonl"}, "output", "is not a directory"
    ),
    answered("output a link to itself", {"output": link("o.jsonl", "o.jsonl")}, "output", "cannot be written: "),
    answered("model missing", {"model": "./nowhere"}, "model.policy.path", "directory not found: ./nowhere"),
    answered("model a file", {"model": file("weights")}, "model.policy.path", "directory not found"),
    # Pairs, inspection, figures.
    made("judge unknown", {"judge": "lenght"}, "judge", "unknown judge 'lenght"),
    made("one sample", {"samples": 1}, "samples", "expected at least 2 answers to choose from, got"),
    made("selection unknown", {"select": "some"}, "select", ""),
    made("gap NaN", {"min_gap": "nan"}, "min_gap", ""),
    made("output a file", {"output_dir": file("o")}, "output_dir", "cannot be written: [Errno 17] File exists"),
    made("prompts missing", {"prompts": "nowhere.txt"}, "nowhere.txt", "file not found"),
    inspected("missing", {"data": "nowhere.jsonl"}, "nowhere.jsonl", "no such file or directory"),
    inspected("tokenizer missing", {"tokenizer": "./nowhere"}, "model.policy.path", "directory not found: ./nowhere"),
    inspected("page in a directory", {"html": lambda f, m: f}, "html", "expected a file, got"),
    inspected("examples negative", {"examples": -1}, "examples", "expected 0 or more, got -1"),
    inspected("no usable row", {"data": rows(chosen="")}, "data.data", "no pair is left of 4 rows"),
    inspected("length zero", {"max_length": 0}, "data.max_length", "expected at least 2, got 0"),
    plotted("a missing directory", "nowhere", "nowhere", "expected the output directory of a run, found"),
    plotted("a file", file("x"), "x", "expected the output directory of a run, found a"),
    plotted("an empty directory", lambda f, m: f, "in", "holds no logs: neither TensorBoard event files"),
    plotted("a table of nothing", metrics(""), "data", "its logs hold no metric yet"),
    plotted("a table without steps", metrics("a,b\n1,2\n"), "data", "its logs hold no metric yet"),
    plotted(
        "a table of text",
        metrics("step,train/loss\n1,x\n"),
        "metrics.csv",
        "not a CSV log: could not convert string to",
    ),
    plotted("a table of a header", metrics("step,train/loss\n"), "data", "its logs hold no metric yet"),
    plotted("a table of NaN", metrics("step,train/loss\n1,nan\n"), "data", "its logs hold no metric yet"),
    plotted(
        "a table with NUL bytes",
        metrics("step,train/loss\n\0,\0\n"),
        "metrics.csv",
        "not a CSV log: invalid literal for int() with",
    ),
    plotted(
        "a table with a long row",
        metrics("step,train/loss\n1,2,3\n"),
        "metrics.csv",
        "not a CSV log: argument of type 'NoneType' is",
    ),
    plotted(
        "a table with fractions as steps",
        metrics("step,train/loss\n1.5,2\n"),
        "metrics.csv",
        "not a CSV log: invalid literal for int() with",
    ),
    plotted(
        "a table that is a directory",
        folder_of(**{"csv/version_0/metrics.csv/x": ""}),
        "data",
        "holds no logs: neither TensorBoard event files",
    ),
    plotted(
        "event files of nonsense",
        folder_of(**{"tensorboard/events.out.tfevents.1": "nonsense" * 9}),
        "data",
        "its logs hold no metric yet",
    ),
    plotted(
        "an empty event file",
        folder_of(**{"tensorboard/events.out.tfevents.1": ""}),
        "data",
        "its logs hold no metric yet",
    ),
    plotted(
        "an unknown metric", metrics("step,train/loss\n1,2\n"), "metric", "no run has '[/inst]", ("metric", "[/inst]")
    ),
    plotted(
        "into a file", metrics("step,train/loss\n1,2\n"), "output", "expected a directory, got", ("output", file("x"))
    ),
    plotted(
        "below a file",
        metrics("step,train/loss\n1,2\n"),
        "output",
        "is not a directory",
        ("output", lambda f, m: file("x")(f, m) / "y"),
    ),
    plotted("a loop of links", lambda f, m: looped(f), "run", "holds no logs: neither TensorBoard event files"),
]
