"""Metrics against plain numpy, written out from the definitions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from adadpo_lightning.losses import build_loss
from adadpo_lightning.metrics import WeightedMeans, step_statistics
from adadpo_lightning.metrics.preference import finish
from adadpo_lightning.training.module import pair_logps, sum_by_answer
from adadpo_lightning.types import PreferenceBatch, StepOutput


def make_step(count, seed, loss, filler=False, step_pairs=None):
    """A step with random log-probabilities; nothing of a model is needed."""
    rng = np.random.default_rng(seed)
    chosen_len, rejected_len = rng.integers(1, 9, count), rng.integers(1, 9, count)
    tokens = int(chosen_len.sum() + rejected_len.sum())
    logps, reference = -rng.exponential(2.0, tokens), -rng.exponential(2.0, tokens)
    empty = torch.zeros(0, dtype=torch.long)
    batch = PreferenceBatch(
        input_ids=empty,
        position_ids=empty,
        predict=empty,
        targets=empty,
        side_tokens=tokens,
        answer_len=torch.tensor([*chosen_len, *rejected_len]),
        answer_group=torch.arange(2 * count) % count,
        answers=torch.arange(2 * count),
        chosen_len=torch.tensor(chosen_len),
        rejected_len=torch.tensor(rejected_len),
        row_ids=torch.arange(count),
        answer_ids=torch.tensor([[0, 1]] * count),
        step_pairs=step_pairs or count,
        step_chosen_tokens=int(chosen_len.sum()),
        segments=tuple((1, int(c), int(r)) for c, r in zip(chosen_len, rejected_len, strict=True)),
        filler=filler,
    )
    policy, ref = torch.tensor(logps), torch.tensor(reference)
    pairs = pair_logps(batch, policy, ref)
    output = loss(pairs)
    d = policy - ref
    kl = sum_by_answer(torch.exp(-d) - 1 + d, batch)
    share = output.reduce(batch.step_pairs, batch.step_chosen_tokens)
    return StepOutput(pairs, output, share, kl), batch, logps, reference


def expected(steps, beta):
    """The same metrics, pair by pair in numpy."""
    rows = []
    for _, batch, logps, reference in steps:
        lengths = np.concatenate([batch.chosen_len, batch.rejected_len])
        ends = np.cumsum(lengths)
        count = len(batch)
        for pair in range(count):
            row = {}
            for side, index in (("chosen", pair), ("rejected", count + pair)):
                part = slice(ends[index] - lengths[index], ends[index])
                log_ratio = logps[part] - reference[part]
                row[side] = {
                    "logp": logps[part].sum(),
                    "n": lengths[index],
                    "h": log_ratio.sum(),
                    "kl": (np.exp(-log_ratio) - 1 + log_ratio).sum(),
                }
            rows.append(row)

    def mean(f):
        return np.mean([f(r["chosen"], r["rejected"]) for r in rows])

    def token_mean(side, key):
        return sum(r[side][key] for r in rows) / sum(r[side]["n"] for r in rows)

    return {
        "logps/chosen": mean(lambda w, r: w["logp"]),
        "logps/rejected": mean(lambda w, r: r["logp"]),
        "logps/chosen_per_token": token_mean("chosen", "logp"),
        "logps/rejected_per_token": token_mean("rejected", "logp"),
        "rewards/chosen": mean(lambda w, r: beta * w["h"]),
        "rewards/rejected": mean(lambda w, r: beta * r["h"]),
        "rewards/margins": mean(lambda w, r: beta * (w["h"] - r["h"])),
        "rewards/accuracies": mean(lambda w, r: float(w["h"] > r["h"])),
        "kl/chosen": token_mean("chosen", "kl"),
        "kl/rejected": token_mean("rejected", "kl"),
        "kl/margin": mean(lambda w, r: beta * (w["h"] - r["h"])),
        # P_l : P_w of DPO, per token and relative to the reference.
        "grad_balance/ratio": np.exp(mean(lambda w, r: r["h"] / r["n"] - w["h"] / w["n"])),
        "grad_balance/ratio_policy": np.exp(mean(lambda w, r: r["logp"] / r["n"] - w["logp"] / w["n"])),
        "grad_balance/coefficient": 1.0,
    }


def test_every_metric_equals_its_definition_over_uneven_batches():
    steps = [make_step(count, seed, build_loss("dpo", beta=0.3)) for seed, count in enumerate((1, 4, 7))]
    means = WeightedMeans()
    for step, batch, *_ in steps:
        means.update(step_statistics(step, batch, beta=0.3))
    metrics = finish(means.compute())
    for name, value in expected(steps, 0.3).items():
        assert metrics[name] == pytest.approx(value, rel=1e-9), name


def test_adaptive_coefficient_and_clipped_fraction():
    step, batch, *_ = make_step(50, 3, build_loss("adadpo", ceiling=1.5))
    metrics = finish({k: float(s) / float(w) for k, (s, w) in step_statistics(step, batch).items()})
    chosen, rejected = (
        (a - b) / n
        for a, b, n in (
            (step.pairs.chosen, step.pairs.ref_chosen, batch.chosen_len),
            (step.pairs.rejected, step.pairs.ref_rejected, batch.rejected_len),
        )
    )
    wanted = torch.exp(chosen - rejected)
    assert metrics["grad_balance/coefficient"] == pytest.approx(float(wanted.clamp(max=1.5).mean()), rel=1e-12)
    assert metrics["grad_balance/clipped_fraction"] == pytest.approx(float((wanted >= 1.5).double().mean()))
    assert 0.1 < metrics["grad_balance/clipped_fraction"] < 0.9


def test_loss_is_the_mean_over_steps_of_the_whole_step():
    """Two micro-batches of one step and a second step: each step counts once, however it was split."""
    loss = build_loss("dpo")
    first, second = make_step(2, 0, loss, step_pairs=5), make_step(3, 1, loss, step_pairs=5)
    third = make_step(4, 2, loss)
    means = WeightedMeans()
    for step, batch, *_ in (first, second, third):
        means.update(step_statistics(step, batch))
    split = torch.cat([first[0].loss.per_pair, second[0].loss.per_pair]).mean()
    assert means.compute()["loss"] == pytest.approx(float((split + third[0].loss.per_pair.mean()) / 2))


def test_loss_of_a_limited_validation_is_normalised_by_the_pairs_and_tokens_it_saw():
    """Two micro-batches out of a plan of 50 pairs: pairs and chosen tokens count as they came."""
    loss = build_loss("cpo", nll_weight=0.7)
    seen = [make_step(count, seed, loss, step_pairs=50) for seed, count in enumerate((2, 3))]
    means = WeightedMeans()
    for step, batch, *_ in seen:
        means.update(step_statistics(step, batch, by_step=False))
    contrast = torch.cat([step.loss.per_pair for step, *_ in seen]).mean()
    nll = sum(step.loss.nll.sum() for step, *_ in seen) / sum(batch.chosen_len.sum() for _, batch, *_ in seen)
    metrics = finish(means.compute())
    assert metrics["loss"] == pytest.approx(float(contrast + nll))
    assert not any(name.startswith("loss/") for name in metrics)


def test_entropy_is_a_token_mean():
    step, batch, *_ = make_step(3, 0, build_loss("dpo"))
    entropy = torch.arange(1.0, 7.0)
    statistics = step_statistics(replace(step, entropy=entropy), batch)
    metrics = {name: float(total) / float(weight) for name, (total, weight) in statistics.items()}
    assert metrics["entropy/chosen"] == pytest.approx(6.0 / int(batch.chosen_len.sum()))
    assert metrics["entropy/rejected"] == pytest.approx(15.0 / int(batch.rejected_len.sum()))


def test_fillers_count_nothing():
    loss = build_loss("adacpo")
    real, filler = make_step(4, 0, loss), make_step(1, 1, loss, filler=True)
    alone, both = WeightedMeans(), WeightedMeans()
    alone.update(step_statistics(real[0], real[1]))
    both.update(step_statistics(real[0], real[1]))
    both.update(step_statistics(filler[0], filler[1]))
    assert both.compute() == alone.compute()


def test_names_may_not_change():
    means = WeightedMeans()
    means.update({"a": (torch.tensor(1.0), 1)})
    with pytest.raises(ValueError, match=r"expected the statistics \('a',\)"):
        means.update({"b": (torch.tensor(1.0), 1)})
