import json
import logging
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from adadpo_lightning.data import prepare as prepare_room
from adadpo_lightning.data.datamodule import PreferenceDataModule
from adadpo_lightning.data.sources import SourceConfig
from adadpo_lightning.errors import UserError
from adadpo_lightning.types import ModuleNeeds
from tests.support.tiny import WORDS, make_rows, make_tokenizer
from tests.support.tokenizers import make

SIZES = {"global_batch_size": 4, "max_length": 64}


def row(i, **changes):
    return {"prompt": f"{WORDS[i % 7]} {WORDS[i % 11]}", "chosen": "yes the cat", "rejected": "no"} | changes


def ready(tokenizer=None, stage="fit", **options):
    data = PreferenceDataModule(**{**SIZES, **options})
    data.tokenizer = tokenizer or make_tokenizer()
    data.setup(stage)
    return data


def prompts_of(prepared):
    return set(prepared.pairs["prompt_key"])


def test_without_a_trainer_the_data_can_be_looked_at(write):
    rows = make_rows(10)
    data = ready(train=write(rows), shuffle=False)
    tokenizer = data.tokenizer
    pairs = data.prepared["train"].pairs
    assert len(pairs) == 10
    for pair, raw in zip(pairs, rows, strict=True):
        assert tokenizer.decode(pair["prompt_ids"]) == f"<bos> <user> {raw['prompt']} <eos> <assistant>"
        assert tokenizer.decode(pair["chosen_ids"]) == f"{raw['chosen']} <eos>"
        assert tokenizer.decode(pair["rejected_ids"]) == f"{raw['rejected']} <eos>"
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 10
    first = batches[0]
    assert first.packed
    assert (first.step_pairs, len(first)) == (4, 1)
    whole = sum(len(pair["chosen_ids"]) for pair in pairs.select(range(4)))
    assert first.step_chosen_tokens == whole
    assert sorted(int(batch.row_ids) for batch in batches) == list(range(10))


def test_weight_and_margin_reach_the_batch(write):
    rows = [row(0, weight=2.5), row(1, margin=-1), row(2), row(3)]
    data = ready(train=write(rows), micro_batch_size=4)
    (batch,) = data.train_dataloader()
    found = dict(
        zip(batch.row_ids.tolist(), zip(batch.weight.tolist(), batch.margin.tolist(), strict=True), strict=True)
    )
    assert found == {0: (2.5, 0.0), 1: (1.0, -1.0), 2: (1.0, 0.0), 3: (1.0, 0.0)}


MIXED_ROWS = [
    row(0),
    row(1, rejected="yes the cat"),  # identical
    row(2, chosen=" "),  # empty answer
    row(3, chosen=7),  # not text
    row(4, chosen=" ".join(WORDS)),  # answer cut
    row(5, prompt=" ".join(WORDS)),  # prompt too long
    row(6),
]


def test_report_counts_what_was_dropped_and_cut(write, capsys):
    data = ready(train=write(MIXED_ROWS), on_bad_row="drop", max_length=14)
    report = data.prepared["train"].report
    assert report.rows == 7
    assert report.pairs == 3
    assert report.dropped == {
        "chosen equals rejected": 1,
        "empty answer": 1,
        "not text": 1,
        "prompt too long": 1,
    }
    assert report.cut == {"answer cut": 1}
    assert data.prepared["train"].pairs["row"][:] == [0, 4, 6]
    printed = capsys.readouterr().out
    for line in ("text format", "rows read", "dropped: chosen equals rejected", "dropped: not text", "answer cut"):
        assert line in printed
    data.setup("fit")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("bad", "options", "message"),
    [
        (row(0, chosen=""), {}, r"pairs.jsonl:3: empty answer: chosen has no text \(and 1 more bad rows\); fix"),
        (row(0, prompt=3), {}, r"pairs.jsonl:3: not text: prompt is int '3', expected text"),
        (
            {"prompt": "a", "chosen": "b"},
            {},
            r"pairs.jsonl:3: missing column: 'rejected' is missing.*found prompt, chosen",
        ),
        (row(0, prompt="cat " * 64), {}, r"pairs.jsonl:3: prompt too long: 68 prompt tokens and 4 answer tokens"),
        (row(0, chosen=[{"role": "user"}]), {"chat": "auto"}, r"pairs.jsonl:3: not text: chosen is list"),
    ],
)
def test_the_first_bad_row_is_named_with_its_line(write, bad, options, message):
    with pytest.raises(UserError, match=message):
        ready(train=write([row(0), row(1), bad, row(3), bad]), **options)


def test_identical_answers_and_long_pairs_are_no_errors(write):
    rows = [row(0), row(1, chosen="no"), row(2, chosen="cat " * 70)]
    report = ready(train=write(rows), truncation="drop").prepared["train"].report
    assert report.dropped == {"chosen equals rejected": 1, "longer than max_length": 1}
    with pytest.raises(
        UserError, match=r"data.train: no pair is left of 1 rows; dropped: {'chosen equals rejected': 1}"
    ):
        ready(train=write([rows[1]]))


def test_files_are_read_by_the_mapping_and_format_asked_for(write):
    path = write([{"q": f"cat {w}", "good": "yes", "bad": "no", "chosen": 3} for w in WORDS[:4]])
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert len(ready(train=SourceConfig(path, columns=columns)).prepared["train"].pairs) == 4
    with pytest.raises(UserError, match=r"pairs.jsonl: missing columns: expected prompt.*found bad, chosen, good, q"):
        ready(train=path)
    with pytest.raises(UserError, match=r"there is no column 'quest'; .*available: bad, chosen, good, q"):
        ready(train=SourceConfig(path, columns={"prompt": "quest"}))
    with pytest.raises(UserError, match=r"one.jsonl:1: missing column: 'rejected'"):
        ready(train=SourceConfig(write([row(0, rejected=None)], "one.jsonl"), format="text"))


def test_validation_pairs_are_held_out_by_prompt(write):
    rows = [row(i, prompt=f"cat {WORDS[i % 9]}", chosen=f"yes {WORDS[i // 9]}") for i in range(45)]
    path = write(rows)
    for size, least in ((0.2, 9), (7, 7)):
        data = ready(train=path, val_size=size, seed=1)
        train, val = data.prepared["train"], data.prepared["val"]
        assert not prompts_of(train) & prompts_of(val)
        assert len(train.pairs) + len(val.pairs) == 45
        assert least <= len(val.pairs) < least + 5
        assert train.report.notes == {"held out for val": len(val.pairs)}
        again = ready(train=path, val_size=size, seed=1, stage="validate")
        assert prompts_of(again.prepared["val"]) == prompts_of(val)
    assert prompts_of(ready(train=path, val_size=0.2, seed=2).prepared["val"]) != prompts_of(
        ready(train=path, val_size=0.2, seed=1).prepared["val"]
    )
    with pytest.raises(UserError, match=r"data.val_size: 45 leaves one part of 45 pairs with 9 prompts empty"):
        ready(train=path, val_size=45)
    with pytest.raises(UserError, match=r"data.val_size: is for runs without data.val"):
        PreferenceDataModule(train=path, val=path, val_size=1)


def test_prompts_that_train_and_val_share_are_counted(write):
    data = ready(train=write([row(i) for i in range(4)]), val=write([row(0), row(8)], "val.jsonl"))
    assert data.prepared["val"].report.notes == {"prompts that train has too": 1}


def test_sources_are_mixed_by_their_weights(write):
    first = write([row(i) for i in range(8)], "a.jsonl")
    second = write([row(i, chosen="small dog") for i in range(10)], "b.jsonl")
    sources = [SourceConfig(first, weight=2.5), SourceConfig(second, weight=0.3)]
    data = ready(train=sources, seed=3)
    taken = Counter(data.prepared["train"].pairs["row"])
    own = [taken[i] for i in range(8)]
    assert sorted(own) == [2, 2, 2, 2, 3, 3, 3, 3]
    assert sum(taken[i] for i in range(8, 18)) == 3
    assert set(taken) <= set(range(18))
    assert data.prepared["train"].report.pairs == 23
    assert Counter(ready(train=sources, seed=3).prepared["train"].pairs["row"]) == taken
    assert Counter(ready(train=sources, seed=4).prepared["train"].pairs["row"]) != taken
    assert data.prepared["train"].where(22).startswith(second + ":")
    # Held-out pairs are not repeated.
    val = ready(train=sources, val_size=4).prepared["val"]
    assert set(Counter(val.pairs["row"]).values()) == {1}


def test_tokenised_data_are_cached_until_something_changes(write, monkeypatch):
    path = write([row(i) for i in range(6)])
    calls = []
    tokenize_rows = prepare_room.tokenize_rows
    monkeypatch.setattr(prepare_room, "tokenize_rows", lambda *a, **k: calls.append(1) or tokenize_rows(*a, **k))

    def fresh(**options):
        calls.clear()
        ready(**{"train": path, **options})
        return len(calls) > 0

    other = make_tokenizer()
    other.add_tokens(["new"])
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    assert fresh()
    assert not fresh()
    assert not fresh(global_batch_size=2, seed=7, on_bad_row="drop")
    assert fresh(max_length=20)
    assert fresh(truncation="drop")
    assert fresh(tokenizer=other)
    other = make_tokenizer()
    other.chat_template = template
    assert fresh(tokenizer=other)
    assert fresh(chat="never")
    assert fresh(train=SourceConfig(path, columns={"chosen": "rejected", "rejected": "chosen"}))
    write([row(i) for i in range(7)])
    assert fresh()


def test_processes_do_not_change_the_result(write):
    path = write([*make_rows(1200), row(0, chosen="")])
    alone, together = (ready(train=path, num_proc=n, on_bad_row="drop", max_length=50 + n) for n in (1, 2))
    for name in ("prompt_ids", "rejected_ids", "row"):
        assert alone.prepared["train"].pairs[name][:] == together.prepared["train"].pairs[name][:]
    assert alone.prepared["train"].report == together.prepared["train"].report
    with pytest.raises(UserError, match=r"pairs.jsonl:1201: empty answer"):
        ready(train=path, num_proc=2, max_length=53)


def test_chat_template_from_text_and_file(write, tmp_path):
    path, template = write(make_rows(4)), "{% for m in messages %}{{ m['content'] }} <eos> {% endfor %}"
    (tmp_path / "chat.jinja").write_text(template)
    (tmp_path / "tok").mkdir()
    make_tokenizer().save_pretrained(tmp_path / "tok")
    for chat_template in (template, str(tmp_path / "chat.jinja")):
        data = PreferenceDataModule(train=path, tokenizer=str(tmp_path / "tok"), chat_template=chat_template, **SIZES)
        data.setup("fit")
        assert "<user>" not in data.tokenizer.decode(data.prepared["train"].pairs[0]["prompt_ids"])
    with pytest.raises(
        UserError, match=r"data.chat_template: is no template, and the file 'nowhere.jinja' was not found"
    ):
        PreferenceDataModule(train=path, tokenizer=str(tmp_path / "tok"), chat_template="nowhere.jinja").setup("fit")
    with pytest.raises(UserError, match=r"data.tokenizer: not set, and there is no policy to take it from"):
        PreferenceDataModule(train=path).setup("fit")


def test_options_are_checked():
    for options, message in (
        ({"global_batch_size": 0}, "global_batch_size: expected at least 1"),
        ({"micro_batch_size": 0}, "micro_batch_size: expected at least 1"),
        ({"eval_batch_size": 0}, "eval_batch_size: expected at least 1"),
        ({"on_bad_row": "skip"}, "on_bad_row: expected error or drop, got 'skip'"),
        ({"val_size": -1}, "val_size: expected a number of pairs or a share"),
        ({"max_length": 0}, "max_length: expected at least 2"),
    ):
        with pytest.raises(UserError, match=message):
            PreferenceDataModule(train="x", **options)


def test_pair_that_exceeds_max_tokens_is_named(write):
    path = write([row(0), row(1, chosen="cat " * 30)])
    with pytest.raises(
        UserError, match=r"data.max_tokens: the pair at .*pairs.jsonl:2 alone has 39 tokens, more than 20"
    ):
        ready(train=path, max_tokens=20)


# With a trainer.


def test_accumulation_follows_from_the_batch_sizes(write, recorder, make_trainer):
    path = write(make_rows(16))
    trainer, module = make_trainer(max_epochs=1), recorder()
    trainer.fit(module, PreferenceDataModule(train=path, **SIZES, micro_batch_size=2))
    assert trainer.accumulate_grad_batches == 2
    assert (trainer.global_step, module.steps) == (4, [4])
    assert trainer.datamodule.optimizer_steps == 4
    # The same number said by the user is no contradiction.
    make_trainer(max_epochs=1, accumulate_grad_batches=4).fit(recorder(), PreferenceDataModule(train=path, **SIZES))
    with pytest.raises(UserError, match=r"trainer.accumulate_grad_batches: 3 contradicts global_batch_size 4"):
        make_trainer(max_epochs=1, accumulate_grad_batches=3).fit(recorder(), PreferenceDataModule(train=path, **SIZES))
    with pytest.raises(
        UserError, match=r"limit_train_batches: ends an epoch after 6 .*in the middle of an optimizer step of 4"
    ):
        make_trainer(max_epochs=1, limit_train_batches=6).fit(recorder(), PreferenceDataModule(train=path, **SIZES))
    trainer = make_trainer(fast_dev_run=True)
    trainer.fit(recorder(), PreferenceDataModule(train=path, **SIZES))
    assert trainer.global_step == 1


def test_max_tokens_in_a_run(write, recorder, make_trainer):
    path, module = write(make_rows(30)), recorder()
    data = PreferenceDataModule(train=path, global_batch_size=8, max_tokens=80)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(module, data)
    assert trainer.global_step == 2 * 4
    assert trainer.accumulate_grad_batches == data.plan.accumulate > 1
    with pytest.raises(UserError, match=r"trainer.max_epochs: neither max_epochs nor max_steps limits the run"):
        make_trainer(max_epochs=-1).fit(
            recorder(), PreferenceDataModule(train=path, global_batch_size=8, max_tokens=80)
        )


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_what_max_tokens_does_not_count_is_said(write, recorder, make_trainer, caplog, layout):
    data = PreferenceDataModule(train=write(make_rows(8)), global_batch_size=4, max_tokens=80)
    with caplog.at_level(logging.INFO, logger="adadpo_lightning"):
        make_trainer(max_epochs=1).fit(recorder(layout=layout), data)
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("data.max_tokens")]
    counted = data.plan.tokens(np.array(data.plan.step_batches(data.plan.order(0), 0)[0][0].rows))
    computed = next(iter(data.train_dataloader())).input_ids.numel()
    assert (len(said) == 1 and computed > counted) if layout == "padded" else (not said and computed == counted)


def test_losses_without_and_with_a_rejected_answer(write, recorder, make_trainer):
    pairs, single = write(make_rows(8)), write([row(0), row(1, rejected=None)], "single.jsonl")
    data = PreferenceDataModule(train=pairs, **SIZES)
    make_trainer(max_epochs=1).fit(recorder(needs_rejected=False), data)
    assert not data.prepared["train"].counts()[2].any()
    assert all(not batch.rejected_len.any() for batch in data.train_dataloader())

    def data():
        return PreferenceDataModule(train=SourceConfig(single, format="answer"), **SIZES)

    make_trainer(max_epochs=1).fit(recorder(needs_rejected=False), data())
    with pytest.raises(UserError, match=r"data.train: 2 of 2 rows have no rejected answer.*first is .*single.jsonl:1"):
        make_trainer(max_epochs=1).fit(recorder(), data())


def test_the_same_data_serve_one_loss_after_another(write, recorder, make_trainer):
    data = PreferenceDataModule(train=write(make_rows(8)), **SIZES)
    for needs_rejected in (False, True, False):
        make_trainer(max_epochs=1).fit(recorder(needs_rejected=needs_rejected), data)
        assert data.prepared["train"].counts()[2].any() == needs_rejected


def test_evaluation_and_prediction_see_each_pair_once(write, recorder, make_trainer):
    path, module = write(make_rows(7)), recorder()
    seen = []
    module.test_step = module.predict_step = module.validation_step = lambda batch, batch_idx: seen.append(batch)
    data = PreferenceDataModule(test=path, val=path, eval_batch_size=3)
    for name in ("validate", "test", "predict"):
        seen.clear()
        getattr(make_trainer(), name)(module, datamodule=data)
        assert [batch.row_ids.tolist() for batch in seen] == [[0, 1, 2], [3, 4, 5], [6]]
        tokens = sum(int(batch.chosen_len.sum()) for batch in seen)
        assert {(batch.step_pairs, batch.step_chosen_tokens) for batch in seen} == {(7, tokens)}
    for name, missing in (("validate", "val"), ("test", "test"), ("predict", "predict"), ("fit", "train")):
        with pytest.raises(UserError, match=rf"data.{missing}: '{name}' needs it, got null"):
            getattr(make_trainer(), name)(module, datamodule=PreferenceDataModule())


def test_tokenizer_that_is_not_the_policys(write, recorder, make_trainer, tmp_path):
    make("chatml").save_pretrained(tmp_path / "tok")
    data = PreferenceDataModule(train=write(make_rows(4)), tokenizer=str(tmp_path / "tok"), **SIZES)
    with pytest.raises(UserError, match=r"data.tokenizer: .* has tokens that the policy's tokenizer lacks"):
        make_trainer(max_epochs=1).fit(recorder(), data)


def on_rank(data, rank, ranks):
    """The datamodule as one of several processes sees it."""
    data.trainer = SimpleNamespace(
        distributed_sampler_kwargs={"num_replicas": ranks, "rank": rank},
        lightning_module=None,
        accumulate_grad_batches=1,
        max_epochs=1,
        max_steps=-1,
        limit_train_batches=1.0,
        fast_dev_run=False,
        state=SimpleNamespace(status="initializing", fn=None),
        strategy=SimpleNamespace(root_device=SimpleNamespace(type="cpu")),
    )
    data.tokenizer = make_tokenizer()
    data.setup("fit")
    return data


def test_ranks_share_the_same_steps(write):
    path = write(make_rows(22))
    options = {"train": path, "val": path, "global_batch_size": 8, "micro_batch_size": 2, "eval_batch_size": 2}
    alone = on_rank(PreferenceDataModule(**options), 0, 1)
    ranks = [on_rank(PreferenceDataModule(**options), rank, 2) for rank in range(2)]
    assert [data.trainer.accumulate_grad_batches for data in (alone, *ranks)] == [4, 2, 2]
    shares = [[batch for batch in data.train_dataloader()] for data in ranks]
    assert len(shares[0]) == len(shares[1]) == len(ranks[0].train_dataloader())

    def steps(batches, micro_batches):
        # 22 pairs: two full steps and one of six.
        return [
            sorted(row for b in batches[i : i + micro_batches] if not b.filler for row in b.row_ids.tolist())
            for i in range(0, len(batches), micro_batches)
        ]

    together = [batch for step in range(0, len(shares[0]), 2) for share in shares for batch in share[step : step + 2]]
    assert steps(together, 4) == steps(list(alone.train_dataloader()), 4)
    val = [batch for data in ranks for batch in data.val_dataloader()]
    assert sorted(row for b in val if not b.filler for row in b.row_ids.tolist()) == list(range(22))
    assert sum(batch.filler for batch in val) == 1
    with pytest.raises(UserError, match=r"8 pairs per step cannot be split evenly over 3 ranks x 2 pairs"):
        on_rank(PreferenceDataModule(**options), 0, 3)


@pytest.mark.distributed
@pytest.mark.parametrize("use_distributed_sampler", [True, False])
def test_lightning_leaves_the_plan_alone_on_two_ranks(write, recorder, make_trainer, tmp_path, use_distributed_sampler):
    module = recorder()
    where = tmp_path

    def write_seen():
        rows = [row for _, _, rows in module.seen for row in rows]
        (where / f"rank{module.global_rank}.json").write_text(json.dumps([module.trainer.world_size, rows]))

    module.on_train_end = write_seen
    trainer = make_trainer(
        max_epochs=1, devices=2, strategy="ddp_fork", use_distributed_sampler=use_distributed_sampler
    )
    trainer.fit(module, PreferenceDataModule(train=write(make_rows(16)), global_batch_size=8, max_length=64))
    results = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [world for world, _ in results] == [2, 2]
    assert [len(rows) for _, rows in results] == [8, 8]
    assert sorted(row for _, rows in results for row in rows) == list(range(16))


def test_command_line_forms_of_a_source(tmp_path):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(PreferenceDataModule, "data")
    parser.add_argument("--config", action="config")
    (tmp_path / "c.yaml").write_text(
        "data: {train: [{path: a.jsonl, weight: 2.0}, b.jsonl], val: {path: x/y, split: test}}"
    )

    def parse(*args):
        return parser.instantiate(parser.parse_args(list(args))).data.sources

    assert parse("--data.train=a.jsonl")["train"] == [SourceConfig("a.jsonl")]
    assert parse("--data.train.path=a", "--data.train.split=t")["train"] == [SourceConfig("a", split="t")]
    sources = parse(f"--config={tmp_path / 'c.yaml'}")
    assert sources["train"] == [SourceConfig("a.jsonl", weight=2.0), SourceConfig("b.jsonl")]
    assert sources["val"] == sources["predict"] == [SourceConfig("x/y", split="test")]


def test_ids_are_those_of_the_file_order_even_with_blank_lines(tmp_path):
    path = tmp_path / "gaps.jsonl"
    path.write_text("\n".join(["", json.dumps(row(0)), "", json.dumps(row(1)), json.dumps(row(2, chosen="")), ""]))
    data = ready(train=str(path), on_bad_row="drop")
    assert data.prepared["train"].report.rows == 3
    assert [data.prepared["train"].where(i) for i in range(2)] == [f"{path}:2", f"{path}:4"]
    with pytest.raises(UserError, match=r"gaps.jsonl:5: empty answer"):
        ready(train=str(path))
    assert np.array_equal(data.prepared["train"].counts()[1], [4, 4])


def test_columns_that_change_the_loss_are_counted(write):
    """In the user's data they may mean something else, as the difference of two scores."""
    rows = [row(0, margin=0.5), row(1, weight=2.0), row(2, weight=1.0, margin=0.0), row(3), row(4, chosen="no")]
    notes = ready(train=write(rows)).prepared["train"].report.notes
    assert notes == {
        "pairs whose loss the column weight scales": 1,
        "pairs with a target margin, from the column margin": 1,
    }
    assert not ready(train=write([row(0), row(1)], "plain.jsonl")).prepared["train"].report.notes


@pytest.mark.parametrize("margins", [True, False])
def test_target_margins_are_refused_if_the_loss_has_none(write, margins):
    """A loss that is no function of a margin would ignore the column without a word."""
    data = PreferenceDataModule(**SIZES, train=write([*make_rows(5), row(5, margin=0.5), row(6, margin=0.0)]))
    module = SimpleNamespace(data_needs=lambda: ModuleNeeds(make_tokenizer(), True, lambda: "packed", margins))
    data.trainer = SimpleNamespace(lightning_module=module)
    if margins:
        data._load("fit")
        return
    with pytest.raises(UserError, match=r"data.train: 2 of 7 rows have a target margin.*remove the column"):
        data._load("fit")
