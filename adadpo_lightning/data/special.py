"""Special tokens in the data's own text: kept as text, or read as tokens.

Text is kept as text by two noncharacters, which no text may hold. `BREAK` stands inside a special token that the data
spell out, and the text is split there before it is tokenised. `JOIN` marks an end of a text at which a special token
could come together with its neighbor in the rendered template; `SpecialText.settle` turns it into a `BREAK` where one
did, and removes it everywhere else, so that ordinary text is tokenised exactly as without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from adadpo_lightning.data.schema import BadRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SpecialTokens = Literal["auto", "text", "parse"]
BREAK = "\ufdd0"
JOIN = "\ufdd1"
# Names that templates compare a role with; a mark in one would hide the message from the template.
ROLES = frozenset({"system", "user", "assistant", "tool", "developer"})


class SpecialText:
    """Finds the spelled-out special tokens of a tokenizer in text.

    The unknown token is left out: it stands for ordinary text, and corpora spell it out as a word.

    Args:
        tokenizer: The policy's tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        special |= {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.all_ids = frozenset(special.values())
        names = [name for name in special if name]
        self._ids = self.all_ids - {tokenizer.unk_token_id}
        self._any = _one_of(names)
        self._found = _one_of(name for name in names if len(name) > 1)
        self._single = _one_of(name for name in names if len(name) == 1)
        ordinary = {tokenizer.unk_token, tokenizer.pad_token} - {tokenizer.eos_token, tokenizer.bos_token}
        self._telling = _one_of(name for name in names if name not in ordinary)
        self._end = re.compile(rf"(?:\s*(?:{self._telling.pattern}))+\s*\Z")
        self._starts = {name[:i] for name in names for i in range(1, len(name))}
        self._ends = {name[i:] for name in names for i in range(1, len(name))}
        self._longest = max(map(len, names), default=0)
        self._inside = "\n".join(name[1:-1] for name in names)
        # Names that the template itself looks up are structure, not text.
        template = tokenizer.chat_template or ""
        self._structure = frozenset(re.findall(r"\w+", str(template))) | ROLES

    def holds(self, text: str) -> bool:
        """Whether a text spells out a special token other than the unknown and the padding token."""
        return self._telling.search(text) is not None

    def ends(self, text: str) -> bool:
        """Whether a text ends with such a token, line breaks after it aside."""
        return self._end.search(text) is not None

    def without_end(self, text: str) -> str:
        """The text without the special tokens that it ends with, and without the blanks before and after them."""
        return self._end.sub("", text)

    def protect(self, value: Any) -> Any:
        """Mark text so that it is tokenised as text, at any depth of messages and tools, keys included.

        Raises:
            BadRow: If the text cannot be kept as text.
        """
        if isinstance(value, str):
            return self._protect_text(value)
        if isinstance(value, dict):
            return {self._protect_name(key): self._protect_item(key, item) for key, item in value.items()}
        return [self.protect(item) for item in value] if isinstance(value, list) else value

    def _protect_item(self, key: str, item: Any) -> Any:
        return self._protect_name(item) if key in ("role", "type") else self.protect(item)

    def _protect_name(self, name: Any) -> Any:
        return name if not isinstance(name, str) or name in self._structure else self._protect_text(name)

    def _protect_text(self, text: str) -> str:
        check_marks(text)
        if single := self._single.search(text):
            raise BadRow("special token in text", f"{single[0]!r} has one character only")
        body = text.strip()
        # At an end of the text, so that a template can still trim the blanks around it.
        ends = range(1, min(len(body), self._longest) + 1)
        inside = len(body) < self._longest and body in self._inside
        first = JOIN if inside or any(body[:i] in self._ends for i in ends) else ""
        last = JOIN if any(body[-i:] in self._starts for i in ends) else ""
        broken = self._found.sub(lambda found: found[0][0] + BREAK + found[0][1:], text)
        if first or last:
            start = len(broken) - len(broken.lstrip())
            end = len(broken.rstrip())
            broken = broken[:start] + first + broken[start:end] + last + broken[end:]
        return broken

    def settle(self, text: str) -> str:
        """Break the special tokens that came together at a `JOIN`, and remove the other joins."""
        # A template that prints a Python list escapes the marks.
        text = text.replace("\\ufdd0", BREAK).replace("\\ufdd1", JOIN)
        if JOIN not in text:
            return text
        pieces = text.split(JOIN)
        joins = set(accumulate(map(len, pieces[:-1])))
        text = "".join(pieces)
        while True:
            spans = (found.span() for found in self._found.finditer(text))
            inside = next((join for start, end in spans for join in sorted(joins) if start < join < end), None)
            if inside is None:
                return text
            text = text[:inside] + BREAK + text[inside:]
            joins = {join + (join > inside) for join in joins if join != inside}

    def check_ids(self, text: str, ids: Sequence[int]) -> None:
        """Compare the special tokens that came out with those that the settled text spells out.

        Raises:
            BadRow: If there are more, because the tokenizer's normalizer made one of ordinary text.
        """
        found = sum(map(self._ids.__contains__, ids))
        if found and found > len(self._any.findall(text)):
            raise BadRow("special token in text", "the tokenizer reads ordinary text as a special token")


def _one_of(names: Iterable[str]) -> re.Pattern[str]:
    """Any of the names, the longest first; nothing if there are none."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")


def check_marks(text: str) -> None:
    """Refuse the two noncharacters that this module uses.

    Raises:
        BadRow: If the text holds one.
    """
    if BREAK in text or JOIN in text:
        raise BadRow("noncharacter in text", "U+FDD0 and U+FDD1 are no characters, and are reserved here")


@dataclass(frozen=True)
class Reading:
    """How the text columns of one source are read.

    Args:
        prompts: Whether special tokens in prompts are read as tokens.
        answers: The same of chosen and rejected answers.
        messages: The same of conversations of several messages, system prompts and tools.
        rendered: Whether the prompts look as if a chat template had rendered them already.
    """

    prompts: bool = False
    answers: bool = False
    messages: bool = False
    rendered: bool = False


def decide(mode: SpecialTokens, rendered_prompts: Iterable[bool], ended_answers: Iterable[bool]) -> Reading:
    """Decide how the columns of a source are read.

    With ``text`` everything is text, and with ``parse`` special tokens are tokens everywhere. With ``auto`` the prompt
    column is parsed if at least half of its texts look rendered: they spell out a special token, or begin and end as
    the template begins a user's turn and asks for an answer. The answer columns are parsed if at least half of their
    texts end with a special token. Chosen and rejected are read alike, because a difference between them would be
    learned. Conversations of several messages, system prompts and tools stay text.

    Args:
        mode: ``auto``, ``text`` or ``parse``.
        rendered_prompts: Of a sample of the prompts that are one text each, whether each looks rendered.
        ended_answers: Of a sample of the answers that are text, whether each ends with a special token.

    Returns:
        The reading. `Reading.rendered` says what the prompts look like, whatever the mode.

    Example:
        >>> decide("auto", [True, True, False], [False, False])
        Reading(prompts=True, answers=False, messages=False, rendered=True)
    """
    rendered, ended = _at_least_half(rendered_prompts), _at_least_half(ended_answers)
    if mode == "auto":
        return Reading(prompts=rendered, answers=ended, rendered=rendered)
    parse = mode == "parse"
    return Reading(parse, parse, parse, rendered)


def _at_least_half(found: Iterable[bool]) -> bool:
    values = list(found)
    return 2 * sum(values) >= len(values) > 0
