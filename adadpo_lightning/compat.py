"""Everything this package uses of other libraries that they do not promise to keep.

Private attributes, patched functions and parsed error texts live here and nowhere else: ruff's SLF001 is on for every
other file. Each touch is one small function that names the version it was written for and the upstream issue, where one
is known. Each has a canary in ``tests/test_compat.py`` that fails under the touch's name when an upgrade breaks it.

Written for lightning 2.6.6, torch 2.13.0, transformers 5.23.0, datasets 5.2.0 and jsonargparse 4.53.0. Importing this
file imports none of them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    import signal
    from argparse import Action, ArgumentParser
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
    from functools import partial

    import torch
    from datasets import Dataset
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import WeightAveraging
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from transformers import PreTrainedConfig

# Methods and attributes of base classes that subclasses in this package override or read through `self` and `super()`.
# They cannot be moved into a function; a canary checks that each still exists, with the same parameters.
INHERITED: Mapping[str, Mapping[str, str]] = {
    "lightning.pytorch.LightningModule": {
        "_trainer": "attribute",  # None without a Trainer, where the public property raises
    },
    "lightning.pytorch.callbacks.ModelCheckpoint": {
        "_monitor_candidates": "(self, trainer)",
        "_save_checkpoint": "(self, trainer, filepath)",
        "_save_last_checkpoint": "(self, trainer, monitor_candidates)",
        "_should_skip_saving_checkpoint": "(self, trainer)",
    },
    "lightning.pytorch.callbacks.RichProgressBar": {
        "_add_task": "(self, total_batches, description, visible=True)",
        "_init_progress": "(self, trainer)",
        "_initialize_train_progress_bar_id": "(self)",
        "_update": "(self, progress_bar_id, current, visible=True, hard=False)",
        "_update_metrics": "(self, trainer, pl_module)",
    },
    "lightning.pytorch.strategies.ModelParallelStrategy": {
        "_data_parallel_size": "attribute",
        "_process_group_backend": "attribute",
        "_save_distributed_checkpoint": "attribute",
        "_timeout": "attribute",
    },
}


# --- lightning 2.6.6 -------------------------------------------------------------------------------------------------


def accumulating(trainer: Trainer) -> bool:
    """Whether the optimizer step of the current micro-batch is still to come.

    ``batch_idx % accumulate_grad_batches`` is not the same: the last micro-batch of an epoch always ends its step.
    """
    return bool(trainer.fit_loop._should_accumulate())


def requeue_signal(trainer: Trainer) -> signal.Signals | None:
    """The signal at which SLURM's job is to be requeued; None outside of SLURM, or where requeueing is off."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    environment = trainer._accelerator_connector.cluster_environment
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return None
    return environment.requeue_signal


def steps_logged(trainer: Trainer) -> int:
    """The x value that Lightning gives its loggers: optimizer steps done, as the training loop counts them."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def set_steps_logged(trainer: Trainer, steps: int) -> None:
    """Set that x value. Lightning restores it for ``fit`` alone, and logs what ``validate`` finds at 0."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = steps


def steps_logged_of(checkpoint: Mapping[str, Any]) -> int:
    """The same x value, of a checkpoint."""
    loop = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.state_dict", {})
    return int(loop.get("_batches_that_stepped", 0))


def restoring(trainer: Trainer) -> bool:
    """Whether a checkpoint has been read and not all of its parts are in place yet."""
    return bool(trainer._checkpoint_connector._loaded_checkpoint)


def is_missing_monitor(error: BaseException) -> bool:
    """Whether `EarlyStopping` did not find the metric that it monitors."""
    return isinstance(error, RuntimeError) and "Early stopping conditioned on metric" in str(error)


def logs_now(trainer: Trainer) -> bool:
    """Whether Lightning writes metrics at this optimizer step (`log_every_n_steps`)."""
    return bool(trainer._logger_connector.should_update_logs)


def ends_logged_step(trainer: Trainer) -> bool:
    """Whether the current micro-batch ends an optimizer step at which Lightning writes metrics."""
    return logs_now(trainer) and not accumulating(trainer)


def keep_equal_weights(averaging: WeightAveraging) -> None:
    """Let the average of equal weights be that weight, to the last bit.

    ``decay * x + (1 - decay) * x`` is x up to rounding only, so that frozen weights and buffers would drift in the
    average. torch's own averages, which interpolate, keep them.
    """
    import torch

    average = averaging._kwargs.get("avg_fn")
    if average is None:
        return

    def exact(mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
        return torch.where(mean == value, value, average(mean, value, count))

    averaging._kwargs["avg_fn"] = exact


# --- torch 2.13.0 ----------------------------------------------------------------------------------------------------


def loss_scale(scaler: torch.amp.GradScaler) -> Tensor | None:
    """The current loss scale on the device; None before the first step. `get_scale` would wait for the device."""
    scale: Tensor | None = scaler._scale
    return scale


def skip_step_if(optimizer: Optimizer, bad: Tensor) -> None:
    """Make a fused optimizer skip its next step where `bad` (a scalar on the device) is true.

    This is how `torch.amp.GradScaler` tells the fused kernels, without waiting for the device.
    """
    optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # undeclared upstream


def set_learning_rate(group: dict[str, Any], rate: float | Tensor) -> None:
    """Set the rate of a parameter group as torch's schedulers do: in place where it is a tensor, as torchao's are."""
    from torch.optim.lr_scheduler import _update_param_group_val

    _update_param_group_val(group, "lr", rate)


def fused_step_can_be_skipped(optimizer: Optimizer) -> bool:
    """Whether `skip_step_if` serves an optimizer: torch's fused ones; others may have a ``fused`` of their own."""
    return bool(optimizer.defaults.get("fused")) and bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def norms_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The 2-norm of each tensor, in one kernel per dtype and device; DTensors give DTensors.

    `torch.nn.utils.get_total_norm` uses the same kernel but returns only the norm of all.
    """
    import torch

    return list(torch._foreach_norm(list(tensors))) if tensors else []


def storage_key(tensor: Tensor) -> Hashable:
    """Identifies a tensor's storage, also where it has no memory (meta and fake tensors, whose pointers are all 0)."""
    key: int = tensor.untyped_storage()._cdata
    return key


def without_memory() -> AbstractContextManager[Any]:
    """A context in which tensors have shapes and no memory, and operations compute shapes alone."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode: AbstractContextManager[Any] = FakeTensorMode(allow_non_fake_inputs=True)
    return mode


def apply_to_tensors(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Change every parameter and buffer in place, as `nn.Module.to` does; sharded modules follow."""
    module._apply(change)  # type: ignore[no-untyped-call]  # untyped upstream


def run_with_local_parameters(module: nn.Module, grad_placements: Sequence[Any]) -> None:
    """Give each forward pass of a module plain tensors in place of its own DTensor parameters.

    Operations cannot mix DTensors and plain tensors, and a module's parameters can be replaced only privately. The
    public `torch.func.functional_call` would call the module within itself.

    Args:
        module: The module, of which only its own parameters are replaced.
        grad_placements: How the gradient of the plain tensors is placed on the mesh.
    """
    held: dict[str, Any] = {}

    def replace(module: nn.Module, args: Any) -> None:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                held[name] = parameter
                module._parameters[name] = parameter.to_local(grad_placements=grad_placements)  # type: ignore[attr-defined, assignment, unused-ignore]

    def restore(module: nn.Module, args: Any, output: Any) -> None:
        module._parameters.update(held)
        held.clear()

    module.register_forward_pre_hook(replace)
    # Also after an exception, by which the recomputation of a checkpointed block ends.
    module.register_forward_hook(restore, always_call=True)


def start_fsdp_root(module: Any) -> None:
    """Make an FSDP2 module the root of its blocks before its first forward.

    Otherwise a block that runs first takes itself for the root.
    """
    module._get_fsdp_state()._lazy_init()


def cpu_flash_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Attention on the CPU with its log-sum-exp, which the public `scaled_dot_product_attention` does not return.

    Args:
        query: (1, heads, Q, d).
        key: (1, heads, K, d).
        value: (1, heads, K, d).
        mask: Additive, (Q, K).
        scale: Of the scores; None is ``d ** -0.5``.

    Returns:
        The output (1, heads, Q, d) and the log-sum-exp (1, heads, Q).
    """
    import torch

    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, attn_mask=mask, scale=scale
    )
    return out, lse


def cpu_flash_attention_backward(
    grad: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
    lse: Tensor,
    mask: Tensor,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `cpu_flash_attention` in query, key and value.

    Args:
        grad: Gradient in the output, (1, heads, Q, d).
        inputs: Query, key and value.
        out: The output.
        lse: The log-sum-exp.
        mask: As in the forward pass.
        scale: As in the forward pass.
    """
    import torch

    query, key, value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, *inputs, out, lse, 0.0, False, attn_mask=mask, scale=scale
    )
    return query, key, value


# gloo and NCCL report a lost or hanging rank by these texts and by no exception type of their own.
_LOST_RANK = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "timed out", "timeout")


def is_lost_rank(error: BaseException) -> bool:
    """Whether an exception says that another rank has ended or hangs."""
    return any(sign in str(error) for sign in _LOST_RANK)


# --- transformers 5.23.0 and datasets 5.2.0 --------------------------------------------------------------------------


def attention_of(config: PreTrainedConfig) -> str | None:
    """The attention implementation of a model; transformers has a public setter and no public getter."""
    name: str | None = config._attn_implementation
    return name


def needs_remote_code(error: BaseException) -> bool:
    """Whether transformers refused to run code that comes with a model."""
    return "custom code" in str(error)


def has_mismatched_sizes(error: BaseException) -> bool:
    """Whether transformers found weights whose shapes are not those of the config."""
    return "ignore_mismatched_sizes" in str(error)


def render_with_marks(
    tokenizer: Any, messages: list[Any], tools: list[Any] | None, kwargs: Mapping[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """A rendered conversation, and the characters that its template has put in ``{% generation %}``.

    `apply_chat_template` returns them only as a mask of the tokens that it makes itself.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), (marks,) = render_jinja_template(
        conversations=[messages],
        tools=tools,
        chat_template=tokenizer.get_chat_template(None, tools),
        return_assistant_tokens_mask=True,
        **{**tokenizer.special_tokens_map, **kwargs},
    )
    return text, marks


def template_renderer(
    tokenizer: Any, kwargs: Mapping[str, Any]
) -> Callable[[Sequence[Mapping[str, str]], bool], str] | None:
    """Renders conversations without tools to the text of `apply_chat_template`, in about half its time.

    `apply_chat_template` looks up the template and the special tokens, and copies all variables and messages, in each
    call. Here that is done once. The messages must have nothing but ``role`` and ``content``, both text: what it
    does to others (aliases, conversions, missing values) is not done here.

    Args:
        tokenizer: Holds the template.
        kwargs: Variables of the template.

    Returns:
        From messages, and whether to end with the beginning of the assistant's turn, their text. None if the tokenizer
        renders by code of its own, if the template does not parse, or if `apply_chat_template` would take or convert
        one of `kwargs`.
    """
    from inspect import signature

    from jinja2 import TemplateError
    from transformers import PreTrainedTokenizerBase
    from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

    public = PreTrainedTokenizerBase.apply_chat_template
    taken = {*signature(public).parameters, *signature(render_jinja_template).parameters}
    plain = all(value is None or type(value) in (str, int, float, bool) for value in kwargs.values())
    if type(tokenizer).apply_chat_template is not public or taken & set(kwargs) or not plain:
        return None
    try:
        template = _compile_jinja_template(tokenizer.get_chat_template(None, None))
    except (TemplateError, SyntaxError):
        return None  # `apply_chat_template` says what is wrong, where its errors are expected
    variables = {"tools": None, "documents": None, **tokenizer.special_tokens_map, **kwargs}

    def render(messages: Sequence[Mapping[str, str]], asks: bool) -> str:
        text: str = template.render(variables, messages=messages, add_generation_prompt=asks)
        return text

    return render


def work_offline() -> None:
    """Use nothing but the local cache of the hub from now on, in this process and its children.

    The public switch is an environment variable that huggingface_hub and datasets read when they are imported.
    """
    import os
    import sys

    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if (settings := sys.modules.get("datasets.config")) is not None:
        settings.HF_HUB_OFFLINE = settings.HF_DATASETS_OFFLINE = True  # type: ignore[attr-defined]  # a plain module


def fingerprint_of(table: Dataset) -> str:
    """The fingerprint of a dataset's content and history, which keys its cache."""
    fingerprint: str = table._fingerprint
    return fingerprint


# --- jsonargparse 4.53.0 ---------------------------------------------------------------------------------------------


def actions_of(parser: ArgumentParser) -> list[Action]:
    """All options of a parser."""
    return parser._actions


def type_of(action: Action) -> Any | None:
    """The type annotation that an option's values are checked against, or None for an option without one."""
    return getattr(action, "_typehint", None)


def read_no_config_from(action: Action) -> None:
    """Take a value that is a path as text; otherwise jsonargparse reads the file as a config of the option's class."""
    if hasattr(action, "_enable_path"):
        action._enable_path = False


def class_and_arguments(made: partial[Any]) -> tuple[type, dict[str, Any]] | None:
    """Class and keyword arguments of a `partial`: a user's, or what jsonargparse makes of ``class_path``.

    jsonargparse's own calls an instantiator of its own with the class as the last positional argument.
    """
    if isinstance(made.func, type):
        return None if made.args else (made.func, dict(made.keywords))
    if made.args and isinstance(made.args[-1], type) and made.func.__module__.startswith("jsonargparse"):
        return made.args[-1], dict(made.keywords)
    return None


@contextmanager
def forget_options_of_other_classes() -> Iterator[None]:
    """Make a config that names another class forget ALL options of the class named before it.

    jsonargparse keeps those options that the new class has too: a loss named later would silently train with the beta
    of the loss named earlier.
    """
    from jsonargparse import _typehints

    def name(spec: Any) -> str:  # a class may be named in short or by its import path
        return str(spec["class_path"]).rpartition(".")[2]

    def forget(parser: Any, previous: Any, value: Any) -> None:
        if previous and "init_args" in previous and name(previous) != name(value):
            previous.pop("init_args")

    with patch.object(_typehints, "discard_init_args_on_class_path_change", forget):
        yield


# --- peft 0.21.2 ----------------------------------------------------------------------------------------------------


@contextmanager
def adapter_in_use(model: Any, name: str | None) -> Iterator[None]:
    """Within this context peft's layers compute with the adapter `name`, or with none (peft 0.21).

    Peft's public ``set_adapter`` and ``disable_adapter`` also switch ``requires_grad``. Under FSDP2 they reach only the
    parameter that is registered at that moment, sharded or gathered, and could leave a shard frozen.
    """
    layers = [layer for layer in model.modules() if hasattr(layer, "_active_adapter")]
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        if name is None:
            layer._disable_adapters = True
        else:
            layer._active_adapter = [name]
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled
