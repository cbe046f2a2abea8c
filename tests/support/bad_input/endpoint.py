"""Bad answers of a judge's endpoint, and bad options of that judge."""

import json

from tests.support.bad_input.case import file, folder_of, text
from tests.support.bad_input.evaluation import evaluated
from tests.support.endpoint import DRIP, start


def asked(name, options, names, says, script=()):
    """`evaluate` by an endpoint, with some options changed."""

    def given(folder, model):
        made = {key: value(folder, model) if callable(value) else value for key, value in options.items()}
        base = {"model": "m", "backoff": 0.001, "retries": 1, "order": "model_first", "parallel": 1}
        return json.dumps({**base, "base_url": start(script).url, **made}, default=str)

    return evaluated(f"endpoint {name}", {"judge": "openai_compatible", "judge_options": given}, names, says)


def reply(name, body, names, says, status=200, **headers):
    return asked(name, {}, names, says, [(status, headers, body)] * 9)


def content(value):
    return json.dumps({"choices": [{"message": {"content": value}}]})


CASES = [
    reply("says nothing", "", "http://127.0.0.1:", "gave no answer in 2 tries"),
    reply("is not UTF-8", b"\xff\xfe", "http://127.0.0.1:", "gave no answer in 2 tries"),
    reply("is HTML", "<html>[/inst]</html>", "http://127.0.0.1:", "gave no answer in 2 tries"),
    reply("is nested deep", "[" * 200_000, "http://127.0.0.1:", "gave no answer in 2 tries"),
    reply("is cut", '{"choices": [', "http://127.0.0.1:", "gave no answer in 2 tries"),
    reply("sends a list", "[]", "http://127.0.0.1:", "sent a reply of unknown form: []"),
    reply("sends null", "null", "http://127.0.0.1:", "sent a reply of unknown form: null"),
    reply(
        "sends no choices",
        '{"choices": []}',
        "http://127.0.0.1:",
        'sent a reply of unknown form: {"choices": []}',
    ),
    reply(
        "sends choices of text",
        '{"choices": "x"}',
        "http://127.0.0.1:",
        'sent a reply of unknown form: {"choices": "x"}',
    ),
    reply(
        "sends a null message",
        '{"choices": [{"message": null}]}',
        "http://127.0.0.1:",
        'sent a reply of unknown form: {"choices":',
    ),
    reply(
        "sends content of a list",
        content([{"text": "[[A]]"}]),
        "http://127.0.0.1:",
        'sent a reply of unknown form: {"choices":',
    ),
    reply(
        "sends content of a number",
        content(5),
        "http://127.0.0.1:",
        'sent a reply of unknown form: {"choices":',
    ),
    reply("never decides", content("I cannot say [/inst]"), "judge", "gave no verdict on any of 4 comparisons"),
    reply("sends null as content", content(None), "judge", "gave no verdict on any of 4 comparisons"),
    reply(
        "refuses",
        '{"error": "[/inst] no such model"}',
        "http://127.0.0.1:",
        'refused the request with status 404: {"error":',
        404,
    ),
    reply("forbids", "no", "http://127.0.0.1:", "refused the request with status 401: no", 401),
    reply("fails", "no", "http://127.0.0.1:", "gave no answer in 2 tries", 500),
    reply("is busy", "no", "http://127.0.0.1:", "gave no answer in 2 tries", 429, **{"Retry-After": "0"}),
    reply(
        "leads elsewhere",
        "",
        "http://127.0.0.1:",
        "refused the request with status 302",
        302,
        Location="http://127.0.0.1:9/v1",
    ),
    reply(
        "says that it is compressed",
        "no",
        "http://127.0.0.1:",
        "gave no answer in 2 tries",
        **{"Content-Encoding": "gzip"},
    ),
    reply(
        "hides its length",
        content("[[A]]"),
        "http://127.0.0.1:",
        "gave no answer in 2 tries",
        **{"Content-Length": "99999"},
    ),
    asked("drips", {"timeout": 0.2}, "http://127.0.0.1:", "gave no answer in 2 tries", [(200, {}, DRIP)] * 9),
    asked(
        "that is not there", {"base_url": "http://127.0.0.1:9/v1"}, "http://127.0.0.1:9/v1", "gave no answer in 2 tries"
    ),
    asked(
        "without a scheme",
        {"base_url": "localhost:8000"},
        "judge_options.base_url",
        "expected an http or https address, got",
    ),
    asked(
        "of a file",
        {"base_url": "file:///etc/passwd"},
        "judge_options.base_url",
        "expected an http or https address, got",
    ),
    asked(
        "with a port out of range",
        {"base_url": "http://localhost:99999/v1"},
        "judge_options.base_url",
        "expected an http or https address, got",
    ),
    asked(
        "with a broken address",
        {"base_url": "http://[::1/v1"},
        "judge_options.base_url",
        "expected an http or https address, got",
    ),
    asked("without a model", {"model": None}, "judge_options", "expected str, got None"),
    asked("with no time", {"timeout": 0}, "judge_options", "expected backoff >= 0, timeout > 0: 0.001, 0"),
    asked("with time of text", {"timeout": "long"}, "judge_options", "timeout"),
    asked("with a negative wait", {"backoff": -1}, "judge_options", "expected backoff >= 0, timeout > 0: -1, 120.0"),
    asked("with negative retries", {"retries": -1}, "judge_options", "expected parallel >= 1, retries >= 0: 1, -1"),
    asked("with no requests at a time", {"parallel": 0}, "judge_options", "expected parallel >= 1, retries >= 0: 0, 1"),
    asked(
        "with an unknown order",
        {"order": "random"},
        "judge_options.order",
        "expected both, model_first or baseline_first,",
    ),
    asked("with a template without answers", {"template": "{prompt}"}, "judge_options.template", "has no {a}, {b}"),
    asked("with a template of a number", {"template": 5}, "judge_options", "template"),
    asked("with a price of text", {"price_in": "x", "price_out": 1}, "judge_options", "price_in"),
    asked(
        "with a cache of nonsense",
        {"cache": file("c.jsonl", "x\n{}\n")},
        "c.jsonl:1",
        "is not a line of a judge's cache",
    ),
    asked(
        "with a cache of lists",
        {"cache": file("c.jsonl", "[1]\n[2]\n")},
        "c.jsonl:1",
        "is not a line of a judge's cache",
    ),
    asked(
        "with a cache of Latin-1",
        {"cache": text(b"\xe9", "c.jsonl")},
        "judge_options.cache",
        "cannot be read: 'utf-8' codec can't decode byte",
    ),
    asked(
        "with a cache that is a directory", {"cache": folder_of(a="b")}, "judge_options.cache", "expected a file, got"
    ),
]
