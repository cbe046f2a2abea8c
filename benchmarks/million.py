"""A million pairs from a file to a training run's first micro-batches: time and memory of each stage.

    python benchmarks/million.py TOKENIZER --rows 1000000

TOKENIZER is a directory or hub id. Rows are short (about 10 tokens of prompt and of each answer), and all prompts
differ. Stages: rows on disk, tokenized once into an Arrow file, the plan of the epoch, its first 100 micro-batches.
Then a second process starts from the Arrow file, as a resumed run does.
`own` is memory of the process without memory-mapped files, which the system takes back when it needs it. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from tokenisation import status, write_rows

MICRO_BATCHES = 100
BATCHES = {"global_batch_size": 512, "micro_batch_size": 8}
RANKS = 8


class Stages:
    """Seconds and memory of the stages of a process, MiB."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self._peak = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, status("RssAnon"))
            time.sleep(0.02)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens in this context."""
        begun, self._peak = time.perf_counter(), 0.0
        yield
        seconds = time.perf_counter() - begun
        self.found[name] = {
            "seconds": round(seconds, 2),
            "own_peak": round(max(self._peak, status("RssAnon"))),
            "own_after": round(status("RssAnon")),
            "rss_peak_so_far": round(status("VmHWM")),
        }


def run(path: Path, cache: Path, tokenizer_path: str) -> dict[str, Any]:
    """All that a rank of a training run does with its data until it has had some micro-batches."""
    import datasets
    from transformers import AutoTokenizer

    from adadpo_lightning.data.batching import training_plan
    from adadpo_lightning.data.datamodule import PreferenceDataModule
    from adadpo_lightning.data.loader import MicroBatches

    stages = Stages()
    with stages.stage("imports and tokenizer"):
        datasets.config.HF_DATASETS_CACHE = cache
        datasets.disable_progress_bars()
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
        data = PreferenceDataModule(str(path), **BATCHES)
        data.tokenizer = tokenizer
    with stages.stage("rows to token ids"):
        data.sets.load("fit", tokenizer, with_rejected=True, needs_rejected=True)
    with stages.stage("plan"):
        plan = training_plan(data.prepared["train"], data.batching, ranks=RANKS, epochs=1)
    with stages.stage(f"first {MICRO_BATCHES} micro-batches"):
        batches = MicroBatches(
            data.prepared["train"].pairs, layout="packed", pad_id=0, with_rejected=True, share=plan.groups is not None
        )
        tokens = sum(batches[batch].input_ids.numel() for batch in islice(plan.rank_batches(0, 0), MICRO_BATCHES))
    return {"pairs": len(plan.lengths), "tokens": tokens, "stages": stages.found}


def main() -> None:
    """Write the rows, run twice, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--run", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(run(*args.run, args.tokenizer)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path, cache = Path(folder) / "pairs.jsonl", Path(folder) / "cache"
        begun = time.perf_counter()
        write_rows(path, "short", args.rows)
        written = time.perf_counter() - begun
        command = [sys.executable, __file__, args.tokenizer, "--run", str(path), str(cache)]
        first, again = (
            json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
            for _ in range(2)
        )
        files = [file for file in cache.rglob("*.arrow")]
        record = {
            "rows": args.rows,
            "seconds_to_write": round(written, 1),
            "bytes_a_pair": {
                "rows": round(path.stat().st_size / args.rows, 1),
                "arrow": {file.name.partition("-")[0]: round(file.stat().st_size / args.rows, 1) for file in files},
            },
            "first_run": first,
            "again": again,
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
        args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
