"""What routers do with the tokens of a micro-batch, and the load-balancing loss, against transformers' own."""

import importlib

import pytest
import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig
from adadpo_lightning.models.routing import COMPARED, check_router_loss, routed_blocks, routing
from adadpo_lightning.models.weights import random_model
from tests.support.moe import CONFIGS, PAIRS, SIZES, moe_batch, moe_policy


def own_loss(model):
    """The load-balancing loss function of a model's own module."""
    return importlib.import_module(type(model).__module__).load_balancing_loss_func


def aux_of(policy, batch):
    logps = policy(batch, routes=True)
    return logps, policy.take_routing()


@pytest.mark.parametrize("name", CONFIGS)
def test_padded_loss_and_gradient_are_transformers_own(name):
    policy = moe_policy(name, layout="padded")
    batch = moe_batch("padded")
    assert (batch.attention_mask == 0).any()
    theirs = policy.causal_lm(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_router_logits=True, use_cache=False
    ).aux_loss
    wanted = torch.autograd.grad(theirs, list(policy.parameters()), materialize_grads=True, allow_unused=True)
    _, done = aux_of(policy, batch)
    ours = done.aux_loss()
    found = torch.autograd.grad(ours, list(policy.parameters()), materialize_grads=True, allow_unused=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    assert sum(g.abs().sum() for g in found) > 1e-3
    # Padding counts, if the mask is left out.
    unmasked = policy.causal_lm(input_ids=batch.input_ids, output_router_logits=True, use_cache=False).aux_loss
    assert abs(unmasked.item() - theirs.item()) > 1e-4
    assert int(done.tokens) == int(batch.attention_mask.sum())


def test_every_architecture_that_is_served_is_compared():
    assert set(CONFIGS) == COMPARED


@pytest.mark.parametrize("name", CONFIGS)
def test_assigned_tokens_are_those_that_the_router_chose(name):
    policy = moe_policy(name, layout="padded")
    batch = moe_batch("padded")
    router = policy.causal_lm.base_model.can_record_outputs["router_logits"].target_class
    chosen = []
    for module in policy.modules():
        if isinstance(module, router):
            module.register_forward_hook(lambda m, a, out: chosen.append(out[2]))
    _, done = aux_of(policy, batch)
    real = batch.attention_mask.flatten().bool()
    experts = done.assigned.shape[1]
    wanted = [torch.bincount(indices[real].flatten(), minlength=experts).tolist() for indices in chosen]
    assert done.assigned.tolist() == wanted
    assert len(set(map(tuple, wanted))) > 1  # the layers differ
    assert policy.routed_blocks == ((0, 2) if name in ("qwen2_moe", "qwen3_moe") else (0, 1, 2))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_packed_equals_padded_with_each_prompt_counted_once(name):
    policies = {layout: moe_policy(name, dtype="float64", layout=layout) for layout in ("packed", "padded")}
    found = {layout: aux_of(policy, moe_batch(layout)) for layout, policy in policies.items()}
    torch.testing.assert_close(found["packed"][0], found["padded"][0], rtol=1e-5, atol=1e-6)
    # Transformers' function, over the padded rows without the prompts of the second answers.
    padded, batch = policies["padded"].causal_lm, moe_batch("padded")
    output = padded(batch.input_ids, attention_mask=batch.attention_mask, output_router_logits=True, use_cache=False)
    once = batch.attention_mask.clone()
    seen = set()
    for row in range(len(once)):
        ids = batch.input_ids[row].tolist()
        prompt = next(tuple(p.prompt_ids) for p in PAIRS if p.prompt_ids == ids[: len(p.prompt_ids)])
        once[row, : len(prompt)] = 0 if prompt in seen else 1
        seen.add(prompt)
    wanted = own_loss(padded)(output.router_logits, padded.num_experts, padded.num_experts_per_tok, once)
    ours = found["packed"][1].aux_loss()
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=0, check_dtype=False)
    assert abs(ours.item() - found["padded"][1].aux_loss().item()) > 1e-4
    assert int(found["packed"][1].tokens) == int(once.sum()) == sum(map(sum, batch.segments))


def test_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    logits = [torch.randn(7, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mask = torch.tensor([1, 1, 0, 1, 1, 0, 1])
    # No choice changes within the step: the third largest logit is far enough below the second.
    assert all((layer.sort(-1).values[:, -2] - layer.sort(-1).values[:, -3]).min() > 1e-4 for layer in logits)
    assert torch.autograd.gradcheck(lambda *x: routing(x, 2, mask).aux_loss(), logits, eps=1e-6)


def test_even_routing_gives_the_number_of_experts_per_token():
    logits = torch.eye(4)[[0, 1, 2, 3]] + torch.eye(4)[[1, 2, 3, 0]]
    done = routing([logits, logits], 2)
    assert done.assigned.tolist() == [[2.0] * 4] * 2
    assert done.aux_loss().item() == pytest.approx(2)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": "selective", "offload_activations": True},
    ],
    ids=str,
)
def test_recomputed_blocks_give_the_same_gradient(options):
    def gradients(policy):
        policy(moe_batch())  # a pass that records nothing
        assert policy.take_routing() is None
        found = []
        for pairs in (PAIRS, PAIRS[:1]):
            logps, done = aux_of(policy, moe_batch(pairs=pairs))
            (logps.sum() / 100 + done.aux_loss()).backward()
            found.append(done.aux_loss().item())
        return found, [p.grad for p in policy.parameters()]

    plain, wanted = gradients(moe_policy("mixtral"))
    found, grads = gradients(moe_policy("mixtral", **options))
    assert plain == pytest.approx(found, rel=1e-6)
    assert len(set(plain)) == 2
    torch.testing.assert_close(grads, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_of_adapters_it_is_that_of_the_merged_model(targets):
    policy = moe_policy("mixtral", layout="padded", lora=LoraOptions(r=2, target_modules=targets))
    base = moe_policy("mixtral", layout="padded")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    batch = moe_batch("padded")
    _, done = aux_of(policy, batch)
    ours = done.aux_loss()
    ours.backward()
    trained = {name: p.grad for name, p in policy.named_parameters() if p.requires_grad}
    # A router of its own adapter, or a frozen one: then the adapters before it learn.
    assert any("mlp.gate" in name for name in trained) == (targets == "all-linear")
    assert sum(g.abs().sum() for g in trained.values() if g is not None) > 1e-4
    if targets == "all-linear":
        assert all(g.abs().sum() > 0 for name, g in trained.items() if "mlp.gate" in name)
    merged = policy.model.merge_and_unload()
    options = {"attention_mask": batch.attention_mask, "output_router_logits": True, "use_cache": False}
    theirs = merged(batch.input_ids, **options).aux_loss
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    assert abs(ours.item() - aux_of(base, batch)[1].aux_loss().item()) > 1e-4


def test_models_without_compared_routers_are_refused():
    model = random_model(PolicyConfig(config={"model_type": "llama", **SIZES}))
    assert routed_blocks(model) == ()
    check_router_loss(0.0, model)
    with pytest.raises(UserError, match=r"model.router_aux_loss_coef: 0.01: 'llama' has no routers .*mixtral"):
        check_router_loss(0.01, model)
    dense = random_model(PolicyConfig(config={**CONFIGS["qwen3_moe"], "mlp_only_layers": [0, 1, 2]}))
    with pytest.raises(UserError, match="no block with a router"):
        check_router_loss(0.01, dense)


@pytest.mark.slow
def test_compiled_blocks_do_not_say_what_their_routers_did():
    policy = moe_policy("mixtral", compile=True)
    assert policy.routed_blocks == ()
    with pytest.raises(UserError, match=r"router_aux_loss_coef: is for blocks that are not compiled, got 0.01"):
        check_router_loss(0.01, policy.causal_lm, compiled=policy.compiled)
