"""FSDP2 on two gloo processes equals one process without it, in float32: each step's metrics, the last weights."""

import os
import subprocess
import sys
import time

import pytest
import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig, load_model
from adadpo_lightning.models.policy import PolicyModel
from adadpo_lightning.models.sharding import Sharding, shard
from tests.support import fsdp_worker
from tests.support.gguf import make_gguf
from tests.support.moe import make_moe_dir
from tests.support.tiny import make_adapter_dir, make_lists, make_model_dir, make_rows, write_rows

pytestmark = pytest.mark.distributed
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "USE_LIBUV": "0"}
WHOLE_RUNS = ["dpo", "adadpo", "lora", "cached", "hsdp", "saving", "sets"]
MORE_RUNS = ["cpo", "adapter", "adapter-cached", "path", "synced", "offload", "padded", "grouped", "gguf"]
MORE_RUNS += ["lddpo", "wpo"]
NORMS = LoraOptions(r=2, peft={"modules_to_save": ["input_layernorm"]})
PEFT_RUNS = ["peft", "peft-checkpointing", "peft-cached", "peft-synced", "peft-adapter", "peft-offload", "peft-hsdp"]
PEFT_RUNS += ["peft-tied", "peft-tokens", "peft-bias"]
RESUMED_RUNS = ["dpo-resumed", "lora-resumed"]


def tie_embeddings(path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path)
    config.tie_word_embeddings = True
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, pairs, and what two ranks made of all cases."""
    folder = tmp_path_factory.mktemp("fsdp")
    make_model_dir(folder / "plain")
    make_model_dir(folder / "other", seed=7)
    make_adapter_dir(folder / "plain", folder / "adapter")
    tie_embeddings(make_model_dir(folder / "tied"))
    make_gguf(folder)
    make_adapter_dir(folder / "plain", folder / "peft-adapter", peft=fsdp_worker.PEFT)
    make_moe_dir(folder / "experts")
    write_rows(folder / "pairs.jsonl", make_rows(37))
    write_rows(folder / "even.jsonl", make_rows(32))
    write_rows(folder / "lists.jsonl", make_lists(6))
    for name, count in (("many", 7), ("one", 1)):
        write_rows(folder / f"{name}.jsonl", make_rows(count, seed=count))
    on_two_ranks(folder, *WHOLE_RUNS, *RESUMED_RUNS)
    return folder


def on_two_ranks(folder, *cases):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "tests.support.fsdp_worker", folder, *cases]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.fixture(scope="module")
def single(folder):
    """What one process without any sharding makes of a case."""
    results = {}

    def run(name):
        if name not in results:
            results[name] = fsdp_worker.run(folder, name, 1)
        return results[name]

    return run


@pytest.fixture
def one_rank(folder):
    """What FSDP2 on a single rank makes of a case."""
    yield lambda name: fsdp_worker.run(folder, name, 1, fsdp_worker.FSDP2())
    torch.distributed.destroy_process_group()


def check_same(actual, expected, times=1):
    """Within some times these tolerances.

    Weights move by 1e-2 a step; 1e-5 is a thousandth of one step, and rounding is a thirtieth of that.
    """
    assert actual["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        torch.testing.assert_close(actual["weights"][name], value, rtol=0, atol=times * 1e-5)
    assert actual["steps"]
    for step, same in zip(reversed(actual["steps"]), reversed(expected["steps"]), strict=False):
        assert step == pytest.approx(same, rel=times * 1e-4, abs=times * 1e-5)
    assert actual["val"] == pytest.approx(expected["val"], rel=times * 1e-4, abs=times * 1e-5)
    assert torch.equal(actual["answer"], expected["answer"])


@pytest.fixture(scope="module")
def more(folder):
    on_two_ranks(folder, *MORE_RUNS, "synced-resumed")
    return folder


@pytest.mark.parametrize("name", WHOLE_RUNS)
def test_two_ranks_equal_one_process(folder, single, name):
    check_whole_run(folder, single, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_RUNS)
def test_more_runs_of_two_ranks_equal_one_process(more, single, name):
    check_whole_run(more, single, name)


def check_whole_run(folder, single, name):
    two = torch.load(folder / f"{name}-2.pt")
    assert len(two["steps"]) == 5
    check_same(two, single(name))
    held = sum(two["local"].values()) / sum(weight.numel() for weight in two["weights"].values())
    assert held == 1.0 if name == "hsdp" else 0.5 <= held < 0.51


def test_clipping_matters_here(single):
    clipped, free = single("dpo")["weights"], single("unclipped")["weights"]
    assert any((clipped[name] - free[name]).abs().max() > 1e-3 for name in free)


@pytest.mark.parametrize("name", RESUMED_RUNS)
def test_checkpoint_of_two_ranks_resumes_on_two_and_on_one(folder, single, one_rank, name):
    check_resumed(folder, single, one_rank, name)


@pytest.mark.slow
def test_a_synced_reference_of_two_ranks_resumes_on_two_and_on_one(more, single, one_rank):
    check_resumed(more, single, one_rank, "synced-resumed")


def check_resumed(folder, single, one_rank, name):
    expected = single(name.removesuffix("-resumed"))
    two, one = torch.load(folder / f"{name}-2.pt"), one_rank(name)
    assert len(two["steps"]) == len(one["steps"]) == 2
    check_same(two, expected)
    check_same(one, expected)


def test_trained_weights_of_two_dtypes_in_a_block_are_refused(folder):
    policy = PolicyModel(
        load_model(PolicyConfig(str(folder / "plain"), dtype="bfloat16", lora=NORMS)), PolicyConfig("x")
    )
    with pytest.raises(UserError, match=r"one dtype in each block and outside of them, got \['bfloat16', 'float32'\]"):
        shard(policy, Sharding(None, torch.device("cpu")))


@pytest.fixture(scope="module")
def peft_folder(folder):
    on_two_ranks(folder, *PEFT_RUNS, "peft-resumed")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", PEFT_RUNS)
def test_options_of_peft_on_two_ranks(peft_folder, single, name):
    from safetensors.torch import load_file

    check_same(torch.load(peft_folder / f"{name}-2.pt"), single(name))
    two, one = (load_file(peft_folder / f"{name}-{ranks}-live" / "adapter_model.safetensors") for ranks in (2, 1))
    assert two.keys() == one.keys()
    for weight in one:
        torch.testing.assert_close(two[weight], one[weight], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_options_of_peft_resume_on_two_ranks_and_on_one(peft_folder, single, one_rank):
    two, one = torch.load(peft_folder / "peft-resumed-2.pt"), one_rank("peft-resumed")
    check_same(two, single("peft"))
    check_same(one, single("peft"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "atol"), [("sgd", 1e-5), ("muon", 2e-3)])
def test_an_optimizer_by_its_class_on_two_ranks(folder, one_rank, name, atol):
    """Muon orthogonalizes in bfloat16, whose rounding depends on how a product is split: a fifth of a step of 1e-2."""
    on_two_ranks(folder, name, f"{name}-resumed")
    expected, two = fsdp_worker.run(folder, name, 1), torch.load(folder / f"{name}-2.pt")
    for weight, value in expected["weights"].items():
        torch.testing.assert_close(two["weights"][weight], value, rtol=0, atol=atol)
    resumed, alone = torch.load(folder / f"{name}-resumed-2.pt"), one_rank(f"{name}-resumed")
    for weight, value in two["weights"].items():
        assert torch.equal(resumed["weights"][weight], value)
        torch.testing.assert_close(alone["weights"][weight], value, rtol=0, atol=atol)


def without_routers_validation(result):
    """Validation has other micro-batches on two ranks than on one."""
    val = {name: value for name, value in result["val"].items() if name not in ("val/loss", "val/aux_loss")}
    return {**result, "val": val}


@pytest.mark.slow
def test_a_mixture_of_experts_with_its_routers_loss_on_two_ranks(folder, single, one_rank):
    """The micro-batches of two ranks are those of one process, so the routers' loss is the same."""
    cases = ["experts", "experts-saving", "experts-resumed"]
    on_two_ranks(folder, *cases)
    for name in cases:
        two = torch.load(folder / f"{name}-2.pt")
        expected = single(name.removesuffix("-resumed"))
        assert {"train/aux_loss", "train/moe/layer_02/max_load"} <= two["steps"][0].keys()
        check_same(*map(without_routers_validation, (two, expected)))
    check_same(*map(without_routers_validation, (one_rank("experts-resumed"), single("experts"))))


def test_lora_checkpoint_holds_adapters_alone(folder):
    from adadpo_lightning.checkpoints.shards import stored_weights

    names = list(stored_weights(folder / "lora-2" / "step=5.ckpt"))
    assert names
    assert all("lora_" in name for name in names)


@pytest.mark.parametrize("file_bytes", [2**31, 3000])
def test_exported_shards_have_the_trained_logits(folder, tmp_path, monkeypatch, file_bytes):
    from transformers import AutoModelForCausalLM

    from adadpo_lightning.checkpoints import shards as export_shards
    from adadpo_lightning.checkpoints.export import POLICY_PREFIX, export_checkpoint

    monkeypatch.setattr(export_shards, "FILE_BYTES", file_bytes)
    monkeypatch.setattr("adadpo_lightning.checkpoints.export.export_model", None)  # that would hold the whole model
    export_checkpoint(str(folder / "dpo-2" / "step=5.ckpt"), str(tmp_path / "out"))
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (file_bytes == 3000)
    trained = torch.load(folder / "dpo-2.pt")["weights"]
    expected = AutoModelForCausalLM.from_pretrained(folder / "plain")
    expected.load_state_dict({name.removeprefix(POLICY_PREFIX): weight for name, weight in trained.items()})
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(12)[None]
    assert torch.equal(exported(ids).logits, expected(ids).logits)


@pytest.mark.parametrize("name", ["adadpo", "lora"])
def test_export_of_a_sharded_policy_equals_that_of_a_whole_one(folder, single, name):
    from safetensors.torch import load_file

    single(name)
    file = "adapter_model.safetensors" if name == "lora" else "model.safetensors"
    two, one = (load_file(folder / f"{name}-{ranks}-live" / file) for ranks in (2, 1))
    assert two.keys() == one.keys()
    assert ("lm_head.weight" in two) is False  # tied, or not adapted
    for weight in one:
        torch.testing.assert_close(two[weight], one[weight], rtol=0, atol=1e-5)


def test_lora_shards_export_merged(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    from adadpo_lightning.checkpoints.export import export_checkpoint

    export_checkpoint(str(folder / "lora-2" / "step=5.ckpt"), str(tmp_path / "out"), merge=True)
    trained = torch.load(folder / "lora-2.pt")["weights"]
    start = "policy.model.base_model.model.model.layers.0.mlp.up_proj"
    up, down = trained[f"{start}.lora_B.default.weight"], trained[f"{start}.lora_A.default.weight"]
    expected = trained[f"{start}.base_layer.weight"] + 16 * up @ down  # alpha 32 over r 2
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").model.layers[0].mlp.up_proj.weight
    torch.testing.assert_close(merged.detach(), expected)


@pytest.mark.slow
def test_a_lost_rank_ends_the_other_and_spoils_no_checkpoint(folder, tmp_path):
    """Rank 1 dies while ``last.ckpt`` is written a second time; no agent watches, so that rank 0 is on its own."""
    from adadpo_lightning.checkpoints.shards import is_sharded, read_weights

    for name in ("plain", "pairs.jsonl"):
        (tmp_path / name).symlink_to(folder / name)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29587", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1"}
    command = [sys.executable, "-m", "tests.support.fsdp_worker", tmp_path, "dies"]
    ranks = [
        subprocess.Popen(
            command,
            env={**ENVIRONMENT, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert ranks[1].wait(120) == 1
    start = time.monotonic()
    error = ranks[0].communicate(timeout=60)[1]
    assert ranks[0].returncode == 1, error[-2000:]
    assert time.monotonic() - start < 30
    assert "Rank 0 stops: another rank has died" in error
    checkpoint = tmp_path / "dies-2" / "last.ckpt"
    assert is_sharded(checkpoint)
    assert torch.load(checkpoint / "meta.pt", weights_only=True)["global_step"] == 1
    assert all(weight.isfinite().all() for weight in read_weights(checkpoint).values())
