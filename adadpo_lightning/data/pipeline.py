"""Tokenizes many pairs: templates are rendered while the tokenizer works on the pairs before them.

A tokenizer written in Rust distributes the texts of one call over all cores, outside Python's lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

from adadpo_lightning.data.rendering import Rendered
from adadpo_lightning.data.schema import TOO_DEEP, BadRow, PreferencePair
from adadpo_lightning.data.tokenize import PairTokenizer

if TYPE_CHECKING:
    from adadpo_lightning.types import EncodedPair

# Pairs per call of the tokenizer; with fewer, it takes more time per pair.
CHUNK = 512

_Texts = tuple[PreferencePair, Rendered] | BadRow


def encode(
    encoder: PairTokenizer, pairs: Iterable[PreferencePair | BadRow], chunk: int = CHUNK
) -> Iterator[tuple[PreferencePair, EncodedPair] | BadRow]:
    """Tokenize pairs in their order.

    Args:
        encoder: Tokenizes pairs.
        pairs: Pairs, or why a row holds none.
        chunk: Pairs per call of the tokenizer.

    Yields:
        Each pair with its ids, or why there are none.
    """
    remaining = iter(pairs)
    with ThreadPoolExecutor(max_workers=1) as worker:
        rendered = _rendered(encoder, islice(remaining, chunk))
        while rendered:
            texts = [text for item in rendered if not isinstance(item, BadRow) for text in item[1].texts]
            ids = worker.submit(encoder.ids, texts)
            following = _rendered(encoder, islice(remaining, chunk))
            yield from _finished(encoder, rendered, iter(ids.result()))
            rendered = following


def _rendered(encoder: PairTokenizer, pairs: Iterable[PreferencePair | BadRow]) -> list[_Texts]:
    return [pair if isinstance(pair, BadRow) else _render(encoder, pair) for pair in pairs]


def _render(encoder: PairTokenizer, pair: PreferencePair) -> _Texts:
    try:
        return pair, encoder.render(pair)
    except BadRow as error:
        return error
    except RecursionError:
        return TOO_DEEP


def _finished(
    encoder: PairTokenizer, rendered: Sequence[_Texts], ids: Iterator[list[int]]
) -> Iterator[tuple[PreferencePair, EncodedPair] | BadRow]:
    for item in rendered:
        if isinstance(item, BadRow):
            yield item
            continue
        pair, texts = item
        try:
            yield pair, encoder.finish(pair, texts, list(islice(ids, len(texts.texts))))
        except BadRow as error:
            yield error
