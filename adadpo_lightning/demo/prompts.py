"""Prompts of the demo: short reviews of films and restaurants that do not exist, composed from lists of parts.

Held-out prompts have subjects and places of their own, which no held-in prompt has; the kinds of film and of cooking
are shared.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

FILM = "In one short sentence, review {kind} about {what}."
RESTAURANT = "In one short sentence, review {kind} restaurant {what}."

FILM_KINDS = (
    "a comedy",
    "a thriller",
    "a horror film",
    "a family film",
    "a documentary",
    "a science fiction film",
    "a musical",
    "a war film",
    "a crime drama",
    "a silent film",
)
FILM_SUBJECTS = (
    "two brothers who open a bakery",
    "a lighthouse keeper and her radio",
    "a bank robbery on a frozen lake",
    "a teacher who loses his voice",
    "the last train of the night",
    "a wedding that is rained out",
    "a stolen violin",
    "twins who swap jobs",
    "a village without electricity",
    "an astronaut who comes home early",
    "a retired boxer and his dog",
    "a map that is wrong on purpose",
)
HELD_OUT_SUBJECTS = (
    "a piano in the desert",
    "three nurses on a night shift",
    "a city under the sea",
    "a chess match by post",
)
RESTAURANT_KINDS = (
    "an Italian",
    "a Mexican",
    "an Indian",
    "a Thai",
    "a Greek",
    "a seafood",
    "a vegetarian",
    "a burger",
    "a sushi",
    "a Lebanese",
)
RESTAURANT_PLACES = (
    "next to the railway station",
    "on the top floor of a hotel",
    "in an old fire station",
    "with only six tables",
    "that opens at midnight",
    "in a shopping mall",
    "beside the river",
    "where the kitchen is in the middle of the room",
    "with a waiting list of a month",
    "at the airport",
    "in a converted church",
    "behind the football stadium",
)
HELD_OUT_PLACES = (
    "on a boat in the harbour",
    "without a menu",
    "on the edge of a forest",
    "where the guests share one long table",
)
# Prompts that can be composed.
HELD_IN = len(FILM_KINDS) * len(FILM_SUBJECTS) + len(RESTAURANT_KINDS) * len(RESTAURANT_PLACES)
HELD_OUT = len(FILM_KINDS) * len(HELD_OUT_SUBJECTS) + len(RESTAURANT_KINDS) * len(HELD_OUT_PLACES)


class Prompts(NamedTuple):
    """Prompts to train on, and prompts to compare models on; no prompt is in both."""

    held_in: list[str]
    held_out: list[str]


def make_prompts(held_in: int | None = None, held_out: int | None = None, seed: int = 0) -> Prompts:
    """Compose the prompts, in an order that the seed draws.

    Args:
        held_in: Number of held-in prompts; None takes all 240.
        held_out: Number of held-out prompts; None takes all 80.
        seed: Seed of the order, and so of the choice.

    Example:
        >>> prompts = make_prompts(held_out=1)
        >>> len(prompts.held_in), prompts.held_out
        (240, ['In one short sentence, review a Greek restaurant on a boat in the harbour.'])
    """
    films = _composed(FILM, FILM_KINDS, FILM_SUBJECTS), _composed(FILM, FILM_KINDS, HELD_OUT_SUBJECTS)
    restaurants = (
        _composed(RESTAURANT, RESTAURANT_KINDS, RESTAURANT_PLACES),
        _composed(RESTAURANT, RESTAURANT_KINDS, HELD_OUT_PLACES),
    )
    train, test = (_shuffled(film + place, seed) for film, place in zip(films, restaurants, strict=True))
    return Prompts(train[:held_in], test[:held_out])


def _composed(pattern: str, kinds: tuple[str, ...], subjects: tuple[str, ...]) -> list[str]:
    return [pattern.format(kind=kind, what=what) for kind in kinds for what in subjects]


def _shuffled(prompts: list[str], seed: int) -> list[str]:
    order = list(prompts)
    Random(seed).shuffle(order)  # noqa: S311  # an order, not a secret
    return order
