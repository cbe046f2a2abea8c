"""Special tokens in the text of the data: kept as text, or read as tokens.

Two noncharacters, which text must not contain, keep text as text. `BREAK` is inserted into special tokens in the
data, and the text is split there before tokenization. `JOIN` marks an end of a text that could form a special token
together with its neighbor in the rendered template. `SpecialText.settle` replaces it by `BREAK` if a token was formed
and removes it otherwise, so that ordinary text is tokenized exactly as without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal

from adadpo_lightning.data.schema import BadRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SpecialTokens = Literal["auto", "text", "parse"]
BREAK = "\ufdd0"
JOIN = "\ufdd1"
# Roles that templates compare with; a mark in a role would hide the message from the template.
ROLES = frozenset({"system", "user", "assistant", "tool", "developer"})


class SpecialText:
    """Finds special tokens of a tokenizer in text.

    The unknown token is ignored: it represents ordinary text, and corpora contain it as a word.

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
        # Parts of special tokens, by the character with which a text would have to end or to begin.
        self._starts = _by(-1, {name[:i] for name in names for i in range(1, len(name))})
        self._ends = _by(0, {name[i:] for name in names for i in range(1, len(name))})
        self._longest = max(map(len, names), default=0)
        self._inside = "\n".join(name[1:-1] for name in names)
        self._added, self._unit_starts = _unit_starts(tokenizer)
        # Names that the template itself looks up are structure, not text.
        template = tokenizer.chat_template or ""
        self._structure = frozenset(re.findall(r"\w+", str(template))) | ROLES

    def holds(self, text: str) -> bool:
        """Whether a text contains a special token other than the unknown and the padding token."""
        return self._telling.search(text) is not None

    def ends(self, text: str) -> bool:
        """Whether a text ends with such a token, ignoring trailing whitespace."""
        return self._end.search(text) is not None

    def without_end(self, text: str) -> str:
        """The text without trailing special tokens and the whitespace around them."""
        return self._end.sub("", text)

    def protect(self, value: Any) -> Any:
        """Mark text so that it is tokenized as text, at any depth of messages and tools, including keys.

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
            raise BadRow("special token in text", f"{single[0]!r} has only one character")
        body = text.strip()
        if not body:  # a template asks whether there is content
            return text
        # Marks are put next to the stripped text, so that a template can still trim the whitespace around it.
        inside = len(body) < self._longest and body in self._inside
        first = JOIN if inside or body.startswith(self._ends.get(body[0], ())) else ""
        last = JOIN if body.endswith(self._starts.get(body[-1], ())) else ""
        broken = self._found.sub(lambda found: found[0][0] + BREAK + found[0][1:], text)
        if first or last:
            start = len(broken) - len(broken.lstrip())
            end = len(broken.rstrip())
            broken = broken[:start] + first + broken[start:end] + last + broken[end:]
        return broken

    def settle(self, text: str) -> str:
        """Break special tokens that were formed across a `JOIN`, and remove the other joins."""
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

    def units(self, text: str) -> list[str]:
        """Split a settled text where its token ids can be concatenated: at each `BREAK`, and before special tokens.

        A tokenizer in the Rust library finds added tokens first, and tokenizes the text between them independently. A
        prompt that several texts begin with is thus a unit of its own, and tokenized once.
        """
        units = []
        for part in text.split(BREAK):
            starts = [found.start() for found in self._added.finditer(part) if found[0] in self._unit_starts]
            bounds = [0, *starts, len(part)]
            units += [part[start:end] for start, end in pairwise(bounds) if start < end]
        return units

    def check_ids(self, text: str, ids: Sequence[int]) -> None:
        """Compare the special tokens in the ids with those in the settled text.

        Raises:
            BadRow: If the ids have more, because the tokenizer's normalizer turned ordinary text into one.
        """
        found = sum(map(self._ids.__contains__, ids))
        if found and found > len(self._any.findall(text)):
            raise BadRow("special token in text", "the tokenizer reads ordinary text as a special token")


def _one_of(names: Iterable[str]) -> re.Pattern[str]:
    """Pattern that matches any of the names, longest first; matches nothing without names."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")


def _by(position: int, parts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Parts of names by the character at a position."""
    found: dict[str, tuple[str, ...]] = {}
    for part in parts:
        found[part[position]] = (*found.get(part[position], ()), part)
    return found


def _unit_starts(tokenizer: PreTrainedTokenizerBase) -> tuple[re.Pattern[str], frozenset[str]]:
    """Pattern of the tokens that are found before normalization, and those that text can be split before."""
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.content and not token.normalized]
    if not tokenizer.is_fast or tokenizer.split_special_tokens or any(token.single_word for token in added):
        return _one_of([]), frozenset()
    # A token with `lstrip` includes the whitespace before it.
    return _one_of(token.content for token in added), frozenset(token.content for token in added if not token.lstrip)


def check_marks(text: str) -> None:
    """Reject the two noncharacters that this module uses.

    Raises:
        BadRow: If the text contains one.
    """
    if BREAK in text or JOIN in text:
        raise BadRow("noncharacter in text", "U+FDD0 and U+FDD1 are noncharacters and reserved")


@dataclass(frozen=True)
class Reading:
    """How the text columns of one source are read.

    Args:
        prompts: Whether special tokens in prompts are read as tokens.
        answers: The same of chosen and rejected answers.
        messages: The same of conversations of several messages, system prompts and tools.
        rendered: Whether the prompts look as if a chat template had already rendered them.
    """

    prompts: bool = False
    answers: bool = False
    messages: bool = False
    rendered: bool = False


def decide(mode: SpecialTokens, rendered_prompts: Iterable[bool], ended_answers: Iterable[bool]) -> Reading:
    """Decide how the columns of a source are read.

    With ``text`` everything is text, and with ``parse`` special tokens are tokens everywhere. With ``auto`` the prompt
    column is parsed if at least half of its texts look rendered: they contain a special token, or begin and end like
    a user turn of the template. The answer columns are parsed if at least half of their texts end with a special token.
    Chosen and rejected answers are read the same way, because the model would learn a difference. Conversations of
    several messages, system prompts and tools are kept as text.

    Args:
        mode: ``auto``, ``text`` or ``parse``.
        rendered_prompts: For a sample of single-text prompts, whether each looks rendered.
        ended_answers: For a sample of text answers, whether each ends with a special token.

    Returns:
        The reading. `Reading.rendered` is set in every mode.

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
