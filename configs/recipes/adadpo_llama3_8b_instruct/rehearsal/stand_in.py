"""Stand-ins for what a rehearsal cannot have: ArmoRM, AlpacaEval's annotator, and the benchmarks' questions.

python stand_in.py files: writes prompts, questions and a random reward model with code of its own, as ArmoRM has.
python stand_in.py annotate ...: takes the options of alpaca_eval, and prefers the answer that comes first by SHA-256.

Nothing that a stand-in decides means anything.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from adadpo_lightning.demo.model import obtain
from adadpo_lightning.demo.prompts import make_prompts
from adadpo_lightning.models.loading import PolicyConfig, load_tokenizer

REWARD_MODEL = Path("models/stand-in-reward-model")
CODE = """
from types import SimpleNamespace
import torch
from transformers import LlamaForSequenceClassification

class StandIn(LlamaForSequenceClassification):
    def forward(self, input_ids, **kwargs):
        logits = super().forward(input_ids, **kwargs).logits
        return SimpleNamespace(logits=logits, score=10 * logits[:, 0])
"""


def files() -> None:
    """Write what the rehearsal reads."""
    gguf = obtain(Path("models"))
    folder = Path("data/rehearsal")
    folder.mkdir(parents=True, exist_ok=True)
    held_in, held_out = make_prompts(10, 4)
    for name, prompts in (("train_prefs", held_in[:8]), ("test_prefs", held_in[8:])):
        rows = [json.dumps({"prompt": prompt}) for prompt in prompts]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    rows = [json.dumps({"question_id": f"q{i}", "prompt": prompt}) for i, prompt in enumerate(held_out)]
    (folder / "questions.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    reward_model(load_tokenizer(PolicyConfig(path=str(gguf))))


def reward_model(tokenizer: Any, folder: Path = REWARD_MODEL) -> None:
    """Write a random classifier with code of its own, and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=1, **size)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "modeling_custom.py").write_text(CODE, encoding="utf-8")
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written["auto_map"] = {"AutoModelForSequenceClassification": "modeling_custom.StandIn"}
    (folder / "config.json").write_text(json.dumps(written), encoding="utf-8")


def annotate(model_outputs: str, annotators_config: str, output_path: str) -> None:
    """Write annotations.json where alpaca_eval does, with a baseline that says nothing."""
    rows = []
    for row in json.loads(Path(model_outputs).read_text(encoding="utf-8")):
        first = hashlib.sha256(row["output"].encode()).digest()[0] < 128
        sides = {"output_1": "I do not know.", "generator_1": "gpt4_turbo", "output_2": row["output"]}
        rows.append({**row, **sides, "generator_2": row["generator"], "preference": 1.0 if first else 2.0})
    folder = Path(output_path) / annotators_config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "annotations.json").write_text(json.dumps(rows), encoding="utf-8")


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("files")
    options = commands.add_parser("annotate")
    for name in ("model_outputs", "annotators_config", "output_path"):
        options.add_argument(f"--{name}", required=True)
    given = vars(parser.parse_args())
    {"files": files, "annotate": annotate}[given.pop("command")](**given)


if __name__ == "__main__":
    main()
