"""What a run would take, against what small runs do take: bytes allocated, parameters counted, operations counted."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from adadpo_lightning.cli import main
from adadpo_lightning.data.collate import collate
from adadpo_lightning.errors import UserError
from adadpo_lightning.estimate.architecture import measure
from adadpo_lightning.estimate.memory import RunShape, estimate
from adadpo_lightning.estimate.shape import ranks_of, run_shape
from adadpo_lightning.losses import build_loss
from adadpo_lightning.models.loading import LoraOptions, PolicyConfig
from adadpo_lightning.training.module import PreferenceLitModule
from adadpo_lightning.types import EncodedPair

ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 700,
    "tie_word_embeddings": False,
}
LENGTHS = [(60, 120, 90), (40, 70, 200), (150, 30, 20)]
POLICY = PolicyConfig(config=ARCHITECTURE, tokenizer="none", head_chunk_size=128)
CASES = {
    "plain": (POLICY, 1),
    "accumulated": (POLICY, 2),
    "checkpointed": (replace(POLICY, gradient_checkpointing=True), 2),
    "selective": (replace(POLICY, gradient_checkpointing="selective"), 2),
    "lora": (replace(POLICY, lora=LoraOptions(r=4)), 2),
    "tied": (replace(POLICY, config={**ARCHITECTURE, "tie_word_embeddings": True}), 1),
    "padded": (replace(POLICY, layout="padded"), 1),
    "gpt2": (
        replace(POLICY, config={"model_type": "gpt2", "n_embd": 96, "n_layer": 5, "n_head": 6, "vocab_size": 700}),
        1,
    ),
}


def batch_of(lengths, layout):
    pairs = [EncodedPair([5] * p, [6] * c, [7] * r, i) for i, (p, c, r) in enumerate(lengths)]
    return collate(pairs, layout=layout, pad_id=0, step_pairs=len(pairs), step_chosen_tokens=9)


def built(policy):
    lit = PreferenceLitModule(policy, build_loss("simpo"))
    lit.tokenizer = None
    lit.configure_model()
    return lit


def peak_bytes(step, tmp_path):
    """Most bytes that torch had allocated during `step`, above what it had before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    path = tmp_path / "trace.json"
    profiler.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    totals = [e["args"]["Total Allocated"] for e in sorted(events, key=lambda e: e["ts"])]
    return max(totals) - totals[0]


@pytest.mark.parametrize("case", CASES)
def test_peak_memory_of_a_step_is_within_15_percent(case, tmp_path):
    policy, accumulation = CASES[case]
    lit = built(policy)
    batch = batch_of(LENGTHS, lit.layout)

    def step():
        lit.step(batch)[0].backward()

    step()
    if accumulation == 1:
        lit.zero_grad(set_to_none=True)
    result = estimate(RunShape(policy, LENGTHS, accumulation=accumulation))
    # Weights, optimizer and gradients of earlier micro-batches are there before the step begins.
    before = ("weights", "optimizer") + (("gradients",) if accumulation > 1 else ())
    expected = sum(size for name, size in result.gib.items() if name not in before) * 2**30
    assert peak_bytes(step, tmp_path) == pytest.approx(expected, rel=0.15)


def test_weights_gradients_and_optimizer_are_counted():
    for policy in (POLICY, replace(POLICY, lora=LoraOptions(r=4)), replace(POLICY, dtype="bfloat16")):
        lit = built(policy)
        result = estimate(RunShape(policy, LENGTHS, accumulation=2, reference="frozen"))
        size = {p: p.numel() * p.element_size() for p in lit.parameters()}
        trained = sum(n for p, n in size.items() if p.requires_grad)
        assert result.parameters == sum(p.numel() for p in size)
        assert result.gib["weights"] * 2**30 == sum(size.values())
        assert result.gib["reference"] * 2**30 == sum(size.values())
        assert result.gib["gradients"] * 2**30 == trained
        assert result.gib["optimizer"] * 2**30 == 2 * trained


def test_work_is_what_torch_counts():
    lit = built(POLICY)
    lengths = [(20, 10, 10)]  # short: torch counts attention over all positions, not over those that are seen
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        lit(batch_of(lengths, "packed"))
    assert measure(POLICY, lengths, autocast=False).flops == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_sharding_divides_what_it_divides():
    whole = estimate(RunShape(POLICY, LENGTHS, ranks=4, accumulation=2, reference="frozen")).gib
    sharded = estimate(RunShape(POLICY, LENGTHS, ranks=4, shards=4, accumulation=2, reference="frozen")).gib
    for name in ("weights", "gradients", "optimizer", "reference"):
        assert sharded[name] == whole[name] / 4
    assert sharded["activations"] == whole["activations"]
    assert sharded["gathered weights"] > 0
    offloaded = estimate(RunShape(POLICY, LENGTHS, ranks=4, shards=4, reference="frozen", cpu_offload=True))
    assert not {"weights", "optimizer", "gradients", "reference"} & offloaded.gib.keys()
    assert offloaded.host_gib == pytest.approx(
        sum(sharded[n] for n in ("weights", "optimizer", "reference", "gradients"))
    )


@pytest.fixture
def llama_8b(tmp_path):
    """The config of an 8B Llama without weights."""
    config = {
        **ARCHITECTURE,
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        (["--config", "configs/strategy/fsdp2.yaml", "--ranks", "8"], True),
        (["--config", "configs/strategy/fsdp2.yaml", "--ranks", "4"], True),
        (["--config", "configs/model/lora.yaml", "--model.policy.dtype", "bfloat16", "--ranks", "1"], True),
        (["--ranks", "1"], False),
        pytest.param(["--config", "configs/strategy/ddp.yaml", "--ranks", "8"], False, marks=pytest.mark.slow),
    ],
)
def test_an_8b_model_on_80_gib(llama_8b, capsys, options, fits, tmp_path):
    """8 and 4 devices fit with everything sharded, and one with LoRA; one alone does not, nor whole copies."""
    lengths = ["--lengths", "1024,1024,1024", "--output_dir", str(tmp_path / "out")]
    experiment = ["--config", "configs/experiment/llama3-8b-adadpo.yaml"]
    precision = ["--trainer.precision", "32-true"] if "bfloat16" in options else []
    path = ["--model.policy.path", str(llama_8b)]
    assert main(["estimate", *experiment, *options, *path, *precision, *lengths]) == 0
    shown = capsys.readouterr().out
    assert "8.0" in shown.split(" B parameters")[0]
    assert ("fits, with a tenth to spare" in shown) is fits
    if not fits:
        assert "model.reference: cached" in shown
        assert "lora" in shown
    assert not (tmp_path / "out").exists()


def test_lengths_are_read_from_the_data(model_dir, pairs_file, capsys):
    options = [f"--model.policy.path={model_dir}", "--model.loss=adadpo", f"--data.train={pairs_file}"]
    sizes = ["--data.global_batch_size=8", "--data.micro_batch_size=4", "--data.max_length=40"]
    assert main(["estimate", *options, *sizes, "--ranks", "1"]) == 0
    shown = capsys.readouterr().out
    assert "4 pair(s)" in shown
    assert "an epoch: 5 steps, " in shown


def test_what_is_not_known_is_asked_for(model_dir, capsys):
    options = [f"--model.policy.path={model_dir}", "--model.loss=simpo"]
    assert main(["estimate", *options, "--data.train=/nowhere.jsonl", "--ranks", "2"]) == 2
    assert "or give --lengths" in capsys.readouterr().err
    with pytest.raises(UserError, match="no config could be read"):
        estimate(RunShape(PolicyConfig(path="/nowhere"), LENGTHS))


def test_the_default_config_takes_the_devices_of_this_machine(model_dir, pairs_file, capsys, monkeypatch):
    options = ["--config=configs/base.yaml", f"--model.policy.path={model_dir}", "--model.loss=simpo"]
    assert main(["estimate", *options, f"--data.train={pairs_file}"]) == 0
    shown = capsys.readouterr().out
    assert "assumed: trainer.devices is auto, so the 1 CPU of this machine; give --ranks N" in shown
    assert "1 rank(s)" in shown
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert ranks_of({"devices": "auto", "num_nodes": 2}) == ranks_of({"devices": -1, "num_nodes": 2}) == 8
    assert ranks_of({"devices": "auto", "accelerator": "cpu"}) == 1
    with pytest.raises(UserError, match="or give --ranks"):
        ranks_of({"devices": "many"})


def test_tensor_parallelism_is_read_from_the_strategy():
    trainer = {
        "strategy": {"class_path": "adadpo_lightning.strategies.FSDP2", "init_args": {"tensor_parallel_size": 2}}
    }
    module, data = PreferenceLitModule(POLICY, build_loss("simpo")), SimpleNamespace(global_batch_size=24)
    run = run_shape(module, data, trainer, 8, LENGTHS)
    assert (run.shards, run.tensor, run.groups, run.micro_batches, run.accumulation) == (4, 2, 4, 8, 2)
    with pytest.raises(UserError, match=r"tensor_parallel_size: expected a divisor of the 9 ranks, got 2"):
        run_shape(module, data, trainer, 9, LENGTHS)
    with pytest.raises(UserError, match="not divisible by 4"):
        estimate(replace(run, tensor=4, shards=2))


def test_a_group_has_and_sends_what_follows_from_the_plan():
    split, whole = measure(POLICY, LENGTHS, autocast=False, tensor=2), measure(POLICY, LENGTHS, autocast=False)
    norms = (2 * 5 + 1) * 96 * 4
    assert split.weights == split.trained == (whole.weights + norms) // 2
    assert split.outside == (whole.outside + 96 * 4) // 2
    assert (split.parameters, split.flops, split.logits) == (whole.parameters, whole.flops, whole.logits // 2)
    assert split.block_input == whole.block_input
    assert 0.5 < split.block_activations / whole.block_activations < 0.8
    tokens, scored = 780, 530
    # Embedding, attention and feed-forward layers; the gradients at the input of five matrices, and of the head.
    assert split.forward["all-reduce"] == tokens * 11 * 96 * 4
    assert split.both["all-reduce"] == (tokens * (11 + 5 * 5) + scored) * 96 * 4
    assert whole.both == {}


@pytest.mark.slow
def test_tensor_parallelism_in_the_command(model_dir, capsys):
    options = ["--config", "configs/strategy/tp_fsdp2.yaml", "--ranks", "8", "--lengths", "10,10,10"]
    command = ["estimate", f"--model.policy.path={model_dir}", "--model.loss=dpo", *options]
    size = "--trainer.strategy.init_args.tensor_parallel_size"
    assert main([*command, "--data.global_batch_size=16", "--data.micro_batch_size=2"]) == 0
    assert "8 rank(s), weights over 4, each split over 2; 2 micro-batch(es) a step" in capsys.readouterr().out
    advice = "tp_fsdp2.yaml, with twice the tensor_parallel_size"
    for now, possible in ((1, True), (2, False)):  # the model has two heads of keys and values
        assert main([*command, f"{size}={now}", "--device_gib=0.0001"]) == 0
        assert (advice in capsys.readouterr().out) is possible
    assert main([*command, f"{size}=3"]) == 2
    assert "tensor_parallel_size: expected a divisor of the 8 ranks, got 3" in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", ["torch.optim.SGD", None])
def test_what_is_assumed_of_another_optimizer_is_said(model_dir, capsys, optimizer):
    named = [] if optimizer is None else [f"--model.optimizer={optimizer}", "--model.optimizer.lr=0.1"]
    options = [f"--model.policy.path={model_dir}", "--model.loss=dpo", "--ranks", "1", "--lengths", "10,10,10", *named]
    assert main(["estimate", *options]) == 0
    assert ("keeps two values for each trained weight" in capsys.readouterr().out) is (optimizer is not None)
