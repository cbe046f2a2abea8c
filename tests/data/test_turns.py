"""Answers of several turns: which tokens are scored, against transformers' own mask of the assistant's tokens."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adadpo_lightning.data.formats import read_pair
from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.schema import BadRow
from adadpo_lightning.data.tokenize import PairTokenizer
from adadpo_lightning.data.turns import common_prefix_length
from tests.support.tokenizers import CHATML, GEMMA, LLAMA3, MISTRAL, QWEN3, STYLES, make


def turns(*texts, first="user"):
    """Messages of user and assistant in turn; what begins with ``tool`` is a tool's."""
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [
        {"role": "tool" if text.startswith("tool") else roles[i % 2], "content": text} for i, text in enumerate(texts)
    ]


ASKED = "What is the capital of France?"
ROWS = {
    "several turns": {
        "chosen": turns(ASKED, "Paris.", "A joke?", "A cat sat on the keyboard."),
        "rejected": turns(ASKED, "I am sorry.", "Tell me.", "I can not", "You are", "better code."),
    },
    "one against several": {
        "chosen": turns(ASKED, "Paris."),
        "rejected": turns(ASKED, "The capital", "of?", "France is Paris."),
    },
    "turns before": {
        "chosen": turns(ASKED, "Paris.", "A joke?", "A cat", "on the", "keyboard."),
        "rejected": turns(ASKED, "Paris.", "A joke?", "sat on"),
    },
    "tool turns": {
        "prompt": turns(ASKED),
        "chosen": turns("Call.", "tool Paris", "It is Paris.", first="assistant"),
        "rejected": turns("Call me.", "tool nothing", "Sorry.", first="assistant"),
    },
}


def marking(template, what, before=""):
    """The template with what the assistant writes marked; jinja drops a line break behind a block."""
    line = "{{ '\n' }}"
    role = "m['role'] == 'assistant'"
    marked = f"{before}{{% if {role} %}}{{% generation %}}{what}{{% endgeneration %}}{{% else %}}{what}{{% endif %}}"
    assert template.count(what + "\n") + template.count(what + "{%") == 1
    return template.replace(what + "\n", marked + line).replace(what + "{%", marked + "{%")


MARKS = {
    "chatml": marking(CHATML, "{{ m['content'] }}<|im_end|>"),
    "llama3": marking(LLAMA3, "{{ m['content'] | trim }}<|eot_id|>"),
    "gemma": marking(GEMMA, "{{ m['content'] | trim }}<end_of_turn>"),
    "mistral": MISTRAL.replace(
        " {{ m['content'] }}{{ eos_token }}", "{% generation %} {{ m['content'] }}{{ eos_token }}{% endgeneration %}"
    ),
    "qwen3": QWEN3.replace("{% if loop.last %}<think>", "{% generation %}{% if loop.last %}<think>").replace(
        "<|im_end|>\n{% elif m.role == 'tool' %}", "<|im_end|>{% endgeneration %}{{ '\n' }}{% elif m.role == 'tool' %}"
    ),
}
CASES = [(style, name) for style in MARKS for name in ROWS if (style, name) != ("mistral", "tool turns")]


def with_template(style, template):
    from copy import deepcopy

    tokenizer = deepcopy(make(style))
    tokenizer.chat_template = template
    return tokenizer


def encode(tokenizer, row, **options):
    fmt = "messages" if "prompt" in row else "conversations"
    return PairTokenizer(tokenizer, TokenizeOptions(**options))(read_pair(row, fmt))


def scored(pair, side):
    """The whole conversation, and the positions of its scored tokens."""
    ids, mask = getattr(pair, f"{side}_ids"), getattr(pair, f"{side}_mask")
    start = len(pair.prompt_ids)
    return pair.prompt_ids + ids, [start + i for i in range(len(ids)) if not mask or mask[i]]


@pytest.mark.parametrize(("style", "name"), CASES, ids=[f"{style}, {name}" for style, name in CASES])
@pytest.mark.parametrize("own_marks", [False, True], ids=["prefixes", "marks"])
def test_the_assistants_tokens_are_those_that_transformers_finds(style, name, own_marks):
    row, plain = ROWS[name], make(style)
    marked = with_template(style, MARKS[style])
    pair = encode(marked if own_marks else plain, row)
    for side in ("chosen", "rejected"):
        messages = [*row.get("prompt", []), *row[side]]
        out = marked.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        whole, positions = scored(pair, side)
        assert out["input_ids"][: len(whole)] == whole
        assert not plain.decode(out["input_ids"][len(whole) :]).strip()
        expected = [i for i, on in enumerate(out["assistant_masks"]) if on and i >= len(pair.prompt_ids)]
        assert positions == expected
        turns_scored = sum(m["role"] == "assistant" for m in row[side])
        if name == "turns before":
            turns_scored -= 1
        end = plain.convert_tokens_to_ids(STYLES[style][4])
        assert [whole[i] for i in positions].count(end) == turns_scored
        mask = getattr(pair, f"{side}_mask")
        assert not mask or (mask[0] and mask[-1] and len(mask) == len(getattr(pair, f"{side}_ids")))


@pytest.mark.parametrize("name", ["several turns", "turns before"])
def test_marks_without_the_terminator_still_score_it(name):
    """Some templates put the terminator behind the mark; a policy that never sees it scored would not stop."""
    outside = MARKS["chatml"].replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    behind = MARKS["chatml"].replace("<|im_end|>{% endgeneration %}", "<|im_end|>{{ '\n' }}{% endgeneration %}")
    behind = behind.replace("{% endif %}{{ '\n' }}", "{{ '\n' }}{% endif %}")
    expected = encode(make("chatml"), ROWS[name])
    for template in (outside, behind):
        assert template != MARKS["chatml"]
        assert encode(with_template("chatml", template), ROWS[name]) == expected


def test_the_end_of_the_line_before_the_next_turn_is_not_scored():
    pair = encode(make("chatml"), ROWS["several turns"])
    whole, positions = scored(pair, "chosen")
    texts = [make("chatml").decode([whole[i]]) for i in positions]
    assert "".join(texts) == "Paris.<|im_end|>A cat sat on the keyboard.<|im_end|>"


def test_all_scores_everything_after_the_prompt_as_trl_does():
    from tests.data.test_families import trl_ids, without_blanks

    row = ROWS["tool turns"]
    pair = encode(make("chatml"), row, score="all")
    assert (pair.chosen_mask, pair.rejected_mask) == ([], [])
    prompt, *answers = trl_ids(make("chatml"), row)
    assert [pair.prompt_ids, pair.chosen_ids, pair.rejected_ids] == [
        prompt,
        *(without_blanks(make("chatml"), ids) for ids in answers),
    ]
    partly = encode(make("chatml"), row)
    assert (partly.prompt_ids, partly.chosen_ids) == (pair.prompt_ids, pair.chosen_ids)
    assert 0 < sum(partly.chosen_mask) < len(partly.chosen_ids)


def test_a_template_that_rewrites_earlier_turns_is_said_and_read_by_its_terminators():
    """Qwen3 writes empty thinking into the last turn alone: rendered up to an earlier turn, the text is another."""
    pair = encode(make("qwen3"), ROWS["one against several"])
    assert pair.turns_rewritten
    assert make("qwen3").decode(pair.rejected_ids).startswith("The capital<|im_end|>")
    assert not encode(make("chatml"), ROWS["one against several"]).turns_rewritten
    # With thinking switched off the prompt of generation is no longer the beginning of the conversation.
    with pytest.raises(BadRow, match=re.escape("{% generation %} around the assistant's turns, or data.score to all")):
        encode(make("qwen3"), ROWS["several turns"], chat_template_kwargs={"enable_thinking": False})


REWRITES = {
    "the turns of the user": "{% if m.role == 'user' and loop.last %}LAST {% endif %}",
    "everything": "{{ messages | length }}",
}


@pytest.mark.parametrize("change", REWRITES.values(), ids=REWRITES)
def test_where_the_turns_cannot_be_found_the_row_is_refused(change):
    template = CHATML.replace("<|im_start|>{{ m['role'] }}", change + "<|im_start|>{{ m['role'] }}")
    with pytest.raises(BadRow, match=r"assistant turns not found: the template renders .*data.score to all"):
        encode(with_template("chatml", template), ROWS["several turns"])


def test_an_end_that_other_terminators_could_be_is_refused():
    """The template leaves the terminator of an earlier turn out, so that the first one found is the user's."""
    template = CHATML.replace(
        "{{ m['content'] }}<|im_end|>\n",
        "{{ m['content'] }}{% if loop.last or m['role'] != 'assistant' %}<|im_end|>{% endif %}\n",
    )
    with pytest.raises(BadRow, match="its end is not clear"):
        encode(with_template("chatml", template), ROWS["several turns"])
    assert encode(with_template("chatml", template), ROWS["several turns"], score="all").chosen_mask == []


def test_turns_without_a_terminator_are_counted():
    pair = encode(make("unended"), ROWS["several turns"])
    assert pair.turns_unended
    whole, positions = scored(pair, "chosen")
    tokens = [whole[i] for i in positions]
    assert make("unended").decode(tokens) == " Paris.\n A cat sat on the keyboard.\n</s>"


def test_special_tokens_in_the_text_of_a_turn_stay_text():
    row = {
        "chosen": turns(ASKED, "Paris.<|im_end|>", "<|im_start|>?", "A cat."),
        "rejected": turns(ASKED, "Sorry."),
    }
    pair = encode(make("chatml"), row)
    end = make("chatml").convert_tokens_to_ids("<|im_end|>")
    whole, positions = scored(pair, "chosen")
    assert [whole[i] for i in positions].count(end) == 2
    assert make("chatml").decode([whole[i] for i in positions]) == "Paris.<|im_end|><|im_end|>A cat.<|im_end|>"


@pytest.mark.parametrize("room", range(1, 40))
def test_truncation_keeps_a_scored_token_at_both_ends(room):
    whole = encode(make("chatml"), ROWS["several turns"])
    try:
        pair = encode(make("chatml"), ROWS["several turns"], max_length=len(whole.prompt_ids) + room)
    except BadRow:
        assert room == 0
        return
    for side in ("chosen", "rejected"):
        ids, mask = getattr(pair, f"{side}_ids"), getattr(pair, f"{side}_mask")
        assert ids == getattr(whole, f"{side}_ids")[: len(ids)]
        full = getattr(whole, f"{side}_mask")
        assert (mask or [True] * len(ids)) == full[: len(ids)]
        assert mask == [] or (mask[0] and mask[-1])
        assert len(ids) <= room
        assert not any(full[len(ids) : room])


TEXT = st.text(alphabet="abc .\n<|im_end|>é", min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(
    chosen=st.lists(TEXT, min_size=1, max_size=5),
    rejected=st.lists(TEXT, min_size=1, max_size=5),
    style=st.sampled_from(["chatml", "llama3", "gemma"]),
)
def test_any_texts_are_scored_as_transformers_marks_them(chosen, rejected, style):
    chosen, rejected = ([*texts, "z"] if len(texts) % 2 == 0 else texts for texts in (chosen, rejected))
    row = {"chosen": turns(ASKED, *chosen), "rejected": turns(ASKED, "x" + rejected[0], *rejected[1:])}
    try:
        by_prefix, by_mark = (encode(t, row) for t in (make(style), with_template(style, MARKS[style])))
    except BadRow as error:
        assert error.reason != "assistant turns not found"  # noqa: PT017  # equal answers, for example
        return
    assert by_prefix == by_mark


@given(st.lists(st.lists(st.integers(0, 1), max_size=9), min_size=1, max_size=3), st.lists(st.integers(0, 1)))
def test_the_common_prefix_is_the_longest(sequences, start):
    sequences = [[*start, *rest] for rest in sequences]
    length = common_prefix_length(sequences)
    assert all(sequence[:length] == sequences[0][:length] for sequence in sequences)
    longer = {tuple(sequence[: length + 1]) for sequence in sequences}
    assert len(longer) > 1 or min(map(len, sequences)) == length
