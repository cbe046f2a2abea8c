"""grad_norm/...: the hook's numbers against autograd of a plain transformers model, for any split of the step."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from transformers import AutoModelForCausalLM

from adadpo_lightning.callbacks import PreferenceMetrics
from adadpo_lightning.data.collate import collate
from adadpo_lightning.losses import build_loss
from adadpo_lightning.metrics.gradients import gradient_squares
from adadpo_lightning.models.loading import PolicyConfig
from adadpo_lightning.models.policy import PolicyModel
from adadpo_lightning.training.module import pair_logps
from adadpo_lightning.types import EncodedPair, PairLogps
from tests.training.test_module import QUIET, data, module

PAIRS = [
    EncodedPair([7, 8, 9], [10, 11, 12, 2], [13, 2], 0),
    EncodedPair([9], [8, 2], [7, 12, 14, 15, 2], 1),
    EncodedPair([14, 13], [2], [11, 2], 2),
]
# The same with turns inside of two answers that are not scored.
MASKED = [
    replace(PAIRS[0], chosen_mask=[True, False, False, True]),
    replace(PAIRS[1], rejected_mask=[True, True, False, False, True]),
    PAIRS[2],
]


def by_hand(model_dir, loss, pairs=PAIRS):
    """Each answer on its own through transformers; the gradient by its own last hidden states."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64)
    logps, lengths, states = {}, {}, []
    for side in ("chosen_ids", "rejected_ids"):
        for pair in pairs:
            answer = getattr(pair, side)
            mask = getattr(pair, side.replace("ids", "mask")) or [True] * len(answer)
            ids = torch.tensor([pair.prompt_ids + answer])
            hidden = model.model(ids).last_hidden_state[0]
            hidden.retain_grad()
            states.append((side, pair, hidden))
            logits = model.lm_head(hidden).log_softmax(-1)
            n = len(pair.prompt_ids)
            scored = [(k, token) for k, token in enumerate(answer) if mask[k]]
            logps.setdefault(side, []).append(sum(logits[n - 1 + k, token] for k, token in scored))
            lengths.setdefault(side, []).append(len(scored))
    x = PairLogps(
        torch.stack(logps["chosen_ids"]),
        torch.stack(logps["rejected_ids"]),
        torch.tensor(lengths["chosen_ids"]),
        torch.tensor(lengths["rejected_ids"]),
        *(torch.stack(logps[s]).detach() - 0.3 for s in ("chosen_ids", "rejected_ids")),
    )
    loss(x).reduce(len(pairs), sum(lengths["chosen_ids"])).backward()
    squares = {"chosen_ids": 0.0, "rejected_ids": 0.0}
    prompts = {}
    for side, pair, hidden in states:
        n = len(pair.prompt_ids)
        gradient = torch.zeros_like(hidden) if hidden.grad is None else hidden.grad
        squares[side] += gradient[n:].square().sum().item()
        prompts[pair.row_id] = prompts.get(pair.row_id, 0) + gradient[n - 1]
        assert not gradient[: n - 1].any()
    return [squares["chosen_ids"], squares["rejected_ids"], sum(p.square().sum().item() for p in prompts.values())]


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("key", ["dpo", "adaipo", "adacpo", "sft"])
@pytest.mark.parametrize("pairs", [PAIRS, MASKED], ids=["whole answers", "turns"])
def test_the_hook_reads_what_autograd_of_the_plain_model_gives(model_dir, layout, key, pairs):
    loss = build_loss(key)
    config = PolicyConfig(path=str(model_dir), dtype="float64", layout=layout)
    policy = PolicyModel(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64), config)
    tokens = sum(sum(pair.chosen_mask) or len(pair.chosen_ids) for pair in pairs)
    batch = collate(pairs, layout=layout, pad_id=0, step_pairs=3, step_chosen_tokens=tokens)
    seen = []
    policy.gradient_observer = lambda batch, gradient: seen.append(gradient_squares(batch, gradient))
    logps = policy(batch)
    x = pair_logps(batch, logps, logps.detach())
    # As by hand: the reference is 0.3 nats an answer below the policy.
    x = PairLogps(x.chosen, x.rejected, x.chosen_len, x.rejected_len, x.ref_chosen - 0.3, x.ref_rejected - 0.3)
    loss(x).reduce(3, tokens).backward()
    assert seen[0].tolist() == pytest.approx(by_hand(model_dir, loss, pairs), rel=1e-9, abs=1e-18)


class Collect(Callback):
    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items() if "grad_norm" in k})


def run(model_dir, pairs_file, micro, **options):
    lit = module(model_dir, "adadpo", **{k: v for k, v in options.items() if k == "layout"})
    collect = Collect()
    trainer = Trainer(
        **QUIET,
        enable_checkpointing=False,
        max_steps=3,
        log_every_n_steps=1,
        callbacks=[PreferenceMetrics(), collect],
    )
    trainer.fit(lit, datamodule=data(pairs_file, micro_batch_size=micro))
    assert lit.built_policy.gradient_observer is None
    return collect.rows[-1]


def test_norms_do_not_depend_on_accumulation_or_layout(model_dir, pairs_file):
    whole = run(model_dir, pairs_file, 8)
    assert whole.keys() == {f"train/grad_norm/{name}" for name in ("chosen", "rejected", "prompt", "ratio", "total")}
    ratio = whole["train/grad_norm/chosen"] / whole["train/grad_norm/rejected"]
    assert whole["train/grad_norm/ratio"] == pytest.approx(ratio, rel=1e-6)
    for other in (run(model_dir, pairs_file, 1), run(model_dir, pairs_file, 2, layout="padded")):
        assert other == pytest.approx(whole, rel=1e-5)


def test_watching_changes_no_bit_of_training(model_dir, pairs_file):
    results = []
    for watch in (True, False):
        lit = module(model_dir, "adadpo", dtype="float32")
        callbacks = [PreferenceMetrics(gradient_norms=watch)]
        trainer = Trainer(**QUIET, enable_checkpointing=False, max_steps=3, callbacks=callbacks)
        trainer.fit(lit, datamodule=data(pairs_file, micro_batch_size=4))
        results.append([p.detach().clone() for p in lit.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
