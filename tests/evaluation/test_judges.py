"""Judges: the registry, gold, preferences from a file, and sequence classifiers."""

import json
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from adadpo_lightning import plugins as loading
from adadpo_lightning.embedded.gold import grade
from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.comparisons import Comparison
from adadpo_lightning.evaluation.judges import base as judges
from adadpo_lightning.evaluation.judges.annotations import AnnotationsJudge
from adadpo_lightning.evaluation.judges.base import available_judges, build_judge
from adadpo_lightning.generation.responses import Response
from tests.support.tiny import make_rows, make_tokenizer


def test_packages_bring_judges_of_their_own(monkeypatch):
    def load():
        @judges.register_judge("coin")
        @dataclass
        class Coin(judges.Judge):
            def preferences(self, comparisons):
                return [0.5] * len(comparisons)

    def broken():
        raise ImportError("no such thing")

    def plugins(load):
        entry = types.SimpleNamespace(load=load, name="coin", dist=types.SimpleNamespace(name="coins"))
        monkeypatch.setattr(
            loading, "entry_points", lambda group: [entry] if group == "adadpo_lightning.judges" else []
        )
        judges._load_judges.cache_clear()
        loading.load_plugins.cache_clear()

    plugins(broken)
    with pytest.raises(UserError, match="entry point 'coin' of coins: could not be loaded: ImportError: no such thing"):
        available_judges()
    plugins(load)
    assert build_judge("coin").preferences([pair("a", "b", "c")]) == [0.5]
    judges._judges.pop("coin")
    monkeypatch.undo()
    judges._load_judges.cache_clear()
    loading.load_plugins.cache_clear()


def pair(prompt, a, b, **options):
    return Comparison(Response(prompt, a, "mine", **options), Response(prompt, b, "base"))


def test_the_registry():
    assert {"gold", "reward_model", "annotations", "openai_compatible"} <= set(available_judges())
    with pytest.raises(UserError, match="did you mean 'gold'"):
        build_judge("golf")
    with pytest.raises(UserError, match="'gold' has no option 'temprature'; did you mean 'temperature'"):
        build_judge("gold", temprature=1)
    with pytest.raises(UserError, match="'reward_model' needs model"):
        build_judge("reward_model")
    with pytest.raises(UserError, match="'gold' needs two response files"):
        build_judge("gold").comparisons()


def test_gold_prefers_what_is_right_and_counts_ties_half():
    asked = "what is 2 plus 3"
    right, wrong = "2 plus 3 is 5 .", "2 plus 3 is 6 ."
    comparisons = [pair(asked, right, wrong), pair(asked, wrong, right), pair(asked, right, right)]
    assert build_judge("gold").preferences(comparisons) == [1.0, 0.0, 0.5]
    cut = pair(asked, right, right, finished=False)
    assert build_judge("gold").preferences([cut]) == [0.0]  # not ended: worth less
    gap = grade(asked, right).gold - grade(asked, wrong).gold
    (soft,) = build_judge("gold", temperature=0.5).preferences(comparisons[:1])
    assert soft == pytest.approx(torch.tensor(gap / 0.5).sigmoid().item())
    with pytest.raises(UserError, match="does not belong to the embedded task"):
        build_judge("gold").preferences([pair("who are you", "me", "you")])


def test_length_is_a_judge_of_its_own():
    comparisons = [pair("p", "a b", "abcd"), pair("p", "abc", "d e")]
    assert build_judge("length").preferences(comparisons) == [0.0, 0.5]
    assert build_judge("length", prefer="shorter", unit="words").preferences(comparisons) == [0.0, 1.0]
    with pytest.raises(UserError, match="expected one of longer, shorter, got 'best'"):
        build_judge("length", prefer="best")


def annotations_file(path, rows):
    names = ("instruction", "output_1", "output_2", "generator_1", "generator_2", "preference")
    path.write_text(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
    return str(path)


def test_annotations_say_two_where_the_second_output_wins(tmp_path):
    file = annotations_file(
        tmp_path / "a.json",
        [
            ("p", "short", "longer", "base", "mine", 2),
            ("q", "x", "y", "base", "mine", 1.0),
            ("r", "x", "y", "base", "mine", 1.25),
            ("s", "x", "y", "base", "mine", 1.5),
            ("t", "x", "y", "base", "mine", 0),
            ("u", "x", "y", "base", "mine", None),
        ],
    )
    judge = AnnotationsJudge(file)
    comparisons = judge.comparisons()
    assert judge.preferences(comparisons) == [1.0, 0.0, 0.25, 0.5, 0.5, None]
    assert comparisons[0].model == Response("p", "longer", "mine")
    other = AnnotationsJudge(file, generator="base")
    assert other.preferences(other.comparisons()) == [0.0, 1.0, 0.75, 0.5, 0.5, None]
    assert other.comparisons()[0].model.response == "short"
    # Responses from elsewhere are looked up by what they say.
    assert judge.preferences([pair("r", "y", "x"), pair("p", "longer", "short")]) == [0.25, 1.0]
    with pytest.raises(UserError, match="has no row for 1 of 1 comparisons"):
        judge.preferences([pair("r", "x", "y")])
    with pytest.raises(UserError, match="compares 'base' and 'mine', not 'yours'"):
        AnnotationsJudge(file, generator="yours")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("instruction", None, "instruction: expected text, got null"),
        ("output_1", 5, "output_1: expected text, got int '5'"),
        ("output_2", ["a"], "output_2: expected text, got list"),
        ("instruction_difficulty", "hard", "instruction_difficulty: expected a number, got str 'hard'"),
    ],
)
def test_a_malformed_annotation_is_named(tmp_path, column, value, message):
    rows = json.loads(Path(annotations_file(tmp_path / "a.json", [("p", "x", "y", "base", "mine", 2)] * 2)).read_text())
    rows[1][column] = value
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(UserError) as failure:
        AnnotationsJudge(str(tmp_path / "a.json"))
    assert str(failure.value).startswith(f"{tmp_path / 'a.json'}, row 2: {message}")


@pytest.mark.parametrize(("preference", "message"), [(2.5, "in \\[1, 2\\]"), ("A", "a number"), (True, "a number")])
def test_preferences_that_are_none(preference, message, tmp_path):
    file = annotations_file(tmp_path / "a.json", [("p", "x", "y", "base", "mine", preference)])
    with pytest.raises(UserError, match=message):
        AnnotationsJudge(file)


def classifier_dir(path, labels=1, template=True):
    tokenizer = make_tokenizer()
    if not template:
        tokenizer.chat_template = None
    torch.manual_seed(labels)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_labels=labels,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model, tokenizer


@pytest.mark.parametrize("labels", [1, 2])
def test_a_reward_model_scores_each_conversation_as_it_would_alone(tmp_path, labels):
    model, tokenizer = classifier_dir(tmp_path, labels)
    comparisons = [pair(row["prompt"], row["chosen"], row["rejected"]) for row in make_rows(7)]

    def score(prompt, answer):
        talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(talk, return_dict=False)
        assert ids.count(tokenizer.bos_token_id) == 1
        logits = model(torch.tensor([ids])).logits[0]
        return (logits[0] if labels == 1 else logits[1] - logits[0]).item()

    gaps = [score(c.model.prompt, c.model.response) - score(c.model.prompt, c.baseline.response) for c in comparisons]
    judge = build_judge("reward_model", model=str(tmp_path), device="cpu", batch_size=4)
    assert judge.preferences(comparisons) == [float(gap > 0) for gap in gaps]
    soft = build_judge("reward_model", model=str(tmp_path), device="cpu", batch_size=4, temperature=2.0)
    assert soft.preferences(comparisons) == pytest.approx(torch.tensor(gaps).div(2).sigmoid().tolist(), abs=1e-5)


def test_a_classifier_without_a_template_gets_a_pair_of_texts(tmp_path):
    model, tokenizer = classifier_dir(tmp_path, template=False)
    judge = build_judge("reward_model", model=str(tmp_path), device="cpu")
    ids = tokenizer("why cat", "the dog")["input_ids"]
    expected = model(torch.tensor([ids])).logits[0, 0].item()
    assert judge.scores([Response("why cat", "the dog")]) == pytest.approx([expected], abs=1e-5)


def test_texts_that_are_too_long_are_counted(tmp_path, caplog):
    model, tokenizer = classifier_dir(tmp_path, template=False)
    judge = build_judge("reward_model", model=str(tmp_path), device="cpu", max_length=4)
    ids = tokenizer("why cat", "the dog sat on the tree")["input_ids"]
    expected = model(torch.tensor([ids[-4:]])).logits[0, 0].item()
    found = judge.scores([Response("why cat", "the dog sat on the tree"), Response("why", "no")])
    assert found[0] == pytest.approx(expected, abs=1e-5)
    assert "of 1 of 2 texts (prompt and answer) the classifier reads the last 4 tokens only" in caplog.text


def test_models_that_are_no_judge(tmp_path, model_dir):
    with pytest.raises(UserError, match=r"lacks score\.weight, which would be random"):
        build_judge("reward_model", model=str(model_dir)).preferences([pair("a", "b", "c")])
    with pytest.raises(UserError, match="no sequence classifier could be loaded"):
        build_judge("reward_model", model=str(tmp_path / "none")).preferences([pair("a", "b", "c")])
    classifier_dir(tmp_path, labels=3)
    with pytest.raises(UserError, match="has 3 outputs; set it to the index of the score"):
        build_judge("reward_model", model=str(tmp_path), device="cpu").preferences([pair("a", "b", "c")])
    with pytest.raises(UserError, match="expected 0 to 2, got 3"):
        build_judge("reward_model", model=str(tmp_path), label=3, device="cpu").preferences([pair("a", "b", "c")])
