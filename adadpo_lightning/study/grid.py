"""The config of a study: arms and grid, and the cells and jobs that follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from adadpo_lightning.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Arm:
    """One way to train, run over the whole grid or a part of it.

    Args:
        loss: Key of the loss.
        twin_of: The plain arm that this one is the adaptive twin of; the report compares the two.
        control: What this arm is a control for, in one word, such as noise or static.
        against: The arm that a control is compared with; null takes the first plain arm.
        options: Options of the loss beside the swept one.
        strength: The option that `betas` sweeps: beta, or tau (ipo), lam (orpo); null for a loss without one (simper),
            whose cells have the strength 0.
        coefficient_of: Take floor = ceiling = the mean coefficient that this arm's run of the same cell had.
        training_seed: Another number draws another order of the pairs over the same warm-up model and pairs.
        learning_rates: Instead of the study's.
        betas: Instead of the study's.
    """

    loss: str
    twin_of: str | None = None
    control: str | None = None
    against: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    strength: str | None = "beta"
    coefficient_of: str | None = None
    training_seed: int = 0
    learning_rates: list[float] | None = None
    betas: list[float] | None = None


@dataclass(frozen=True)
class EmbeddedTaskConfig:
    """Size of the embedded task.

    Args:
        corpus_size: Rows of the warm-up corpus.
        warmup_steps: Optimizer steps of the warm-up, 32 rows each.
        prompts: Prompts that training pairs are sampled for.
        heldout_prompts: Prompts of the evaluation.
    """

    corpus_size: int = 20_000
    warmup_steps: int = 1200
    prompts: int = 4096
    heldout_prompts: int = 1000

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name, size in asdict(self).items():
            if size < 1:
                raise UserError(f"embedded.{name}", f"expected at least 1, got {size}")


@dataclass(frozen=True)
class JudgedPrompts:
    """How a trained policy of a study on your own data is judged, by the subcommands ``generate`` and ``evaluate``.

    In `annotate` and `evaluate`, ``{folder}`` is the directory of the cell, ``{responses}`` its file of responses, and
    ``{python}`` the interpreter; ``{seed}`` anywhere is the cell's seed.

    Args:
        prompts: As ``--prompts`` of ``generate``.
        judge: As ``--judge``.
        baseline: Responses of the opponent, as ``--baseline`` of ``evaluate``; null for the judge annotations, whose
            file has them.
        judge_options: As ``--judge_options``.
        generate: Further options of ``generate``, such as temperature.
        annotate: A program and its arguments that run between the two, such as AlpacaEval's own annotator; it writes
            the annotations that ``evaluate`` reads.
        evaluate: Further options of ``evaluate``, such as difficulty.

    Raises:
        UserError: If the opponent is missing.
    """

    prompts: str
    judge: str
    baseline: str | None = None
    judge_options: dict[str, Any] = field(default_factory=dict)
    generate: dict[str, Any] = field(default_factory=dict)
    annotate: list[str] = field(default_factory=list)
    evaluate: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that there is an opponent."""
        if self.baseline is None and "annotations" not in self.evaluate:
            raise UserError(
                "evaluation.baseline", "got null", "name the responses of the opponent, or take annotations"
            )

    def responses(self, folder: Path) -> Path:
        """The file of responses, which ``generate`` writes as JSON lines, or as one list."""
        return folder / f"responses.{'json' if self.generate.get('format') in ('json', 'alpaca_eval') else 'jsonl'}"


@dataclass(frozen=True)
class StudyConfig:
    """A grid of ordinary ``fit`` runs over losses, learning rates, betas and seeds.

    Args:
        output_dir: Directory of the study; the same command resumes it.
        learning_rates: Swept for every arm.
        betas: Swept for every arm.
        seeds: Pipeline seeds: on the embedded task each redraws warm-up, pairs, training and evaluation, on your own
            data the order of the pairs and what is random in training, and the pairs too if `fit_options` names files
            by ``{seed}``.
        arms: The ways to train, by name.
        name: Title of the report.
        task: embedded makes warm-up model and pairs itself; preference runs on the model and data of `fit_configs`.
        embedded: Size of the embedded task.
        fit_configs: Configs of ``fit`` under every cell, in order; null takes the quickstart's for the embedded task.
        fit_options: Options of ``fit`` under every cell by their dotted names, such as data.max_length; ``{seed}`` in a
            text is the cell's seed.
        evaluation: How a policy is judged (task preference); null leaves it at the logged metrics.
        keep_models: Keep the exported policy of every cell.
        paper: Published figures by headline, shown in a column of their own.
        validation_set: Which of several named validation sets (data.val) the report reads; null if they have no names.
        report: pairs describes each loss and its twin at length; league ranks all arms, with comparisons corrected for
            their number.

    Raises:
        UserError: If the grid is empty, or an arm names a loss or another arm that does not exist.
    """

    output_dir: str
    learning_rates: list[float]
    betas: list[float]
    seeds: list[int]
    arms: dict[str, Arm]
    name: str = "study"
    task: Literal["embedded", "preference"] = "embedded"
    embedded: EmbeddedTaskConfig = field(default_factory=EmbeddedTaskConfig)
    fit_configs: list[str] | None = None
    fit_options: dict[str, Any] = field(default_factory=dict)
    evaluation: JudgedPrompts | None = None
    keep_models: bool = False
    paper: dict[str, str] = field(default_factory=dict)
    validation_set: str | None = None
    report: Literal["pairs", "league"] = "pairs"

    def __post_init__(self) -> None:
        """Check everything that can be checked without a run."""
        for name in ("learning_rates", "betas", "seeds", "arms"):
            if not getattr(self, name):
                raise UserError(name, "expected at least one, got none")
            values = list(getattr(self, name))
            if len(set(values)) < len(values):
                raise UserError(name, f"expected each value once, got {values}")
        if self.task == "preference" and not self.fit_configs:
            raise UserError("fit_configs", "task preference needs configs of fit with model and data, got none")
        if self.task == "embedded" and self.evaluation is not None:
            raise UserError("evaluation", "the embedded task has its own", "leave it out, or take task: preference")
        _check_numbers("learning_rates", self.learning_rates, above=0.0)
        _check_numbers("seeds", self.seeds, above=-1)
        for name, arm in self.arms.items():
            _check_arm(name, arm, self.arms)
            _check_numbers(f"arms.{name}.learning_rates", arm.learning_rates or (), above=0.0)
            for strength in self.strengths_of(name):
                _build(name, arm, strength)

    def rates_of(self, arm: str) -> list[float]:
        """The learning rates of an arm."""
        return self.arms[arm].learning_rates or self.learning_rates

    def strengths_of(self, arm: str) -> list[float]:
        """The values of an arm's `Arm.strength`; 0 alone where it has none."""
        return [0.0] if self.arms[arm].strength is None else self.arms[arm].betas or self.betas

    @property
    def root(self) -> Path:
        """The study's directory."""
        return Path(self.output_dir)


def options_at(arm: Arm, strength: float) -> dict[str, Any]:
    """Options of the loss of an arm at one strength."""
    return arm.options if arm.strength is None else {**arm.options, arm.strength: strength}


def at_seed(value: Any, seed: int) -> Any:
    """The same with ``{seed}`` replaced in every text.

    Example:
        >>> at_seed({"data.train": "pairs_{seed}.jsonl", "data.max_length": 256}, 3)
        {'data.train': 'pairs_3.jsonl', 'data.max_length': 256}
    """
    if isinstance(value, str):
        return value.replace("{seed}", str(seed))
    if isinstance(value, dict):
        return {name: at_seed(each, seed) for name, each in value.items()}
    return [at_seed(each, seed) for each in value] if isinstance(value, list) else value


def _check_numbers(field: str, values: Sequence[float], above: float) -> None:
    odd = [value for value in values if not above < value < math.inf]
    if odd:
        raise UserError(field, f"expected numbers {'above 0' if above == 0 else 'from 0'}, got {odd[0]}")


def _build(name: str, arm: Arm, strength: float) -> None:
    """Whether the loss of an arm takes its options, with the arm in the error."""
    from adadpo_lightning.losses import build_loss

    try:
        build_loss(arm.loss, **options_at(arm, strength))  # names an unknown option and a value out of range itself
    except UserError as error:
        raise UserError(f"arms.{name}: {error.field}", error.problem, error.fix) from error


def _check_arm(name: str, arm: Arm, arms: dict[str, Arm]) -> None:
    from adadpo_lightning.losses import available_losses

    if arm.loss not in available_losses():
        raise UserError(f"arms.{name}.loss", f"unknown loss {arm.loss!r}", did_you_mean(arm.loss, available_losses()))
    if arm.strength is None and arm.betas is not None:
        raise UserError(f"arms.{name}.betas", f"got {arm.betas}, and strength is null", "leave one of them out")
    for key in ("twin_of", "against", "coefficient_of"):
        other = getattr(arm, key)
        if other is not None and (other not in arms or other == name):
            raise UserError(f"arms.{name}.{key}", f"no other arm is called {other!r}", did_you_mean(other, arms))
    if any(mark in name for mark in "/\\ ") or name.startswith("."):
        raise UserError(f"arms.{name}", "expected a name without spaces and slashes: it names directories")


@dataclass(frozen=True)
class Cell:
    """One run: an arm at one point of the grid, under one seed."""

    arm: str
    loss: str
    lr: float
    beta: float
    seed: int
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of its directory and of its job."""
        return f"{self.arm}_lr{exact(self.lr)}_beta{exact(self.beta)}_seed{self.seed}"


def exact(value: float) -> str:
    """Shortest text of a number in up to six digits if exact, else its full representation: names are unique.

    Example:
        >>> exact(0.0005), exact(1.0), exact(1.0000001e-5)
        ('0.0005', '1', '1.0000001e-05')
    """
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


@dataclass(frozen=True)
class Job:
    """Work of one process: prepare warm-up model and pairs of a seed, or run a cell.

    Args:
        name: Name, unique in the study.
        seed: Pipeline seed.
        needs: Names of jobs that must succeed first.
        cell: Cell to run; None prepares the seed.
    """

    name: str
    seed: int
    needs: tuple[str, ...] = ()
    cell: Cell | None = None


def cells_of(study: StudyConfig) -> Iterator[Cell]:
    """All cells, seed by seed."""
    for seed, (name, arm) in product(study.seeds, study.arms.items()):
        for lr, beta in product(study.rates_of(name), study.strengths_of(name)):
            yield Cell(name, arm.loss, lr, beta, seed, options_at(arm, beta))


def jobs_of(study: StudyConfig) -> list[Job]:
    """All jobs, each after its dependencies.

    Raises:
        UserError: If an arm takes its coefficient from an arm without a run at the same point.
    """
    prepare = {seed: Job(f"prepare_seed{seed}", seed) for seed in study.seeds} if study.task == "embedded" else {}
    plain: list[Job] = []
    dependent: list[Job] = []
    cells = {cell.name: cell for cell in cells_of(study)}
    for cell in cells.values():
        needs = (prepare[cell.seed].name,) if prepare else ()
        source = study.arms[cell.arm].coefficient_of
        if source is None:
            plain.append(Job(cell.name, cell.seed, needs, cell))
            continue
        other = source_cell(cell, source).name
        if other not in cells:
            raise UserError(f"arms.{cell.arm}.coefficient_of", f"{source} is not run at lr {cell.lr}, beta {cell.beta}")
        dependent.append(Job(cell.name, cell.seed, (*needs, other), cell))
    return [*prepare.values(), *plain, *dependent]


def source_cell(cell: Cell, arm: str) -> Cell:
    """The cell of another arm at the same point."""
    return Cell(arm, cell.loss, cell.lr, cell.beta, cell.seed, cell.options)


def as_document(study: StudyConfig) -> dict[str, Any]:
    """The study as plain data, the content of ``study.yaml``, which ``--config`` reads."""
    return asdict(study)


def find_job(study: StudyConfig, name: str) -> Job:
    """Find a job by name.

    Raises:
        UserError: If the study has no such job.
    """
    jobs: Sequence[Job] = jobs_of(study)
    for job in jobs:
        if job.name == name:
            return job
    raise UserError("job", f"the study has no job {name!r}", did_you_mean(name, [job.name for job in jobs]))
