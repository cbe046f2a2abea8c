"""grad_norm/params_...: against autograd of the plain transformers model; training stays the same to the bit.

``torchrun -m tests.callbacks.test_parameter_balance FOLDER`` is what the two ranks run.
"""

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from adadpo_lightning.callbacks import ParameterGradientBalance, PreferenceMetrics
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import build_loss
from adadpo_lightning.models.loading import LoraOptions
from adadpo_lightning.strategies import FSDP2
from adadpo_lightning.types import PairLogps
from tests.training.test_module import QUIET, data, module


class Spy(Callback):
    """Before the probe: keeps weights, batch, gradients and random state. `after` is its twin behind the probe."""

    def __init__(self, after=None):
        self.weights, self.batches, self.gradients, self.random = [], [], [], []
        self.after = after

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.weights.append({n: p.detach().clone() for n, p in pl_module.named_parameters()})
        self.batches.append(batch)
        self.gradients.append([(p.grad, None if p.grad is None else p.grad.clone()) for p in pl_module.parameters()])
        self.random.append(torch.get_rng_state())


class Rows(Callback):
    """The probe's numbers, and the gradient that training then makes, before clipping."""

    def __init__(self):
        self.probe, self.hooked, self.squares = [], [], []

    def on_train_batch_end(self, trainer, pl_module, *args):
        seen = {k.removeprefix("train/"): float(v) for k, v in trainer.callback_metrics.items()}
        self.probe.append({k: v for k, v in seen.items() if "params_" in k})
        # The clock's numbers are those of no computation.
        self.hooked.append({k: v for k, v in seen.items() if "params_" not in k and not k.endswith("_per_second")})

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.squares.append(sum(float(p.grad.square().sum()) for p in pl_module.parameters() if p.grad is not None))


def fit(lit, pairs_file, callbacks, micro=8, val=None, **options):
    seed_everything(0)
    options = {"max_steps": 4, "enable_checkpointing": False, "log_every_n_steps": 1, "logger": False, **options}
    trainer = Trainer(**{**QUIET, **options}, callbacks=callbacks)
    trainer.fit(lit, datamodule=data(pairs_file, micro_batch_size=micro, val=val))
    return trainer


def plain_model(model_dir, weights=None):
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64)
    if weights is not None:
        model.load_state_dict({n.removeprefix("policy.model."): w for n, w in weights.items()})
    return model


def answers_of(batch):
    """(chosen sequences, rejected sequences) with prompt lengths, cut out of a packed row."""
    ids, start, sides = batch.input_ids[0], 0, ([], [])
    for prompt, chosen, rejected in batch.segments:
        head = ids[start : start + prompt]
        first, second = ids[start + prompt :][:chosen], ids[start + prompt + chosen :][:rejected]
        sides[0].append((torch.cat([head, first]), prompt))
        sides[1].append((torch.cat([head, second]), prompt))
        start += prompt + chosen + rejected
    return sides


def sequence_logps(model, sequences, others):
    """Each answer's log-probability and its tail beyond the length of the other answer."""
    sums, tails = [], []
    for s, n in sequences:
        tokens = model(s[None]).logits[0, n - 1 : -1].log_softmax(-1).gather(1, s[n:, None]).squeeze(1)
        sums.append(tokens.sum())
        tails.append(tokens[len(others[len(tails)][0]) - others[len(tails)][1] :].sum())
    return torch.stack(sums), torch.stack(tails)


def by_hand(model_dir, weights, batch, loss):
    """Each answer alone through transformers; one side's log-probabilities detached in the loss."""
    model = plain_model(model_dir, weights)
    sides = answers_of(batch)
    chosen, rejected = sequence_logps(model, *sides), sequence_logps(model, *sides[::-1])
    with torch.no_grad():
        reference = plain_model(model_dir)
        ref_chosen, ref_rejected = sequence_logps(reference, *sides), sequence_logps(reference, *sides[::-1])

    def given(chosen, rejected):
        x = PairLogps(chosen[0], rejected[0], batch.chosen_len, batch.rejected_len, ref_chosen[0], ref_rejected[0])
        tails = {"chosen_tail": chosen[1], "rejected_tail": rejected[1]}
        return loss(replace(x, **tails, ref_chosen_tail=ref_chosen[1], ref_rejected_tail=ref_rejected[1]))

    def held(side):
        return [value.detach() for value in side]

    parts = {
        "chosen": given(chosen, held(rejected)).per_pair.mean(),
        "rejected": given(held(chosen), rejected).per_pair.mean(),
    }
    if (nll := given(chosen, rejected).nll) is not None:
        parts["nll"] = nll.sum() / batch.chosen_len.sum()
    names = [name for name, _ in model.named_parameters()]
    gradients = {
        part: torch.autograd.grad(value, list(model.parameters()), retain_graph=True) for part, value in parts.items()
    }
    groups = {"": names}
    for name in names:
        place = "embeddings" if "embed" in name else "head"
        if ".layers." in name:
            place = f"layer_{int(name.split('.')[2]):02d}"
        groups.setdefault(f"/{place}", []).append(name)
    expected = {}
    for suffix, members in groups.items():
        flat = {
            part: torch.cat([g.flatten() for n, g in zip(names, values, strict=True) if n in members])
            for part, values in gradients.items()
        }
        for part, vector in flat.items():
            expected[f"grad_norm/params_{part}{suffix}"] = vector.norm().item()
        expected[f"grad_norm/params_ratio{suffix}"] = (flat["chosen"].norm() / flat["rejected"].norm()).item()
        cosine = torch.cosine_similarity(flat["chosen"], flat["rejected"], dim=0)
        expected[f"grad_norm/params_cosine{suffix}"] = cosine.item()
    return expected


@pytest.mark.parametrize("key", ["dpo", "adaorpo", "adacpo", "adalddpo"])
def test_the_numbers_are_those_of_autograd_of_the_plain_model(model_dir, pairs_file, key):
    spy, rows = Spy(), Rows()
    fit(module(model_dir, key), pairs_file, [spy, ParameterGradientBalance(2), rows])
    for step in (0, 2):
        expected = by_hand(model_dir, spy.weights[step], spy.batches[step], build_loss(key))
        assert rows.probe[step] == pytest.approx(expected, rel=1e-5)  # kept as float32 by Lightning
        assert len(expected) == 5 * (4 if key in ("dpo", "adalddpo") else 5)
    assert rows.probe[1] == rows.probe[0]  # nothing new in between
    assert rows.probe[2] != rows.probe[0]
    assert abs(rows.probe[2]["grad_norm/params_ratio"] - 1) > 1e-3


def test_the_parts_sum_to_the_gradient_of_training(model_dir, pairs_file):
    rows = Rows()
    fit(module(model_dir, "adaipo"), pairs_file, [ParameterGradientBalance(1), rows])
    assert len(rows.squares) == 4
    for probe, squares in zip(rows.probe, rows.squares, strict=True):
        chosen, rejected, cosine = (probe[f"grad_norm/params_{name}"] for name in ("chosen", "rejected", "cosine"))
        assert chosen**2 + rejected**2 + 2 * chosen * rejected * cosine == pytest.approx(squares, rel=1e-4)


def test_padded_layout_and_checkpointing_give_the_same(model_dir, pairs_file):
    results = []
    for policy in ({}, {"layout": "padded"}, {"gradient_checkpointing": True}):
        rows = Rows()
        fit(module(model_dir, "simpo", **policy), pairs_file, [ParameterGradientBalance(1), rows], max_steps=2)
        results.append(rows.probe[1])
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    assert results[2] == pytest.approx(results[0], rel=1e-5)


def test_bf16_autocast_is_near_float32(model_dir, pairs_file):
    results = []
    for precision in ("32-true", "bf16-mixed"):
        rows = Rows()
        lit = module(model_dir, "dpo", dtype="float32")
        fit(lit, pairs_file, [ParameterGradientBalance(1), rows], max_steps=1, precision=precision)
        results.append({k: v for k, v in rows.probe[0].items() if "/layer" not in k})
    assert results[0] != results[1]
    assert results[1] == pytest.approx(results[0], rel=0.05, abs=0.02)  # cosines are near 0 here


@pytest.mark.parametrize("policy", [{}, {"lora": LoraOptions(r=2, dropout=0.3)}], ids=["full", "lora"])
def test_training_is_the_same_to_the_bit(model_dir, pairs_file, policy):
    """With dropout, accumulation over four micro-batches, clipping and the hook on hidden states."""
    results = []
    for probed in (True, False):
        lit = module(model_dir, "adacpo", dtype="float32", **policy)
        before, after, rows = Spy(), Spy(), Rows()
        callbacks = [before, *([ParameterGradientBalance(1)] if probed else []), after, PreferenceMetrics(), rows]
        seed_everything(0)
        trainer = fit(lit, pairs_file, callbacks, micro=2, gradient_clip_val=0.1)
        for at_start, at_end in zip(before.gradients, after.gradients, strict=True):
            for (grad, copy), (same, same_copy) in zip(at_start, at_end, strict=True):
                assert grad is same
                assert copy is same_copy is None or torch.equal(copy, same_copy)
        assert all(torch.equal(a, b) for a, b in zip(before.random, after.random, strict=True))
        state = trainer.optimizers[0].state
        moments = [state[p][name] for p in state for name in ("exp_avg", "exp_avg_sq", "step")]
        weights = [p.detach().clone() for p in lit.parameters()]
        results.append(([*weights, *moments, torch.get_rng_state()], rows))
    for a, b in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(a, b)
    assert results[0][1].hooked == results[1][1].hooked
    assert results[0][1].probe[0]
    assert not results[1][1].probe[0]
    if policy:
        assert {name.split("/")[-1] for name in results[0][1].probe[0]} >= {"layer_00", "layer_01"}
        assert not any("embeddings" in name or "head" in name for name in results[0][1].probe[0])


def test_a_loss_without_contrast_has_its_nll_alone(model_dir, pairs_file):
    rows, spy = Rows(), Spy()
    fit(module(model_dir, "sft"), pairs_file, [ParameterGradientBalance(1), spy, rows], max_steps=1)
    assert {name.split("/")[1] for name in rows.probe[0]} == {"params_nll"}
    assert rows.probe[0]["grad_norm/params_nll"] ** 2 == pytest.approx(rows.squares[0], rel=1e-5)


def test_loggers_get_every_nth_step_whatever_they_log_else(model_dir, pairs_file, tmp_path):
    import csv

    logger = CSVLogger(tmp_path)
    fit(module(model_dir, "dpo"), pairs_file, [ParameterGradientBalance(3)], logger=logger, log_every_n_steps=50)
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/grad_norm/params_ratio"]]
    assert [row["step"] for row in rows] == ["0", "3"]
    assert float(rows[0]["train/grad_norm/params_chosen/layer_01"]) > 0


def test_the_cost_is_said_once(model_dir, pairs_file, caplog):
    with caplog.at_level(logging.INFO):
        fit(module(model_dir, "dpo"), pairs_file, [ParameterGradientBalance(1)])
        fit(module(model_dir, "dpo"), pairs_file, [ParameterGradientBalance(50)])
    said = [r.getMessage() for r in caplog.records if "ParameterGradientBalance" in r.getMessage()]
    assert len(said) == 2
    assert "every 1 steps" in said[0]
    assert "once in this run" in said[1]


def test_what_it_cannot_do_is_said_before_training(model_dir):
    with pytest.raises(UserError, match=r"every_n_steps: expected at least 1, got 0"):
        ParameterGradientBalance(0)
    with pytest.raises(UserError, match="cannot read gradients under FSDPStrategy"):
        ParameterGradientBalance().setup(SimpleNamespace(strategy=FSDPStrategy()), module(model_dir, "dpo"), "fit")


# Two ranks.

RUNS = {
    "ddp": ("ddp", "adacpo", {}, 4),
    "ddp-accumulated": ("ddp", "dpo", {"lora": LoraOptions(r=2)}, 2),
    "fsdp2": ("fsdp2", "adacpo", {}, 4),
    "fsdp2-accumulated": ("fsdp2", "dpo", {"lora": LoraOptions(r=2), "gradient_checkpointing": True}, 2),
    "hsdp": ("hsdp", "dpo", {}, 4),
}


def run(folder, name, *, ranks, probed=True):
    kind, key, policy, micro = RUNS[name]
    strategy = {"ddp": "ddp", "fsdp2": FSDP2(reduce_dtype=None), "hsdp": FSDP2(replicas=2, reduce_dtype=None)}[kind]
    rows = Rows()
    seed_everything(0)
    lit = module(folder / "model", key, lr=1e-3, **policy)
    fit(
        lit,
        folder / "pairs.jsonl",
        [*([ParameterGradientBalance(2)] if probed else []), rows],
        # One process: all pairs that the ranks probe, in one micro-batch.
        micro=micro if ranks > 1 else 2 * micro,
        val=str(folder / "pairs.jsonl"),  # a forward pass alone leaves weights gathered
        val_check_interval=2,
        limit_val_batches=1,
        max_steps=5,  # the last step has 5 pairs: other counts on either rank
        gradient_clip_val=0.5,
        devices=ranks,
        strategy=strategy if ranks > 1 else "auto",
        inference_mode=kind == "ddp",
        enable_progress_bar=False,
    )
    weights = [p.full_tensor() if isinstance(p, DTensor) else p for p in lit.parameters()]
    return {"first": rows.probe[0], "last": rows.probe[-1], "weights": [w.detach().clone() for w in weights]}


def worker(folder):
    torch.set_num_threads(1)
    for name in RUNS:
        results = [run(folder, name, ranks=2, probed=probed) for probed in (True, False)]
        torch.save(results, folder / f"{name}-{os.environ['RANK']}.pt")


def check(folder, name):
    expected = run(folder, name, ranks=1)
    for rank in range(2):
        probed, unprobed = torch.load(folder / f"{name}-{rank}.pt")
        assert not unprobed["first"]
        for a, b, c in zip(probed["weights"], unprobed["weights"], expected["weights"], strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, c, rtol=1e-6, atol=1e-8)
        assert probed["last"] != probed["first"]
        if not name.endswith("accumulated"):  # then the first micro-batches are other pairs than in one process
            assert len(probed["first"]) > 10
            assert probed["first"] == pytest.approx(expected["first"], rel=1e-6)  # Lightning shows float32
            assert probed["last"] == pytest.approx(expected["last"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_equal_one_process(model_dir, pairs_file, tmp_path):
    """One test for all runs: starting two processes takes longer than they do."""
    (tmp_path / "model").symlink_to(model_dir)
    (tmp_path / "pairs.jsonl").symlink_to(pairs_file)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "USE_LIBUV": "0"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "tests.callbacks.test_parameter_balance", tmp_path]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    for name in RUNS:
        check(tmp_path, name)


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
