"""Options of generation: how answers are sampled, and everything that the ``generate`` command takes."""

from __future__ import annotations

from dataclasses import KW_ONLY, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from adadpo_lightning.data.special import SpecialTokens
from adadpo_lightning.errors import UserError, did_you_mean

Chat = Literal["auto", "always", "never"]
Engine = Literal["transformers", "vllm"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
FormatName = Literal["jsonl", "json", "alpaca_eval", "arena_hard"]


@dataclass(frozen=True)
class SamplingOptions:
    """How answers are sampled. The model's own generation defaults (temperature, penalties) are ignored.

    Args:
        max_new_tokens: Maximum number of new tokens; longer answers are cut off.
        temperature: Sampling temperature; 0 is greedy decoding.
        top_p: Sample from the smallest set of tokens whose probability reaches this value; 1 keeps all.
        top_k: Sample from the k most likely tokens; 0 keeps all.
        seed: Random seed. Each prompt has its own random numbers, so neither the batch size nor a resume changes the
            answers, apart from rounding differences between batch shapes.
        batch_size: Prompts per batch.

    Raises:
        UserError: If a value is out of range.
    """

    max_new_tokens: int = 1024
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(name, f"expected at least 1, got {getattr(self, name)}")
        for name in ("temperature", "top_k"):
            if not getattr(self, name) >= 0:
                raise UserError(name, f"expected 0 or more, got {getattr(self, name)}")
        if not 0 < self.top_p <= 1:
            raise UserError("top_p", f"expected a number above 0 and at most 1, got {self.top_p}")


@dataclass(frozen=True)
class AnswerOptions:
    """Which prompts a model answers, and how.

    Args:
        model: Hugging Face directory (of ``export``), hub id, or GGUF file (extra gguf).
        prompts: File (.txt with one prompt per line, .json, .jsonl, .parquet, .csv, .arrow), directory or hub id;
            AlpacaEval's and Arena-Hard's question files work unchanged.
        column: Column with the prompt, text or messages; null detects it.
        subset: Configuration of a hub dataset.
        split: Split of a hub dataset, or of a directory with several splits.
        limit: Use only the first N prompts.
        system: System prompt, for prompts without one of their own.
        chat: auto uses the tokenizer's chat template if it has one, always requires it, never ignores it.
        engine: transformers, or vllm (extra vllm).
        dtype: Type of the weights; auto is that of the checkpoint.
        device: Device such as cuda:1; auto uses a GPU if available.
        max_new_tokens: Maximum number of new tokens; longer answers are cut off.
        temperature: Sampling temperature; 0 is greedy decoding.
        top_p: Sample from the smallest set of tokens whose probability reaches this value.
        top_k: Sample from the k most likely tokens; 0 keeps all.
        batch_size: Answers per batch; changes the answers only through rounding.
        seed: Random seed.
        samples: Answers per prompt, each with random numbers of its own.
        special_tokens: Special tokens that prompts spell out: text keeps them as text, parse reads them as tokens, auto
            decides as ``fit`` does.
        chat_template_kwargs: Variables of the chat template, such as --chat_template_kwargs.enable_thinking=false; a
            column of that name takes precedence, key by key.

    Raises:
        UserError: If a value is out of range or an engine is unknown.
    """

    model: str
    prompts: str
    _: KW_ONLY
    column: str | None = None
    subset: str | None = None
    split: str | None = None
    limit: int | None = None
    system: str | None = None
    chat: Chat = "auto"
    engine: Engine = "transformers"
    dtype: Dtype = "auto"
    device: str = "auto"
    max_new_tokens: int = 1024
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = 16
    seed: int = 0
    samples: int = 1
    special_tokens: SpecialTokens = "auto"
    chat_template_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check the choices and the ranges."""
        for name, known in (("engine", get_args(Engine)), ("chat", get_args(Chat)), ("dtype", get_args(Dtype))):
            if getattr(self, name) not in known:
                raise UserError(
                    name, f"unknown {name} {getattr(self, name)!r}", did_you_mean(getattr(self, name), known)
                )
        for name in ("limit", "samples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(name, f"expected at least 1, got {value}")
        if self.samples > 1 and self.temperature == 0:
            raise UserError(
                "temperature", f"0 always draws the same answer, and samples is {self.samples}", "set it above 0"
            )
        _ = self.sampling

    @property
    def sampling(self) -> SamplingOptions:
        """The part that says how answers are sampled."""
        values = asdict(self)
        return SamplingOptions(**{field.name: values[field.name] for field in fields(SamplingOptions)})


@dataclass(frozen=True)
class GenerateOptions(AnswerOptions):
    """Answer prompts with a model and write a response file; an interrupted job resumes.

    Args:
        output: File to write; <output>.settings.json beside it records what produced it.
        format: jsonl or json (this package's rows), alpaca_eval (model_outputs.json), arena_hard (answer file); null
            follows the file extension, .json or .jsonl.
        generator: Model name written to the file; null uses the last part of the model's path.

    Raises:
        UserError: If a value is out of range or an engine is unknown.
    """

    output: str
    _: KW_ONLY
    format: FormatName | None = None
    generator: str | None = None

    def __post_init__(self) -> None:
        """Check the choices and the ranges."""
        super().__post_init__()
        if self.samples > 1 and self.format in ("alpaca_eval", "arena_hard"):
            raise UserError(
                "samples", f"{self.format} holds one answer per prompt, got {self.samples}", "choose another format"
            )

    @property
    def response_format(self) -> str:
        """Name of the output's format, from the file extension if none is given."""
        return self.format or ("json" if Path(self.output).suffix == ".json" else "jsonl")

    @property
    def name(self) -> str:
        """Model name written to the file."""
        return self.generator or Path(self.model).name

    def deciding(self) -> dict[str, Any]:
        """The options that change the content of the output; the others say where things are and how fast."""
        beside = ("output", "model", "prompts", "column", "subset", "split", "limit", "device", "batch_size", "format")
        values = {name: value for name, value in asdict(self).items() if name not in beside}
        several = {"samples": self.samples if self.samples > 1 else None}
        return values | several | {"format": self.response_format, "generator": self.name}
