"""A client of OpenAI-compatible chat endpoints: total deadlines, retries, and errors that never show the key."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Mapping
from itertools import groupby
from typing import Any
from urllib.parse import urlsplit

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from adadpo_lightning import log
from adadpo_lightning.errors import UserError

RETRIED = (408, 409, 429)
# Seconds between two attempts at most, whatever a Retry-After header says.
LONGEST_WAIT = 60.0
# Seconds from which a wait is reported.
REPORTED_WAIT = 5.0
LONGEST_REPLY = 1 << 24
SHOWN = 300
# Characters in a row that a message may share with the key.
FRAGMENT = 5


class _TryAgainError(Exception):
    """An attempt failed in a way that may pass.

    Args:
        problem: What went wrong, for the user.
        wait: Seconds that the endpoint asked to wait; None if it did not.
    """

    def __init__(self, problem: str, wait: float | None = None) -> None:
        super().__init__(problem)
        self.wait = wait


class ChatEndpoint:
    """``<base_url>/chat/completions``.

    The key is read from the environment, sent in the request's header and used nowhere else; redirects are not
    followed, because they would carry it to another host.

    Args:
        base_url: Address up to and including the version, such as ``http://localhost:8000/v1``.
        api_key_env: Environment variable with the key; if it is empty or not set, no key is sent.
        retries: Further attempts after a timeout, a lost connection, a malformed reply, or status 408, 409, 429 or 5xx.
        backoff: Seconds before the first of them, doubled for each further one; a Retry-After header takes precedence.
            No wait is longer than `LONGEST_WAIT`.
        timeout: Seconds for a whole request, from connecting to the last byte of the reply.

    Raises:
        UserError: If the address is not http or https, or the key cannot be sent in a header.
    """

    def __init__(self, base_url: str, api_key_env: str, *, retries: int, backoff: float, timeout: float) -> None:
        if not _is_address(base_url):
            raise UserError("judge_options.base_url", f"expected an http or https address, got {base_url!r}")
        self.base_url = base_url
        self.retried = 0
        self._secret = os.environ.get(api_key_env) or ""
        if not (self._secret.isascii() and self._secret.isprintable()) or " " in self._secret:
            raise UserError(
                api_key_env, "has characters that no key has, such as a space or a line break", "set it to the key"
            )
        self._retries, self._backoff, self._timeout = retries, backoff, timeout

    def connect(self) -> httpx2.AsyncClient:
        """A connection pool for `complete`; an asynchronous context manager."""
        headers = {"Content-Type": "application/json"}
        if self._secret:
            headers["Authorization"] = f"Bearer {self._secret}"
        return httpx2.AsyncClient(headers=headers, timeout=self._timeout, follow_redirects=False)

    async def complete(self, client: httpx2.AsyncClient, body: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Ask for one completion.

        Args:
            client: From `connect`.
            body: The request.

        Returns:
            Text of the reply, and its ``usage``.

        Raises:
            UserError: If the endpoint refuses the request, has an unknown form of reply, or all attempts fail.
        """
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(_TryAgainError),
            stop=stop_after_attempt(self._retries + 1),
            wait=self._wait,
            before_sleep=self._before_sleep,
            sleep=asyncio.sleep,
            reraise=True,
        )
        try:
            answer: Any = await attempts(self._attempt, client, json.dumps(body).encode())
        except _TryAgainError as error:
            raise UserError(
                self.base_url, f"gave no answer in {self._retries + 1} tries; the last: {error}", "try again later"
            ) from None
        return self._content(answer)

    async def _attempt(self, client: httpx2.AsyncClient, body: bytes) -> Any:
        try:
            # The client's own timeout is one of silence: a reply that drips would never end.
            status, headers, content = await asyncio.wait_for(self._send(client, body), self._timeout)
        except (asyncio.TimeoutError, httpx2.TimeoutException):
            raise _TryAgainError(f"no whole reply within {self._timeout:g} s") from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise _TryAgainError(self._shown(str(error) or type(error).__name__)) from None
        if status in RETRIED or status >= 500:
            raise _TryAgainError(f"status {status}", _seconds(headers.get("Retry-After")))
        if not 200 <= status < 300:
            said = self._shown(content.decode("utf-8", "replace").strip())
            raise UserError(self.base_url, f"refused the request with status {status}: {said}")
        try:
            return json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise _TryAgainError(f"the reply is not JSON: {self._shown(str(error))}") from None

    async def _send(self, client: httpx2.AsyncClient, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        async with client.stream("POST", url, content=body) as reply:
            content = b""
            async for chunk in reply.aiter_bytes():
                content += chunk
                if len(content) > LONGEST_REPLY:
                    raise UserError(self.base_url, f"sent a reply of more than {LONGEST_REPLY >> 20} MiB")
            return reply.status_code, reply.headers, content

    def _content(self, answer: Any) -> tuple[str, Mapping[str, Any]]:
        try:
            content, usage = answer["choices"][0]["message"]["content"], answer.get("usage")
            known = content is None or isinstance(content, str)
        except (KeyError, IndexError, TypeError, AttributeError):
            known = False
        if not known:
            raise UserError(
                self.base_url,
                f"sent a reply of unknown form: {self._shown(json.dumps(answer))}",
                "check that base_url is an OpenAI-compatible chat endpoint",
            )
        # A lone surrogate could not be written to the cache.
        text = (content or "").encode("utf-8", "replace").decode("utf-8")
        return text, usage if isinstance(usage, Mapping) else {}

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.wait if isinstance(error, _TryAgainError) else None
        return min(LONGEST_WAIT, self._backoff * 2.0 ** min(state.attempt_number - 1, 30) if asked is None else asked)

    def _before_sleep(self, state: RetryCallState) -> None:
        self.retried += 1
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.wait if isinstance(error, _TryAgainError) else None
        wait = self._wait(state)
        if max(wait, asked or 0) >= REPORTED_WAIT:
            more = f" (it asked for {asked:g} s)" if asked is not None and asked > wait else ""
            log.info(f"{self.base_url}: {error}; try {state.attempt_number + 1} in {wait:g} s{more}")

    def _shown(self, text: str) -> str:
        """What may be printed of a text from the endpoint: first without the key, then cut."""
        shown = redacted(text[: 10 * SHOWN], self._secret)
        return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # brackets that do not match, a port out of range
        return False


def redacted(text: str, secret: str) -> str:
    """A text without a secret and without parts of it: no more than `FRAGMENT` characters in a row are the secret's.

    Example:
        >>> redacted("bad key sk-12345678", "sk-12345678"), redacted("bad key sk-12345...", "sk-12345678")
        ('bad key ***', 'bad key ***...')
    """
    size = min(FRAGMENT + 1, len(secret))
    parts = {secret[i : i + size] for i in range(len(secret) - size + 1)} if size else set()
    hidden = [False] * len(text)
    for i in range(len(text) - size + 1):
        if text[i : i + size] in parts:
            hidden[i : i + size] = [True] * size
    runs = groupby(zip(text, hidden, strict=True), key=lambda pair: pair[1])
    return "".join("***" if is_hidden else "".join(c for c, _ in run) for is_hidden, run in runs)


def _seconds(text: str | None) -> float | None:
    """The seconds of a Retry-After header; None for a date, for which the backoff serves."""
    try:
        seconds = math.nan if text is None else float(text)
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
