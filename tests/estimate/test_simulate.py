"""The package's own step on fake ranks, against the estimate, against counts of torch, and against sums by hand."""

import json
from dataclasses import replace

import pytest
import torch

from adadpo_lightning.cli import main
from adadpo_lightning.compat import without_memory
from adadpo_lightning.errors import UserError
from adadpo_lightning.estimate.memory import RunShape, estimate, measured
from adadpo_lightning.estimate.report import compared
from adadpo_lightning.estimate.simulate import simulate
from adadpo_lightning.estimate.traffic import traffic
from adadpo_lightning.losses import build_loss
from adadpo_lightning.models import sharding
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig
from adadpo_lightning.training.module import PreferenceLitModule

# Blocks of Llama 3.2 1B, three of them, and a smaller vocabulary.
SMALL = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 3,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
LLAMA_8B = {**SMALL, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
LLAMA_70B = {
    **LLAMA_8B,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
# Norms of heads, norms after the sums, parts that run side by side, and matrices whose output is gathered.
OTHERS = [{**SMALL, "model_type": kind, "pad_token_id": 0} for kind in ("qwen3", "gemma2", "cohere", "phi3")]
LENGTHS = [(60, 120, 90)]
OPTIONS = {"param_dtype": "bfloat16", "reduce_dtype": "float32"}
POLICY = PolicyConfig(config=SMALL, tokenizer="none", gradient_checkpointing=True)


def both(policy, ranks, *, replicas=1, tensor=1, lengths=LENGTHS, accumulation=1, reference="frozen", loss="adadpo"):
    """The simulation of a run, and its shape."""
    module = PreferenceLitModule(policy, build_loss(loss), reference=reference)
    options = {**OPTIONS, "replicas": replicas, "tensor_parallel_size": tensor}
    found = simulate(module, options, ranks, lengths, accumulation, clip=1.0)
    run = RunShape(
        policy,
        lengths,
        ranks=ranks,
        shards=ranks // replicas // tensor,
        tensor=tensor,
        reference=module.reference_mode,
        gathered_dtype=torch.bfloat16,
        reduced_dtype=torch.float32,
        accumulation=accumulation,
    )
    return found, run


def check(found, run):
    """What must hold for every simulated run."""
    sizes = measured(run)
    table = compared(found, estimate(run, sizes))
    for name in ("weights", "optimizer", "reference"):
        ours, theirs = table[name]
        assert ours == pytest.approx(theirs, rel=0.02), name  # buffers, and shards that are padded
    ours, theirs = table["total"]
    assert ours == pytest.approx(theirs, rel=0.15), table
    block = (sizes.weights - sizes.outside) / sizes.blocks / sizes.stored * 2
    outside = sizes.outside / sizes.stored * 2
    assert found.whole_blocks == 1
    assert found.gathered <= 1.01 * 2 * (outside + block)  # each of them once as it is received, and once in place
    # The norm of the gradient is a number per parameter, 3 kB for 80 blocks; in a tensor-parallel group the head
    # exchanges a few numbers per token.
    small = 10_000 if run.tensor == 1 else 100_000
    sent = {(one.kind, one.ranks): one.size for one in found.sent if one.size > small}
    expected = {(one.kind, one.ranks): one.size for one in traffic(sizes, run) if one.size > small}
    assert sent.keys() == expected.keys()
    for key, size in expected.items():
        assert sent[key] == pytest.approx(size, rel=0.01), key


def test_a_step_on_8_ranks_is_what_was_estimated():
    found, run = both(POLICY, 8)
    check(found, run)
    # Each of three blocks and the rest for the policy, the blocks again in its backward pass, and all for the
    # reference; gradients of each of them; the norm.
    assert found.calls == {"all-gather": 4 + 3 + 4, "reduce-scatter": 4, "all-reduce": 1}


def test_a_step_of_groups_of_2_on_8_ranks_is_what_was_estimated():
    lengths = [(400, 900, 700)]
    # Without checkpointing, so that a third of the peak is activations.
    policy = replace(POLICY, config={**SMALL, "num_hidden_layers": 2}, gradient_checkpointing=False)
    found, run = both(policy, 8, tensor=2, lengths=lengths, loss="simpo", reference="auto")
    check(found, run)
    # A sum after the embedding; in each block after attention and feed-forward layer, and of the gradients at the input
    # of five matrices; of the gradient at the head's input.
    rows = 2000 * (1 + 2 * (2 + 5)) + 1600
    summed = next(one.size for one in found.sent if (one.kind, one.ranks) == ("all-reduce", (0, 1)))
    assert summed == pytest.approx(rows * SMALL["hidden_size"] * 2, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ({"lengths": [(60, 120, 90), (30, 110, 50)], "accumulation": 2}, POLICY),
        ({"replicas": 2, "reference": "cached"}, POLICY),
        ({"loss": "simpo", "reference": "auto"}, replace(POLICY, gradient_checkpointing=False)),
        ({"loss": "simpo", "reference": "auto"}, replace(POLICY, gradient_checkpointing="selective")),
        ({"reference": "auto"}, replace(POLICY, lora=LoraOptions(r=8))),
        ({"reference": "auto"}, replace(POLICY, lora=LoraOptions(r=8, peft={"use_dora": True}))),
        ({"reference": "auto"}, replace(POLICY, lora=LoraOptions(r=8, peft={"modules_to_save": ["lm_head"]}))),
        ({"accumulation": 2}, replace(POLICY, config={**SMALL, "tie_word_embeddings": True})),
        ({"lengths": [(400, 900, 700)] * 3, "reference": "cached"}, POLICY),
        ({"tensor": 2, "lengths": [(60, 120, 90), (30, 110, 50)], "accumulation": 2}, POLICY),
        ({"tensor": 8, "lengths": [(400, 900, 700)] * 3}, POLICY),
        ({"tensor": 4, "lengths": [(400, 900, 700)]}, replace(POLICY, gradient_checkpointing="selective")),
        ({"tensor": 2}, replace(POLICY, config={**SMALL, "tie_word_embeddings": True})),
        *(({"tensor": 2, "lengths": [(400, 900, 700)]}, replace(POLICY, config=other)) for other in OTHERS),
    ],
    ids=[
        "accumulated",
        "hsdp",
        "plain",
        "selective",
        "lora",
        "dora",
        "head",
        "tied",
        "long",
        "tp-accumulated",
        "tp-long",
        "tp-selective",
        "tp-tied",
        *(f"tp-{other['model_type']}" for other in OTHERS),
    ],
)
def test_other_steps_on_8_ranks(options, policy):
    check(*both(policy, 8, **options))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "replicas"), [(8, 1), (64, 8)], ids=["fsdp2", "hsdp"])
def test_8b(ranks, replicas):
    policy = replace(POLICY, config=LLAMA_8B, packed_attention="segments")  # fewer operations than the CPU's own
    check(*both(policy, ranks, replicas=replicas, lengths=[(512, 512, 512)] * 2, accumulation=2))


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_8b_in_tensor_parallel_groups(tensor):
    policy = replace(POLICY, config=LLAMA_8B, packed_attention="segments")
    check(*both(policy, 8, tensor=tensor, lengths=[(512, 512, 512)] * 2))


@pytest.mark.slow
def test_70b_in_tensor_parallel_groups():
    policy = replace(POLICY, config=LLAMA_70B, packed_attention="segments")
    check(*both(policy, 64, tensor=8, lengths=[(512, 512, 512)], reference="cached"))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "replicas"), [(64, 1), (512, 1), (512, 8)])
def test_70b(ranks, replicas):
    policy = replace(POLICY, config=LLAMA_70B, packed_attention="segments")
    check(*both(policy, ranks, replicas=replicas, lengths=[(512, 512, 512)]))


@pytest.mark.slow
def test_blocks_that_stay_whole_are_seen(monkeypatch):
    def kept(policy, how, *, frozen=False):
        from torch.distributed.fsdp import fully_shard

        for block in sharding.decoder_blocks(policy.causal_lm):
            fully_shard(block, mesh=how.mesh, reshard_after_forward=False)
        fully_shard(policy, mesh=how.mesh)

    monkeypatch.setattr("adadpo_lightning.models.build.shard", kept)
    found, _ = both(POLICY, 8, loss="simpo", reference="auto")
    assert found.whole_blocks == SMALL["num_hidden_layers"]


def test_what_cannot_be_simulated_is_said():
    module = PreferenceLitModule(POLICY, build_loss("simpo"))
    with pytest.raises(UserError, match="cpu_offload"):
        simulate(module, {**OPTIONS, "cpu_offload": True}, 8, LENGTHS)
    with pytest.raises(UserError, match="ranked lists"):
        simulate(PreferenceLitModule(POLICY, build_loss("pldpo")), OPTIONS, 8, LENGTHS)
    with pytest.raises(UserError, match="divisor"):
        simulate(module, {**OPTIONS, "replicas": 3}, 8, LENGTHS)
    assert not torch.distributed.is_initialized()
    with without_memory():
        pass


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "architectures": ["LlamaForCausalLM"]}))
    return [
        "estimate",
        "--config=configs/base.yaml",
        "--config=configs/loss/adadpo.yaml",
        f"--model.policy.path={tmp_path}",
        "--lengths=200,300,250",
    ]


@pytest.mark.slow
def test_the_command_simulates(config, capsys):
    options = ["--config=configs/strategy/hsdp.yaml", "--simulate=true", "--cluster=nodes=2,gpus=4,gib=40"]
    assert main([*config, *options, "--data.global_batch_size=16", "--data.micro_batch_size=1"]) == 0
    shown = capsys.readouterr().out
    assert "an optimizer step of rank 0 of 8" in shown
    assert "whole blocks: at most 1 at a time" in shown
    assert "recommended: " in shown
    assert "all-reduce" in shown.partition("simulated in")[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cluster=nodes=2,gpu=4"], "invalid _cluster value: 'nodes=2,gpu=4'"),
        (["--cluster=nodes=0"], "expected nodes above 0"),
        (["--cluster=nodes=2", "--ranks=8"], "contradicts the 16 GPUs"),
        (["--simulate=true", "--ranks=8"], "only FSDP2 is simulated"),
    ],
)
def test_bad_options(config, capsys, options, message):
    assert main([*config, *options]) == 2
    assert message in capsys.readouterr().err
