"""The judge behind HTTP, against a server that the tests start."""

import asyncio
import json
import logging
import time

import pytest

from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.comparisons import Comparison
from adadpo_lightning.evaluation.judges.endpoint import EndpointJudge
from adadpo_lightning.generation.responses import Response
from tests.support import endpoint
from tests.support.endpoint import DRIP

SECRET = "sk-very-secret"
ANSWERS = [("good {b} answer", "bad")] * 4 + [("bad", "good")] * 2
COMPARISONS = [
    Comparison(Response(f"prompt {i}", mine), Response(f"prompt {i}", base)) for i, (mine, base) in enumerate(ANSWERS)
]


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    yield endpoint.start
    endpoint.stop_all()


def judge(server, **options):
    return EndpointJudge(model="tiny-judge", base_url=server.url, backoff=0.001, **options)


def test_both_orders_are_asked_and_the_cost_is_told(serve):
    server = serve()
    asked = judge(server, price_in=2.0, price_out=10.0)
    assert asked.preferences(COMPARISONS) == [1.0] * 4 + [0.0] * 2
    assert len(server.requests) == 12
    path, authorization, body = server.requests[0]
    assert (path, authorization, body["model"]) == ("/v1/chat/completions", f"Bearer {SECRET}", "tiny-judge")
    usage = asked.report()["usage"]
    assert usage == {
        "requests": 12, "cached": 0, "retries": 0, "prompt_tokens": 1200, "completion_tokens": 120,
        "cost": pytest.approx(1200 * 2e-6 + 120 * 10e-6),
    }  # fmt: skip
    assert SECRET not in repr(asked)
    assert SECRET not in json.dumps(asked.report())


def test_answers_stand_in_the_request_as_they_are(serve):
    server = serve()
    judge(server, order="model_first", parallel=1).preferences(COMPARISONS[:1])
    (text,) = (message["content"] for message in server.requests[0][2]["messages"])
    assert "<answer_a>\ngood {b} answer\n</answer_a>" in text
    assert "<answer_b>\nbad\n</answer_b>" in text


def test_a_judge_that_likes_the_first_answer_is_undecided(serve):
    server = serve()
    server.verdict = "[[A]]"
    assert judge(server).preferences(COMPARISONS) == [0.5] * 6
    assert judge(server, order="model_first").preferences(COMPARISONS[:1]) == [1.0]
    assert judge(server, order="baseline_first").preferences(COMPARISONS[:1]) == [0.0]


def test_no_verdict_is_none_and_the_reply_is_shown(serve, caplog):
    server = serve()
    server.verdict = "A is better"
    server.script = [(200, {}, json.dumps({"choices": [{"message": {"content": "[A]"}}]}))]
    with caplog.at_level(logging.WARNING, logger="adadpo_lightning"):
        assert judge(server, order="model_first").preferences(COMPARISONS[:1]) == [None]
    assert "none of 1 replies of 'tiny-judge' has a verdict" in caplog.text


def test_the_cache_saves_requests_and_survives_a_torn_line(serve, tmp_path):
    server, cache = serve(), tmp_path / "cache.jsonl"
    first = judge(server, cache=str(cache)).preferences(COMPARISONS)
    again = judge(server, cache=str(cache))
    assert again.preferences(COMPARISONS) == first
    assert len(server.requests) == 12
    assert again.report()["usage"]["cached"] == 12
    assert SECRET not in cache.read_text()
    cache.write_text(cache.read_text()[:-9])  # killed while it wrote
    assert judge(server, cache=str(cache)).preferences(COMPARISONS) == first
    assert len(server.requests) == 13
    assert judge(server, cache=str(cache), temperature=1.0).preferences(COMPARISONS) == first
    assert len(server.requests) == 25  # another request, another answer


def test_it_tries_again_when_waiting_helps(serve):
    broken = [(429, {"Retry-After": "0"}, ""), (503, {}, "busy"), (200, {}, "no json"), (500, {}, "")]
    server = serve(broken)
    asked = judge(server, parallel=1)
    assert asked.preferences(COMPARISONS) == [1.0] * 4 + [0.0] * 2
    assert asked.report()["usage"]["retries"] == 4
    server = serve([(503, {}, "busy")] * 3)
    with pytest.raises(UserError, match="gave no answer in 3 tries; the last: status 503"):
        judge(server, parallel=1, retries=2).preferences(COMPARISONS[:1])


def test_it_gives_up_at_once_when_waiting_does_not_help(serve):
    server = serve([(401, {}, f"bad key {SECRET}")] * 99)
    with pytest.raises(UserError, match="refused the request with status 401: bad key \\*\\*\\*") as failure:
        judge(server, parallel=1).preferences(COMPARISONS)
    assert SECRET not in str(failure.value)
    assert len(server.requests) < 4


def test_no_part_of_the_key_is_printed(serve):
    """Repeated whole, cut off by the endpoint, cut off by this program, and in replies of an unknown form."""
    whole, cut, long = (f"bad key {text}" for text in (SECRET, SECRET[:-1], "x" * 280 + SECRET))
    bodies = [(401, whole), (403, cut), (400, long), (404, f"x{SECRET}" * 300), (422, f"{SECRET[3:9]}...{SECRET[-6:]}")]
    bodies += [(200, json.dumps({"error": whole})), (200, json.dumps({"choices": [{"message": {"content": [cut]}}]}))]
    for status, body in bodies:
        with pytest.raises(UserError) as failure:
            judge(serve([(status, {}, body)]), parallel=1).preferences(COMPARISONS[:1])
        said = str(failure.value)
        assert "***" in said
        assert not [i for i in range(len(SECRET) - 5) if SECRET[i : i + 6] in said]
        assert len(said) < 500


def test_a_key_that_no_header_can_carry_is_refused_unseen(monkeypatch):
    for key in (f"{SECRET}\n", f"{SECRET} x", f"{SECRET}\u20ac"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(UserError, match="OPENAI_API_KEY: has characters that no key has") as failure:
            EndpointJudge(model="m")
        assert "secret" not in str(failure.value)


def test_a_long_retry_after_is_capped_and_said(serve, monkeypatch, caplog):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr("asyncio.sleep", sleep)
    script = [
        (429, {"Retry-After": "100000"}, ""),
        (503, {"Retry-After": "nan"}, ""),
        (503, {"Retry-After": "inf"}, ""),
    ]
    with caplog.at_level("INFO", "adadpo_lightning"):
        assert judge(serve(script), order="model_first").preferences(COMPARISONS[:1]) == [1.0]
    assert waits == [60.0, pytest.approx(0.002), pytest.approx(0.004)]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.endswith("status 429; try 2 in 60 s (it asked for 100000 s)")


def test_a_reply_that_drips_ends_at_the_timeout(serve):
    began = time.monotonic()
    with pytest.raises(UserError, match=r"gave no answer in 2 tries; the last: no whole reply within 0\.3 s"):
        judge(serve([(200, {}, DRIP)] * 2), timeout=0.3, retries=1, order="model_first").preferences(COMPARISONS[:1])
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("body", [b"\xff\xfe", b"[" * 100_000, b'{"a": 1', b""])
def test_malformed_replies_are_errors_that_name_the_endpoint(serve, body):
    server = serve([(200, {}, body)] * 2)
    with pytest.raises(UserError, match=f"{server.url}: gave no answer in 1 tries; the last: the reply is not JSON"):
        judge(server, retries=0, order="model_first").preferences(COMPARISONS[:1])


@pytest.mark.parametrize("body", ["[]", "null", "5", '{"choices": []}', '{"choices": [{"message": {"content": {}}}]}'])
def test_replies_of_an_unknown_form_are_errors_that_name_the_endpoint(serve, body):
    server = serve([(200, {}, body)])
    with pytest.raises(UserError, match=f"{server.url}: sent a reply of unknown form: "):
        judge(server, order="model_first").preferences(COMPARISONS[:1])
    assert len(server.requests) == 1


def test_odd_parts_of_a_reply_do_no_harm(serve, tmp_path):
    replies = ['{"choices": [{"message": {"content": "\\ud800 [[A]]"}}], "usage": {"prompt_tokens": "many"}}']
    replies.append('{"choices": [{"message": {"content": null}}], "usage": 5}')
    server = serve([(200, {}, reply) for reply in replies])
    asked = judge(server, order="model_first", parallel=1, cache=str(tmp_path / "cache.jsonl"))
    assert asked.preferences(COMPARISONS[:2]) == [1.0, None]
    assert asked.report()["usage"]["prompt_tokens"] == 0


def test_it_can_be_asked_from_a_running_event_loop(serve):
    server = serve()

    async def cell():
        return judge(server).preferences(COMPARISONS[:1])

    assert asyncio.run(cell()) == [1.0]


def test_the_key_does_not_follow_a_redirect(serve):
    other = serve()
    server = serve([(302, {"Location": f"{other.url}/chat/completions"}, "")])
    with pytest.raises(UserError, match="status 302"):
        judge(server, parallel=1).preferences(COMPARISONS[:1])
    assert not other.requests


def test_no_server(serve):
    server = serve()
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="gave no answer in 2 tries"):
        EndpointJudge(model="m", base_url=url, retries=1, backoff=0.001).preferences(COMPARISONS[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "file:///etc/passwd"}, "expected an http or https address"),
        ({"order": "random"}, "expected both, model_first or baseline_first"),
        ({"template": "{prompt} {a}"}, "has no {b}"),
        ({"parallel": 0}, "expected parallel >= 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        EndpointJudge(model="m", **options)
