"""Renders chat templates with limits on time and memory, because they may come from untrusted model directories."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from adadpo_lightning.compat import render_with_marks
from adadpo_lightning.data.schema import RESERVED, BadRow
from adadpo_lightning.data.turns import common_prefix_length
from adadpo_lightning.errors import UserError

if TYPE_CHECKING:
    from types import FrameType

    from transformers import PreTrainedTokenizerBase

    from adadpo_lightning.data.schema import Message

# From messages, and whether to end with the beginning of the assistant's turn, to text.
Write = Callable[[list["Message"], bool], str]
RENDER_SECONDS = 10.0
RENDER_CHARACTERS = 20_000_000
# Memory that the first rendering may take beyond what the process has.
RENDER_BYTES = 1 << 30
# What a template can raise, beside Jinja's own errors, when it is given a conversation that it was not written for.
TEMPLATE_ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    SyntaxError,  # of the Python that Jinja makes of it: ``{% break %}`` outside of a loop
)


# Where messages hold what the assistant writes: its answer, and its thoughts by the names that templates use.
TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "thinking")


class RenderTimeout(Exception):
    """A template took longer than `RENDER_SECONDS`."""


def check_template_kwargs(kwargs: Mapping[str, Any] | None) -> None:
    """Reject names that are not variables of a template.

    Raises:
        UserError: For a reserved name.
    """
    taken = sorted(RESERVED & set(kwargs or ()))
    if taken:
        raise UserError("data.chat_template_kwargs", f"{taken[0]!r} is set by this package", "leave it out")


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    tools: list[Any] | None,
    kwargs: Mapping[str, Any],
    *,
    add_generation_prompt: bool,
) -> str:
    """Render a conversation.

    Args:
        tokenizer: Holds the template.
        messages: The conversation.
        tools: Tool descriptions.
        kwargs: Variables of the template, such as ``enable_thinking``.
        add_generation_prompt: End with the beginning of the assistant's turn.

    Raises:
        BadRow: If the template refuses the conversation, or goes beyond the limits.
    """
    with limits():
        text = str(
            tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False, **kwargs
            )
        )
    return _bearable(text)


def writer(
    tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None, kwargs: Mapping[str, Any], quick: Write | None
) -> Write:
    """Renders conversations with the same tools and variables; messages of only text by `quick`.

    Args:
        tokenizer: Holds the template.
        tools: As in `render`.
        kwargs: As in `render`.
        quick: `compat.template_renderer` of the same variables. It is called without `limits`.

    Returns:
        From messages, and whether to end with the beginning of the assistant's turn, their text.
    """

    def write(messages: list[Message], asks: bool) -> str:
        if quick is not None and tools is None and _only_text(messages):
            return _bearable(quick(messages, asks))
        return render(tokenizer, messages, tools, kwargs, add_generation_prompt=asks)

    return write


def _only_text(messages: list[Message]) -> bool:
    """Whether there are messages, and each has nothing but ``role`` and ``content``, both text."""
    return bool(messages) and all(
        len(message) == 2 and type(message.get("role")) is str and type(message.get("content")) is str
        for message in messages
    )


def marks_answers(tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None) -> bool:
    """Whether the template marks what the assistant writes with ``{% generation %}``."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", tokenizer.get_chat_template(None, tools)) is not None


def reads_name(tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None, name: str) -> bool:
    """Whether the template reads a variable or a key, such as ``tool_calls``; what it does not read is not rendered."""
    return re.search(rf"\b{name}\b", tokenizer.get_chat_template(None, tools)) is not None


def render_marked(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: list[Any] | None, kwargs: Mapping[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation whose template `marks_answers`; arguments as `render`.

    Returns:
        The text, and begin and end of each marked part in characters.

    Raises:
        BadRow: As `render`.
    """
    with limits():
        text, marks = render_with_marks(tokenizer, messages, tools, kwargs)
    return _bearable(text), marks


class Written(NamedTuple):
    """How a template wrote an answer.

    Args:
        changed: Whether it left out part of the assistant's text, or wrote it differently, whitespace apart.
        prefixed: Whether it wrote text of its own between the prompt and the answer's text, such as an empty thought.
    """

    changed: bool
    prefixed: bool


def compare_answer(prompt: str, whole: str, answer: Sequence[Message]) -> Written:
    """Compare what a template wrote of an answer with what it was given.

    Args:
        prompt: The rendered prompt, with the beginning of the assistant's turn.
        whole: The rendered conversation.
        answer: The messages of the answer.

    Example:
        >>> turn = {"role": "assistant", "content": "<think>Hm.</think>No."}
        >>> compare_answer("Why? A: ", "Why? A: No.", [turn])
        Written(changed=True, prefixed=False)
    """
    shared = len(prompt) if whole.startswith(prompt) else common_prefix_length([prompt, whole])
    changed, starts = False, []
    for number, message in enumerate(answer):
        fields = [message.get(name) for name in TEXT_FIELDS] if message["role"] == "assistant" else []
        for text in (value.strip() for value in fields if isinstance(value, str)):
            # The beginning of an answer may be in the prompt already, where that opens a thought.
            after = max(0, shared - len(text))
            start = whole.find(text, after)
            changed |= start < 0 and _without_blanks(text) not in _without_blanks(whole[after:])
            if number == 0 and text:
                starts.append(start)
    first = min(starts, default=-1)
    return Written(changed, prefixed=bool(whole[shared : max(first, shared)].strip()))


def _without_blanks(text: str) -> str:
    return "".join(text.split())


def _bearable(text: str) -> str:
    if len(text) > RENDER_CHARACTERS:
        raise BadRow("chat template refused", f"it wrote {len(text):,} characters, more than {RENDER_CHARACTERS:,}")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRow("chat template refused", "it wrote half of a surrogate pair") from error
    return text


@contextmanager
def limits() -> Iterator[None]:
    """Limit the time of what is rendered, and turn the errors of a template into errors of the row.

    Inside another one, the time of that one counts.

    Raises:
        BadRow: If the template fails, or takes too long.
    """
    from jinja2 import TemplateError

    try:
        with time_limit(RENDER_SECONDS):
            yield
    except BadRow:
        raise
    except RenderTimeout as error:
        raise BadRow("chat template refused", f"it did not end within {RENDER_SECONDS:g} s") from error
    except TemplateError as error:
        raise BadRow("chat template refused", str(error).partition("\n")[0]) from error
    except TEMPLATE_ERRORS as error:
        raise BadRow("chat template refused", f"{type(error).__name__}: {str(error)[:200]}") from error


def probe_template(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> None:
    """Render one short conversation under a memory limit, to detect a template that exceeds it.

    Raises:
        UserError: If the template goes beyond a limit. One that refuses this conversation may accept others.
    """
    try:
        with memory_limit(RENDER_BYTES):
            render(tokenizer, [{"role": "user", "content": "a"}], None, kwargs, add_generation_prompt=True)
    except BadRow as error:
        beyond = ("did not end", "characters, more than", "MemoryError", "RecursionError", "OverflowError", "Range too")
        if any(limit in str(error) for limit in beyond):
            raise UserError("data.chat_template", str(error), "correct the template") from error


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `RenderTimeout` in the block after some time.

    It works in the main thread of a process, on systems that have interval timers, and where no other timer runs;
    elsewhere there is no limit.
    """
    usable = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if not usable or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise RenderTimeout

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)


@contextmanager
def memory_limit(extra: int) -> Iterator[None]:
    """Raise MemoryError in the block if the process would grow by more than `extra` bytes; Linux only."""
    try:
        import resource
        from pathlib import Path

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, hard))
    except (ImportError, OSError, ValueError):  # another system, or a lower limit is set already
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
