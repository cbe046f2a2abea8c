"""lddpo and wpo: by hand over a plain model, in both layouts, and TRL's trainer over the same model and pairs."""

import pytest
import torch

from adadpo_lightning.data.collate import collate
from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import DPO, LDDPO, SFT, WPO, Mixture, build_loss
from adadpo_lightning.losses.testing import sample_pairs
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig
from adadpo_lightning.training.module import PreferenceLitModule
from adadpo_lightning.types import EncodedPair
from tests.robust.test_invariance import make_pairs
from tests.support.tiny import make_rows

X = sample_pairs(9, seed=8)


def module(model_dir, loss, layout="packed", dtype="float32", shift=None, **options):
    """A module whose policy differs from its reference."""
    lit = PreferenceLitModule(PolicyConfig(path=str(model_dir), dtype=dtype, layout=layout, **options), loss)
    lit.configure_model()
    if shift is None:
        torch.manual_seed(1)
        with torch.no_grad():
            for p in lit.parameters():
                p.add_(0.05 * torch.randn_like(p))
    else:
        lit.built_policy.causal_lm.load_state_dict(shift)
    return lit


def share_and_gradients(lit, pairs):
    lit.zero_grad()
    tokens = sum(len(p.chosen_ids) for p in pairs)
    batch = collate(pairs, layout=lit.layout, pad_id=0, step_pairs=len(pairs), step_chosen_tokens=tokens)
    share, output = lit.step(batch)
    share.backward()
    names = (name.removeprefix("policy.model.") for name, _ in lit.named_parameters())
    return share.detach(), dict(zip(names, (p.grad for p in lit.parameters()), strict=True)), output


def test_the_limits_are_dpo():
    torch.testing.assert_close(LDDPO(alpha=1.0)(X).per_pair, DPO()(X).per_pair, rtol=1e-12, atol=0)
    tiny = WPO(beta=0.1, max_weight=1e-9)(X).per_pair
    torch.testing.assert_close(tiny, 1e-9 * DPO()(X).per_pair, rtol=1e-12, atol=0)


def test_the_authors_clip():
    free, clipped = WPO().pair_weight(X), WPO(max_weight=1.0).pair_weight(X)
    assert (free > 1).any()
    torch.testing.assert_close(clipped, free.clamp(max=1.0))


def tokens_by_hand(model, pair, side):
    """Log-probabilities and ``log sum p^2`` of the answer's tokens, by a plain forward of one sequence."""
    answer = getattr(pair, f"{side}_ids")
    ids = torch.tensor([pair.prompt_ids + answer])
    logps = model(ids).logits[0, len(pair.prompt_ids) - 1 : -1].log_softmax(-1)
    return logps.gather(1, torch.tensor(answer)[:, None]).squeeze(1), (2 * logps.detach()).logsumexp(-1)


def by_hand(key, policy, reference, pairs, beta=0.1, alpha=0.3):
    """The papers' formulas, pair by pair and token by token."""
    total = 0.0
    for pair in pairs:
        shared = min(len(pair.chosen_ids), len(pair.rejected_ids))
        terms, weight = {}, 1.0
        for side in ("chosen", "rejected"):
            tokens, collisions = tokens_by_hand(policy, pair, side)
            with torch.no_grad():
                ratio = tokens - tokens_by_hand(reference, pair, side)[0]
                weight *= (tokens - collisions).mean().exp().item()
            ratio = ratio.detach() + tokens - tokens.detach()
            inside, beyond = ratio[:shared].sum(), ratio[shared:].sum()
            terms[side] = inside + (alpha if key == "lddpo" else 1.0) * beyond
        loss = -torch.nn.functional.logsigmoid(beta * (terms["chosen"] - terms["rejected"]))
        total = total + loss * (weight if key == "wpo" else 1.0) * (1.0 if pair.weight is None else pair.weight)
    return total / len(pairs)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("key", ["lddpo", "wpo"])
def test_the_papers_formula_over_a_plain_model(model_dir, key, layout):
    loss = LDDPO(beta=0.1, alpha=0.3) if key == "lddpo" else WPO(beta=0.1)
    lit, pairs = module(model_dir, loss, layout, "float64", head_chunk_size=7), make_pairs(seed=3)
    got, gradients, _ = share_and_gradients(lit, pairs)
    policy = module(model_dir, loss, "padded", "float64").built_policy.causal_lm
    reference = PreferenceLitModule(PolicyConfig(path=str(model_dir), dtype="float64", layout="padded"), loss)
    reference.configure_model()
    wanted = by_hand(key, policy, reference.built_policy.causal_lm, pairs)
    torch.testing.assert_close(got, wanted.detach(), rtol=1e-6, atol=0)  # the packed layout's norms are not bit-equal
    wanted.backward()
    for name, p in policy.named_parameters():
        torch.testing.assert_close(
            gradients[name], p.grad, rtol=1e-5, atol=1e-8, msg=lambda m, name=name: f"{name} {m}"
        )


def test_a_head_with_an_adapter_has_collisions_too(model_dir):
    pairs = make_pairs(seed=4)
    seen = []
    for targets in (["q_proj"], ["q_proj", "lm_head"]):  # adapters start as 0
        lora = LoraOptions(r=2, target_modules=targets)
        lit = PreferenceLitModule(
            PolicyConfig(path=str(model_dir), dtype="float64", lora=lora, head_chunk_size=5), WPO(beta=0.1)
        )
        lit.configure_model()
        seen.append(share_and_gradients(lit, pairs)[2].pairs)
    torch.testing.assert_close(seen[0].chosen_log_collision, seen[1].chosen_log_collision, rtol=1e-9, atol=0)
    torch.testing.assert_close(seen[0].rejected_log_collision, seen[1].rejected_log_collision, rtol=1e-9, atol=0)


@pytest.mark.parametrize("key", ["dpo", "simpo", "sft"])
def test_other_losses_get_and_pay_nothing(model_dir, key, monkeypatch):
    """No tails and no pass over the logits."""
    from adadpo_lightning.models.logprobs import TokenStatistics

    monkeypatch.setattr(TokenStatistics, "write", lambda *args: pytest.fail("computed without need"))
    lit = module(model_dir, build_loss(key))
    pairs = share_and_gradients(lit, make_pairs(seed=5))[2].pairs
    assert (pairs.chosen_tail, pairs.ref_chosen_tail, pairs.chosen_log_collision) == (None, None, None)


def test_the_reference_does_not_compute_collisions(model_dir, monkeypatch):
    from adadpo_lightning.models.logprobs import TokenStatistics

    calls = []
    write = TokenStatistics.write
    monkeypatch.setattr(TokenStatistics, "write", lambda *args: (calls.append(1), write(*args)))
    share_and_gradients(module(model_dir, WPO()), make_pairs(seed=5))
    assert len(calls) == 1


def test_a_mixture_asks_for_what_its_parts_need(model_dir):
    loss = Mixture([LDDPO(), WPO(), SFT()], [1.0, 0.5, 0.1])
    pairs = share_and_gradients(module(model_dir, loss), make_pairs(seed=5))[2].pairs
    assert pairs.chosen_tail is not None
    assert pairs.chosen_log_collision is not None


@pytest.mark.parametrize(("key", "field"), [("lddpo", "chosen_tail"), ("wpo", "chosen_log_collision")])
def test_missing_sums_are_named(key, field):
    x = sample_pairs(2)
    from dataclasses import replace

    with pytest.raises(UserError, match=f"PairLogps.{field}"):
        build_loss(key)(replace(x, **{field: None}))


# TRL's trainer, over its own batch.


def pairs_of(batch):
    """TRL's padded rows as our pairs."""
    ids, mask, answer = (batch[k] for k in ("input_ids", "attention_mask", "completion_mask"))
    rows = [
        ([t for t, m, a in zip(*row, strict=True) if m and not a], [t for t, m, a in zip(*row, strict=True) if a])
        for row in zip(ids.tolist(), mask.tolist(), answer.tolist(), strict=True)
    ]
    half = len(rows) // 2
    assert all(c[0] == r[0] for c, r in zip(rows[:half], rows[half:], strict=True))
    return [
        EncodedPair(prompt, chosen, rejected, i)
        for i, ((prompt, chosen), (_, rejected)) in enumerate(zip(rows[:half], rows[half:], strict=True))
    ]


@pytest.mark.parametrize("options", [{"ld_alpha": 0.3}, {"ld_alpha": 0.0}, {"use_weighting": True}], ids=str)
def test_trls_trainer(options, model_dir, tmp_path):
    pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaForCausalLM
    from trl import DPOConfig, DPOTrainer

    model = LlamaForCausalLM.from_pretrained(model_dir)
    args = DPOConfig(
        str(tmp_path), beta=0.2, use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=6, **options
    )
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    # TRL joins the texts, and a word must not merge with the one before it.
    rows = Dataset.from_list([{name: f" {text} " for name, text in row.items()} for row in make_rows(6, seed=2)])
    trainer = DPOTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    batch = next(iter(trainer.get_train_dataloader()))
    wanted = trainer.compute_loss(trainer.model, dict(batch))
    model.zero_grad()
    wanted.backward()
    logged = {name: values[0] for metrics in trainer._metrics.values() for name, values in metrics.items()}

    pairs = pairs_of(batch)
    assert len({len(p.chosen_ids) - len(p.rejected_ids) for p in pairs}) > 2
    loss = LDDPO(beta=0.2, alpha=options["ld_alpha"]) if "ld_alpha" in options else WPO(beta=0.2)
    for layout in ("packed", "padded"):
        got, gradients, output = share_and_gradients(module(model_dir, loss, layout, shift=model.state_dict()), pairs)
        assert abs(float(got) - float(DPO(beta=0.2)(output.pairs).per_pair.mean())) > 1e-3
        torch.testing.assert_close(got, wanted.detach(), rtol=1e-6, atol=0)
        assert output.loss.chosen_rewards.mean().item() == pytest.approx(logged["rewards/chosen"], rel=1e-4)
        largest = max(float(p.grad.abs().max()) for p in model.parameters())
        assert largest > 1e-3
        for name, p in model.named_parameters():
            assert (gradients[name] - p.grad).abs().max() <= 3e-6 * largest, name  # float32 rounds here and there
