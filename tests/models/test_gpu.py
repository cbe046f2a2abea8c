"""What only a CUDA device can show: its attention backends, half precision, and a step that never waits."""

import pytest
import torch

from adadpo_lightning.losses import build_loss
from adadpo_lightning.metrics import WeightedMeans, step_statistics
from adadpo_lightning.models.loading import PolicyConfig
from adadpo_lightning.training.module import PreferenceLitModule
from tests.models.attention.test_packed import CONFIGS, batch_of, make_pairs, policy

pytestmark = pytest.mark.gpu
LENGTHS = [(40, 25, 61), (1, 52, 1), (74, 1, 33), (13, 48, 18)]
# Flash kernels want heads of at least 16.
WIDE = {"head_dim": 16, "hidden_size": 64, "query_pre_attn_scalar": 16, "n_embd": 64}


@pytest.fixture
def wide(monkeypatch):
    for kind, values in list(CONFIGS.items()):
        keep = {k: v for k, v in WIDE.items() if k in values or (k == "query_pre_attn_scalar" and "gemma" in kind)}
        monkeypatch.setitem(CONFIGS, kind, {**values, **keep, "initializer_range": 0.1})


def run(kind, layout, backend, dtype):
    model = policy(kind, layout, backend, dtype).cuda()
    pairs = make_pairs(LENGTHS)
    logps = model(batch_of(pairs, layout).to("cuda"))
    logps.square().sum().backward()
    grads = {name: p.grad.float() for name, p in model.named_parameters()}
    return logps.detach().float(), grads


# Each kind of layer: plain, windowed, capped, without grouped heads; every further one compiles anew.
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gemma3_text", "gpt2"])
def test_flex_equals_padded_in_float32(wide, kind):
    expected, expected_grads = run(kind, "padded", "auto", "float32")
    logps, grads = run(kind, "packed", "flex", "float32")
    torch.testing.assert_close(logps, expected, rtol=2e-3, atol=2e-3)
    for name, grad in grads.items():
        scale = expected_grads[name].norm() + 1e-3
        assert (grad - expected_grads[name]).norm() / scale < 2e-2, name


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gemma2"])
def test_default_backend_in_bfloat16_is_as_near_to_float32_as_the_padded_layout(wide, kind):
    exact, exact_grads = run(kind, "padded", "auto", "float32")
    plain, plain_grads = run(kind, "padded", "auto", "bfloat16")
    logps, grads = run(kind, "packed", "auto", "bfloat16")
    allowed = (plain - exact).norm() * 1.5 + 1e-3
    assert (logps - exact).norm() < allowed
    for name, grad in grads.items():
        allowed = (plain_grads[name] - exact_grads[name]).norm() * 2 + 1e-2 * exact_grads[name].norm() + 1e-3
        assert (grad - exact_grads[name]).norm() < allowed, name


def test_a_step_never_waits_for_the_device(tmp_path):
    """Forward, loss, backward and metrics of the packed layout, once its index tensors are there."""
    from tests.support.tiny import make_model_dir

    path = make_model_dir(tmp_path / "model", hidden=64)
    module = PreferenceLitModule(PolicyConfig(path=str(path), dtype="bfloat16"), build_loss("adadpo"))
    module.configure_model()
    module.to("cuda")
    pairs = [pair for pair in make_pairs(LENGTHS)]
    for pair in pairs:
        for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
            ids[:] = [i % 20 for i in ids]
    batch = batch_of(pairs, "packed").pin_memory().to("cuda", non_blocking=True)
    means = WeightedMeans().to("cuda")

    def step():
        loss, output = module.step(batch)
        loss.backward()
        means.update(step_statistics(output, batch))

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert means.compute()["rewards/margins"] == 0.0
