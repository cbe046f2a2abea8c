"""Reads conversations as JSON lines, and writes the score of each as a line: MODEL DTYPE DEVICE.

It imports nothing of adadpo_lightning, and runs in an environment with torch and a transformers for which the model's
own code was written. THAT CODE IS RUN: read it first.
"""

import json
import sys


def main(path: str, dtype: str, device: str) -> None:
    """Score until the end of the input."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(
        path, trust_remote_code=True, torch_dtype=getattr(torch, dtype)
    )
    model.to(device).eval()
    for line in sys.stdin:
        text = tokenizer.apply_chat_template(json.loads(line), tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(device)
        with torch.no_grad():
            print(float(model(ids).score.float()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
