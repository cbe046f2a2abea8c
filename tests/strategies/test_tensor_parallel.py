"""Tensor parallelism with FSDP2, on up to four gloo processes, equals one process in float64; and what is refused."""

import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file

from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import build_loss
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig, load_model
from adadpo_lightning.models.sharding import Sharding, shard
from adadpo_lightning.models.tensor_parallel import architectures, check_splittable
from adadpo_lightning.strategies import FSDP2
from adadpo_lightning.training.module import PreferenceLitModule
from tests.models.attention.test_packed import (
    CONFIGS,
    LENGTHS,
    ROUNDING,
    assert_same,
    batch_of,
    logps_and_grads,
    make_pairs,
    policy,
)
from tests.strategies.test_fsdp import ENVIRONMENT, tie_embeddings
from tests.support import fsdp_worker
from tests.support.ranks import on_ranks
from tests.support.tiny import make_lists, make_model_dir, make_rows, make_tokenizer, write_rows


def make_qwen3(path):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and pairs. The vocabulary has 31 tokens: 16 and 15."""
    folder = tmp_path_factory.mktemp("split")
    make_model_dir(folder / "plain")
    make_model_dir(folder / "other", seed=7)
    make_qwen3(folder / "qwen3")
    tie_embeddings(make_model_dir(folder / "tied"))
    write_rows(folder / "pairs.jsonl", make_rows(37))
    write_rows(folder / "lists.jsonl", make_lists(6))
    return folder


def ranks_of(name):
    data, parts = name.rpartition("-")[2].split("x")
    return int(data) * int(parts)


@pytest.fixture(scope="module")
def mesh(folder):
    """What a mesh made of a case; those of its group that have as many ranks are started with it."""

    def result(name):
        ranks = ranks_of(name)
        file = folder / f"{name}-{ranks}.pt"
        if not file.exists():
            group = next(group for group in fsdp_worker.SPLIT_GROUPS if name in group)
            names = [other for other in group if ranks_of(other) == ranks]
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            command = [*torchrun, "-m", "tests.support.fsdp_worker", folder, *names]
            done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(file)

    return result


@pytest.fixture(scope="module")
def single(folder):
    """What one process makes of a case, whatever its mesh."""
    results = {}

    def run(name):
        key = name.rpartition("-")[0]
        if key not in results:
            results[key] = {**fsdp_worker.run(folder, name, 1), "export": load_file(exported(folder, name, 1))}
        return results[key]

    return run


def exported(folder, name, ranks):
    return folder / f"{name}-{ranks}-live" / "model.safetensors"


def check_same(actual, expected):
    assert actual["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        torch.testing.assert_close(actual["weights"][name], value, rtol=0, atol=1e-9)
    for step, same in zip(reversed(actual["steps"]), reversed(expected["steps"]), strict=False):
        assert step == pytest.approx(same, rel=1e-9, abs=1e-9)
    assert actual["val"] == pytest.approx(expected["val"], rel=1e-6, abs=1e-9)  # Lightning means these in float32
    assert torch.equal(actual["answer"], expected["answer"])


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("name", [name for name in fsdp_worker.SPLIT_CASES if "resumed" not in name])
def test_a_mesh_equals_one_process(folder, single, mesh, name):
    many, one = mesh(name), single(name)
    assert len(many["steps"]) == 5
    assert "train/grad_norm/total" in many["steps"][0]
    check_same(many, one)
    written = load_file(exported(folder, name, ranks_of(name)))
    assert written.keys() == one["export"].keys()
    for weight, value in one["export"].items():
        torch.testing.assert_close(written[weight], value, rtol=0, atol=1e-9)
    held = sum(many["local"].values()) / sum(weight.numel() for weight in many["weights"].values())
    assert 1 / ranks_of(name) <= held < 1 / ranks_of(name) + 0.03  # norms are sharded over data-parallel ranks alone


@pytest.mark.slow
@pytest.mark.distributed
def test_a_checkpoint_resumes_on_other_meshes_and_exports(folder, single, mesh, tmp_path):
    """2x2 until step 3, 4x1 until step 4, and one process from there."""
    from adadpo_lightning.checkpoints.export import POLICY_PREFIX, export_checkpoint

    four, expected = mesh("resumed-4x1"), single("dpo-plain-2x2")
    assert len(four["steps"]) == 2
    check_same(four, expected)
    try:
        check_same(fsdp_worker.run(folder, "resumed-1x1", 1, FSDP2(reduce_dtype=None)), expected)
    finally:
        torch.distributed.destroy_process_group()
    export_checkpoint(str(folder / "dpo-plain-2x2-4" / "step=5.ckpt"), str(tmp_path / "out"))
    for name, weight in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(weight, expected["weights"][POLICY_PREFIX + name], rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.distributed
def test_every_architecture_that_is_listed(tmp_path):
    """Log-probabilities and gradients of a model split over two ranks, in both layouts; 97 tokens: 49 and 48."""
    kinds = architectures()
    assert {"llama", "qwen3", "gemma2", "phi3", "olmo2", "gpt_neox"} <= set(kinds)
    assert not {"gpt2", "opt", "mixtral", "qwen3_moe"} & set(kinds)
    pairs = make_pairs(LENGTHS)

    def work(rank):
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
        sharding = Sharding(mesh["data"], torch.device("cpu"), tensor=mesh["tensor"])
        failures = {}
        for kind in kinds:
            for layout in ("packed", "padded"):
                # Gemma 2 caps its attention logits, in the padded layout in float32.
                dtype = "float32" if kind == "gemma2" else "float64"
                batch = batch_of(pairs, layout)
                expected = logps_and_grads(policy(kind, layout, dtype=dtype), batch)
                parts = policy(kind, layout, dtype=dtype)
                check_splittable(parts.causal_lm, PolicyConfig(config={"model_type": kind}), 2)
                shard(parts, sharding)
                try:
                    logps, grads = logps_and_grads(parts, batch)
                    actual = logps, {name: grad.full_tensor() for name, grad in grads.items()}
                    assert_same(actual, expected, 1e-4 if kind == "gemma2" else 1e-5 if kind in ROUNDING else 1e-9)
                except (AssertionError, RuntimeError, TypeError) as error:
                    failures[kind, layout] = str(error)
        return failures

    assert on_ranks(2, work, tmp_path) == [{}, {}]


def tiny(kind, **options):
    return PolicyConfig(config={"model_type": kind, **CONFIGS[kind], **options}, tokenizer="unused")


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        (tiny("gpt2"), 2, "'gpt2' has no plan for it; these have: cohere, .*llama, .*qwen3, "),
        (tiny("mixtral"), 2, "'mixtral' has no plan for it"),
        (tiny("llama"), 4, "num_key_value_heads is 2, which is not divisible by 4"),
        (tiny("llama", intermediate_size=47), 2, r"out_features of model.layers.0.mlp.gate_proj is 47"),
        (tiny("phi", qk_layernorm=True), 2, "the plan of 'phi' leaves out model.layers.0.self_attn.q_layernorm"),
    ],
)
def test_models_that_cannot_be_split_are_refused(config, size, message):
    with pytest.raises(UserError, match=f"tensor_parallel_size: {message}"):
        check_splittable(load_model(config), config, size)


@pytest.mark.parametrize(("field", "options"), [("lora", {"lora": LoraOptions()}), ("compile", {"compile": True})])
def test_options_that_are_not_supported_are_refused(field, options):
    config = tiny("llama")
    with pytest.raises(UserError, match=f"model.policy.{field}: is not supported with tensor parallelism"):
        check_splittable(load_model(config), PolicyConfig(config=config.config, **options), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel_size": 3}, "tensor_parallel_size: expected a divisor of the 4 ranks, got 3"),
        ({"tensor_parallel_size": 2, "data_parallel_size": 4}, "data_parallel_size: expected 4 ranks / .*= 2, got 4"),
        ({"tensor_parallel_size": 2, "replicas": 2}, "not supported with replicas above 1 or cpu_offload"),
        ({"tensor_parallel_size": 2, "cpu_offload": True}, "not supported with replicas above 1 or cpu_offload"),
    ],
)
def test_sizes_are_checked_before_ranks_connect(options, message):
    strategy = FSDP2(**options)
    strategy.parallel_devices = [torch.device("cpu")] * 4
    with pytest.raises(UserError, match=message):
        strategy.setup_environment()


def test_another_optimizer_is_refused_before_the_model_is_loaded():
    module = PreferenceLitModule(tiny("llama"), build_loss("dpo"), optimizer=fsdp_worker.MUON)
    module.trainer = Trainer(
        accelerator="cpu", devices=1, strategy=FSDP2(tensor_parallel_size=2), inference_mode=False, logger=False
    )
    with pytest.raises(UserError, match=r"model.optimizer: .*MuonWithAdamW has not been compared"):
        module.setup("fit")
