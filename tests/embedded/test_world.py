"""The world and its prompts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adadpo_lightning.embedded.kinds import (
    KINDS,
    ComparePrompt,
    FactsPrompt,
    ListPrompt,
    SortPrompt,
    SumPrompt,
)
from adadpo_lightning.embedded.prompts import OPENINGS, draw_prompt, draw_prompts, parse_prompt
from adadpo_lightning.embedded.world import (
    CATEGORIES,
    ENTITIES,
    ENTITY_PROPERTIES,
    NUMBERS,
    PROPERTY_OF,
    Claim,
    other_value,
    parse_claims,
    properties_of,
    say,
    stable_hash,
    value_of,
)

SEEDS = st.integers(0, 2**32 - 1)


def test_eight_categories_of_six_entities_that_are_each_one_word():
    assert len(CATEGORIES) == 8
    assert all(len(entities) == 6 for entities in CATEGORIES.values())
    assert len(set(ENTITIES)) == 48
    assert all(entity.isalpha() for entity in ENTITIES)


def test_values_of_different_properties_share_no_word():
    values = [value for values in ENTITY_PROPERTIES.values() for value in values]
    assert len(values) == len(set(values)) == len(PROPERTY_OF) - 2
    assert not set(values) & set(ENTITIES)


def test_the_world_is_the_same_in_every_process():
    # Written down by hand: a change of these would change every result on the task.
    assert stable_hash("cat") == 8624243251692164259
    assert [value_of("cat", prop) for prop in ENTITY_PROPERTIES] == ["huge", "blue", "europe", "animals"]


def test_every_value_of_every_property_occurs():
    for prop, values in ENTITY_PROPERTIES.items():
        assert {value_of(entity, prop) for entity in ENTITIES} == set(values)


@given(SEEDS, st.sampled_from([*ENTITIES, *NUMBERS]))
def test_claims_are_read_as_they_were_said(seed, subject):
    rng = np.random.default_rng(seed)
    claims = tuple(Claim(subject, values[int(rng.integers(len(values)))]) for values in properties_of(subject).values())
    assert parse_claims(say(claims)) == claims


@given(SEEDS, st.sampled_from([*ENTITIES, *NUMBERS]))
def test_another_value_is_false(seed, subject):
    for prop in properties_of(subject):
        assert Claim(subject, value_of(subject, prop)).is_true
        assert not Claim(subject, other_value(np.random.default_rng(seed), subject, prop)).is_true


@pytest.mark.parametrize(
    "sentence",
    ["cat", "cat is", "cat is cat", "tiger is tiny", "cat is asia", "7 is tiny", "cat is tiny and", "is tiny"],
)
def test_other_sentences_make_no_claim(sentence):
    assert parse_claims(sentence) is None


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("list 3 animals but not cat", ListPrompt(3, "animals", "cat")),
        ("please tell me 2 facts about oak", FactsPrompt(2, "oak")),
        ("now what is 3 plus 12", SumPrompt(3, 12)),
        ("ok then sort 9 4 7 1", SortPrompt((9, 4, 7, 1))),
        ("hello do cat and oak have the same colour", ComparePrompt("cat", "oak", "colour")),
    ],
)
def test_prompts_are_read_with_and_without_openings(text, prompt):
    assert parse_prompt(text) == prompt


@given(SEEDS, st.sampled_from(KINDS), st.sampled_from(OPENINGS))
def test_every_prompt_is_read_as_it_was_asked(seed, kind, opening):
    prompt = kind.draw(np.random.default_rng(seed))
    assert parse_prompt(f"{opening} {prompt.text}".strip()) == prompt


@pytest.mark.parametrize(
    "text", ["", "please", "list 3 tigers but not cat", "what is 3 plus", "sort 1 2", "what is x plus y"]
)
def test_what_is_no_prompt_is_refused(text):
    with pytest.raises(ValueError, match="not a prompt of the embedded task"):
        parse_prompt(text)


def test_splits_are_disjoint_in_content_and_one_tenth_is_held_out():
    rng = np.random.default_rng(0)
    contents = {
        split: {parse_prompt(p).text for p in draw_prompts(rng, split, 400)} for split in ("train", "val", "heldout")
    }
    assert not contents["train"] & contents["val"]
    assert not contents["train"] & contents["heldout"]
    assert not contents["val"] & contents["heldout"]
    everything = [ComparePrompt.draw(rng).split for _ in range(5000)]
    assert everything.count("heldout") / 5000 == pytest.approx(0.1, abs=0.02)


@given(SEEDS)
def test_the_opening_does_not_move_a_prompt_to_another_split(seed):
    prompt = parse_prompt(draw_prompt(np.random.default_rng(seed), "heldout"))
    assert {parse_prompt(f"{opening} {prompt.text}".strip()).split for opening in OPENINGS} == {"heldout"}


def test_drawn_prompts_are_distinct_of_every_kind_and_repeatable():
    drawn = draw_prompts(np.random.default_rng(3), "train", 1000)
    assert len(set(drawn)) == 1000
    assert {type(parse_prompt(prompt)) for prompt in drawn} == set(KINDS)
    assert drawn == draw_prompts(np.random.default_rng(3), "train", 1000)
