"""Output rows: preference pairs and ranked lists as ``fit`` reads them, with what they were made from.

No column is called ``margin`` or ``weight``: in training data these names change the loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adadpo_lightning import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adadpo_lightning.evaluation.judges.base import Judge
    from adadpo_lightning.generation.prompts import Prompt
    from adadpo_lightning.preferences.options import MakePairsOptions
    from adadpo_lightning.preferences.select import Pair, Selection


def rows_of(
    prompt: Prompt, selection: Selection, options: MakePairsOptions, made_by: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The rows of one prompt: one per pair, or one ranked list.

    Args:
        prompt: The prompt, without the system message of `options`, which is added.
        selection: What was selected.
        options: The job.
        made_by: Its `provenance`.
    """
    asked: dict[str, Any] = {"prompt": prompt.with_system(options.system).messages, "uid": prompt.uid}
    # As the prompt was rendered for the answers: its own variables come before the option's.
    if kwargs := {**(options.chat_template_kwargs or {}), **(prompt.chat_template_kwargs or {})}:
        asked["chat_template_kwargs"] = kwargs
    if prompt.tools:
        asked["tools"] = prompt.tools
    if options.select != "list":
        return [asked | _pair(pair) | {"made_by": dict(made_by)} for pair in selection.pairs]
    if not selection.ranked:
        return []
    ranked = {
        "responses": [answer.response.response for answer in selection.ranked],
        "scores": [answer.score for answer in selection.ranked],
        "tokens": [answer.response.tokens for answer in selection.ranked],
        "samples": [answer.response.sample for answer in selection.ranked],
    }
    return [asked | ranked | {"made_by": dict(made_by)}]


def _pair(pair: Pair) -> dict[str, Any]:
    chosen, rejected = pair
    return {
        "chosen": chosen.response.response,
        "rejected": rejected.response.response,
        "score_chosen": chosen.score,
        "score_rejected": rejected.score,
        "score_margin": pair.gap,
        "tokens_chosen": chosen.response.tokens,
        "tokens_rejected": rejected.response.tokens,
        "samples": [chosen.response.sample, rejected.response.sample],
    }


def provenance(options: MakePairsOptions, judge: Judge, record: Mapping[str, Any]) -> dict[str, Any]:
    """What the answers were sampled from and scored by, in short: contents by their hash.

    Args:
        options: The job.
        judge: Its judge.
        record: The record of the answers, see `generation.record`.
    """
    return {
        "model": options.generate.name,
        "model_hash": fingerprint.of_data([record["model"], record["tokenizer"]]),
        "judge": judge.key,
        "judge_hash": fingerprint.of_data(judge.deciding()),
        **{name: getattr(options, name) for name in ("seed", "temperature", "top_p", "top_k", "max_new_tokens")},
    }
