"""A judge behind an OpenAI-compatible HTTP endpoint: retries, a cache on disk, and what it cost."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.judges.base import Judge, register_judge

if TYPE_CHECKING:
    from adadpo_lightning.evaluation.comparisons import Comparison

TEMPLATE = """Two assistants answered the same prompt. Decide which answer is the better one: more helpful, more \
correct and closer to what was asked. Neither the order nor the length of the answers is to count.

<prompt>
{prompt}
</prompt>

<answer_a>
{a}
</answer_a>

<answer_b>
{b}
</answer_b>

Explain in a few sentences, then end with [[A]], [[B]] or, for a tie, [[C]]."""
VERDICTS = {"A": 1.0, "B": 0.0, "C": 0.5}


class _NoRedirect(HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


@register_judge("openai_compatible")
@dataclass
class EndpointJudge(Judge):
    """A chat model behind ``<base_url>/chat/completions``.

    The key comes from an environment variable, goes into the request's header and nowhere else.

    Args:
        model: The endpoint's name of the model.
        base_url: Up to and with its version, such as ``http://localhost:8000/v1``.
        api_key_env: Environment variable that holds the key; an empty or missing one sends none.
        order: ``both`` asks twice with the answers exchanged and takes the mean, against the judge's bias to a side;
            ``model_first`` and ``baseline_first`` ask once.
        template: Text of the request with ``{prompt}``, ``{a}`` and ``{b}``; the verdict is the last ``[[A]]``,
            ``[[B]]`` or ``[[C]]`` of the reply. Null takes `TEMPLATE`.
        temperature: The judge's own sampling temperature.
        max_tokens: Tokens of the reply at most.
        retries: Further tries after a timeout, a lost connection, or status 408, 409, 429 or 5xx.
        backoff: Seconds before the first of them, doubled for each further one; a Retry-After header counts more.
        timeout: Seconds for a reply.
        parallel: Requests at one time.
        cache: JSON-lines file of replies by request, which are not asked for again; null keeps none.
        price_in: Price of a million prompt tokens, for the cost line.
        price_out: Price of a million reply tokens.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str = "OPENAI_API_KEY"
    order: Literal["both", "model_first", "baseline_first"] = "both"
    template: str | None = None
    temperature: float = 0.0
    max_tokens: int = 512
    retries: int = 5
    backoff: float = 1.0
    timeout: float = 120.0
    parallel: int = 4
    cache: str | None = None
    price_in: float | None = None
    price_out: float | None = None
    _replies: dict[str, dict[str, Any]] = field(init=False, repr=False, default_factory=dict)
    _lock: Lock = field(init=False, repr=False, default_factory=Lock)
    _used: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the options and read the cache."""
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.netloc:
            raise UserError("judge_options.base_url", f"expected an http or https address, got {self.base_url!r}")
        if self.order not in ("both", "model_first", "baseline_first"):
            raise UserError("judge_options.order", f"expected both, model_first or baseline_first, got {self.order!r}")
        if self.parallel < 1 or self.retries < 0:
            raise UserError("judge_options", f"expected parallel >= 1, retries >= 0: {self.parallel}, {self.retries}")
        missing = [part for part in ("{prompt}", "{a}", "{b}") if part not in (self.template or TEMPLATE)]
        if missing:
            raise UserError("judge_options.template", f"has no {', '.join(missing)}")
        self._used = {"requests": 0, "cached": 0, "retries": 0, "prompt_tokens": 0, "completion_tokens": 0}
        if self.cache is not None and Path(self.cache).exists():
            self._replies = _read_cache(Path(self.cache))

    def preferences(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """Ask for each comparison; a reply without a verdict makes None."""
        asked = [(pair, first) for pair in comparisons for first in self._orders()]
        with ThreadPoolExecutor(self.parallel) as pool:
            futures = [pool.submit(self._verdict, pair, model_first) for pair, model_first in asked]
            try:
                verdicts = [future.result() for future in futures]
            except BaseException:
                # One that cannot be mended by waiting stops the rest, which would cost money.
                pool.shutdown(cancel_futures=True)
                raise
        turns = len(self._orders())
        return [_mean(verdicts[i : i + turns]) for i in range(0, len(verdicts), turns)]

    def report(self) -> dict[str, Any]:
        """Requests, tokens and, where prices are given, the cost."""
        used: dict[str, Any] = dict(self._used)
        if self.price_in is not None and self.price_out is not None:
            spent = used["prompt_tokens"] * self.price_in + used["completion_tokens"] * self.price_out
            used["cost"] = spent / 1e6
        return {"judge_model": self.model, "usage": used}

    def _orders(self) -> tuple[bool, ...]:
        return {"both": (True, False), "model_first": (True,), "baseline_first": (False,)}[self.order]

    def _verdict(self, pair: Comparison, model_first: bool) -> float | None:
        a, b = (pair.model, pair.baseline) if model_first else (pair.baseline, pair.model)
        # Not str.format, and in one pass: the answers may hold braces of their own.
        parts = {"{prompt}": pair.model.prompt, "{a}": a.response, "{b}": b.response}
        text = re.sub(r"\{prompt\}|\{a\}|\{b\}", lambda found: parts[found[0]], self.template or TEMPLATE)
        found = re.findall(r"\[\[([ABC])\]\]", self._reply(text))
        if not found:
            return None
        first_wins = VERDICTS[found[-1]]
        return first_wins if model_first else 1 - first_wins

    def _reply(self, text: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        key = hashlib.sha256(json.dumps([self.base_url, body], sort_keys=True).encode()).hexdigest()
        with self._lock:
            if key in self._replies:
                self._used["cached"] += 1
                return str(self._replies[key]["reply"])
        answer = self._post(body)
        try:
            reply = str(answer["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(self.base_url, f"answered in no known form: {str(answer)[:200]}") from error
        usage = answer.get("usage") or {}
        with self._lock:
            self._used["requests"] += 1
            for name in ("prompt_tokens", "completion_tokens"):
                self._used[name] += int(usage.get(name) or 0)
            self._remember(key, reply)
        return reply

    def _remember(self, key: str, reply: str) -> None:
        self._replies[key] = {"key": key, "reply": reply}
        if self.cache is not None:
            with Path(self.cache).open("a", encoding="utf-8") as file:
                file.write(json.dumps(self._replies[key], ensure_ascii=False) + "\n")

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        for tries in range(self.retries + 1):
            try:
                return self._send(body)
            except HTTPError as error:
                if not (error.code in (408, 409, 429) or error.code >= 500):
                    raise UserError(
                        self.base_url, f"refused the request with status {error.code}: {self._detail(error)}"
                    ) from error
                problem, wait = f"status {error.code}", _seconds(error.headers.get("Retry-After"))
            except (URLError, HTTPException, TimeoutError, ConnectionError, json.JSONDecodeError) as error:
                problem, wait = str(error) or type(error).__name__, None
            if tries < self.retries:
                with self._lock:
                    self._used["retries"] += 1
                time.sleep(min(60.0, self.backoff * 2**tries) if wait is None else wait)
        raise UserError(
            self.base_url, f"gave no answer in {self.retries + 1} tries; the last: {problem}", "try again later"
        )

    def _detail(self, error: HTTPError) -> str:
        """What the endpoint said of the request, without the key that some repeat in it."""
        try:
            said = error.read(500).decode("utf-8", "replace").strip()
        except OSError:
            said = ""
        secret = os.environ.get(self.api_key_env)
        return (said.replace(secret, "***") if secret else said) or str(error.reason)

    def _send(self, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if secret := os.environ.get(self.api_key_env):
            headers["Authorization"] = f"Bearer {secret}"
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        request = Request(url, json.dumps(body).encode(), headers)  # noqa: S310  # http or https: checked at the start
        with build_opener(_NoRedirect).open(request, timeout=self.timeout) as reply:
            answer = json.load(reply)
        if not isinstance(answer, dict):
            raise UserError(self.base_url, f"expected a JSON object, got {type(answer).__name__}")
        return answer


def _read_cache(path: Path) -> dict[str, dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").split("\n")
    replies = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            replies[str(row["key"])] = {"key": row["key"], "reply": row["reply"]}
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                # A run that was killed while it wrote; the next line starts anew.
                path.write_text("".join(f"{whole}\n" for whole in lines[:-1]), encoding="utf-8")
                continue
            raise UserError(f"{path}:{number}", "is no line of a cache", "delete it or name another file") from error
    return replies


def _mean(verdicts: Sequence[float | None]) -> float | None:
    given = [verdict for verdict in verdicts if verdict is not None]
    # With one side unheard the mean would have the bias that asking twice takes away.
    return sum(given) / len(given) if len(given) == len(verdicts) else None


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:
        return None  # a date; the backoff serves
