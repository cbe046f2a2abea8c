"""Both layouts, token by token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adadpo_lightning.data.collate import collate
from adadpo_lightning.types import EncodedPair

PAIRS = [
    EncodedPair([1, 2, 3], [4, 5], [6], 7),
    EncodedPair([8], [9], [10, 11, 12], 3, weight=0.5, margin=2.0),
]
IDS = st.lists(st.integers(1, 99), min_size=1, max_size=9)


def lay(pairs, layout, **options):
    options = {"share": False, **options}
    return collate(pairs, layout=layout, pad_id=0, step_pairs=16, step_chosen_tokens=40, **options)


def test_packed():
    batch = lay(PAIRS, "packed")
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 1, 2, 3]]
    # The prompt's last token (2; 6) predicts the first token of both answers.
    assert batch.predict.tolist() == [2, 3, 6, 2, 6, 8, 9]
    assert batch.targets.tolist() == [4, 5, 9, 6, 10, 11, 12]
    assert batch.segments == ((3, 2, 1), (1, 1, 3))
    assert batch.attention_mask is None
    assert batch.packed
    assert len(batch) == 2


def test_padded():
    batch = lay(PAIRS, "padded")
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [8, 9, 0, 0, 0], [1, 2, 3, 6, 0], [8, 10, 11, 12, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4]] * 4
    assert batch.predict.tolist() == [2, 3, 5, 12, 15, 16, 17]
    assert batch.targets.tolist() == [4, 5, 9, 6, 10, 11, 12]
    assert not batch.packed


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_what_both_carry(layout):
    batch = lay(PAIRS, layout, filler=True)
    assert batch.chosen_len.tolist() == [2, 1]
    assert batch.rejected_len.tolist() == [1, 3]
    assert batch.row_ids.tolist() == [7, 3]
    assert (batch.step_pairs, batch.step_chosen_tokens, batch.filler) == (16, 40, True)
    assert batch.weight.tolist() == [1.0, 0.5]
    assert batch.margin.tolist() == [0.0, 2.0]
    integers = (batch.input_ids, batch.position_ids, batch.predict, batch.targets, batch.chosen_len, batch.row_ids)
    assert {x.dtype for x in integers} == {torch.int64}
    plain = lay([EncodedPair([1], [2], [3], 0)], layout)
    assert plain.weight is None
    assert plain.margin is None
    assert not plain.filler


@pytest.mark.parametrize(("layout", "shape"), [("packed", (1, 7)), ("padded", (2, 5))])
def test_chosen_answers_alone(layout, shape):
    batch = lay([EncodedPair(p.prompt_ids, p.chosen_ids, [], p.row_id) for p in PAIRS], layout)
    assert batch.input_ids.shape == shape
    assert batch.targets.tolist() == [4, 5, 9]
    assert batch.rejected_len.tolist() == [0, 0]


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(st.tuples(IDS, IDS, IDS), min_size=1, max_size=5), layout=st.sampled_from(["packed", "padded"]))
def test_each_scored_token_follows_its_predictor(pairs, layout):
    """What is predicted stands right behind its predictor, or begins the rejected answer to the predictor's prompt."""
    encoded = [EncodedPair(p, c, r, i) for i, (p, c, r) in enumerate(pairs)]
    batch = lay(encoded, layout)
    answers = [p.chosen_ids for p in encoded] + [p.rejected_ids for p in encoded]
    assert batch.targets.tolist() == [token for answer in answers for token in answer]
    ids, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
    at = 0
    for number, answer in enumerate(answers):
        prompt = encoded[number % len(encoded)].prompt_ids
        predictors = batch.predict[at : at + len(answer)]
        assert ids[predictors].tolist() == [prompt[-1], *answer[:-1]]
        assert positions[predictors].tolist() == [len(prompt) - 1 + i for i in range(len(answer))]
        at += len(answer)
    assert at == len(batch.predict)
    if batch.packed:
        assert len(ids) == sum(map(sum, batch.segments))
    else:
        assert batch.attention_mask.sum() == sum(2 * len(p) + len(c) + len(r) for p, c, r in pairs)


@st.composite
def masked(draw):
    ids = draw(IDS)
    mask = [True, *draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))][: len(ids)]
    mask[-1] = True
    return ids, mask


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(st.tuples(IDS, masked(), masked()), min_size=1, max_size=4))
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_mask_leaves_tokens_out_of_what_is_scored_and_of_nothing_else(layout, pairs):
    whole = lay([EncodedPair(p, c, r) for p, (c, _), (r, _) in pairs], layout)
    part = lay([EncodedPair(p, c, r, chosen_mask=m, rejected_mask=n) for p, (c, m), (r, n) in pairs], layout)
    kept = torch.tensor([on for side in (1, 2) for pair in pairs for on in pair[side][1]])
    assert torch.equal(part.predict, whole.predict[kept])
    assert torch.equal(part.targets, whole.targets[kept])
    assert torch.equal(part.input_ids, whole.input_ids)
    assert torch.equal(part.position_ids, whole.position_ids)
    assert part.segments == whole.segments
    assert part.chosen_len.tolist() == [sum(pair[1][1]) for pair in pairs]
    assert part.rejected_len.tolist() == [sum(pair[2][1]) for pair in pairs]
