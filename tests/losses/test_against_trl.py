"""Values and gradients against TRL's own functions."""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from adadpo_lightning.losses import (
    BCO,
    CPO,
    DPO,
    EXO,
    FDPO,
    IPO,
    LNDPO,
    NCA,
    ORPO,
    SFT,
    SPPO,
    AlphaPO,
    APODown,
    APOZero,
    DiscoPOP,
    Hinge,
    Mixture,
    RobustDPO,
    SimPO,
)
from adadpo_lightning.losses.testing import sample_pairs
from adadpo_lightning.losses.testing.samples import cast
from adadpo_lightning.types import PairLogps
from tests.support.tiny import make_rows

pytest.importorskip("trl")

ONE_PROCESS = SimpleNamespace(device=torch.device("cpu"), gather=lambda t: t, gather_for_metrics=lambda t: t)


def leaves(x):
    return [t.clone().requires_grad_() for t in (x.chosen, x.rejected)]


def trl_dpo(x, loss_types, weights=(1.0,), beta=0.1, **options):
    """TRL's `DPOTrainer._compute_loss` over a "model" that returns given log-probabilities of single tokens.

    Every answer's log-probability is spread evenly over its tokens, after a prompt of one token.
    """
    from trl import DPOTrainer

    lengths = torch.cat([x.chosen_len, x.rejected_len])
    width = int(lengths.max()) + 1
    position = torch.arange(width)
    mask = ((position >= 1) & (position <= lengths[:, None])).long()

    def model(input_ids, **_):
        sums = torch.cat([chosen, rejected])
        tokens = (sums / lengths)[:, None] * mask[:, 1:]
        return SimpleNamespace(log_probs=tokens, entropy=tokens, mean_logits=tokens, is_top1=mask[:, 1:].bool())

    trainer = object.__new__(DPOTrainer)
    vars(trainer).update(
        model=torch.nn.Linear(1, 1),
        accelerator=ONE_PROCESS,
        beta=beta,
        loss_types=list(loss_types),
        loss_weights=list(weights),
        label_smoothing=options.get("label_smoothing", 0.0),
        f_divergence_type=options.get("f_divergence_type", "reverse_kl"),
        f_alpha_divergence_coef=options.get("f_alpha_divergence_coef", 0.5),
        args=SimpleNamespace(discopop_tau=options.get("discopop_tau", 0.05)),
        ld_alpha=None,
        use_weighting=False,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    chosen, rejected = leaves(x)
    batch = {
        "input_ids": torch.zeros(len(lengths), width, dtype=torch.long),
        "attention_mask": (position <= lengths[:, None]).long(),
        "completion_mask": mask,
        "ref_chosen_logps": x.ref_chosen,
        "ref_rejected_logps": x.ref_rejected,
    }
    loss = trainer._compute_loss(model, batch, return_outputs=False)
    rewards = [trainer._metrics["train"][f"rewards/{side}"][0] for side in ("chosen", "rejected", "accuracies")]
    return loss, torch.autograd.grad(loss, (chosen, rejected)), rewards


def ours(loss, x):
    chosen, rejected = leaves(x)
    out = loss(PairLogps(chosen, rejected, x.chosen_len, x.rejected_len, x.ref_chosen, x.ref_rejected))
    total = out.reduce(len(x.chosen), int(x.chosen_len.sum()))
    return total, torch.autograd.grad(total, (chosen, rejected), materialize_grads=True, allow_unused=True), out


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("beta", [0.01, 0.1, 1.3])
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "sft"])
def test_dpo_trainer(loss_type, beta, count):
    x = sample_pairs(count, seed=3)
    loss = {"sigmoid": DPO(beta=beta), "ipo": IPO(tau=beta), "sft": SFT()}[loss_type]
    wanted, wanted_grad, rewards = trl_dpo(x, [loss_type], beta=beta)
    got, got_grad, out = ours(loss, x)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(got_grad, wanted_grad, rtol=1e-11, atol=1e-14)
    if loss_type == "sigmoid":
        measured = [out.chosen_rewards.mean(), out.rejected_rewards.mean()]
        accuracy = (out.chosen_rewards > out.rejected_rewards).double().mean()
        assert torch.stack([*measured, accuracy]).tolist() == pytest.approx(rewards)


def test_mixture_is_trls_list_of_losses():
    x = sample_pairs(7, seed=4)
    wanted, wanted_grad, _ = trl_dpo(x, ["sigmoid", "ipo", "sft"], [0.9, 0.2, 0.1])
    got, got_grad, _ = ours(Mixture([DPO(beta=0.1), IPO(tau=0.1), SFT()], [0.9, 0.2, 0.1]), x)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(got_grad, wanted_grad, rtol=1e-11, atol=1e-14)


OTHERS = {
    "sigmoid_norm": (LNDPO, {}),
    "hinge": (Hinge, {}),
    "robust": (RobustDPO, {"label_smoothing": 0.2}),
    "exo_pair": (EXO, {"label_smoothing": 1e-3}),
    "discopop": (DiscoPOP, {"tau": 0.3}),
    "apo_zero": (APOZero, {}),
    "apo_down": (APODown, {}),
    "nca_pair": (NCA, {}),
    "bco_pair": (BCO, {}),
    "sppo_hard": (SPPO, {}),
}


def assert_same(x, loss, wanted, wanted_grad, rewards):
    """To 1e-6, which is what TRL's own float32 constants leave even of float64 inputs."""
    got, got_grad, out = ours(loss, x)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(got_grad, wanted_grad, rtol=1e-6, atol=1e-7 * float(wanted_grad[0].abs().max()))
    measured = [out.chosen_rewards.mean().item(), out.rejected_rewards.mean().item()]
    assert measured == pytest.approx(rewards[:2], rel=1e-6)


@pytest.mark.parametrize("beta", [0.02, 0.3, 1.3])
@pytest.mark.parametrize("loss_type", OTHERS)
def test_dpo_trainers_other_losses(loss_type, beta):
    x = sample_pairs(24, seed=8)
    cls, options = OTHERS[loss_type]
    trl_options = {"discopop_tau" if name == "tau" else name: value for name, value in options.items()}
    assert_same(x, cls(beta=beta, **options), *trl_dpo(x, [loss_type], beta=beta, **trl_options))


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("divergence", ["js", "forward_kl", "alpha"])
def test_dpo_trainers_divergences(divergence, alpha):
    """TRL's alpha is 1 - alpha of the paper."""
    x = sample_pairs(24, seed=9)
    if divergence == "alpha":  # TRL computes it in float32 only: sums that are exact there, and small log-ratios
        sides = {
            "chosen": (x.chosen / x.chosen_len, x.chosen_len),
            "rejected": (x.rejected / x.rejected_len, x.rejected_len),
        }
        exact = {side: (mean * 64).round() / 64 * n for side, (mean, n) in sides.items()}
        near = {f"ref_{side}": sums + torch.linspace(-1, 1, 24).mul(64).round() / 64 for side, sums in exact.items()}
        x = cast(replace(x, **exact, **near), torch.float32)
    name = divergence if divergence == "forward_kl" else f"{divergence}_divergence"
    wanted = trl_dpo(x, ["sigmoid"], beta=0.1, f_divergence_type=name, f_alpha_divergence_coef=1.0 - alpha)
    assert_same(x, FDPO(beta=0.1, divergence=divergence, alpha=alpha), *wanted)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss_type", ["sigmoid", "simpo"])
def test_cpo_trainers_function(loss_type, smoothing):
    from trl.experimental.cpo import CPOTrainer

    x, beta, gamma = sample_pairs(64, seed=5), 0.7, 0.9
    trainer = SimpleNamespace(
        alpha=0.0,
        accelerator=ONE_PROCESS,
        loss_type=loss_type,
        beta=beta,
        simpo_gamma=gamma,
        label_smoothing=smoothing,
    )
    simpo = loss_type == "simpo"
    scale = (x.chosen_len, x.rejected_len) if simpo else (1, 1)
    chosen, rejected = leaves(x)
    wanted, *rewards = CPOTrainer.cpo_loss(trainer, chosen / scale[0], rejected / scale[1])
    wanted_grad = torch.autograd.grad(wanted.mean(), (chosen, rejected))
    loss = (
        SimPO(beta=beta, gamma_beta_ratio=gamma / beta, label_smoothing=smoothing)
        if simpo
        else CPO(beta=beta, nll_weight=0.0, label_smoothing=smoothing)
    )
    _, got_grad, out = ours(loss, x)
    torch.testing.assert_close(out.per_pair, wanted, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(got_grad, wanted_grad, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close([out.chosen_rewards, out.rejected_rewards], rewards, rtol=1e-12, atol=0)


@pytest.mark.parametrize("alpha", [0.25, -0.4])
def test_cpo_trainers_alphapo(alpha):
    from trl.experimental.cpo import CPOTrainer

    x, beta, gamma = sample_pairs(64, seed=5), 2.5, 0.3
    trainer = SimpleNamespace(
        alpha=alpha, accelerator=ONE_PROCESS, loss_type="simpo", beta=beta, simpo_gamma=gamma, label_smoothing=0.0
    )
    chosen, rejected = leaves(x)
    wanted, *rewards = CPOTrainer.cpo_loss(trainer, chosen / x.chosen_len, rejected / x.rejected_len)
    wanted_grad = torch.autograd.grad(wanted.mean(), (chosen, rejected))
    _, got_grad, out = ours(AlphaPO(beta=beta, alpha=alpha, gamma=gamma), x)
    torch.testing.assert_close(out.per_pair, wanted, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(got_grad, wanted_grad, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close([out.chosen_rewards, out.rejected_rewards], rewards, rtol=1e-10, atol=1e-14)


def test_orpo_trainers_function():
    from trl.experimental.orpo import ORPOTrainer

    x = sample_pairs(64, seed=6, dtype=torch.float32)  # TRL casts to float32
    chosen, rejected = leaves(x)
    log_sigmoid, *rewards, _, _ = ORPOTrainer.odds_ratio_loss(
        SimpleNamespace(beta=0.3, accelerator=ONE_PROCESS), chosen / x.chosen_len, rejected / x.rejected_len
    )
    wanted_grad = torch.autograd.grad(-log_sigmoid.sum(), (chosen, rejected))
    again = leaves(x)
    out = ORPO(lam=0.3)(PairLogps(*again, x.chosen_len, x.rejected_len))
    torch.testing.assert_close(out.per_pair, -log_sigmoid, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(out.per_pair.sum(), again), wanted_grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close([out.chosen_rewards, out.rejected_rewards], rewards)


# Whole trainers over a model: sums and lengths, masks, the NLL term and its mean, to gradients of the parameters.


def by_hand(model, input_ids, attention_mask, answer_mask):
    """Sums of log-probabilities and lengths of the answers, by a plain forward."""
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
    tokens = logits.log_softmax(-1).gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    mask = answer_mask[:, 1:]
    return (tokens * mask).sum(-1), mask.sum(-1)


def parameter_gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_training(model, wanted, got):
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    wanted_grad, got_grad = parameter_gradients(model, wanted), parameter_gradients(model, got)
    assert wanted_grad.keys() == got_grad.keys()
    assert max(g.abs().max() for g in wanted_grad.values()) > 1e-3
    for name, grad in wanted_grad.items():
        torch.testing.assert_close(got_grad[name], grad, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture
def model(model_dir):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(model_dir)


@pytest.mark.parametrize(
    "loss_type", ["sigmoid", "ipo", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_dpo_trainer_over_a_model(loss_type, model_dir, model, tmp_path):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    cls, options = {"sigmoid": (DPO, {}), **OTHERS}.get(loss_type, (None, {}))
    args = DPOConfig(
        str(tmp_path),
        loss_type=[loss_type],
        label_smoothing=options.get("label_smoothing", 0.0),
        discopop_tau=options.get("tau", 0.05),
        beta=0.2,
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=5,
    )
    trainer = DPOTrainer(
        model,
        args=args,
        train_dataset=Dataset.from_list(make_rows(5)),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )
    reference = trainer.ref_model
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    batch = next(iter(trainer.get_train_dataloader()))
    wanted = trainer.compute_loss(trainer.model, dict(batch))

    ids = (batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    del model.forward  # TRL's, which makes no logits
    sums, lengths = by_hand(model, *ids)
    with torch.no_grad():
        del reference.forward
        ref_sums, _ = by_hand(reference, *ids)
    x = PairLogps(*sums.chunk(2), *lengths.chunk(2), *ref_sums.chunk(2))
    loss = IPO(tau=0.2) if loss_type == "ipo" else cls(beta=0.2, **options)
    assert (x.chosen - x.ref_chosen).abs().min() > 1e-3
    assert_same_training(model, wanted, loss(x).reduce(5, int(x.chosen_len.sum())))


def hand_made_batch(vocabulary=20):
    """Four pairs behind a prompt of one token: ORPO's NLL in TRL runs over prompts too, and has none to run over."""
    generator = torch.Generator().manual_seed(7)
    batch = {}
    for side, lengths in (("chosen", (5, 2, 9, 1)), ("rejected", (3, 8, 4, 2))):
        width = torch.arange(max(lengths) + 1)
        keep = width <= torch.tensor(lengths)[:, None]
        ids = torch.randint(3, vocabulary, keep.shape, generator=generator)
        batch[f"{side}_input_ids"] = torch.where(keep, ids, 0)
        batch[f"{side}_attention_mask"] = keep.long()
        batch[f"{side}_labels"] = torch.where(keep & (width > 0), ids, -100)
    return batch


@pytest.mark.parametrize("kind", ["cpo", "simpo", "orpo"])
def test_reference_free_trainers_over_a_model(kind, model):
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    options = {
        "cpo": {"loss_type": "sigmoid", "cpo_alpha": 0.8, "beta": 0.3},
        "simpo": {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0},
        "orpo": {"beta": 0.3},
    }[kind]
    trainer = object.__new__(ORPOTrainer if kind == "orpo" else CPOTrainer)
    vars(trainer).update(
        accelerator=ONE_PROCESS,
        is_encoder_decoder=False,
        aux_loss_enabled=False,
        pad_token_id=0,
        padding_value=0,
        label_smoothing=0.0,
        alpha=0.0,
        **options,
    )
    batch = hand_made_batch()
    wanted, _ = trainer.get_batch_loss_metrics(model, batch)

    sides = []
    for side in ("chosen", "rejected"):
        answer = batch[f"{side}_labels"] != -100
        sides.append(by_hand(model, batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"], answer))
    (chosen, chosen_len), (rejected, rejected_len) = sides
    loss = {
        "cpo": CPO(beta=0.3, nll_weight=0.8),
        "simpo": SimPO(beta=2.0, gamma_beta_ratio=0.5),
        "orpo": ORPO(lam=0.3),
    }[kind]
    out = loss(PairLogps(chosen, rejected, chosen_len, rejected_len))
    assert_same_training(model, wanted, out.reduce(4, int(chosen_len.sum())))
