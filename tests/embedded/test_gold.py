"""The gold reward on hand-written cases, and as a property of the grammar; the judge."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adadpo_lightning.embedded import Grade, grade, judge
from adadpo_lightning.embedded.grammar import FILLERS, draw_style, write_response
from adadpo_lightning.embedded.kinds import KINDS
from adadpo_lightning.embedded.prompts import draw_prompt
from adadpo_lightning.embedded.sampling import Sample
from adadpo_lightning.embedded.task import judged_pair, pair_statistics

SEEDS = st.integers(0, 2**32 - 1)
# True of the world: the cat is huge, blue and from europe; the dog is huge, red and from europe.


@pytest.mark.parametrize(
    ("prompt", "answer", "score"),
    [
        ("list 2 animals but not cat", "here are dog and owl .", 1),
        ("list 2 animals but not cat", "here are dog and cat .", 0),
        ("list 2 animals but not cat", "here are dog .", 1 / 2),
        ("list 2 animals but not cat", "here are dog and dog .", 0),
        ("list 2 animals but not cat", "here are dog and owl and frog .", 1 / 2),
        ("list 3 animals but not cat", "here are dog and owl and apple .", 1 / 3),
        ("list 1 animals but not cat", "here are apple .", 0),
        ("tell me 2 facts about cat", "cat is huge and from europe .", 1),
        ("tell me 2 facts about cat", "cat is tiny and huge .", 0),
        ("tell me 2 facts about cat", "cat is one of the animals .", 1 / 2),
        ("tell me 2 facts about cat", "cat is huge and huge .", 0),
        ("tell me 1 facts about cat", "cat is huge and blue and from europe .", 1),
        ("tell me 1 facts about cat", "dog is one of the animals .", 0),
        ("what is 3 plus 4", "3 plus 4 is 7 .", 1),
        ("what is 3 plus 4", "3 plus 4 is 8 .", 0),
        ("what is 3 plus 4", "4 plus 3 is 7 .", 0),
        ("sort 9 2 5", "in order 2 5 9 .", 1),
        ("sort 9 2 5", "in order 2 9 5 .", 1 / 3),
        ("sort 9 2 5", "in order 2 5 .", 0),
        ("do cat and dog have the same colour", "cat is blue and dog is red so no .", 1),
        ("do cat and dog have the same colour", "dog is red and cat is blue so no .", 1),
        ("do cat and dog have the same colour", "cat is blue and dog is red so yes .", 2 / 3),
        ("do cat and dog have the same colour", "cat is blue and dog is blue so yes .", 1 / 3),
        ("do cat and dog have the same colour", "cat is huge and dog is huge so no .", 1 / 3),
        ("do cat and dog have the same size", "cat is huge and dog is huge so yes .", 1),
        ("do cat and dog have the same size", "cat is huge and dog is huge .", 0),
    ],
)
def test_answer_scores(prompt, answer, score):
    assert grade(prompt, answer).answer == pytest.approx(score)


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("3 plus 4 is 7 .", Grade(1.0)),
        ("", Grade()),
        ("3 plus 4 is 7", Grade(1.0, ended=False)),
        ("3 plus 4 is 7 . 7 is odd .", Grade(1.0, true_facts=1)),
        ("7 is odd . 3 plus 4 is 7 .", Grade(1.0, true_facts=1)),
        ("3 plus 4 is 7 . 7 is even .", Grade(1.0, false_facts=1)),
        ("3 plus 4 is 7 . 9 is odd .", Grade(1.0, fillers=1)),
        ("3 plus 4 is 7 . 9 is even .", Grade(1.0, false_facts=1)),
        ("3 plus 4 is 7 . 7 is odd . 7 is odd .", Grade(1.0, true_facts=1, repeats=1)),
        ("3 plus 4 is 7 . 3 plus 4 is 7 .", Grade(1.0, repeats=1)),
        ("3 plus 4 is 7 . 3 plus 4 is 8 .", Grade(1.0, unparsable=1)),
        ("3 plus 4 is 8 . 3 plus 4 is 7 .", Grade(0.0, unparsable=1)),
        (f"{FILLERS[0]} . 3 plus 4 is 7 .", Grade(1.0, fillers=1)),
        ("3 plus 4 is 7 . yes 4 so .", Grade(1.0, unparsable=1)),
        ("3 plus 4 is 7 . .", Grade(1.0, unparsable=1)),
        ("3 plus 4 is 7 . 7 is", Grade(1.0, unparsable=1, ended=False)),
        ("  3 plus  4 is 7   . ", Grade(1.0)),
    ],
)
def test_what_a_response_is_made_of(response, found):
    assert grade("what is 3 plus 4", response) == found


def test_what_the_answer_says_already_is_no_further_fact():
    assert grade("tell me 1 facts about cat", "cat is huge . cat is huge and blue .").true_facts == 1
    assert grade("tell me 2 facts about cat", "cat is huge and blue . cat is blue .").repeats == 1


def test_a_response_that_was_cut_off_has_not_ended():
    assert not grade("what is 3 plus 4", "3 plus 4 is 7 .", finished=False).ended


@pytest.mark.parametrize(
    ("found", "gold"),
    [
        (Grade(1.0), 2.0),
        (Grade(0.5, true_facts=2), 1.7),
        (Grade(1.0, true_facts=5), 3.05),
        (Grade(1.0, false_facts=1), 1.4),
        (Grade(1.0, repeats=1), 1.7),
        (Grade(1.0, fillers=2), 1.7),
        (Grade(1.0, unparsable=1), 1.5),
        (Grade(1.0, ended=False), 1.0),
        (Grade(), 0.0),
    ],
)
def test_the_gold_reward_adds_up(found, gold):
    assert found.gold == pytest.approx(gold)


@given(SEEDS, st.sampled_from(KINDS), st.floats(0, 1))
def test_the_grammar_at_its_best_gets_the_full_answer_score_and_nothing_false(seed, kind, verbosity):
    rng = np.random.default_rng(seed)
    prompt = kind.draw(rng).text
    found = grade(prompt, write_response(rng, prompt, 1.0, verbosity))
    assert found.answer == 1.0
    assert (found.false_facts, found.unparsable, found.ended) == (0, 0, True)


@given(SEEDS, st.sampled_from(KINDS))
def test_a_wrong_answer_is_an_answer_and_scores_less(seed, kind):
    rng = np.random.default_rng(seed)
    prompt = kind.draw(rng)
    scored = prompt.score(prompt.answer(rng, right=False))
    assert scored is not None
    assert scored.score < 1.0


@given(SEEDS)
def test_everything_that_the_grammar_writes_is_understood(seed):
    rng = np.random.default_rng(seed)
    prompt = draw_prompt(rng, "train")
    found = grade(prompt, write_response(rng, prompt, *draw_style(rng)))
    assert (found.unparsable, found.ended) == (0, True)
    assert found.true_facts + found.false_facts <= 3


def test_quality_and_verbosity_do_what_they_say():
    rng = np.random.default_rng(0)
    prompts = [draw_prompt(rng, "train") for _ in range(400)]

    def mean(name, quality, verbosity):
        return np.mean([getattr(grade(p, write_response(rng, p, quality, verbosity)), name) for p in prompts])

    assert mean("answer", 0.0, 0.5) < mean("answer", 1.0, 0.5) - 0.2
    assert mean("fillers", 0.5, 0.0) == 0 < mean("fillers", 0.5, 1.0)
    assert mean("true_facts", 1.0, 0.0) == 0 < mean("true_facts", 1.0, 1.0)


def test_the_judge_likes_length_and_is_noisy():
    scores = [judge(np.random.default_rng(seed), 1.0, 20) for seed in range(4000)]
    assert np.mean(scores) == pytest.approx(1.6, abs=0.03)
    assert np.std(scores) == pytest.approx(0.5, abs=0.03)


def _sample(text):
    return Sample(text=text, ids=[1] * (len(text.split()) + 1), logps=[], finished=True)


def test_judged_pairs_mostly_agree_with_gold_and_prefer_length():
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(1500):
        prompt = draw_prompt(rng, "train")
        pairs.append(
            judged_pair(rng, prompt, [_sample(write_response(rng, prompt, *draw_style(rng))) for _ in range(4)])
        )
    assert pairs[0].keys() == {"prompt", "chosen", "rejected", "gold_chosen", "gold_rejected"}
    found = pair_statistics([pair for pair in pairs if pair])
    assert 0.90 < found.judge_agrees < 0.99
    # The grammar's fillers and facts are the writer's own: longer answers are better here than from a trained model.
    assert 0.55 < found.longer_chosen < 0.80


def test_four_equal_answers_make_no_pair():
    assert judged_pair(np.random.default_rng(0), "what is 3 plus 4", [_sample("3 plus 4 is 7 .")] * 4) is None
