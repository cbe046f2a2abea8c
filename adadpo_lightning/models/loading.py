"""Load policies and tokenizers: local Hugging Face directories, hub ids, or random weights from a config."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from adadpo_lightning import gguf
from adadpo_lightning.data.tokenizer import check_exists, read_tokenizer
from adadpo_lightning.errors import UserError
from adadpo_lightning.models import peft_options
from adadpo_lightning.models.activations import enable_checkpointing
from adadpo_lightning.models.adapters import start_from_base
from adadpo_lightning.models.checks import check_blocks, check_vocabulary, disable_dropout
from adadpo_lightning.models.lora import check_whole, with_adapter
from adadpo_lightning.models.meta import parameters_on_meta
from adadpo_lightning.models.weights import empty_model, pretrained_model, random_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class LoraOptions:
    """Low-rank adapters from peft (extra ``lora``).

    Args:
        r: Rank.
        alpha: Scale; the update is multiplied by alpha / r.
        dropout: Dropout on the input of the adapters. Above 0, rewards are noisy, because the reference has no dropout.
        target_modules: Names of the modules to adapt, or ``all-linear``.
        peft: Other options of peft's ``LoraConfig`` for a new adapter, under peft's names, such as
            ``{use_rslora: true, use_dora: true, modules_to_save: [lm_head], rank_pattern: {q_proj: 32}}``.
        adapter: Directory of a trained adapter to continue from; null starts a new one.
        quantize: ``nf4`` stores the frozen base model in 4 bits (QLoRA, arXiv 2305.14314); requires CUDA and the extra
            ``qlora``. Under FSDP2 the packed weights are sharded. null keeps the policy's dtype.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    peft: dict[str, Any] | None = None
    adapter: str | None = field(default=None, metadata={"resume": "by_content"})
    quantize: Literal["nf4"] | None = None

    def __post_init__(self) -> None:
        """Reject what would train nothing, or another thing than was asked for."""
        for name in ("r", "alpha"):
            if getattr(self, name) < 1:
                raise UserError(f"model.policy.lora.{name}", f"expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise UserError("model.policy.lora.dropout", f"expected a number in [0, 1), got {self.dropout}")
        peft_options.check(self.peft or {})
        if self.peft and self.adapter is not None:
            raise UserError(
                peft_options.FIELD,
                "is for a new adapter, and lora.adapter names a trained one",
                "leave one of them out",
            )


@dataclass
class PolicyConfig:
    """Which model to train and how to load it.

    The metadata ``resume`` of a field defines how resuming treats it; see `adadpo_lightning.checkpoints.settings`.

    Args:
        path: Local Hugging Face directory or hub id, with safetensors weights. A path that ends in ``.gguf`` is a GGUF
            file: ``path: models/smol.gguf`` is the same as ``path: models`` with ``gguf_file: smol.gguf``.
        gguf_file: GGUF file in `path` (extra ``gguf``) that holds weights, config, tokenizer and chat template; other
            files there are not read. Quantized weights are unpacked to `dtype` when loaded, and trained in it.
        revision: Revision of the hub id.
        config: For random weights, instead of `path`: a Hugging Face config as a mapping with ``model_type``, or the
            path of a ``config.json`` or its directory.
        init_seed: Seed of random weights.
        tokenizer: Directory or hub id of the tokenizer; null means that of `path`.
        dtype: Data type of the weights; ``auto`` means that of the checkpoint.
        attn_implementation: Attention of the padded layout; null means transformers' default for the architecture.
        layout: ``packed`` (no padding, each prompt computed once), ``padded``, or ``auto``: packed if the architecture
            supports it.
        packed_attention: Attention of the packed layout. ``segments`` runs anywhere, ``tree`` on the CPU, ``varlen``
            and ``flex`` on CUDA; ``auto`` selects one for the device.
        head_chunk_size: Maximum number of tokens whose logits are in memory at the same time.
        token_entropy: Compute the entropy of each prediction for ``entropy/...``; not with an adapter on the head.
        gradient_checkpointing: Recompute the activations of each block in the backward pass to save memory;
            ``selective`` keeps attention outputs and every second matrix product, which are expensive to recompute.
        offload_activations: Keep activations in CPU memory until the backward pass.
        compile: Compile the decoder blocks with `torch.compile`, once for all lengths; attention is not compiled.
            Rewards at step 0 are then 0 only up to rounding.
        lora: Train adapters instead of the full model.
        trust_remote_code: Run code that comes with the model. Only for models whose authors you trust.
    """

    path: str | None = field(default=None, metadata={"resume": "by_content"})
    gguf_file: str | None = field(default=None, metadata={"resume": "by_content"})
    revision: str | None = field(default=None, metadata={"resume": "by_content"})
    config: dict[str, Any] | str | None = field(default=None, metadata={"resume": "by_content"})
    init_seed: int = 0
    tokenizer: str | None = field(default=None, metadata={"resume": "by_content"})
    dtype: Literal["float32", "bfloat16", "float16", "float64", "auto"] = "float32"
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = field(
        default=None, metadata={"resume": "ignored"}
    )
    layout: Literal["auto", "packed", "padded"] = field(default="auto", metadata={"resume": "ignored"})
    packed_attention: Literal["auto", "segments", "tree", "varlen", "flex"] = field(
        default="auto", metadata={"resume": "ignored"}
    )
    head_chunk_size: int = field(default=1024, metadata={"resume": "ignored"})
    token_entropy: bool = field(default=False, metadata={"resume": "ignored"})
    gradient_checkpointing: bool | Literal["selective"] = field(default=False, metadata={"resume": "ignored"})
    offload_activations: bool = field(default=False, metadata={"resume": "ignored"})
    compile: bool = field(default=False, metadata={"resume": "ignored"})
    lora: LoraOptions | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Validate the options that do not require loading the model."""
        if (self.path is None) == (self.config is None):
            raise UserError(
                "model.policy.path",
                "expected either a path (directory or hub id) or a config for random weights, "
                f"got {'neither' if self.path is None else 'both'}",
            )
        self._name_gguf()
        if self.revision is not None and self.path is not None and Path(self.path).is_dir():
            raise UserError("model.policy.revision", f"is for hub ids, and {self.path} is a directory", "leave it out")
        if self.head_chunk_size < 1:
            raise UserError("model.policy.head_chunk_size", f"expected at least 1, got {self.head_chunk_size}")

    def _name_gguf(self) -> None:
        """Write a GGUF file that `path` names as `path` and `gguf_file`."""
        folder, named = gguf.split(self.path or "")
        if named is not None:
            if self.gguf_file not in (None, named):
                raise UserError(
                    "model.policy.gguf_file",
                    f"path names the file {named} and gguf_file names {self.gguf_file}",
                    "leave one of them out",
                )
            self.path, self.gguf_file = folder, named
        if self.gguf_file is None:
            return
        if self.path is None or not self.gguf_file.endswith(gguf.SUFFIX):
            raise UserError(
                "model.policy.gguf_file",
                f"expected the name of a {gguf.SUFFIX} file in model.policy.path, got {self.gguf_file!r}",
            )
        if self.lora is not None and self.lora.quantize is not None:
            raise UserError(
                "model.policy.lora.quantize",
                f"weights of {self.gguf_file} would be quantized twice",
                "set it to null, or give the safetensors weights of the model",
            )

    @property
    def where(self) -> str | None:
        """The model's directory, hub id or GGUF file, as users write it; None for random weights."""
        return self.path if self.path is None or self.gguf_file is None else str(Path(self.path) / self.gguf_file)

    @property
    def tokenizer_path(self) -> str:
        """Path from which the tokenizer is loaded.

        Raises:
            UserError: If no path is set.
        """
        path = self.tokenizer or self.path or (self.config if isinstance(self.config, str) else None)
        if path is None:
            raise UserError("model.policy.tokenizer", "expected a directory or hub id, got null")
        return str(Path(path).parent) if path.endswith("config.json") else path


def load_tokenizer(config: PolicyConfig) -> PreTrainedTokenizerBase:
    """Load the policy's tokenizer.

    Raises:
        UserError: If the tokenizer cannot be loaded.
    """
    path = config.tokenizer_path
    if path == config.path:
        check_exists(path, "model.policy.path")
    return read_tokenizer(
        path,
        revision=config.revision if path == config.path else None,
        trust_remote_code=config.trust_remote_code,
        gguf_file=config.gguf_file if path == config.path else None,
        field="model.policy.tokenizer",
    )


def load_model(
    config: PolicyConfig, tokenizer: PreTrainedTokenizerBase | None = None, *, empty: bool = False
) -> PreTrainedModel:
    """Load or initialize the policy, without dropout, and with adapters if configured.

    Args:
        config: The model to load.
        tokenizer: If given, its vocabulary is checked against the embedding.
        empty: Keep the base model's weights on the meta device; buffers and adapters are allocated.

    Raises:
        UserError: If the model cannot be loaded, or the tokenizer has more tokens than the embedding.
    """
    if config.path is None or empty:
        check_whole(config)
    if empty:
        with parameters_on_meta():
            model = random_model(config) if config.path is None else empty_model(config)
    else:
        model = random_model(config) if config.path is None else pretrained_model(config)
    check_blocks(model.config)
    if model.dtype == torch.float64:
        model.set_experts_implementation("eager")  # the grouped products of transformers have no float64
    if tokenizer is not None:
        check_vocabulary(len(tokenizer), model.get_input_embeddings().num_embeddings)
    disable_dropout(model)
    if config.lora is not None:
        model = with_adapter(model, config.lora)
        if config.lora.adapter is None and not empty:
            start_from_base(model)
        if config.lora.dropout == 0:
            disable_dropout(model)  # dropout of an adapter loaded from a directory
    if config.gradient_checkpointing:
        enable_checkpointing(model, selective=config.gradient_checkpointing == "selective")
    return model
