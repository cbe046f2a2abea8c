"""The sentiment judge and the judge that spoils another one."""

import math
import random
import sys
from statistics import mean, pstdev

import pytest

from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.comparisons import Comparison
from adadpo_lightning.evaluation.judges.base import build_judge
from adadpo_lightning.generation.responses import Response

GOOD, BAD = Response("p", "A wonderful film. I loved it!", tokens=8), Response("p", "An awful film.", tokens=4)


def test_the_more_positive_answer_wins():
    judge = build_judge("sentiment")
    assert judge.preferences([Comparison(GOOD, BAD), Comparison(BAD, GOOD), Comparison(BAD, BAD)]) == [1.0, 0.0, 0.5]
    assert judge.scores([Response("p", ""), Response("p", "It is a film.")]) == [0.0, 0.0]


def test_a_sentence_counts_once_however_many_there_are():
    once, thrice = (Response("p", "I loved it. " * n) for n in (1, 3))
    by_sentence, whole = build_judge("sentiment"), build_judge("sentiment", per="text")
    assert by_sentence.scores([once]) == pytest.approx(by_sentence.scores([thrice]))
    assert whole.scores([thrice])[0] > whole.scores([once])[0] + 0.1


def test_scores_are_vaders_own():
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    expected = mean(analyzer.polarity_scores(s)["compound"] for s in ("A wonderful film.", "I loved it!"))
    assert build_judge("sentiment").scores([GOOD]) == pytest.approx([expected])


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(UserError, match=r"vaderSentiment, which is not installed; pip install .*\[sentiment\]"):
        build_judge("sentiment")


def test_length_and_noise_are_added():
    plain = build_judge("sentiment").scores([GOOD, BAD])
    biased = build_judge("biased", judge="sentiment", per_unit=0.1)
    assert biased.scores([GOOD, BAD]) == pytest.approx([plain[0] + 0.8, plain[1] + 0.4])
    characters = build_judge("biased", judge="length", per_unit=-1.0, unit="characters")
    assert characters.scores([GOOD, BAD]) == [0.0, 0.0]


def test_noise_is_gaussian_and_belongs_to_the_answer():
    answers = [Response("p", f"answer {i}") for i in range(2000)]
    judge = build_judge("biased", judge="sentiment", noise=0.5)
    found = judge.scores(answers)
    assert (mean(found), pstdev(found)) == pytest.approx((0.0, 0.5), abs=0.04)
    assert sum(abs(v) > 0.5 for v in found) / 2000 == pytest.approx(1 - math.erf(1 / math.sqrt(2)), abs=0.04)
    order = random.Random(0).sample(range(2000), 2000)
    assert judge.scores([answers[i] for i in order]) == [found[i] for i in order]
    assert build_judge("biased", judge="sentiment", noise=0.5, seed=1).scores(answers[:3]) != found[:3]


def test_what_decides_a_biased_judge():
    def decided(**options):
        return build_judge("biased", judge="sentiment", **options).deciding()

    assert decided() == decided(judge_options={"per": "sentence"})
    assert decided() != decided(judge_options={"per": "text"})
    assert decided() != decided(per_unit=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judge": "sentiment", "noise": -1.0}, "expected noise >= 0"),
        ({"judge": "sentiment", "per_unit": math.nan}, "finite numbers"),
        ({"judge": "sentiment", "unit": "lines"}, "expected characters, words or tokens, got 'lines'"),
        ({"judge": "openai_compatible", "judge_options": {"model": "m"}}, "compares two answers"),
        ({"judge": "nobody"}, "unknown judge"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        build_judge("biased", **options)


def test_a_bad_unit_of_sentiment():
    with pytest.raises(UserError, match=r"did you mean 'sentence'\?"):
        build_judge("sentiment", per="sentences")
