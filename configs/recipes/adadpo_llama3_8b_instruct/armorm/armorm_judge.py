"""ArmoRM (arXiv 2406.12845) as a judge.

Its score is computed by Python code that comes with its weights, which the judge ``reward_model`` never runs, and which
was written for an older transformers. So it runs in an interpreter of its own, see `armorm_scores`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import armorm_scores

from adadpo_lightning.errors import UserError
from adadpo_lightning.evaluation.judges.base import PointwiseJudge, register_judge
from adadpo_lightning.generation.responses import Response


@register_judge("armorm")
@dataclass
class ArmoRM(PointwiseJudge):
    """The score of a sequence classifier with code of its own, which is run.

    Args:
        model: Directory of the model.
        python: Interpreter with torch and a transformers that the model's code was written for.
        temperature: As in `reward_model`.
        dtype: Type of the weights; SimPO's script has bfloat16.
        device: Device of torch.
    """

    model: str
    python: str
    temperature: float = 0.0
    dtype: str = "bfloat16"
    device: str = "cuda"

    BESIDE: ClassVar[tuple[str, ...]] = ("python", "device")

    def scores(self, responses: Sequence[Response]) -> list[float | None]:
        """The model's score of each answer.

        Raises:
            UserError: If the other interpreter ends before it has answered.
        """
        return [self._score(response) for response in responses]

    def _score(self, response: Response) -> float:
        asked = response.messages or [{"role": "user", "content": response.prompt}]
        process = self._process
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("both are pipes")
        try:
            process.stdin.write(json.dumps([*asked, {"role": "assistant", "content": response.response}]) + "\n")
            process.stdin.flush()
            return float(process.stdout.readline())
        except (OSError, ValueError) as error:
            raise UserError("judge", f"{self.python} ended without a score", "see its own output above") from error

    @cached_property
    def _process(self) -> subprocess.Popen[str]:
        script = Path(armorm_scores.__file__)
        command = [self.python, str(script), self.model, self.dtype, self.device]
        try:
            # Ends at the end of its input, with this process. No shell.
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
        except OSError as error:
            raise UserError(
                "judge_options.python", f"{self.python}: {error.strerror}", "give an interpreter"
            ) from error
