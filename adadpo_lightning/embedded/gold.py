"""The gold reward, a pure function of prompt and response, and the judge that favours length."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.embedded.grammar import FILLERS
from adadpo_lightning.embedded.kinds import Answer
from adadpo_lightning.embedded.prompts import parse_prompt
from adadpo_lightning.embedded.world import Claim, parse_claims

if TYPE_CHECKING:
    import numpy as np

MOST_REWARDED_FACTS = 3
JUDGE_LENGTH_BIAS = 0.03
JUDGE_NOISE = 0.5


@dataclass(frozen=True)
class Grade:
    """The parts of a response, counted.

    Args:
        answer: Score of the first answer sentence, in [0, 1]; 0 without one.
        true_facts: Further true claims on the topic, each counted once.
        false_facts: Further false claims.
        repeats: Sentences without new content.
        fillers: Sentences without claims, and true claims that are off topic.
        unparsable: Sentences that cannot be parsed, and second answers.
        ended: Whether the response is complete and ends with a full stop.
    """

    answer: float = 0.0
    true_facts: int = 0
    false_facts: int = 0
    repeats: int = 0
    fillers: int = 0
    unparsable: int = 0
    ended: bool = True

    @property
    def gold(self) -> float:
        """The gold reward."""
        return (
            2.0 * self.answer
            + 0.35 * min(self.true_facts, MOST_REWARDED_FACTS)
            - 0.6 * self.false_facts
            - 0.3 * self.repeats
            - 0.15 * self.fillers
            - 0.5 * self.unparsable
            - 1.0 * (not self.ended)
        )


def grade(prompt: str, response: str, *, finished: bool = True) -> Grade:
    """Count the parts of a response.

    Args:
        prompt: Text of a prompt of the embedded task.
        response: Sentences, each ending in " .".
        finished: False if the response was truncated.

    Raises:
        ValueError: If the prompt does not belong to the embedded task.

    Example:
        >>> grade("what is 2 plus 3", "2 plus 3 is 5 . 5 is odd . 5 is odd . i am happy to help you .")
        Grade(answer=1.0, true_facts=1, false_facts=0, repeats=1, fillers=1, unparsable=0, ended=True)
    """
    question = parse_prompt(prompt)
    sentences, closed = _split_sentences(response)
    scores = [question.score(sentence) for sentence in sentences]
    first, answer = next(((i, s) for i, s in enumerate(scores) if s is not None), (None, Answer(0.0, (), ())))
    topic = {*question.subjects, *answer.subjects}
    # Claims of the answer never count as further facts, even if they come before the answer.
    known, heard, counts = set(answer.claims), set[str](), Counter[str]()
    for i, sentence in enumerate(sentences):
        if sentence in heard:
            counts["repeats"] += 1
        elif i != first:
            counts.update(_findings(sentence, topic, known))
        heard.add(sentence)
    return Grade(answer=answer.score, ended=closed and finished, **counts)


def _split_sentences(response: str) -> tuple[list[str], bool]:
    """The sentences without their full stops, and whether the last one had one."""
    sentences: list[list[str]] = [[]]
    for word in response.split():
        if word == ".":
            sentences.append([])
        else:
            sentences[-1].append(word)
    rest = sentences.pop()
    return [" ".join(words) for words in [*sentences, *([rest] if rest else [])]], not rest


def _findings(sentence: str, topic: set[str], known: set[Claim]) -> list[str]:
    """What a sentence that is neither answer nor repeat counts as; its claims are added to `known`."""
    if sentence in FILLERS:
        return ["fillers"]
    claims = parse_claims(sentence)
    if claims is None:
        return ["unparsable"]
    new = [claim for claim in dict.fromkeys(claims) if claim not in known]
    known.update(new)
    return [_worth(claim, topic) for claim in new] or ["repeats"]


def _worth(claim: Claim, topic: set[str]) -> str:
    if not claim.is_true:
        return "false_facts"
    return "true_facts" if claim.subject in topic else "fillers"


def judge(rng: np.random.Generator, gold: float, tokens: int) -> float:
    """The judge's score: the gold reward plus a bonus for length and noise.

    Args:
        rng: Source of the noise.
        gold: Gold reward of the response.
        tokens: Length of the response in tokens.
    """
    return gold + JUDGE_LENGTH_BIAS * tokens + float(rng.normal(0.0, JUDGE_NOISE))
