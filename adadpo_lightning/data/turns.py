"""Which tokens of an answer of several turns are scored: those of the assistant's turns, each with its terminator.

A template with ``{% generation %}`` marks them itself. Otherwise they are found by rendering the conversation up to
the beginning and up to the end of each turn: both must be prefixes of the whole text. Some templates write a turn
differently once others follow it (Qwen3 drops empty thinking). Its end is then the first terminator, provided that the
terminators up to the next turn of the assistant are those of the turns in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from adadpo_lightning.data.schema import BadRow

if TYPE_CHECKING:
    from adadpo_lightning.data.schema import Message

NOT_FOUND = "assistant turns not found"
ADVICE = "set data.chat_template to one with {% generation %} around the assistant's turns, or data.score to all"
Span = tuple[int, int]


@dataclass(frozen=True)
class Whole:
    """A tokenized conversation.

    Args:
        ids: Its tokens, to the last terminator.
        spans: First token and end of each scored part, in order; None if everything after the prompt is scored.
        rewritten: Whether the template renders a turn differently once others follow it.
        unended: Whether a turn has no terminator.
    """

    ids: list[int]
    spans: list[Span] | None = None
    rewritten: bool = False
    unended: bool = False

    def answer(self, boundary: int) -> tuple[list[int], list[bool]]:
        """Tokens after the prompt up to the last scored one, and whether each is scored; no mask if all are.

        Raises:
            BadRow: If the first token is not scored.
        """
        if self.spans is None:
            return self.ids[boundary:], []
        end = self.spans[-1][1]
        mask = [any(start <= i < stop for start, stop in self.spans) for i in range(boundary, end)]
        if not mask or not mask[0]:
            raise BadRow(NOT_FOUND, f"the template scores no token at the beginning of an answer; {ADVICE}")
        return self.ids[boundary:end], [] if all(mask) else mask

    def first_scored(self, boundary: int) -> int:
        """The first scored token at or after a position."""
        if self.spans is None:
            return boundary
        return next((max(start, boundary) for start, stop in self.spans if stop > boundary), boundary)


class Turn(NamedTuple):
    """A turn of the assistant in a rendered conversation.

    Args:
        before: The text before it.
        upto: The text to its end; None for the last turn, and if the template renders it differently with the rest.
        message: Number of its message; None if the template has marked it.
        between: Number of messages between this turn and the assistant's next one.
    """

    before: str
    upto: str | None
    message: int | None = None
    between: int = 0


def written_turns(
    write: Callable[[list[Message], bool], str], messages: list[Message], first: int, text: str
) -> list[Turn]:
    """The assistant's turns of an answer, found by rendering what precedes their beginnings and ends.

    Args:
        write: Renders messages, with or without the beginning of an assistant's turn at the end.
        messages: The conversation.
        first: Number of the first message of the answer, an assistant's.
        text: The rendered conversation.

    Raises:
        BadRow: If what precedes a turn is not rendered alike without the rest.
    """
    numbers = [i for i in range(first, len(messages)) if messages[i]["role"] == "assistant"]
    turns = []
    for number, following in zip(numbers, [*numbers[1:], None], strict=True):
        before = write(messages[:number], True)
        if not text.startswith(before):
            problem = f"the template renders the conversation before message {number + 1} differently with the rest"
            raise BadRow(NOT_FOUND, f"{problem}; {ADVICE}")
        upto = write(messages[: number + 1], False) if following is not None else text
        between = 0 if following is None else following - number - 1
        turns.append(Turn(before, upto if upto != text and text.startswith(upto) else None, number, between))
    return turns


def marked_turns(text: str, marks: Sequence[Span]) -> list[Turn]:
    """The parts that the template has marked.

    Args:
        text: The rendered conversation.
        marks: First character and end of each part.
    """
    return [Turn(text[:begin], text[:end]) for begin, end in marks if end > begin]


def find_turns(
    turns: Sequence[Turn],
    ids: list[int],
    parts: Iterator[list[int]],
    end_of: Callable[[list[int], int, int], int | None],
    *,
    text_only: bool,
) -> Whole:
    """Find the tokens of turns.

    Args:
        turns: The turns.
        ids: Tokens of the conversation, to the last terminator.
        parts: Tokens of each text of the turns, in their order.
        end_of: For tokens, a start and an end: where the part ends if blanks and doubled terminators are left out; None
            if it has no terminator.
        text_only: Whether special tokens in the messages are read as text, so that terminators are the template's own.

    Raises:
        BadRow: If the end of a turn is not clear, or the template marks nothing.
    """
    places = [(_place(turn.before, parts, ids), _place(turn.upto, parts, ids)) for turn in turns]
    starts = [start or 0 for start, _ in places] + [len(ids)]
    spans: list[Span] = []
    rewritten = unended = False
    for number, (turn, (_, stop)) in enumerate(zip(turns, places, strict=True)):
        start, following = starts[number], starts[number + 1]
        if stop is None:
            last = number == len(turns) - 1
            rewritten |= not last
            end: int | None = len(ids) if last else _first_terminator(turn, ids, start, following, text_only)
        elif (end := end_of(ids, start, stop)) is None and turn.message is None and ids[stop : stop + 1] == ids[-1:]:
            end = stop + 1  # written right behind the mark
        unended |= end is None
        spans.append((start, (stop or start) if end is None else end))
    if turns and turns[0].message is not None:
        # Where the answer begins is decided for both answers together, by their common tokens.
        spans[0] = (0, spans[0][1])
    spans = [(start, end) for start, end in spans if end > start]
    if not spans:
        raise BadRow(NOT_FOUND, "the template's {% generation %} marks nothing in this conversation")
    return Whole(ids, spans, rewritten, unended)


def _place(text: str | None, parts: Iterator[list[int]], ids: list[int]) -> int | None:
    """Number of tokens of a text at the beginning; a token that reaches beyond its end is left out."""
    return None if text is None else common_prefix_length([next(parts), ids])


def _first_terminator(turn: Turn, ids: list[int], start: int, stop: int, text_only: bool) -> int:
    found = ids[start:stop].count(ids[-1])
    if not text_only or not 2 <= found <= 1 + turn.between:
        problem = f"the template renders message {(turn.message or 0) + 1} differently when others follow it"
        raise BadRow(NOT_FOUND, f"{problem}, and its end is not clear; {ADVICE}")
    return ids.index(ids[-1], start) + 1


def common_prefix_length(sequences: Sequence[Sequence[object]]) -> int:
    """Length of the longest common prefix of all sequences.

    Example:
        >>> common_prefix_length([[1, 2, 3], [1, 2, 4, 5], [1, 2]])
        2
    """
    first, *others = sequences
    length = min(map(len, sequences))
    # By halves: slices are compared many times faster than items.
    for other in others:
        low, high = 0, length
        while low < high:
            middle = (low + high + 1) // 2
            if first[low:middle] == other[low:middle]:
                low = middle
            else:
                high = middle - 1
        length = low
    return length
