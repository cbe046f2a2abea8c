"""One table: our ids against `apply_chat_template` and against TRL's own preparation, over families of tokenizers."""

from copy import deepcopy

import pytest

from adadpo_lightning.data.formats import read_pair
from adadpo_lightning.data.options import TokenizeOptions
from adadpo_lightning.data.prepare import prepare
from adadpo_lightning.data.schema import BadRow, PreferencePair
from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.data.tokenize import PairTokenizer
from adadpo_lightning.errors import UserError
from tests.support.tiny import write_rows
from tests.support.tokenizers import QWEN3, STYLES, make

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
ASKED = {"role": "user", "content": "What is the capital of France?"}
ANSWERS = [{"role": "assistant", "content": text} for text in ("Paris.", "I am sorry, I can not do that.")]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "add"}}]}
CONVERSATIONS = {
    "one turn": {"prompt": [ASKED]},
    "system turn": {"prompt": [SYSTEM, ASKED]},
    "three turns": {"prompt": [ASKED, {"role": "assistant", "content": "Tell me a joke."}, ASKED]},
    "tools": {"prompt": [ASKED], "tools": TOOLS},
    "tool result": {"prompt": [ASKED, CALL, {"role": "tool", "content": "5"}], "tools": TOOLS},
    "thinking off": {"prompt": [ASKED], "chat_template_kwargs": {"enable_thinking": False}},
    "thinking on": {"prompt": [ASKED], "chat_template_kwargs": {"enable_thinking": True}},
}
FAMILIES = ("llama3", "chatml", "smollm2", "qwen3", "gemma", "mistral")
# What a family's template refuses or does not read.
LEFT_OUT = {
    **{("system turn", family): "refuses a system turn" for family in ("gemma", "mistral")},
    **{("tool result", family): "has no tool turns" for family in ("llama3", "gemma", "mistral")},
}
TABLE = [(name, family) for name in CONVERSATIONS for family in FAMILIES if (name, family) not in LEFT_OUT]


def ours(tokenizer, row, **options):
    pair = read_pair(row, "messages")
    encoded = PairTokenizer(tokenizer, TokenizeOptions(**options))(pair)
    return encoded.prompt_ids, encoded.chosen_ids, encoded.rejected_ids


def trl_ids(tokenizer, row):
    """What `DPOTrainer` makes of the row, by its own function."""
    from datasets import Dataset
    from trl import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    trainer = object.__new__(DPOTrainer)
    trainer._tokenizer = tokenizer
    args = DPOConfig(output_dir="unused", max_length=None, report_to=[], use_cpu=True, bf16=False)
    found = trainer._prepare_dataset(Dataset.from_list([row]), tokenizer, args, "train")[0]
    return found["prompt_ids"], found["chosen_ids"], found["rejected_ids"]


def without_blanks(tokenizer, ids):
    """TRL also scores the line break that a template writes after the terminator; we do not."""
    while ids and not tokenizer.decode([ids[-1]]).strip():
        ids = ids[:-1]
    return ids


@pytest.mark.parametrize(("name", "family"), TABLE, ids=[f"{family}, {name}" for name, family in TABLE])
def test_ids_are_those_of_the_template_and_of_trl(name, family):
    conversation, tokenizer = CONVERSATIONS[name], make(family)
    row = {"chosen": ANSWERS[:1], "rejected": ANSWERS[1:], **conversation}
    prompt, *answers = ours(tokenizer, row)
    kwargs = {"tools": conversation.get("tools"), **conversation.get("chat_template_kwargs", {}), "return_dict": False}
    for ids, answer in zip(answers, ANSWERS, strict=True):
        whole = tokenizer.apply_chat_template([*conversation["prompt"], answer], **kwargs)
        assert prompt + ids == without_blanks(tokenizer, list(whole))
        assert ids[-1] == tokenizer.convert_tokens_to_ids(STYLES[family][4])
    asked = tokenizer.apply_chat_template(conversation["prompt"], add_generation_prompt=True, **kwargs)
    if name != "thinking off" or family == "qwen3":
        assert prompt == list(asked)
    theirs = trl_ids(tokenizer, row)
    assert prompt == theirs[0]
    assert answers == [without_blanks(tokenizer, ids) for ids in theirs[1:]]


def test_tool_calls_that_a_template_leaves_out_are_refused_in_answers_and_counted_before_them(tmp_path):
    """Such an answer would be empty, and the model trained to say nothing."""
    calls, prompt = [CALL, {"role": "tool", "content": "5"}, ANSWERS[0]], CONVERSATIONS["tool result"]["prompt"]
    row = {"prompt": [ASKED], "chosen": calls, "rejected": ANSWERS[1:]}
    with pytest.raises(BadRow, match="tool calls not rendered: the chat template does not write tool_calls"):
        ours(make("smollm2"), row)
    path = write_rows(tmp_path / "calls.jsonl", [row])
    with pytest.raises(
        UserError, match=r"no pair is left of 1 rows; .*calls.jsonl:1: tool calls not rendered: the chat"
    ):
        prepare("train", [SourceConfig(str(path))], make("smollm2"), TokenizeOptions(), on_bad_row="drop").with_passes(
            0
        )
    assert '"name": "add"' in make("qwen3").decode(ours(make("qwen3"), row)[1])
    rows = [{"prompt": prompt}, {"prompt": [ASKED], "tools": TOOLS}, {"prompt": [ASKED]}]
    path = write_rows(tmp_path / "p.jsonl", [{"chosen": ANSWERS[:1], "rejected": ANSWERS[1:], **row} for row in rows])
    for family, count in (("smollm2", 2), ("qwen3", None)):
        found = prepare("train", [SourceConfig(str(path))], make(family), TokenizeOptions()).report.notes
        assert found.get("tools or tool calls before the answers that the chat template does not write") == count


@pytest.mark.parametrize("family", ["plain", "llama3", "mistral"])
def test_text_is_joined_as_trl_joins_it(family):
    row = {"prompt": "What is the capital of France?", "chosen": " Paris.", "rejected": " I am sorry."}
    encoded = PairTokenizer(make(family), TokenizeOptions(chat="never"))(PreferencePair(**row))
    assert [encoded.prompt_ids, encoded.chosen_ids, encoded.rejected_ids] == list(trl_ids(make(family), row))


def test_an_option_sets_what_a_column_does():
    row = {"prompt": [ASKED], "chosen": ANSWERS[:1], "rejected": ANSWERS[1:]}
    off = {"enable_thinking": False}
    assert ours(make("qwen3"), row | {"chat_template_kwargs": off}) == ours(
        make("qwen3"), row, chat_template_kwargs=off
    )
    assert ours(make("qwen3"), row) != ours(make("qwen3"), row, chat_template_kwargs=off)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_that_trl_reads_as_rendered_is_read_alike(family):
    """Rows whose prompt a template rendered, as TRL's own scripts write them."""
    tokenizer = make(family)
    prompt = tokenizer.apply_chat_template([ASKED], add_generation_prompt=True, tokenize=False)
    end = STYLES[family][4]
    row = {"prompt": prompt, "chosen": "Paris." + end, "rejected": "I am sorry." + end}
    encode = PairTokenizer(tokenizer, TokenizeOptions())
    encoded = encode.reads(encode.decide([PreferencePair(**row)]))(PreferencePair(**row))
    whole = tokenizer(row["prompt"] + row["chosen"], add_special_tokens=False)["input_ids"]
    assert encoded.prompt_ids + encoded.chosen_ids == whole


def encoded(template, row):
    tokenizer = deepcopy(make("qwen3"))
    tokenizer.chat_template = template
    return tokenizer, PairTokenizer(tokenizer, TokenizeOptions())(read_pair(row, "messages"))


def test_an_answer_shorter_than_what_the_generation_prompt_opens_has_one_terminator():
    """Templates of reasoning models open a thought for generation, which the turns of the data do not have."""
    template = QWEN3.replace("<|im_start|>assistant\n{% if enable", "<|im_start|>assistant\n<think>\n{% if enable")
    template = template.replace("{% if loop.last %}<think>\n\n</think>\n\n{% endif %}", "")
    answers = [{"role": "assistant", "content": text} for text in ("5", "4")]
    row = {"prompt": [ASKED], "chosen": answers[:1], "rejected": answers[1:]}
    tokenizer, pair = encoded(template, row)
    assert [tokenizer.decode(ids) for ids in (pair.chosen_ids, pair.rejected_ids)] == ["5<|im_end|>", "4<|im_end|>"]


def test_empty_content_stays_empty_for_the_template():
    """Templates ask whether a turn has content; that of a turn of tool calls is often an empty string."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.content %}{{ '\n' + m.content }}{% endif %}"
        "{% for call in m.tool_calls or [] %}\n{{ call.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    row = {"prompt": [ASKED, CALL, {"role": "tool", "content": "5"}], "chosen": ANSWERS[:1], "rejected": ANSWERS[1:]}
    tokenizer, pair = encoded(template, row)
    whole = tokenizer.apply_chat_template([*row["prompt"], ANSWERS[0]], return_dict=False)
    assert pair.prompt_ids + pair.chosen_ids == without_blanks(tokenizer, list(whole))
