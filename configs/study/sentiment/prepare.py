"""Writes the demo's model and prompts into a folder: python prepare.py FOLDER COUNT SEED...

FOLDER/model is SmolLM2-135M-Instruct, FOLDER/prompts/held_in_SEED.txt has COUNT of the 240 held-in prompts, one per
line, and FOLDER/prompts/held_out.txt all 80 held-out ones.
"""

import sys
from pathlib import Path

from adadpo_lightning.demo.model import cache_directory, obtain, unpack
from adadpo_lightning.demo.prompts import make_prompts


def main(folder: str, count: str, *seeds: str) -> None:
    """Obtain the model and compose the prompts."""
    root = Path(folder)
    (root / "prompts").mkdir(parents=True, exist_ok=True)
    found = {f"held_in_{seed}": make_prompts(held_in=int(count), seed=int(seed)).held_in for seed in seeds}
    for name, prompts in (found | {"held_out": make_prompts().held_out}).items():
        (root / "prompts" / f"{name}.txt").write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    unpack(str(obtain(cache_directory())), root / "model")


if __name__ == "__main__":
    main(*sys.argv[1:])
