"""From files of pairs to token ids: speed against the tokenizer alone, and peak memory.

    python benchmarks/tokenisation.py TOKENIZER --data pairs.jsonl --repeat 4
    python benchmarks/tokenisation.py TOKENIZER --size long --rows 61000 --rounds 0
    python benchmarks/tokenisation.py TOKENIZER --size short --rows 1000000 --rounds 0

TOKENIZER is a directory or hub id. `raw` is the tokenizer alone: it gets the rendered texts of 1000 pairs per call
(prompt, and prompt with each answer) and returns lists of ids. `ours` is everything from the file to the dataset that
training reads: rows, template, ids, boundary, report, Arrow file. The two alternate in one process. `share_of_raw` is
the ratio of their times on the clock, `share_of_raw_cpu` that of the times of all cores together. Memory and `seconds`
are measured in another process, from the file to a training run's first 100 micro-batches: all of its memory, and
without the memory-mapped files; time on the clock, and of all cores together.

Without --data the rows are made of words of this repository's documentation. The lengths are log-normal: `long` is
meant to be UltraFeedback's size (about 170 tokens of prompt, 290 of each answer), `short` has about 10 of each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

# Mean words of prompt and answer; a word of the documentation has about 1.6 tokens.
SIZES = {"long": (106, 181), "short": (5, 6)}
ROWS_PER_CALL = 1000


def words() -> list[str]:
    """The words of the documentation, in its order."""
    pages = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
    return [word for page in pages for word in re.findall(r"\S+", page.read_text(encoding="utf-8"))]


def write_rows(path: Path, size: str, count: int) -> None:
    """Generated pairs as JSON lines."""
    rng, known = random.Random(0), words()

    def text(mean: int) -> str:
        length = max(1, round(mean * rng.lognormvariate(-0.32, 0.8)))
        start = rng.randrange(len(known))
        return " ".join(known[(start + i) % len(known)] for i in range(length))

    prompt, answer = SIZES[size]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = {"prompt": f"{number} {text(prompt)}", "chosen": f"{text(answer)}.", "rejected": text(answer)}
            file.write(json.dumps(row) + "\n")


def repeat_rows(path: Path, data: Path, times: int) -> None:
    """The rows of a file, several times."""
    content = data.read_text(encoding="utf-8").rstrip("\n") + "\n"
    path.write_text(content * times, encoding="utf-8")


def prepare(path: Path, tokenizer: Any) -> Any:
    """The dataset that training reads, without anything from a cache."""
    import datasets

    from adadpo_lightning.data.options import TokenizeOptions
    from adadpo_lightning.data.prepare import prepare
    from adadpo_lightning.data.sources import SourceConfig

    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        datasets.config.HF_DATASETS_CACHE = Path(cache)
        datasets.disable_progress_bars()
        found = prepare("train", [SourceConfig(str(path))], tokenizer, TokenizeOptions(), on_bad_row="drop")
        return found.with_passes(0).report


def set_up(path: Path, tokenizer: Any) -> None:
    """All that a training run does with its data until it has had 100 micro-batches."""
    import datasets

    from adadpo_lightning.data.datamodule import PreferenceDataModule

    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        datasets.config.HF_DATASETS_CACHE = Path(cache)
        datasets.disable_progress_bars()
        data = PreferenceDataModule(str(path), global_batch_size=64, micro_batch_size=8, on_bad_row="drop")
        data.tokenizer = tokenizer
        data.setup("fit")
        for _ in islice(data.train_dataloader(), 100):
            pass


def raw_texts(path: Path, tokenizer: Any) -> list[list[str]]:
    """Texts of each pair, as the template renders them."""
    from adadpo_lightning.data.formats import detect_format, read_pair
    from adadpo_lightning.data.options import TokenizeOptions
    from adadpo_lightning.data.tokenize import PairTokenizer

    encoder = PairTokenizer(tokenizer, TokenizeOptions())
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    fmt = detect_format(rows[:16], str(path))
    return [encoder.render(read_pair(row, fmt)).texts for row in rows]


def tokenize_texts(texts: list[list[str]], tokenizer: Any) -> None:
    """The tokenizer alone."""
    rows = iter(texts)
    while part := list(islice(rows, ROWS_PER_CALL)):
        tokenizer([text for row in part for text in row], add_special_tokens=False)["input_ids"]


def timed(work: Any, *args: Any) -> tuple[float, float, Any]:
    """Seconds on the clock, seconds of all cores together, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work(*args)
    return time.perf_counter() - wall, time.process_time() - cpu, result


def speed(path: Path, tokenizer: Any, rounds: int) -> dict[str, Any]:
    """Ours and the tokenizer alone, in alternation."""
    texts, times = raw_texts(path, tokenizer), []
    for _ in range(rounds):
        *ours, report = timed(prepare, path, tokenizer)
        times.append((timed(tokenize_texts, texts, tokenizer)[:2], ours))
    shares = {
        name: [raw[i] / ours[i] for raw, ours in times] for i, name in enumerate(("share_of_raw", "share_of_raw_cpu"))
    }
    return {
        "rows": len(texts),
        "mean_tokens": {name: round(mean, 1) for name, (mean, _) in report.tokens.items()},
        "raw_pairs_per_s": round(len(texts) / statistics.median(raw[0] for raw, _ in times), 1),
        "our_pairs_per_s": round(len(texts) / statistics.median(ours[0] for _, ours in times), 1),
        **{name: round(statistics.median(found), 3) for name, found in shares.items()},
        **{f"{name}_range": [round(pick(found), 3) for pick in (min, max)] for name, found in shares.items()},
    }


def status(name: str) -> float:
    """An entry of this process's memory in MiB; Linux only."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found[1]) / 1024 if found else float("nan")


def memory_of(path: Path, tokenizer: Any) -> dict[str, float]:
    """Memory in MiB before and at its peak; what is not memory-mapped is sampled every 20 ms."""
    found = {"before": status("VmRSS"), "before_own": status("RssAnon")}
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, cpu, _ = timed(set_up, path, tokenizer)
    done.set()
    watcher.join()
    return found | {"peak": status("VmHWM"), "peak_own": peak[0], "wall": wall, "cpu": cpu}


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--size", choices=SIZES, default="long")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3, help="0 measures memory only")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only_memory_of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    # Read by the tokenizer when it is first used.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    if args.only_memory_of:
        print(json.dumps(memory_of(args.only_memory_of, tokenizer)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        if args.data:
            repeat_rows(path, args.data, args.repeat)
        else:
            write_rows(path, args.size, args.rows)
        command = [sys.executable, __file__, args.tokenizer, "--only_memory_of", str(path)]
        memory = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        record = {
            "data": args.data.name if args.data else args.size,
            "seconds": {name: round(memory.pop(name), 1) for name in ("wall", "cpu")},
            "memory_mib": {name: round(value, 1) for name, value in memory.items()},
            **(speed(path, tokenizer, args.rounds) if args.rounds else {"rows": args.rows}),
            "machine": {
                "cores": len(os.sched_getaffinity(0)),
                "load": round(os.getloadavg()[0], 1),
                "date": datetime.now(timezone.utc).date().isoformat(),
                "python": platform.python_version(),
                **{package: version(package) for package in ("tokenizers", "transformers", "datasets")},
            },
        }
    print(json.dumps(record, indent=1))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
