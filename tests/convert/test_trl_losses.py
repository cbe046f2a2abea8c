"""Each loss that comes out of a TRL config has the value and gradient of TRL's own trainer under that config."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

import adadpo_lightning.losses
from adadpo_lightning.convert.converted import Converted
from adadpo_lightning.convert.from_trl import convert
from adadpo_lightning.convert.trl_keys import DEFAULTS, TRL_DEFAULTS
from adadpo_lightning.convert.trl_losses import DPO_LOSSES
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import loss_class
from adadpo_lightning.losses.testing import sample_pairs
from adadpo_lightning.types import PairLogps

trl = pytest.importorskip("trl")

ONE_PROCESS = SimpleNamespace(device=torch.device("cpu"), gather=lambda t: t, gather_for_metrics=lambda t: t)


def built(spec):
    """The loss of a spec, with every option named."""
    loss = getattr(adadpo_lightning.losses, spec["class_path"].rpartition(".")[2])
    options = dict(spec.get("init_args", {}))
    if "losses" in options:
        options["losses"] = [built(part) for part in options["losses"]]
    return loss(**options)


def converted_loss(given, trainer="dpo"):
    return built(convert(given, trainer=trainer).config["model"]["loss"])


def leaves(x):
    return [t.clone().requires_grad_() for t in (x.chosen, x.rejected)]


def of_ours(loss, x):
    chosen, rejected = leaves(x)
    out = loss(PairLogps(chosen, rejected, x.chosen_len, x.rejected_len, x.ref_chosen, x.ref_rejected))
    total = out.reduce(len(x.chosen), int(x.chosen_len.sum()))
    return total, torch.autograd.grad(total, (chosen, rejected), materialize_grads=True, allow_unused=True)


def of_dpo_trainer(x, given):
    """`DPOTrainer._compute_loss` under a config; each answer's log-probability is spread evenly over its tokens."""
    options = SimpleNamespace(**(TRL_DEFAULTS | DEFAULTS["dpo"] | given))
    types = [options.loss_type] if isinstance(options.loss_type, str) else options.loss_type
    lengths = torch.cat([x.chosen_len, x.rejected_len])
    position = torch.arange(int(lengths.max()) + 1)
    mask = ((position >= 1) & (position <= lengths[:, None])).long()
    chosen, rejected = leaves(x)

    def model(**_):
        tokens = (torch.cat([chosen, rejected]) / lengths)[:, None] * mask[:, 1:]
        return SimpleNamespace(log_probs=tokens, entropy=tokens, mean_logits=tokens, is_top1=mask[:, 1:].bool())

    trainer = object.__new__(trl.DPOTrainer)
    vars(trainer).update(
        args=options,
        model=torch.nn.Linear(1, 1),
        accelerator=ONE_PROCESS,
        loss_types=types,
        loss_weights=getattr(options, "loss_weights", None) or [1.0] * len(types),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **{
            key: getattr(options, key)
            for key in (
                *("beta", "label_smoothing", "f_divergence_type", "f_alpha_divergence_coef", "ld_alpha"),
                "use_weighting",
            )
        },
    )
    batch = {
        "input_ids": torch.zeros(mask.shape, dtype=torch.long),
        "attention_mask": (position <= lengths[:, None]).long(),
        "completion_mask": mask,
        "ref_chosen_logps": x.ref_chosen,
        "ref_rejected_logps": x.ref_rejected,
    }
    loss = trainer._compute_loss(model, batch, return_outputs=False)
    return loss, torch.autograd.grad(loss, (chosen, rejected), materialize_grads=True, allow_unused=True)


def assert_same(got, wanted, rtol):
    torch.testing.assert_close(got[0], wanted[0], rtol=rtol, atol=0)
    torch.testing.assert_close(got[1], wanted[1], rtol=100 * rtol, atol=1e-12 if rtol < 1e-9 else 1e-8)


@pytest.mark.parametrize(
    "given",
    [
        *({"loss_type": kind, "beta": 0.07, "label_smoothing": 0.1} for kind in DPO_LOSSES),
        {"loss_type": "sppo_hard"},
        {"loss_type": "exo_pair", "label_smoothing": 1e-3},
        {"loss_type": "discopop", "discopop_tau": 0.2},
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        {"loss_type": ["sigmoid", "ipo"]},
        {"loss_type": ["sigmoid", "hinge"], "loss_weights": [0.5, 0.0]},
        {"loss_type": "ipo", "loss_weights": [0.25]},
        {"f_divergence_type": "forward_kl"},
        {"f_divergence_type": "js_divergence", "beta": 1.0},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.0},
        {"f_divergence_type": "js_divergence", "loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5]},
    ],
    ids=str,
)
def test_dpo_config(given):
    # TRL clamps the exponent of its alpha divergence by the dtype, and knows no float64.
    half = given.get("f_divergence_type") == "alpha_divergence"
    x = sample_pairs(7, seed=3, dtype=torch.float32 if half else torch.float64)
    in_float32 = half or given.get("loss_type") == "exo_pair"  # whose smoothing TRL rounds to float32
    assert_same(of_ours(converted_loss(given), x), of_dpo_trainer(x, given), 1e-6 if in_float32 else 1e-11)


@pytest.mark.parametrize(
    ("given", "key", "options"),
    [
        ({"ld_alpha": 0.3, "beta": 0.2}, "lddpo", {"beta": 0.2, "alpha": 0.3, "label_smoothing": 0.0}),
        ({"use_weighting": True}, "wpo", {"beta": 0.1, "label_smoothing": 0.0, "max_weight": None}),
    ],
)
def test_losses_over_tokens(given, key, options):
    """Their values over a model are held to TRL's trainer in the losses' own tests."""
    loss = converted_loss(given)
    assert type(loss) is loss_class(key)
    assert vars(loss) == options


@pytest.mark.parametrize(
    "given",
    [
        {"loss_type": "sigmoid"},
        {"loss_type": "sigmoid", "beta": 0.7, "label_smoothing": 0.2, "cpo_alpha": 0.3},
        {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.5, "simpo_gamma": 1.4},
        {"loss_type": "simpo", "beta": 2.0, "label_smoothing": 0.1},
        {"loss_type": "alphapo", "alpha": 0.25, "beta": 2.5, "simpo_gamma": 0.1},
        {"loss_type": "simpo", "alpha": -0.1, "beta": 2.5},
    ],
    ids=str,
)
def test_cpo_config(given):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    config = CPOConfig("out", use_cpu=True, bf16=False, **given)
    loss = converted_loss(given, "cpo")
    x = sample_pairs(9, seed=5)
    chosen, rejected = leaves(x)
    mean = config.loss_type == "simpo"  # as `concatenated_forward` averages
    sides = (chosen / x.chosen_len, rejected / x.rejected_len) if mean else (chosen, rejected)
    values = {key: getattr(config, key) for key in ("alpha", "loss_type", "beta", "simpo_gamma", "label_smoothing")}
    per_pair, *_ = CPOTrainer.cpo_loss(SimpleNamespace(accelerator=ONE_PROCESS, **values), *sides)
    wanted = per_pair.mean() - config.cpo_alpha * chosen.sum() / x.chosen_len.sum()
    gradients = torch.autograd.grad(wanted, (chosen, rejected))
    assert_same(of_ours(loss, x), (wanted, gradients), 1e-11)


def test_orpo_config():
    x = sample_pairs(9, seed=6)
    chosen, rejected = leaves(x)
    odds = [torch.log(p / (1 - p)) for p in ((chosen / x.chosen_len).exp(), (rejected / x.rejected_len).exp())]
    wanted = -chosen.sum() / x.chosen_len.sum() - 0.3 * torch.nn.functional.logsigmoid(odds[0] - odds[1]).mean()
    gradients = torch.autograd.grad(wanted, (chosen, rejected))
    assert_same(of_ours(converted_loss({"beta": 0.3}, "orpo"), x), (wanted, gradients), 1e-10)


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_simpos_own_config(weight):
    x = sample_pairs(9, seed=7)
    chosen, rejected = leaves(x)
    margin = 2.5 * (chosen / x.chosen_len - rejected / x.rejected_len) - 2.5 * 0.55
    wanted = -torch.nn.functional.logsigmoid(margin).mean() - weight * chosen.sum() / x.chosen_len.sum()
    gradients = torch.autograd.grad(wanted, (chosen, rejected))
    given = {"beta": 2.5, "gamma_beta_ratio": 0.55, "sft_weight": weight}
    assert_same(of_ours(converted_loss(given, "simpo"), x), (wanted, gradients), 1e-11)


def test_the_older_rpo_alpha():
    found = convert({"rpo_alpha": 0.5}).config["model"]["loss"]["init_args"]
    assert [part["class_path"].rpartition(".")[2] for part in found["losses"]] == ["DPO", "SFT"]
    assert found["weights"] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("trainer", "given", "message"),
    [
        ("dpo", {"loss_type": "aot"}, "sorts the pairs of a batch"),
        ("dpo", {"loss_type": "aot_unpaired"}, "sorts the pairs of a batch"),
        ("dpo", {"loss_type": "kto_pair"}, "statistic of the batch"),
        ("dpo", {"loss_type": "exo_pair"}, "label_smoothing: exo_pair needs a number above 0"),
        ("dpo", {"loss_type": "ipo", "f_divergence_type": "forward_kl"}, "f_divergence_type: has no counterpart with"),
        ("dpo", {"f_divergence_type": "chi2"}, "unknown divergence 'chi2'"),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "use_weighting": True}, "use_weighting: has no counterpart with"),
        ("dpo", {"ld_alpha": 0.5, "use_weighting": True}, "ld_alpha and use_weighting: have no counterpart together"),
        ("dpo", {"loss_type": "hinge", "ld_alpha": 0.5}, "ld_alpha: has no counterpart with the loss 'hinge'"),
        ("dpo", {"loss_weights": [-1.0]}, "loss_weights: expected numbers of at least 0, got -1.0"),
        ("dpo", {"loss_weights": [0]}, "all weights are 0"),
        ("dpo", {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 2}, "expected a number in"),
        ("cpo", {"loss_type": "alphapo", "alpha": 0.1, "label_smoothing": 0.1}, "no counterpart together with alpha"),
        ("cpo", {"loss_type": "hinge"}, "'hinge' on log-probabilities without a reference has no counterpart"),
        ("cpo", {"loss_type": "sigmoid", "alpha": 0.2}, "'sigmoid' with alpha 0.2 has no counterpart"),
        ("simpo", {"loss_type": "hinge"}, "SimPO's 'hinge' has no counterpart"),
    ],
)
def test_what_is_refused(trainer, given, message):
    with pytest.raises(UserError, match=message):
        convert(given, trainer=trainer)


def test_all_types_of_trl_are_spoken_for():
    from adadpo_lightning.convert.trl_losses import REFUSED

    text = {f.name: f for f in trl.DPOConfig.__dataclass_fields__.values()}["loss_type"].metadata["help"]
    assert {word.strip("`'.,") for word in text.split() if word.startswith("`'")} - {"`"} <= {*DPO_LOSSES, *REFUSED}
    assert len(DPO_LOSSES) == 13
    assert Converted().dropped == {}
