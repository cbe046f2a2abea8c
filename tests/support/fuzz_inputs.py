"""Inputs that strangers may feed, for the targets of `fuzz_targets`: nearly good ones, and nonsense."""

import json
import re

from hypothesis import strategies as st

from adadpo_lightning.convert.llama_factory_keys import FACTORY_DEFAULTS
from adadpo_lightning.convert.trl_keys import DEFAULTS, TRL_DEFAULTS

TEXT = st.text(max_size=20) | st.sampled_from(
    ["", "a b", "<eos>", "<user>", "\ufdd0", "\x00", "\ud800", "\u202e", "{{ 1 }}", "a" * 3000, "1e999", "NaN"]
)
NUMBER = st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**400, 1e308, True])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def edited(draw, document):
    """A document with up to three edits: a value replaced, left out, doubled, or put into a list."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(0, 3))):
        place = document
        while isinstance(place, (dict, list)) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            kind = draw(st.sampled_from(["replace", "remove", "double", "wrap", "text"]))
            if kind == "remove":
                del place[key]
            elif kind == "double" and isinstance(place, list):
                place.append(place[key])
            elif kind == "wrap":
                place[key] = [place[key]]
            elif kind == "text":
                place[key] = str(place[key])
            else:
                place[key] = draw(JSON)
            break
    return document


def turns(*texts):
    return [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 4, texts, strict=False)]


CALL = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
ROWS = [
    {"prompt": "why", "chosen": "yes", "rejected": "no", "weight": 1.0, "margin": 0.5, "system": "be"},
    {"prompt": turns("why"), "chosen": turns("", "yes")[1:], "rejected": turns("", "no")[1:], "tools": [CALL[0]]},
    {"chosen": turns("why", "yes", "how", "so"), "rejected": turns("why", "no", "how", "not")},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: Go."},
    {"messages": turns("why", "yes"), "chat_template_kwargs": {"enable_thinking": False}},
    {"prompt": "why", "responses": ["yes", "no", "well"], "scores": [3, 1, 2]},
    {"prompt": "why", "responses": turns("a", "b"), "ranks": [1, 2]},
    {
        "instruction": "why",
        "completions": [{"response": "yes", "overall_score": 3}, {"response": "no", "fine-grained_score": 1}],
    },
    {
        "conversations": [{"from": "human", "value": "why"}],
        "chosen": {"from": "gpt", "value": "yes"},
        "rejected": {"from": "gpt", "value": "no"},
    },
    {
        "prompt": turns("why"),
        "chosen": [{"role": "assistant", "tool_calls": CALL}, {"role": "tool", "content": "1"}, *turns("", "yes")[1:]],
        "rejected": "no",
    },
]
ANSWERS = [
    {
        "prompt": "why",
        "response": "yes",
        "generator": "m",
        "tokens": 3,
        "finished": True,
        "difficulty": 0.5,
        "sample": 0,
    },
    {"instruction": "why", "output": "yes", "generator": "m", "dataset": "d", "instruction_difficulty": 1.5},
    {"question_id": "q", "model_id": "m", "choices": [{"index": 0, "turns": [{"content": "yes", "token_len": 1}]}]},
    {"messages": turns("why"), "chosen": turns("why", "yes")},
]
JUDGED = [
    {
        "instruction": "why",
        "output_1": "yes",
        "output_2": "no",
        "generator_1": "a",
        "generator_2": "b",
        "preference": 1.5,
        "instruction_difficulty": 0.1,
        "dataset": "d",
    },
]
PROMPTS = [
    {"prompt": "why"},
    {"turns": [{"content": "why"}], "question_id": 1},
    {"messages": turns("why", "yes")},
    {"instruction": "why", "dataset": "d", "chat_template_kwargs": {"a": 1}},
]


def parts(text):
    """Texts between double semicolons."""
    return [part.replace("\\n", "\n") for part in re.split(r"\s?;;\s?", text)]


JINJA = parts(
    r"""{{ bos_token }} ;; {% for m in messages %} ;; {% endfor %} ;; {{ m['role'] }} ;; {{ m.content }} ;; {% if  ;;
{% endif %} ;; {% generation %} ;; {% endgeneration %} ;; add_generation_prompt ;; %} ;; {{  ;;  }} ;;
messages[0] ;; [::-1] ;;  | tojson ;; {% macro f(x) %} ;; {% endmacro %} ;; {{ f(1) }} ;;
{% set ns = namespace(a=0) %} ;; {{ raise_exception('no') }} ;; range(10 ** 9) ;; 'a' * 10 ** 9 ;; {#  ;; #} ;;
{% raw %} ;; tools ;; m.tool_calls ;; {% break %} ;; .__class__ ;;  is defined ;; |length ;; loop.index0 ;;
{{ strftime_now('%Y') }} ;; {% call f() %} ;; |join ;; |map('upper') ;; m['content'].split('</think>')[-1] ;;
<assistant> ;;  yes  ;; \n"""
)
SCRIPT = parts(
    r"""DPOConfig( ;; DPOTrainer( ;; beta= ;; 0.1 ;; ) ;; ,  ;; args= ;; x =  ;; \n ;; 'sigmoid' ;; [ ;; ] ;; ** ;;
{'a': 1} ;; LoraConfig(r= ;; - ;; 1e-6 ;; lambda: 0 ;; (((((((((((((((((((((((((((((( ;; output_dir='o' ;; # ;;
\ ;; def f():\n   ;; model= ;; 'm' ;; load_dataset( ;; train_dataset="""
)
SCRIPTS = st.lists(st.sampled_from(SCRIPT) | TEXT, max_size=14).map("".join)
HEAD = "{% for m in messages %} <{{ m['role'] }}> {{ m['content'] }} {{ eos_token }}{% endfor %}"
TEMPLATES = st.lists(st.sampled_from([*JINJA, HEAD]) | TEXT, max_size=12).map("".join)
CONFIGS = st.sampled_from(
    [TRL_DEFAULTS | DEFAULTS["dpo"], TRL_DEFAULTS | DEFAULTS["cpo"], {"beta": 0.1, "loss_type": "ipo"}]
)
LINES = [
    json.dumps(ROWS[0]),
    json.dumps(ROWS[:2]),
    "prompt,chosen,rejected\na,b,c\n",
    "[1",
    '{"a": ',
    "\ufeff",
    '"',
    ",",
    "\n",
    "\r",
]
BYTES = st.lists(st.binary(max_size=12) | st.sampled_from(LINES).map(str.encode), max_size=6).map(b"".join)
RESULT = {"format": 2, "status": "done", "seconds": 1.5, "run": "run", "metrics": {"win_rate": 0.5, "val/loss": 1.0}}
FACTORY = {**FACTORY_DEFAULTS, "stage": "dpo", "model_name_or_path": "m", "dataset": "d"}
FIT = {
    "output_dir": "out",
    "seed_everything": 0,
    "model": {
        "policy": {"path": "./nowhere", "lora": {"r": 2, "target_modules": ["q_proj"]}},
        "loss": {
            "class_path": "AdaDPO",
            "init_args": {"beta": {"from": 0.1, "to": 0.01, "schedule": "linear"}, "ceiling": 2.0},
        },
        "optimizer": {"lr": 1e-6, "betas": [0.9, 0.95]},
        "scheduler": {"name": "cosine", "warmup_ratio": 0.1},
        "reference": "auto",
    },
    "data": {
        "train": [{"path": "a.jsonl", "weight": 0.5, "columns": {"prompt": "q"}}, "b.jsonl"],
        "val": {"one": "c.jsonl", "two": ["d.jsonl"]},
        "val_size": 0.0,
        "global_batch_size": 8,
        "max_tokens": 100,
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "trainer": {
        "max_epochs": 1,
        "precision": "32-true",
        "val_check_interval": 0.5,
        "limit_train_batches": 3,
        "callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/one/loss"}}],
        "logger": [{"class_path": "CSVLogger", "init_args": {"save_dir": "out"}}],
    },
    "checkpoint": {"every_n_train_steps": 5, "filename": "{step}"},
}
STUDY = {
    "name": "a study",
    "output_dir": "out",
    "task": "embedded",
    "learning_rates": [2.0e-4, 1.0e-3],
    "betas": [0.1, 0.3],
    "seeds": [0, 1],
    "arms": {
        "simpo": {"loss": "simpo", "betas": [1.0]},
        "adasimpo": {"loss": "adasimpo", "twin_of": "simpo"},
        "null": {"loss": "simpo", "control": "noise", "against": "simpo", "training_seed": 1},
    },
    "fit_options": {"trainer.val_check_interval": 1.0},
}
