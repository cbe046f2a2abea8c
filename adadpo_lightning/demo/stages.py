"""The stages of the demo: what each one does or, where there is a command for it, which one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adadpo_lightning.demo.model import cache_directory, is_gguf, obtain, unpack
from adadpo_lightning.demo.prompts import HELD_IN, HELD_OUT, make_prompts
from adadpo_lightning.demo.tiny import make_tiny_model
from adadpo_lightning.errors import UserError
from adadpo_lightning.shipped import find_config

# The judge that chooses the pairs adds this to the sentiment: per token of length, and as noise.
LENGTH_BIAS, NOISE = 0.004, 0.1
LEAST = 16
# At 1.0 a model this small writes nonsense that rarely ends.
TEMPERATURE = 0.7


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Args:
        held_in: Prompts to train on.
        held_out: Prompts to compare on.
        samples: Answers per held-in prompt.
        max_new_tokens: Maximum length of an answer.
        training: Further options of ``fit``.
        unfinished: Option of ``make-pairs``.
    """

    held_in: int
    held_out: int
    samples: int
    max_new_tokens: int
    training: tuple[str, ...] = ()
    unfinished: str = "drop"


FULL = Scale(held_in=96, held_out=40, samples=4, max_new_tokens=48)
# A model with random weights rarely ends its answer.
QUICK = Scale(
    held_in=24,
    held_out=16,
    samples=3,
    max_new_tokens=8,
    training=("--data.val_size=4", "--data.global_batch_size=8", "--data.max_length=96"),
    unfinished="keep",
)


@dataclass(frozen=True)
class Demo:
    """A demo in a directory.

    Args:
        root: Gets ``model``, ``prompts``, ``pairs``, ``adadpo`` and ``answers``.
        model: GGUF file, Hugging Face directory or hub id; None takes the small model of the package index.
        quick: A rehearsal with a random model.
        prompts: Number of held-in prompts; None takes that of the scale.
        held_out: Number of held-out prompts; None takes that of the scale.
        seed: Seed of sampling, noise and training.
    """

    root: Path
    model: str | None = None
    quick: bool = False
    prompts: int | None = None
    held_out: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers of prompts."""
        for name, most, given in (("prompts", HELD_IN, self.prompts), ("held_out", HELD_OUT, self.held_out)):
            if given is not None and not LEAST <= given <= most:
                raise UserError(name, f"expected {LEAST} to {most}, got {given}")

    @property
    def scale(self) -> Scale:
        """How much is done."""
        scale = QUICK if self.quick else FULL
        return replace(scale, held_in=self.prompts or scale.held_in, held_out=self.held_out or scale.held_out)

    @property
    def options(self) -> dict[str, Any]:
        """What the results depend on."""
        scale = {"prompts": self.scale.held_in, "held_out": self.scale.held_out}
        return {"model": self.model, "quick": self.quick, **scale, "seed": self.seed}

    @property
    def start(self) -> str:
        """The model before training, as commands take it."""
        ready = self.model is not None and not is_gguf(self.model) and not self.quick
        return str(self.model) if ready else str(self.root / "model")

    @property
    def trained(self) -> Path:
        """Output directory of the training."""
        return self.root / "adadpo"

    def prompts_file(self, held: str) -> Path:
        """The file of the prompts, ``held_in`` or ``held_out``."""
        return self.root / "prompts" / f"{held}.txt"

    def answers(self, when: str) -> Path:
        """The answers to the held-out prompts, ``before`` or ``after``."""
        return self.root / "answers" / f"{when}.jsonl"

    def write_prompts(self) -> None:
        """Write both files of prompts, one per line."""
        found = make_prompts(self.scale.held_in, self.scale.held_out, self.seed)
        self.prompts_file("held_in").parent.mkdir(parents=True, exist_ok=True)
        for name, prompts in found._asdict().items():
            self.prompts_file(name).write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")

    def get_model(self) -> None:
        """Obtain the model, and unpack it if it is a GGUF file."""
        target = self.root / "model"
        if self.quick:
            make_tiny_model(target, [*make_prompts().held_in, *make_prompts().held_out], self.seed)
        elif self.model is None:
            unpack(str(obtain(cache_directory())), target)
        elif is_gguf(self.model):
            unpack(self.model, target)

    def pairs_command(self) -> list[str]:
        """Sample answers to the held-in prompts, judge them and form pairs."""
        return [
            "make-pairs",
            f"--model={self.start}",
            f"--prompts={self.prompts_file('held_in')}",
            f"--output_dir={self.root / 'pairs'}",
            "--judge=biased",
            "--judge_options.judge=sentiment",
            f"--judge_options.per_unit={LENGTH_BIAS}",
            f"--judge_options.noise={NOISE}",
            f"--judge_options.seed={self.seed}",
            f"--samples={self.scale.samples}",
            f"--unfinished={self.scale.unfinished}",
            *self._sampling(),
        ]

    def training_command(self) -> list[str]:
        """Train AdaDPO on the pairs; resumes."""
        return [
            "fit",
            f"--config={find_config('demo.yaml')}",
            f"--output_dir={self.trained}",
            f"--model.policy.path={self.start}",
            f"--data.train={self.root / 'pairs' / 'pairs.jsonl'}",
            f"--seed_everything={self.seed}",
            f"--data.seed={self.seed}",
            "--auto_resume=true",
            *self.scale.training,
        ]

    def answers_command(self, when: str) -> list[str]:
        """Answer the held-out prompts, ``before`` or ``after`` training, with the same random numbers."""
        model = self.start if when == "before" else str(self.trained / "export")
        return [
            "generate",
            f"--model={model}",
            f"--prompts={self.prompts_file('held_out')}",
            f"--output={self.answers(when)}",
            f"--generator={when}",
            *self._sampling(),
        ]

    def _sampling(self) -> list[str]:
        return [
            f"--temperature={TEMPERATURE}",
            f"--max_new_tokens={self.scale.max_new_tokens}",
            "--batch_size=32",
            "--dtype=float32",
            f"--seed={self.seed}",
        ]
