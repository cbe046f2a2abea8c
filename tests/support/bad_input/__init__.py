"""Bad input, one line a case: what is given, the field that the error names, and a piece of what it says."""

from dataclasses import replace

from tests.support.bad_input import (
    checkpoints,
    config,
    config_slow,
    data,
    data_slow,
    endpoint,
    evaluation,
    generation,
    models,
    models_slow,
    studies,
)
from tests.support.bad_input.case import Case


def slow(cases: list[Case]) -> list[Case]:
    return [replace(case, slow=True) for case in cases]


KINDS: dict[str, list[Case]] = {
    "data": [*data.CASES, *slow(data_slow.CASES)],
    "config": [*config.CASES, *slow(config_slow.CASES)],
    "model": [*models.CASES, *slow(models_slow.CASES)],
    "checkpoint": [*checkpoints.CASES, *slow(checkpoints.SLOW)],
    "evaluation": [*evaluation.CASES, *generation.CASES],
    "endpoint": endpoint.CASES,
    "study": studies.CASES,
}
CASES = [case for cases in KINDS.values() for case in cases]
