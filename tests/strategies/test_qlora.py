"""QLoRA under FSDP2: two gloo processes equal one process; adapters' gradients equal those over unpacked weights."""

import functools

import pytest
import torch
from safetensors.torch import load_file

from adadpo_lightning.estimate.architecture import NF4_BYTES
from adadpo_lightning.estimate.memory import RunShape, measured
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig, load_model
from tests.strategies.test_fsdp import check_same, on_two_ranks
from tests.support import fsdp_worker
from tests.support.tiny import make_model_dir, make_rows, write_rows

bnb = pytest.importorskip("bitsandbytes", reason="needs the extra qlora")
pytestmark = [pytest.mark.distributed, pytest.mark.slow]
RUNS = ["qlora", "qlora-saving", "qlora-options", "qlora-offload"]
QUANTIZED = LoraOptions(r=2, quantize="nf4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qlora")
    make_model_dir(folder / "plain")
    make_model_dir(folder / "wide", hidden=64)
    write_rows(folder / "pairs.jsonl", make_rows(37))
    on_two_ranks(folder, *RUNS, "qlora-resumed", "qlora-bfloat16")
    return folder


@pytest.fixture(scope="module")
def single(folder):
    """What one process without any sharding makes of a case."""
    return functools.cache(lambda name: fsdp_worker.run(folder, name, 1))


@pytest.fixture
def quantized(folder, monkeypatch):
    monkeypatch.setattr("adadpo_lightning.models.lora._has_device", lambda: True)
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    torch.manual_seed(0)
    return load_model(PolicyConfig(path=str(folder / "wide"), lora=QUANTIZED)).train()


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_equal_one_process(folder, single, name):
    one, two = single(name), torch.load(folder / f"{name}-2.pt")
    packed = [weight for weight, value in one["weights"].items() if value.dtype == torch.uint8]
    assert len(packed) == 14
    check_same(two, one, times=3)  # 4 bits are computed with in float32 at best
    if name != "qlora-saving":  # which is replicated
        held = sum(two["local"].values()) / sum(weight.numel() for weight in two["weights"].values())
        assert 0.5 <= held < 0.51
    adapters = [load_file(folder / f"{name}-{ranks}-live" / "adapter_model.safetensors") for ranks in (2, 1)]
    assert adapters[0].keys() == adapters[1].keys()


def test_resumed_run_equals_an_uninterrupted_one(folder, single):
    check_same(torch.load(folder / "qlora-resumed-2.pt"), single("qlora"), times=3)


def test_param_dtype_leaves_packed_bytes_alone(folder, single):
    """In bfloat16 two ranks round otherwise than one process; converted bytes would be another model."""
    one, two = single("qlora-bfloat16"), torch.load(folder / "qlora-bfloat16-2.pt")
    for name, value in one["weights"].items():
        if value.dtype == torch.uint8:
            assert torch.equal(value, two["weights"][name])
    for name in ("train/logps/chosen", "train/logps/rejected", "train/grad_norm/chosen"):
        assert two["steps"][0][name] == pytest.approx(one["steps"][0][name], rel=0.02)


def test_gradients_are_those_over_unpacked_weights(folder, quantized):
    plain = load_model(PolicyConfig(path=str(folder / "wide"), lora=LoraOptions(r=2))).train()
    with torch.no_grad():
        for (name, p), (_, q) in zip(plain.named_parameters(), quantized.named_parameters(), strict=True):
            if "lora_B" in name:
                q.normal_(std=0.1)
            if q.dtype == torch.uint8:
                q = bnb.functional.dequantize_4bit(q.data, q.quant_state)
                assert not torch.equal(p, q)
            p.copy_(q)
    grads = []
    for model in (plain, quantized):
        logps = model(torch.arange(1, 25).reshape(2, 12)).logits.log_softmax(-1)
        trained = [p for p in model.parameters() if p.requires_grad]
        grads.append(torch.autograd.grad(logps[:, :, 3].sum(), trained))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_estimate_counts_the_packed_bytes(folder, quantized):
    found = measured(RunShape(PolicyConfig(path=str(folder / "wide"), lora=QUANTIZED), [(8, 8, 8)]))
    held = 0
    for p in quantized.parameters():
        held += p.numel() * p.element_size()
        if p.dtype == torch.uint8:
            state = p.quant_state
            held += state.absmax.numel() * state.absmax.element_size() + 4 * state.state2.absmax.numel()
    assert found.weights == pytest.approx(held, rel=0.01)
    assert abs(NF4_BYTES - 0.5159) < 1e-4
