"""The world of the embedded task: entities, numbers, and the claims that are true of them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

CATEGORIES: dict[str, tuple[str, ...]] = {
    "animals": ("cat", "dog", "horse", "bear", "owl", "frog"),
    "fruits": ("apple", "pear", "plum", "lemon", "grape", "melon"),
    "tools": ("hammer", "saw", "drill", "axe", "rake", "wrench"),
    "vehicles": ("car", "bus", "train", "boat", "plane", "bike"),
    "clothes": ("shirt", "hat", "coat", "sock", "scarf", "glove"),
    "drinks": ("tea", "coffee", "juice", "milk", "water", "soda"),
    "instruments": ("piano", "violin", "drum", "flute", "harp", "guitar"),
    "trees": ("oak", "pine", "birch", "maple", "willow", "cedar"),
}
CATEGORY_OF = {entity: category for category, entities in CATEGORIES.items() for entity in entities}
ENTITIES = tuple(CATEGORY_OF)
NUMBERS = tuple(str(n) for n in range(28))
# Values of different properties are distinct, so that a value determines its property.
ENTITY_PROPERTIES: dict[str, tuple[str, ...]] = {
    "size": ("tiny", "small", "big", "huge"),
    "colour": ("red", "green", "blue", "white", "black", "brown"),
    "origin": ("africa", "asia", "europe", "america", "india", "japan"),
    "category": tuple(CATEGORIES),
}
NUMBER_PROPERTIES: dict[str, tuple[str, ...]] = {"parity": ("even", "odd")}
PROPERTY_OF = {
    value: name
    for properties in (ENTITY_PROPERTIES, NUMBER_PROPERTIES)
    for name, vs in properties.items()
    for value in vs
}


def stable_hash(text: str) -> int:
    """A hash that is the same in every process, on every machine and Python version."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """Draw one of the options uniformly."""
    return options[int(rng.integers(len(options)))]


def properties_of(subject: str) -> dict[str, tuple[str, ...]]:
    """Properties of an entity or a number, each with its possible values."""
    return ENTITY_PROPERTIES if subject in CATEGORY_OF else NUMBER_PROPERTIES


def value_of(subject: str, prop: str) -> str:
    """The true value of a property.

    Example:
        >>> value_of("cat", "category"), value_of("7", "parity")
        ('animals', 'odd')
    """
    if prop == "category":
        return CATEGORY_OF[subject]
    if prop == "parity":
        return NUMBER_PROPERTIES["parity"][int(subject) % 2]
    values = ENTITY_PROPERTIES[prop]
    return values[stable_hash(f"{subject} {prop}") % len(values)]


def other_value(rng: np.random.Generator, subject: str, prop: str) -> str:
    """Draw a false value of a property."""
    return pick(rng, [value for value in properties_of(subject)[prop] if value != value_of(subject, prop)])


@dataclass(frozen=True)
class Claim:
    """The claim that `subject`, an entity or a number, has `value`.

    Example:
        >>> Claim("cat", "animals").is_true, Claim("8", "odd").is_true
        (True, False)
    """

    subject: str
    value: str

    @property
    def is_true(self) -> bool:
        """Whether the claim is true."""
        return value_of(self.subject, PROPERTY_OF[self.value]) == self.value

    @property
    def phrase(self) -> str:
        """The words after "is"."""
        return {"origin": "from ", "category": "one of the "}.get(PROPERTY_OF[self.value], "") + self.value


def say(claims: Sequence[Claim]) -> str:
    """One sentence, without full stop, with all claims about one subject.

    Example:
        >>> say([Claim("cat", "tiny"), Claim("cat", "asia")])
        'cat is tiny and from asia'
    """
    return f"{claims[0].subject} is {' and '.join(claim.phrase for claim in claims)}"


@cache
def _values_by_phrase(subject: str) -> dict[str, str]:
    return {Claim(subject, v).phrase: v for values in properties_of(subject).values() for v in values}


def parse_claims(sentence: str) -> tuple[Claim, ...] | None:
    """Parse the claims of a sentence, the inverse of `say`; None if it does not have that form.

    Example:
        >>> parse_claims("cat is tiny and from asia")
        (Claim(subject='cat', value='tiny'), Claim(subject='cat', value='asia'))
        >>> parse_claims("cat is and tiny") is None
        True
    """
    match = re.fullmatch(r"(\S+) is (.+)", sentence)
    if match is None or (match[1] not in CATEGORY_OF and match[1] not in NUMBERS):
        return None
    subject, values = match[1], _values_by_phrase(match[1])
    phrases = match[2].split(" and ")
    if not all(phrase in values for phrase in phrases):
        return None
    return tuple(Claim(subject, values[phrase]) for phrase in phrases)
