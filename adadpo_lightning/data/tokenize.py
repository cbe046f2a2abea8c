"""Tokenizes a pair: one BOS, one terminator, and the boundary between prompt and answers.

The chat template is rendered once over prompt and answer together, as in inference. The boundary is the longest common
prefix of the tokenized prompt and both full sequences: if a tokenizer merges the end of the prompt with the start of an
answer, the answer begins one token earlier, so that nothing is scored twice or lost. The scored tokens of an answer of
several turns come from `turns`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING

from adadpo_lightning.data.rendering import PairRenderer, Rendered, one_text
from adadpo_lightning.data.schema import BadRow, PreferencePair, RankedList
from adadpo_lightning.data.special import Reading, decide
from adadpo_lightning.data.truncate import fit_length
from adadpo_lightning.data.turns import Whole, common_prefix_length, find_turns
from adadpo_lightning.types import EncodedPair

if TYPE_CHECKING:
    from typing_extensions import Self


class PairTokenizer(PairRenderer):
    """Tokenizes and truncates pairs; arguments and errors as `PairRenderer`.

    `render`, `ids` and `finish` are its three steps; a call takes them for one pair, and `pipeline.encode` for many.
    """

    def decide(self, pairs: Sequence[PreferencePair | RankedList]) -> Reading:
        """Decide from a sample of pairs how their columns are read; see `special.decide`."""
        prompts = [text for pair in pairs if (text := one_text(pair.prompt)) is not None]
        answers = [text for pair in pairs for answer in pair.answers if (text := one_text(answer)) is not None]
        return decide(self.options.special_tokens, map(self.looks_rendered, prompts), map(self.special.ends, answers))

    def reads(self, reading: Reading) -> Self:
        """The same tokenizer with another reading of the columns."""
        other = copy(self)
        other.reading = reading
        return other

    def __call__(self, pair: PreferencePair) -> EncodedPair:
        """Tokenise one pair.

        Raises:
            BadRow: If nothing usable is left.
        """
        rendered = self.render(pair)
        return self.finish(pair, rendered, self.ids(rendered.texts))

    def prompt_ids(self, pair: PreferencePair) -> list[int]:
        """Token ids of only the prompt of a pair, as used for generation.

        Raises:
            BadRow: If the template rejects the conversation, or messages have no template.
        """
        rendered = self.render(pair)
        asked = self.ids(rendered.texts[:1])
        self.special.check_ids(rendered.texts[0], asked[0])
        return self._with_bos(rendered, asked)[0]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text of `render`; see `TextTokenizer.ids`."""
        return self.texts.ids(texts)

    def finish(self, pair: PreferencePair, rendered: Rendered, ids: list[list[int]]) -> EncodedPair:
        """Find the boundary, end the answers and truncate.

        Args:
            pair: The pair.
            rendered: Its texts.
            ids: Their token ids.

        Raises:
            BadRow: If nothing usable is left.
        """
        for text, found in zip(rendered.texts, ids, strict=True):
            self.special.check_ids(text, found)
        prompt, *others = self._with_bos(rendered, ids)
        count = len(self._answers(pair))
        # An answer may begin before the end of the prompt, where the template opens a thought for generation only.
        starts = [common_prefix_length([prompt, whole]) for whole in others[:count]]
        texts = [self.texts.terminate(*answer, rendered.end_id) for answer in zip(others[:count], starts, strict=True)]
        wholes = self._wholes(rendered, texts, iter(others[count:]))
        # An answer has at least one token, whatever the prompt's tokens are.
        boundary = min(common_prefix_length([prompt, *texts]), *(len(ids) - 1 for ids in texts))
        if boundary < 1:
            raise BadRow("empty prompt", "no token precedes the answers")
        moved = boundary < len(prompt)
        if rendered.turns:
            # What the template writes before the answers without marking it as the assistant's belongs to the prompt.
            boundary = min(max(boundary, common_prefix_length(texts)), *(w.first_scored(boundary) for w in wholes))
        (chosen, chosen_mask), *rejected = [whole.answer(boundary) for whole in wholes]
        rejected_ids, rejected_mask = rejected[0] if rejected else ([], [])
        encoded = EncodedPair(
            texts[0][:boundary],
            chosen,
            rejected_ids,
            weight=pair.weight,
            margin=pair.margin,
            boundary_moved=moved,
            chosen_mask=chosen_mask,
            rejected_mask=rejected_mask,
            turns_rewritten=any(whole.rewritten for whole in wholes),
            turns_unended=any(whole.unended for whole in wholes),
            answer_changed=rendered.changed,
            answer_prefixed=rendered.prefixed,
        )
        options, bos = self.options, self.tokenizer.bos_token_id
        return fit_length(encoded, options.max_length, options.max_prompt_length, options.truncation, bos)

    def _wholes(self, rendered: Rendered, texts: list[list[int]], parts: Iterator[list[int]]) -> list[Whole]:
        if not rendered.turns:
            return [Whole(ids) for ids in texts]
        text_only = not self.reading.messages
        return [
            find_turns(turns, ids, parts, self.texts.end_of, text_only=text_only)
            for turns, ids in zip(rendered.turns, texts, strict=True)
        ]

    def _with_bos(self, rendered: Rendered, ids: list[list[int]]) -> list[list[int]]:
        return self.texts.with_bos(ids) if rendered.joined else ids
