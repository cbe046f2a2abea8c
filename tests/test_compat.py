"""Canaries: each names one thing that `adadpo_lightning.compat` takes from another library without a promise."""

import csv
import importlib
import inspect
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from jinja2 import TemplateError
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim.swa_utils import AveragedModel

from adadpo_lightning import compat
from adadpo_lightning.training.optimizer_class import OptimizerCallable


def test_every_touch_has_a_canary():
    touches = {n for n, f in vars(compat).items() if inspect.isfunction(f) and f.__module__ == compat.__name__}
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert touches <= tests, sorted(touches - tests)


def test_importing_it_costs_nothing():
    code = "import sys, adadpo_lightning.compat; print({'torch', 'lightning', 'datasets'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("owner", "name", "expected"),
    [(owner, name, sign) for owner, names in compat.INHERITED.items() for name, sign in names.items()],
)
def test_inherited(owner, name, expected):
    module, _, cls = owner.rpartition(".")
    base = getattr(importlib.import_module(module), cls)
    if expected == "attribute":
        assert hasattr(base(), name)
        return
    parameters = [p.replace(annotation=p.empty) for p in inspect.signature(getattr(base, name)).parameters.values()]
    assert str(inspect.Signature(parameters)) == expected.replace(" = ", "=")


def test_restoring(tmp_path):
    """From the moment a checkpoint is read until its last part is in place."""
    seen = []

    class Watching(Recorder):
        def on_load_checkpoint(self, checkpoint):
            seen.append(compat.restoring(self.trainer))

        def on_fit_start(self):
            seen.append(compat.restoring(self.trainer))

        def on_train_start(self):
            seen.append(compat.restoring(self.trainer))

    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    data = torch.utils.data.DataLoader(torch.ones(3, 1))
    trainer = Trainer(**quiet, max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(Recorder(), data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    Trainer(**quiet, max_epochs=2, default_root_dir=tmp_path).fit(Watching(), data, ckpt_path=tmp_path / "x.ckpt")
    assert seen == [True, True, False]


def test_is_missing_monitor(tmp_path):
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    stop = EarlyStopping(monitor="nonesuch")
    trainer = Trainer(**quiet, max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=False, callbacks=[stop])
    with pytest.raises(RuntimeError) as error:
        trainer.fit(Recorder(), torch.utils.data.DataLoader(torch.ones(3, 1)))
    assert compat.is_missing_monitor(error.value)
    assert not compat.is_missing_monitor(RuntimeError("another"))


def test_requeue_signal(monkeypatch):
    assert compat.requeue_signal(Trainer(logger=False, accelerator="cpu", devices=1)) is None
    for name, value in {"JOB_ID": "7", "JOB_NAME": "x", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert compat.requeue_signal(Trainer(logger=False, accelerator="cpu", devices=1)) == signal.SIGUSR1


class Recorder(LightningModule):
    """Records what the loop says during three micro-batches of two optimizer steps."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def on_train_batch_end(self, *args):
        t = self.trainer
        self.seen.append(
            (compat.accumulating(t), compat.steps_logged(t), compat.logs_now(t), compat.ends_logged_step(t))
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    module = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=2,
        log_every_n_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path_factory.mktemp("canary"),
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(3, 1)))
    return list(zip(*module.seen, strict=True))


def test_accumulating(seen):
    assert seen[0] == (True, False, False)


def test_steps_logged(seen):
    assert seen[1] == (0, 0, 1)


def test_steps_logged_of(tmp_path):
    """Those of a checkpoint are those at which validate logs, once set."""

    class Validated(Recorder):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.layer(batch).sum())

    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    data = torch.utils.data.DataLoader(torch.ones(3, 1))
    trainer = Trainer(**quiet, max_epochs=1, logger=False, default_root_dir=tmp_path, limit_val_batches=0)
    trainer.fit(module := Validated(), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    found = compat.steps_logged_of(torch.load(tmp_path / "last.ckpt", weights_only=True))
    assert found == compat.steps_logged(trainer) == 3
    logger = CSVLogger(tmp_path)
    other = Trainer(**quiet, logger=logger)
    compat.set_steps_logged(other, found)
    other.validate(module, data, verbose=False)
    logger.save()
    with (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3"]


def test_set_steps_logged():
    trainer = Trainer(accelerator="cpu", logger=False)
    compat.set_steps_logged(trainer, 7)
    assert compat.steps_logged(trainer) == 7


def test_logs_now(seen):
    assert seen[2] == (False, False, True)


def test_ends_logged_step(seen):
    assert seen[3] == (False, False, True)


def test_loss_scale():
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    assert compat.loss_scale(scaler) is None
    scaler.scale(torch.ones(1))
    assert compat.loss_scale(scaler).item() == 8.0


@pytest.mark.parametrize("bad", [True, False])
def test_skip_step_if(bad):
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    compat.skip_step_if(optimizer, torch.tensor(bad))
    optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(2)) is bad


def test_norms_of():
    assert [norm.item() for norm in compat.norms_of([torch.tensor([3.0, 4.0]), torch.zeros(2)])] == [5.0, 0.0]
    assert compat.norms_of([]) == []


def test_storage_key():
    with compat.without_memory():
        a, b = torch.empty(4), torch.empty(4)
        assert compat.storage_key(a) == compat.storage_key(a[1:])
        assert compat.storage_key(a) != compat.storage_key(b)


def test_without_memory():
    with compat.without_memory():
        huge = torch.empty(2**40) + 1
    assert huge.shape == (2**40,)


def test_apply_to_tensors():
    module = nn.BatchNorm1d(2)
    compat.apply_to_tensors(module, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    assert module.weight.dtype == module.running_var.dtype == torch.float64


def test_start_fsdp_root():
    from torch.distributed.fsdp import FSDPModule

    state = importlib.import_module("torch.distributed.fsdp._fully_shard._fsdp_state").FSDPState
    assert callable(FSDPModule._get_fsdp_state)
    assert list(inspect.signature(state._lazy_init).parameters) == ["self"]


def test_cpu_flash_attention():
    query, key, value = torch.randn(3, 1, 2, 5, 4).unbind()
    mask = torch.zeros(5, 5).masked_fill_(~torch.ones(5, 5).tril().bool(), -torch.inf)
    out, lse = compat.cpu_flash_attention(query, key, value, mask, None)
    scores = query @ key.mT / 2 + mask
    torch.testing.assert_close(out, scores.softmax(-1) @ value)
    torch.testing.assert_close(lse.reshape(1, 2, 5), scores.logsumexp(-1))


def test_cpu_flash_attention_backward():
    inputs = [torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3)]
    mask, grad = torch.zeros(5, 5), torch.randn(1, 2, 5, 4)
    scores = inputs[0] @ inputs[1].mT / 2
    expected = torch.autograd.grad(scores.softmax(-1) @ inputs[2], inputs, grad)
    plain = tuple(x.detach() for x in inputs)
    out, lse = compat.cpu_flash_attention(*plain, mask, None)
    found = compat.cpu_flash_attention_backward(grad, plain, out, lse, mask, None)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_is_lost_rank():
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    from datetime import timedelta

    with pytest.raises(RuntimeError) as error:
        store.wait(["never set"], timedelta(milliseconds=10))
    assert compat.is_lost_rank(error.value)
    assert not compat.is_lost_rank(RuntimeError("shapes differ"))


def test_attention_of():
    from transformers import LlamaConfig

    assert compat.attention_of(LlamaConfig(attn_implementation="eager")) == "eager"


def test_render_with_marks():
    from tests.support.tiny import make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}{% endfor %}{{ x }}"
    )
    messages = [{"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "a"}]
    text, marks = compat.render_with_marks(tokenizer, messages, None, {"x": "why"})
    assert text == tokenizer.apply_chat_template(messages, tokenize=False, x="why") == "yes<eos>a<eos>why"
    assert [text[start:end] for start, end in marks] == ["yes", "a"]


def test_template_renderer():
    from transformers import PreTrainedTokenizerFast

    from tests.support.tiny import make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% generation %}{{ m.role }}: {{ m.content | trim }}"
        "{% endgeneration %}\n"
        "{% if m.content == 'refuse' %}{{ raise_exception('refused') }}{% endif %}{% endfor %}"
        "{{ tools is none }}{{ documents is none }}{{ x is defined }}{{ x }}{{ ns is defined }}"
        "{% if add_generation_prompt %}assistant:{% endif %}{{ messages | tojson }}{{ eos_token }}"
    )
    messages = [{"role": "user", "content": " é <b> \n"}, {"role": "assistant", "content": "a"}]
    for kwargs in ({}, {"x": "why"}, {"x": False}, {"x": None}, {"bos_token": "B"}):
        render = compat.template_renderer(tokenizer, kwargs)
        for asks in (False, True):
            expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks, **kwargs)
            assert render(messages, asks) == expected
    refused = [{"role": "user", "content": "refuse"}]
    for call in (lambda: render(refused, False), lambda: tokenizer.apply_chat_template(refused, tokenize=False)):
        with pytest.raises(TemplateError, match="refused"):
            call()
    # What `apply_chat_template` would take for itself or convert, and tokenizers with one of their own.
    for kwargs in ({"documents": None}, {"sanitize_control_tokens": True}, {"x": [1]}):
        assert compat.template_renderer(tokenizer, kwargs) is None

    class Own(PreTrainedTokenizerFast):
        def apply_chat_template(self, *args, **kwargs):
            return "own"

    assert compat.template_renderer(Own(tokenizer_object=tokenizer.backend_tokenizer), {}) is None


def test_needs_remote_code(tmp_path):
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text('{"model_type": "strange", "auto_map": {"AutoConfig": "code.StrangeConfig"}}')
    (tmp_path / "code.py").write_text("")
    with pytest.raises(ValueError, match="trust_remote_code") as error:
        AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)
    assert compat.needs_remote_code(error.value)


def test_has_mismatched_sizes(tmp_path):
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).save_pretrained(tmp_path)
    LlamaConfig(vocab_size=9, architectures=["LlamaForCausalLM"], **sizes).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError) as error:
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert compat.has_mismatched_sizes(error.value)


def test_fingerprint_of():
    from datasets import Dataset

    one, same, other = (Dataset.from_dict({"x": values}) for values in ([1], [1], [2]))
    assert compat.fingerprint_of(one) == compat.fingerprint_of(same) != compat.fingerprint_of(other)


def test_actions_of():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("--one")
    assert "one" in [action.dest for action in compat.actions_of(parser)]


def test_type_of():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("--one", type=int | None)
    found = {action.dest: compat.type_of(action) for action in compat.actions_of(parser)}
    assert found == {"help": None, "one": int | None}


def test_work_offline(monkeypatch):
    """Without it the libraries ask, and ask again."""
    import datasets.config
    from huggingface_hub import constants, errors, hf_hub_download, is_offline_mode

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    assert not is_offline_mode()
    compat.work_offline()
    assert is_offline_mode()
    assert datasets.config.HF_HUB_OFFLINE
    with pytest.raises(errors.LocalEntryNotFoundError):
        hf_hub_download("org/none", "config.json")


def test_read_no_config_from(tmp_path):
    from jsonargparse import ArgumentParser

    from adadpo_lightning.data.sources import SourceConfig

    class Data:
        def __init__(self, train: SourceConfig | str):
            self.train = train

    file = tmp_path / "pairs.jsonl"
    file.write_text('{"path": "other"}')
    parser = ArgumentParser()
    parser.add_class_arguments(Data, "data", sub_configs=True)
    assert parser.parse_args([f"--data.train={file}"]).data.train.path == "other"  # what the touch is for
    for action in compat.actions_of(parser):
        compat.read_no_config_from(action)
    assert parser.parse_args([f"--data.train={file}"]).data.train == str(file)


def test_read_no_config_from_leaves_other_options_alone():
    option = SimpleNamespace()
    compat.read_no_config_from(option)
    assert vars(option) == {}


def test_forget_options_of_other_classes():
    from jsonargparse import ArgumentParser
    from torch.optim.lr_scheduler import LRScheduler

    parser = ArgumentParser()
    parser.add_subclass_arguments(LRScheduler, "schedule", skip={"optimizer"})
    cosine = "torch.optim.lr_scheduler.CosineAnnealingLR"
    args = [f"--schedule={cosine}", "--schedule.T_max=3", "--schedule.last_epoch=7", "--schedule=ConstantLR"]
    assert parser.parse_args(args).schedule.init_args.last_epoch == 7  # what the touch is for
    with compat.forget_options_of_other_classes():
        assert parser.parse_args(args).schedule.init_args.last_epoch == -1


def test_adapter_in_use():
    """The same outputs as by peft's own switches, and no parameter changes whether it is trained."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    model = get_peft_model(nn.Sequential(nn.Linear(3, 3)), config)
    model.add_adapter("other", config)
    model.set_adapter("default")
    trained, x = [p.requires_grad for p in model.parameters()], torch.ones(1, 3)
    with compat.adapter_in_use(model, "other"):
        other = model(x)
    with compat.adapter_in_use(model, None):
        off = model(x)
    assert trained == [p.requires_grad for p in model.parameters()]
    own = model(x)
    with model.disable_adapter():
        assert torch.equal(model(x), off)
    model.set_adapter("other")
    assert torch.equal(model(x), other)
    assert len({out.sum().item() for out in (own, off, other)}) == 3


def test_set_learning_rate():
    """In place where it is a tensor: torchao's optimizers refuse another object."""
    plain, tensor = {"lr": 1.0}, {"lr": torch.tensor(1.0)}
    kept = tensor["lr"]
    compat.set_learning_rate(plain, 0.5)
    compat.set_learning_rate(tensor, 0.5)
    assert plain["lr"] == 0.5
    assert tensor["lr"] is kept
    assert float(kept) == 0.5


def test_fused_step_can_be_skipped():
    weight = [nn.Parameter(torch.zeros(2))]
    made = {name: getattr(torch.optim, name) for name in ("Adam", "AdamW", "SGD", "Adagrad")}
    assert all(compat.fused_step_can_be_skipped(kind(weight, lr=0.1, fused=True)) for kind in made.values())
    assert not any(compat.fused_step_can_be_skipped(kind(weight, lr=0.1)) for kind in made.values())

    class Foreign(torch.optim.Optimizer):
        """With a ``fused`` of its own, which knows nothing of skipped steps."""

    assert not compat.fused_step_can_be_skipped(Foreign(weight, {"lr": 0.1, "fused": True}))


def test_class_and_arguments():
    """What jsonargparse makes of a class path, and a user's partial."""

    class Holder:
        def __init__(self, make: OptimizerCallable | None = None):
            self.make = make

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Holder, "holder")
    config = parser.parse_args(["--holder.make=torch.optim.SGD", "--holder.make.momentum=0.5"])
    made, arguments = compat.class_and_arguments(parser.instantiate(config).holder.make)
    assert (made, arguments["momentum"], arguments["nesterov"]) == (torch.optim.SGD, 0.5, False)
    assert compat.class_and_arguments(partial(torch.optim.SGD, lr=1.0)) == (torch.optim.SGD, {"lr": 1.0})
    assert compat.class_and_arguments(partial(torch.optim.SGD, [])) is None
    assert compat.class_and_arguments(partial(print, torch.optim.SGD)) is None


def test_keep_equal_weights():
    class Mine(WeightAveraging):
        """As `EMAWeightAveraging`, with an average that is never exact."""

    for given in ({}, {"avg_fn": lambda mean, value, count: mean + 1}):
        callback = Mine(**given)
        compat.keep_equal_weights(callback)
        found = callback._kwargs.get("avg_fn")
        if not given:
            assert found is None
            continue
        averaged = AveragedModel(nn.Linear(2, 1, bias=False), avg_fn=found)
        other = nn.Linear(2, 1, bias=False)
        averaged.update_parameters(other)  # the first time it copies
        before = other.weight.detach().clone()
        with torch.no_grad():
            other.weight[0, 0] += 5
        averaged.update_parameters(other)
        assert torch.equal(averaged.module.weight.detach(), before + torch.tensor([[1.0, 0.0]]))


def test_run_with_local_parameters(tmp_path):
    """A replicated norm, of whose rows each rank has its own: the gradient is the sum over the ranks."""
    from tests.support.ranks import on_ranks

    rows = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)

    def work(rank):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Partial, Replicate, distribute_tensor

        mesh = init_device_mesh("cpu", (2,))
        norm = nn.LayerNorm(3, dtype=torch.float64)
        for name, parameter in list(norm.named_parameters()):
            norm.register_parameter(name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Replicate()])))
        before = dict(norm.named_parameters())
        compat.run_with_local_parameters(norm, [Partial()])
        out = norm(rows[rank])
        out.square().sum().backward()
        with pytest.raises(RuntimeError):
            norm(rows[rank, :2])
        assert all(parameter is before[name] for name, parameter in norm.named_parameters())
        return out.detach(), [parameter.grad.full_tensor() for parameter in norm.parameters()]

    norm = nn.LayerNorm(3, dtype=torch.float64)
    expected = norm(rows)
    expected.square().sum().backward()
    for rank, (out, gradients) in enumerate(on_ranks(2, work, tmp_path)):
        torch.testing.assert_close(out, expected[rank].detach())
        torch.testing.assert_close(gradients, [parameter.grad for parameter in norm.parameters()])
