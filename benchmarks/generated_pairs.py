"""Preference pairs of generated text, whose lengths are those of judged pairs."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

REAL_LENGTHS = Path(__file__).with_name("real_lengths.json")
# Common English words.
WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they
which one you were all her she there would their we him been has when who will no more if out so up said what
its about than into them can only other time new some could these two may first then do any like my now over
such our man me even most made after also did many off before must well back through years much where your way
down should because long each just state those people too little how good world very make still see own men
work day get here between both life being under three never know same last another while us might great old
year come since against right came take used himself few house use during without again place around however
home small found thought went say part once general high upon school every does got united left number course
war until always away something fact water less public put thing almost hand enough far took head yet
government system better set told nothing night end why called find going look asked later knew point next
program city business give group toward young days let room president side social given present several order
national possible rather second face per among form important often things development information
understanding relationship temperature performance responsibility particularly environment
""".split()  # noqa: SIM905


def text(rng: random.Random, tokens: int) -> str:
    """Words of about this many tokens of four characters."""
    words: list[str] = []
    length = 0
    while length < 4 * tokens:
        words.append(rng.choice(WORDS) + ("." if rng.random() < 0.08 else ""))
        length += len(words[-1]) + 1
    return " ".join(words)


def write_pairs(
    path: Path, tokenizer: Any, count: int, *, longest: int | None = None, seed: int = 0
) -> list[list[int]]:
    """Write pairs of generated text whose prompts the model's chat template has rendered, as TRL's scripts have them.

    Args:
        path: File to write.
        tokenizer: The model's tokenizer.
        count: Number of pairs.
        longest: Cut prompts and answers to this many tokens of four characters.
        seed: Seed of lengths and text.

    Returns:
        Lengths in tokens of each prompt, chosen and rejected answer.
    """
    rng = random.Random(seed)
    known = json.loads(REAL_LENGTHS.read_text(encoding="utf-8"))["lengths"]
    sizes = [size for _ in range(math.ceil(count / len(known))) for size in rng.sample(known, len(known))]
    rows, lengths = [], []
    for size in sizes[:count]:
        prompt, chosen, rejected = (text(rng, min(tokens, longest or tokens)) for tokens in size)
        asked = [{"role": "user", "content": prompt}]
        row = {
            "prompt": tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False),
            "chosen": chosen + tokenizer.eos_token,
            "rejected": rejected + tokenizer.eos_token,
        }
        rows.append(row)
        lengths.append([len(tokenizer(value, add_special_tokens=False)["input_ids"]) for value in row.values()])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return lengths
