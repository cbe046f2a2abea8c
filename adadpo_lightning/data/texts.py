"""Token ids of rendered texts, and the terminators among them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from adadpo_lightning.data.special import SpecialText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextTokenizer:
    """Tokenizes texts that are rendered already.

    Args:
        tokenizer: The policy's tokenizer.
        special: Its special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: SpecialText) -> None:
        self.tokenizer = tokenizer
        self.special = special
        self._blank: dict[int, bool] = {}
        # Whether plain text gets a BOS; what `add_special_tokens` appends at the end differs between tokenizers.
        bos = tokenizer.bos_token_id
        self._adds_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each settled text; what is equal in them is tokenized once, and all of it in one call."""
        pieces = [self.special.units(text) for text in texts]
        distinct = list(dict.fromkeys(chain.from_iterable(pieces)))
        # The template has already added BOS if the model needs it.
        options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
        encoded = self.tokenizer(distinct, **options)["input_ids"] if distinct else []
        known = dict(zip(distinct, encoded, strict=True))
        return [[token for piece in parts for token in known[piece]] for parts in pieces]

    def with_bos(self, ids: list[list[int]]) -> list[list[int]]:
        """Add the tokenizer's own BOS, unless the first text has it already."""
        bos = self.tokenizer.bos_token_id
        if not self._adds_bos or ids[0][:1] == [bos]:
            return ids
        return [[bos, *part] for part in ids]

    def terminate(self, ids: list[int], start: int, end_id: int) -> list[int]:
        """End with exactly one terminator: the special token that already ends the text, otherwise `end_id`."""
        end = self.end_of(ids, start, len(ids))
        return [*ids, end_id] if end is None else ids[:end]

    def end_of(self, ids: list[int], start: int, end: int) -> int | None:
        """End of a part without blanks and doubled terminators after its terminator; None if it has none."""
        end = self._before_blanks(ids, start, end)
        if end <= start or ids[end - 1] not in self.special.all_ids:
            return None
        while (before := self._before_blanks(ids, start, end - 1)) > start and ids[before - 1] == ids[end - 1]:
            end = before
        return end

    def _before_blanks(self, ids: list[int], start: int, end: int) -> int:
        """Exclude the line break after a terminator, which the template adds and the model must not generate."""
        special = self.special.all_ids
        while end > start and ids[end - 1] not in special and self._is_blank(ids[end - 1]):
            end -= 1
        return end

    def _is_blank(self, token: int) -> bool:
        if (known := self._blank.get(token)) is None:
            known = self._blank[token] = not self.tokenizer.decode([token]).strip()
        return known
