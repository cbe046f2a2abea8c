"""A judge that scores answers with a Hugging Face sequence classifier, such as a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from adadpo_lightning import hub, log
from adadpo_lightning.errors import UserError, one_line
from adadpo_lightning.evaluation.judges.base import PointwiseJudge, register_judge

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from adadpo_lightning.generation.responses import Response


@register_judge("reward_model")
@dataclass
class RewardModelJudge(PointwiseJudge):
    """Any Hugging Face sequence classifier: the answer with the higher score wins.

    Args:
        model: Directory or hub id.
        label: Index of the output that is the score; null uses the only one, or of two the second minus the first.
        temperature: As in `preference_of`; 1 gives the Bradley-Terry probability of a reward model trained with it.
        batch_size: Answers per batch.
        max_length: Maximum number of tokens of prompt and answer; longer ones lose their start.
        dtype: Type of the weights.
        device: ``auto`` uses a GPU if available.
    """

    model: str
    label: int | None = None
    temperature: float = 0.0
    batch_size: int = 8
    max_length: int = 4096
    dtype: str = "auto"
    device: str = "auto"

    BESIDE = ("batch_size", "device")

    def scores(self, responses: Sequence[Response]) -> list[float | None]:
        """The model's score of each answer.

        Raises:
            UserError: If the model cannot be loaded or has no such output.
        """
        import torch

        classifier, tokenizer = self._loaded
        pad = tokenizer.pad_token_id
        # Without a padding token the model cannot tell where a shorter text ends.
        size = 1 if pad is None or classifier.config.pad_token_id is None else self.batch_size
        whole = [_scored_text(tokenizer, response) for response in responses]
        if cut := sum(len(ids) > self.max_length for ids in whole):
            log.warn(
                f"judge_options.max_length: of {cut} of {len(whole)} texts (prompt and answer) the classifier reads "
                f"the last {self.max_length} tokens only"
            )
        encoded = [ids[-self.max_length :] for ids in whole]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        scores = [0.0] * len(encoded)
        for start in range(0, len(order), size):
            chunk = order[start : start + size]
            width = max(len(encoded[i]) for i in chunk)
            ids = [encoded[i] + [pad or 0] * (width - len(encoded[i])) for i in chunk]
            mask = [[1] * len(encoded[i]) + [0] * (width - len(encoded[i])) for i in chunk]
            with torch.inference_mode():
                tensors = (torch.tensor(values, device=classifier.device) for values in (ids, mask))
                logits = classifier(**dict(zip(("input_ids", "attention_mask"), tensors, strict=True))).logits.float()
            for i, score in zip(chunk, self._score(logits).tolist(), strict=True):
                scores[i] = score
        return list(scores)

    def _score(self, logits: Any) -> Any:
        outputs = logits.shape[1]
        if self.label is not None:
            if not 0 <= self.label < outputs:
                raise UserError("judge_options.label", f"expected 0 to {outputs - 1}, got {self.label}")
            return logits[:, self.label]
        if outputs > 2:
            raise UserError(
                "judge_options.label", f"{self.model} has {outputs} outputs", "set it to the index of the score"
            )
        return logits[:, 0] if outputs == 1 else logits[:, 1] - logits[:, 0]

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from adadpo_lightning.models.devices import device_of

        try:
            with hub.loading(self.model):
                tokenizer = AutoTokenizer.from_pretrained(self.model)
                classifier, report = AutoModelForSequenceClassification.from_pretrained(
                    self.model, dtype=self.dtype, use_safetensors=True, output_loading_info=True
                )
        except Exception as error:  # files of strangers make transformers raise errors of many types
            raise UserError(
                "judge_options.model",
                f"no sequence classifier could be loaded from {self.model!r}: {one_line(error)}",
                "use the directory or hub id of one",
            ) from error
        if report["missing_keys"]:
            raise UserError(
                "judge_options.model",
                f"{self.model!r} lacks {', '.join(sorted(report['missing_keys'])[:3])}, which would be random",
                "use a model that was trained as a sequence classifier",
            )
        return classifier.to(device_of(self.device, "judge_options.device")).eval(), tokenizer


def _scored_text(tokenizer: PreTrainedTokenizerBase, response: Response) -> list[int]:
    """Prompt and answer rendered with the classifier's chat template, or as a pair of texts if it has none."""
    if not tokenizer.chat_template:
        ids: list[int] = tokenizer(response.prompt, response.response)["input_ids"]
        return ids
    asked = response.messages or [{"role": "user", "content": response.prompt}]
    messages = [*asked, {"role": "assistant", "content": response.response}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    # The template adds BOS itself.
    templated: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return templated
