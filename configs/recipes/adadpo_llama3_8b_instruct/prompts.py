"""Writes the distinct prompts of a data set, sorted, as files of JSON lines that several GPUs share.

python prompts.py DATASET SPLIT PARTS FOLDER: DATASET is a hub id, or a local file of JSON lines, with the column
``prompt``. SimPO takes the same prompts of HuggingFaceH4/ultrafeedback_binarized.
"""

import json
import sys
from pathlib import Path

from datasets import load_dataset


def main(dataset: str, split: str, parts: str, folder: str) -> None:
    """Write FOLDER/SPLIT-0.jsonl and so on, each with every PARTS-th prompt."""
    local = Path(dataset).is_file()
    source = {"path": "json", "data_files": {split: dataset}} if local else {"path": dataset}
    rows = load_dataset(**source, split=split)
    prompts = sorted(set(rows["prompt"]))
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number in range(int(parts)):
        mine = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts[number :: int(parts)]]
        (Path(folder) / f"{split}-{number}.jsonl").write_text("\n".join(mine) + "\n", encoding="utf-8")
    print(f"{len(prompts)} prompts in {parts} files")


if __name__ == "__main__":
    main(*sys.argv[1:])
