"""The embedded task's gold reward as a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadpo_lightning.embedded.gold import grade
from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.judges.base import PointwiseJudge, register_judge

if TYPE_CHECKING:
    from adadpo_lightning.generation.responses import Response


@register_judge("gold")
@dataclass
class GoldJudge(PointwiseJudge):
    """The embedded task's gold reward, for prompts of that task only.

    Args:
        temperature: As in `preference_of`.
    """

    temperature: float = 0.0

    def scores(self, responses: Sequence[Response]) -> list[float | None]:
        """The gold rewards.

        Raises:
            UserError: If a prompt does not belong to the embedded task.
        """
        return [_gold(response) for response in responses]


def _gold(response: Response) -> float:
    try:
        return grade(response.prompt, response.response, finished=response.finished).gold
    except ValueError as error:
        raise UserError(
            f"prompt {response.uid}", f"does not belong to the embedded task: {error}", "choose another judge"
        ) from error
