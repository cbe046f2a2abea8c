"""Sample answers at each validation, for inspection and for the KL divergence on the policy's own tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn

from adadpo_lightning import log
from adadpo_lightning.callbacks.answer_table import write_table
from adadpo_lightning.compat import steps_logged
from adadpo_lightning.data.collate import collate
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.data.position import sharing
from adadpo_lightning.errors import UserError
from adadpo_lightning.generation.options import SamplingOptions
from adadpo_lightning.generation.prompts import Prompt, PromptTokenizer
from adadpo_lightning.generation.sampling import check_room, pad_id_of, sample
from adadpo_lightning.metrics import names
from adadpo_lightning.metrics.functional import kl_terms
from adadpo_lightning.metrics.on_policy import on_policy_kl
from adadpo_lightning.ranks import gather_items
from adadpo_lightning.reference.live import AdapterOffReference, AdapterReference, build_reference
from adadpo_lightning.reference.modes import uses_reference_adapter
from adadpo_lightning.strategies.capabilities import sharding_of
from adadpo_lightning.types import EncodedPair

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from adadpo_lightning.reference.live import Reference
    from adadpo_lightning.training.module import PreferenceLitModule


@dataclass
class Answer:
    """One sampled answer.

    Args:
        number: Index of the prompt.
        ids: Token ids, including the terminator.
        finished: Whether it ended with a terminator.
        kl: Sum of `kl_terms` over the tokens, in nats; None without a reference.
        reference_logp: Log-probability under the reference, in nats; None without one.
    """

    number: int
    ids: list[int]
    finished: bool
    kl: float | None = None
    reference_logp: float | None = None


class GenerationCallback(Callback):
    """Samples answers to the same prompts with the same random numbers at each validation.

    Logs ``val/generation/length`` (mean number of tokens, including the terminator), ``val/generation/eos_rate``
    (fraction of answers that end with a terminator), and with a reference ``val/kl/policy`` and
    ``val/kl/policy_stderr``: KL(policy || reference) per token, from `kl_terms` on the sampled tokens. It estimates the
    policy's divergence only with default sampling (temperature 1, all tokens). It is a mean over tokens, so long
    answers weigh more; so is ``val/generation/reference_logps_per_token``, the log-probability of the answers under the
    reference, which falls when they become less fluent.

    The answers are written as a text table to TensorBoard, as a table to loggers with ``log_table`` (Weights & Biases),
    and as lines to ``<output_dir>/generations.jsonl`` for any other logger or without one.

    The reference is that of the run: frozen, or the policy with its adapter disabled. The random state of training is
    not affected. Prompts are split over the ranks. Lightning's sanity check is skipped.

    Args:
        prompts: Texts, each one user message; or how many of the first prompts of the validation pairs to use, of each
            named set with metrics of its own (``val/<name>/generation/...``).
        max_new_tokens: Longer answers are cut off.
        temperature: Sampling temperature; 0 always selects the most likely token.
        top_p: Sample from the smallest set of tokens with at least this total probability; 1 samples from all.
        top_k: Sample from this many of the most likely tokens; 0 samples from all.
        seed: Random seed of the answers.
        batch_size: Number of prompts that each rank answers at a time.
        load_reference: Load a reference at each validation if the run keeps none in memory (``cached``, or a loss
            without a reference). This needs memory for a second model and time to load it.

    Raises:
        UserError: If an option is out of range, no prompts are found, or a prompt leaves no room for an answer.
    """

    def __init__(
        self,
        prompts: int | list[str] = 8,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        batch_size: int = 8,
        load_reference: bool = False,
    ) -> None:
        if (prompts if isinstance(prompts, int) else len(prompts)) < 1:
            raise UserError("GenerationCallback.prompts", f"expected at least 1 prompt, got {prompts!r}")
        self.prompts = prompts
        self.options = SamplingOptions(max_new_tokens, temperature, top_p, top_k, seed, batch_size)
        self.load_reference = load_reference
        self._encoded: list[list[int]] = []
        self._stages: dict[str, range] = {}
        self._stops: set[int] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tokenize the prompts, so that errors in them stop the run before training."""
        if trainer.enable_validation:
            self._prepare(trainer, cast("PreferenceLitModule", pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tokenize the prompts for a stand-alone validation."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._prepare(trainer, cast("PreferenceLitModule", pl_module))

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample the answers, log their metrics and write them."""
        if trainer.sanity_checking:
            return
        module = cast("PreferenceLitModule", pl_module)
        answers = sorted(gather_items(self._answers(trainer, module)), key=lambda answer: answer.number)
        for stage, numbers in self._stages.items():
            own = [answer for answer in answers if answer.number in numbers]
            module.log_dict({f"{stage}/{name}": value for name, value in statistics(own).items()}, batch_size=1)
        if trainer.is_global_zero:
            rows = [self._row(module.tokenizer, answer) for answer in answers]
            write_table(trainer, rows, steps_logged(trainer))

    def _prepare(self, trainer: Trainer, module: PreferenceLitModule) -> None:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, PreferenceDataModule) or not data.val_names:
            raise UserError(
                "trainer.callbacks",
                "GenerationCallback runs at validation, but the run has no validation pairs",
                "set data.val or data.val_size, or remove the callback",
            )
        options = data.options
        tokenizer = PromptTokenizer(data.tokenizer, options.chat, options.special_tokens, options.chat_template_kwargs)
        if isinstance(self.prompts, int):
            self._encoded, self._stages = [], {}
            for stage in data.val_names:
                found = first_prompts(data.prepared[stage].pairs["prompt_ids"], self.prompts)
                self._stages[stage] = range(len(self._encoded), len(self._encoded) + len(found))
                self._encoded += found
        else:
            prompts = [Prompt(text, str(i)) for i, text in enumerate(self.prompts)]
            tokenizer.read(prompts)
            self._encoded = [tokenizer.encode(prompt) for prompt in prompts]
            self._stages = {"val": range(len(prompts))}  # they belong to no set
        model = module.built_policy.causal_lm
        self._stops = tokenizer.stop_ids()
        check_room(model, max(map(len, self._encoded)), self.options, "GenerationCallback.max_new_tokens")
        if _reference(module) is None and not self.load_reference:
            log.info(
                f"GenerationCallback: no val/kl/policy, because this run (reference: {module.reference_mode}) keeps no "
                "reference in memory; load_reference: true loads one at each validation."
            )
        elif (self.options.temperature, self.options.top_p, self.options.top_k) != (1.0, 1.0, 0):
            log.info(
                "GenerationCallback: val/kl/policy is measured on tokens sampled with a non-default temperature, top_p "
                "or top_k, so it does not estimate the divergence of the policy itself."
            )

    def _answers(self, trainer: Trainer, module: PreferenceLitModule) -> list[Answer]:
        """This rank's answers."""
        policy, sharding = module.built_policy, sharding_of(trainer.strategy)
        reference = _reference(module)
        if reference is None and self.load_reference:
            reference = build_reference("frozen", policy, module.policy_config, module.tokenizer, sharding)
        with trainer.precision_plugin.forward_context():
            ranks, rank = sharing(trainer)
            numbers = range(rank, len(self._encoded), ranks)
            # If weights are gathered from all ranks, each rank must run the same number of forward passes.
            missing = -(-len(self._encoded) // ranks) - len(numbers)
            mine = [*numbers, *[0] * missing]
            size = self.options.batch_size
            with policy.plain_attention():
                drawn = sample(
                    policy.causal_lm,
                    [self._encoded[number] for number in mine],
                    self.options,
                    stop_ids=self._stops,
                    pad_id=pad_id_of(module.tokenizer),
                    numbers=mine,
                    synced=sharding is not None,
                )
            answers = [Answer(number, a.ids, a.finished) for number, (a,) in zip(mine, drawn, strict=True)]
            if reference is not None:
                for i in range(0, len(answers), size):
                    self._score(module, reference, answers[i : i + size])
        return answers[: len(numbers)]

    def _score(self, module: PreferenceLitModule, reference: Reference, answers: Sequence[Answer]) -> None:
        """Fill in `Answer.kl`, with the forward pass that training uses."""
        pairs = [EncodedPair(self._encoded[a.number], a.ids, [], a.number) for a in answers]
        lengths = [len(a.ids) for a in answers]
        batch = collate(
            pairs,
            layout=module.layout,
            pad_id=pad_id_of(module.tokenizer),
            step_pairs=len(pairs),
            step_chosen_tokens=sum(lengths),
        ).to(module.device)
        logps = reference(batch)
        terms = kl_terms(module(batch) - logps)
        parts = torch.split(terms, lengths), torch.split(logps, lengths)
        for answer, kl, logp in zip(answers, *parts, strict=True):
            answer.kl, answer.reference_logp = float(kl.double().sum()), float(logp.double().sum())

    def _row(self, tokenizer: Any, answer: Answer) -> list[Any]:
        texts = [
            tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
            for ids in (self._encoded[answer.number], answer.ids)
        ]
        return [*texts, len(answer.ids), answer.finished]


def statistics(answers: Sequence[Answer]) -> dict[str, float]:
    """Metrics of sampled answers.

    Example:
        >>> statistics([Answer(0, [5, 2], True), Answer(1, [5, 6, 7, 8], False)])
        {'generation/length': 3.0, 'generation/eos_rate': 0.5}
    """
    lengths = [len(answer.ids) for answer in answers]
    metrics = {
        names.GENERATION_LENGTH: sum(lengths) / len(answers),
        names.GENERATION_EOS_RATE: sum(answer.finished for answer in answers) / len(answers),
    }
    sums = [answer.kl for answer in answers if answer.kl is not None]
    if sums:
        kl, stderr = on_policy_kl(torch.tensor(sums, dtype=torch.float64), torch.tensor(lengths))
        metrics[names.KL_POLICY] = kl
        if len(sums) > 1:
            metrics[names.KL_POLICY_STDERR] = stderr
    logps = [answer.reference_logp for answer in answers if answer.reference_logp is not None]
    if logps:
        metrics[names.GENERATION_REFERENCE_LOGPS] = sum(logps) / sum(lengths)
    return metrics


def first_prompts(prompts: Iterable[list[int]], count: int) -> list[list[int]]:
    """The first `count` distinct prompts, or all if there are fewer.

    Example:
        >>> first_prompts([[5, 6], [5, 6], [7], [8]], 2)
        [[5, 6], [7]]
    """
    different: dict[tuple[int, ...], None] = {}
    for ids in prompts:
        different.setdefault(tuple(ids))
        if len(different) == count:
            break
    return [list(ids) for ids in different]


def _reference(module: PreferenceLitModule) -> Reference | None:
    """The reference in memory; a new adapter can be disabled even if the loss needs no reference."""
    own: Reference | None = module.live_reference
    lora = module.policy_config.lora
    if own is not None or lora is None:
        return own
    if lora.adapter is None:
        return AdapterOffReference(module.built_policy)
    beside = uses_reference_adapter(module.reference_mode, module.policy_config, module.reference_path)
    return AdapterReference(module.built_policy) if beside else None
