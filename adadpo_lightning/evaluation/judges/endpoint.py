"""A judge behind an OpenAI-compatible HTTP endpoint, with a cache on disk and an account of the cost."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adadpo_lightning import log
from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.judges.base import Judge, register_judge
from adadpo_lightning.runs.output import check_output

if TYPE_CHECKING:
    import httpx2

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
SHOWN = 200  # characters of a reply in a warning
VERDICTS = {"A": 1.0, "B": 0.0, "C": 0.5}


@register_judge("openai_compatible")
@dataclass
class EndpointJudge(Judge):
    """A chat model behind ``<base_url>/chat/completions``.

    The key is read from an environment variable, sent in the request's header and used nowhere else.

    Args:
        model: The endpoint's name of the model.
        base_url: Address up to and including the version, such as ``http://localhost:8000/v1``.
        api_key_env: Environment variable with the key; if it is empty or not set, no key is sent.
        order: ``both`` asks twice with the answers exchanged and takes the mean, against the judge's position bias;
            ``model_first`` and ``baseline_first`` ask once.
        template: Text of the request with ``{prompt}``, ``{a}`` and ``{b}``; the verdict is the last ``[[A]]``,
            ``[[B]]`` or ``[[C]]`` of the reply. Null uses `TEMPLATE`.
        temperature: Sampling temperature of the judge.
        max_tokens: Maximum number of tokens of a reply.
        retries: Further attempts after a timeout, a lost connection, a malformed reply, or status 408, 409, 429 or 5xx.
        backoff: Seconds before the first of them, doubled for each further one; a Retry-After header takes precedence.
            No wait is longer than 60 seconds.
        timeout: Seconds for a whole request, from connecting to the last byte of the reply.
        parallel: Number of concurrent requests.
        cache: JSON-lines file of replies by request, which are not requested again; null disables it.
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
    _used: dict[str, int] = field(init=False, repr=False)
    _last_reply: str = field(init=False, repr=False, default="")
    _endpoint: Any = field(init=False, repr=False)  # a `ChatEndpoint`; as a type it would have to be imported here

    BESIDE = ("api_key_env", "retries", "backoff", "timeout", "parallel", "cache", "price_in", "price_out")

    @property
    def by_order(self) -> bool:
        """False for ``order: both``, which asks in both orders itself."""
        return self.order != "both"

    def __post_init__(self) -> None:
        """Check the options and read the cache."""
        from adadpo_lightning.evaluation.chat import ChatEndpoint

        self._endpoint = ChatEndpoint(
            self.base_url, self.api_key_env, retries=self.retries, backoff=self.backoff, timeout=self.timeout
        )
        if self.order not in ("both", "model_first", "baseline_first"):
            raise UserError("judge_options.order", f"expected both, model_first or baseline_first, got {self.order!r}")
        if self.parallel < 1 or self.retries < 0:
            raise UserError("judge_options", f"expected parallel >= 1, retries >= 0: {self.parallel}, {self.retries}")
        if not (self.backoff >= 0 and self.timeout > 0):
            raise UserError("judge_options", f"expected backoff >= 0, timeout > 0: {self.backoff}, {self.timeout}")
        missing = [part for part in ("{prompt}", "{a}", "{b}") if part not in (self.template or TEMPLATE)]
        if missing:
            raise UserError("judge_options.template", f"has no {', '.join(missing)}")
        self._used = {"requests": 0, "cached": 0, "prompt_tokens": 0, "completion_tokens": 0}
        if self.cache is not None:
            check_output(self.cache, "judge_options.cache")
            self._replies = _read_cache(Path(self.cache)) if Path(self.cache).exists() else {}

    def preferences(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """Ask for each comparison; a reply without a verdict is None.

        Raises:
            UserError: If the endpoint refuses a request or does not answer; the other requests are cancelled.
        """
        verdicts = _run(self._ask_all(comparisons))
        if verdicts and all(verdict is None for verdict in verdicts):
            log.warn(
                f"none of {len(verdicts)} replies of {self.model!r} has a verdict [[A]], [[B]] or [[C]]; one of them "
                f"ends with {self._last_reply[-SHOWN:]!r}. Raise max_tokens if it was cut off; otherwise choose a "
                "model that follows the template, or change the template"
            )
        turns = len(self._orders())
        return [_mean(verdicts[i : i + turns]) for i in range(0, len(verdicts), turns)]

    def report(self) -> dict[str, Any]:
        """Requests, tokens and, where prices are given, the cost."""
        used: dict[str, Any] = {**self._used, "retries": self._endpoint.retried}
        if self.price_in is not None and self.price_out is not None:
            spent = used["prompt_tokens"] * self.price_in + used["completion_tokens"] * self.price_out
            used["cost"] = spent / 1e6
        return {"judge_model": self.model, "usage": used}

    def _orders(self) -> tuple[bool, ...]:
        return {"both": (True, False), "model_first": (True,), "baseline_first": (False,)}[self.order]

    async def _ask_all(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        places = asyncio.Semaphore(self.parallel)
        async with self._endpoint.connect() as client:

            async def ask(pair: Comparison, model_first: bool) -> float | None:
                async with places:
                    return await self._verdict(client, pair, model_first)

            asked = [asyncio.ensure_future(ask(pair, first)) for pair in comparisons for first in self._orders()]
            try:
                return await asyncio.gather(*asked)
            finally:
                # After an error the others would only cost money.
                for task in asked:
                    task.cancel()
                await asyncio.gather(*asked, return_exceptions=True)

    async def _verdict(self, client: httpx2.AsyncClient, pair: Comparison, model_first: bool) -> float | None:
        a, b = (pair.model, pair.baseline) if model_first else (pair.baseline, pair.model)
        # Not str.format, and in one pass: the answers may contain braces.
        parts = {"{prompt}": pair.model.prompt, "{a}": a.response, "{b}": b.response}
        text = re.sub(r"\{prompt\}|\{a\}|\{b\}", lambda found: parts[found[0]], self.template or TEMPLATE)
        self._last_reply = await self._reply(client, text)
        found = re.findall(r"\[\[([ABC])\]\]", self._last_reply)
        if not found:
            return None
        first_wins = VERDICTS[found[-1]]
        return first_wins if model_first else 1 - first_wins

    async def _reply(self, client: httpx2.AsyncClient, text: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        key = hashlib.sha256(json.dumps([self.base_url, body], sort_keys=True).encode()).hexdigest()
        if key in self._replies:
            self._used["cached"] += 1
            return str(self._replies[key]["reply"])
        answer: tuple[str, Mapping[str, Any]] = await self._endpoint.complete(client, body)
        reply, usage = answer
        self._used["requests"] += 1
        for name in ("prompt_tokens", "completion_tokens"):
            self._used[name] += _count(usage, name)
        self._remember(key, reply)
        return reply

    def _remember(self, key: str, reply: str) -> None:
        self._replies[key] = {"key": key, "reply": reply}
        if self.cache is not None:
            Path(self.cache).parent.mkdir(parents=True, exist_ok=True)
            with Path(self.cache).open("a", encoding="utf-8") as file:
                file.write(json.dumps(self._replies[key], ensure_ascii=False) + "\n")


def _run(asked: Coroutine[Any, Any, list[float | None]]) -> list[float | None]:
    """Run a coroutine to its end, also in a notebook, whose thread already runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(asked)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, asked).result()


def _read_cache(path: Path) -> dict[str, dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("judge_options.cache", f"{path} cannot be read: {error}", "choose another file") from error
    replies = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            replies[str(row["key"])] = {"key": row["key"], "reply": row["reply"]}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines):
                # A killed run leaves an incomplete last line.
                path.write_text("".join(f"{whole}\n" for whole in lines[:-1]), encoding="utf-8")
                continue
            raise UserError(
                f"{path}:{number}", "is not a line of a judge's cache", "delete the file or choose another"
            ) from error
    return replies


def _mean(verdicts: Sequence[float | None]) -> float | None:
    given = [verdict for verdict in verdicts if verdict is not None]
    # With only one order the mean would have the bias that asking twice removes.
    return sum(given) / len(given) if len(given) == len(verdicts) else None


def _count(usage: Mapping[str, Any], name: str) -> int:
    """Tokens that a reply reports; 0 where it does not."""
    value = usage.get(name)
    return value if isinstance(value, int) else 0
