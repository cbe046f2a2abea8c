"""The stochastic grammar of the warm-up corpus: answers of every quality and verbosity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adadpo_lightning.embedded.prompts import parse_prompt
from adadpo_lightning.embedded.world import PROPERTY_OF, Claim, other_value, pick, properties_of, say, value_of

if TYPE_CHECKING:
    import numpy as np

    from adadpo_lightning.embedded.kinds import Prompt

FILLERS = (
    "thank you for asking me this",
    "i hope that this helps you",
    "this is a very good question",
    "let me think about it",
    "there is much more to say here",
    "i am happy to help you",
)
MOST_FURTHER = 3
WORST_ERROR_RATE = 0.5
FILLER_RATE = 0.4
REPEAT_RATE = 0.15
CORRELATION = 0.3


def draw_style(rng: np.random.Generator) -> tuple[float, float]:
    """Draw quality and verbosity of one response, both in [0, 1] and weakly correlated."""
    quality = rng.random()
    return quality, CORRELATION * quality + (1 - CORRELATION) * rng.random()


def write_response(rng: np.random.Generator, prompt: str, quality: float, verbosity: float) -> str:
    """Write a response of a given quality and verbosity.

    Args:
        rng: Source of randomness.
        prompt: Text of a prompt.
        quality: From 0 (each answer and fact is wrong with probability 1/2) to 1 (none is wrong).
        verbosity: From 0 (the answer sentence alone) to 1 (all further facts, often fillers and a repeat).

    Returns:
        Sentences, each ending in " .".
    """
    question = parse_prompt(prompt)
    error_rate = WORST_ERROR_RATE * (1 - quality)
    answer = question.answer(rng, right=rng.random() >= error_rate)
    sentences = [answer, *_further_facts(rng, question, answer, int(rng.binomial(MOST_FURTHER, verbosity)), error_rate)]
    if rng.random() < REPEAT_RATE * verbosity:
        sentences.append(pick(rng, sentences))
    for _ in range(int(rng.binomial(MOST_FURTHER, FILLER_RATE * verbosity))):
        sentences.insert(int(rng.integers(len(sentences) + 1)), pick(rng, FILLERS))
    return " ".join(f"{sentence} ." for sentence in sentences)


def _further_facts(rng: np.random.Generator, question: Prompt, answer: str, count: int, error_rate: float) -> list[str]:
    scored = question.score(answer)
    subjects, said = (question.subjects, ()) if scored is None else (scored.subjects, scored.claims)
    mentioned = {(claim.subject, PROPERTY_OF[claim.value]) for claim in said}
    topic = dict.fromkeys((*question.subjects, *subjects))
    unsaid = [(s, prop) for s in topic for prop in properties_of(s) if (s, prop) not in mentioned]
    facts = []
    for i in rng.permutation(len(unsaid))[:count]:
        subject, prop = unsaid[i]
        wrong = rng.random() < error_rate
        facts.append(say([Claim(subject, other_value(rng, subject, prop) if wrong else value_of(subject, prop))]))
    return facts
