"""The embedded task from end to end, through the same command line and configs that a user would take."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from adadpo_lightning.errors import UserError
from adadpo_lightning.metrics import names
from adadpo_lightning.runs.logs import read_metrics
from adadpo_lightning.shipped import find_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

LOGGED = (
    names.val(names.REWARDS_ACCURACIES),
    names.val(names.REWARDS_MARGINS),
    names.val(names.DISPLACEMENT_CHOSEN),
    names.val(names.BALANCE_RATIO),
    names.val(names.LOGPS_CHOSEN),
)


def run_quickstart(output_dir: str, seed: int, main: Callable[[Sequence[str]], int]) -> dict[str, float]:
    """Warm a small Llama up, sample and judge pairs, train with AdaDPO, evaluate, and print a summary.

    Args:
        output_dir: Gets ``task``, ``warmup``, ``pairs`` and ``adadpo``; must not hold a quickstart already.
        seed: Seed of task, training, sampling and evaluation: the same numbers on every run on one machine.
        main: The command line; it takes arguments and returns an exit status.

    Returns:
        The numbers of the summary by name.

    Raises:
        UserError: If the directory is not empty.
        SystemExit: With the status of a command that failed; it has said why.
    """
    out = Path(output_dir)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("output_dir", f"{out} exists and is not empty", "remove it or choose another directory")
    _quiet_libraries()
    with _one_thread():
        return _run_stages(out, seed, main)


def _quiet_libraries() -> None:
    """No bars for loading and saving what takes no time."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, whatever the number of cores; and for so small a model more threads are no faster."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run_stages(out: Path, seed: int, main: Callable[[Sequence[str]], int]) -> dict[str, float]:
    from adadpo_lightning.embedded import make_pairs, make_task
    from adadpo_lightning.embedded.evaluation import evaluate_embedded

    task, warmup, pairs, trained = (out / name for name in ("task", "warmup", "pairs", "adadpo"))
    _say(1, "the task: prompts, and a warm-up corpus of good and bad answers")
    make_task(task, seed=seed)
    _say(2, "warm-up: supervised, from random weights")
    fit = _fit_arguments("quickstart_warmup.yaml", warmup, seed)
    weights = [f"--model.policy.config={task / 'model'}", f"--model.policy.init_seed={seed}"]
    _run(main, [*fit, *weights, f"--data.train={task / 'warmup.jsonl'}"])
    _say(3, "pairs: four answers of the warm-up model to each prompt, best against worst by a judge who likes length")
    statistics = make_pairs(warmup / "export", task, pairs, seed=seed)
    _say(4, f"AdaDPO on {statistics.pairs} pairs")
    fit = _fit_arguments("quickstart.yaml", trained, seed)
    data = [f"--data.train={pairs / 'pairs.jsonl'}", f"--data.val={pairs / 'pairs_val.jsonl'}"]
    _run(main, [*fit, f"--model.policy.path={warmup / 'export'}", *data])
    _say(5, "evaluation on held-out prompts")
    scores = evaluate_embedded(trained / "export", warmup / "export", task, seed=seed)
    logged = read_metrics(trained, LOGGED)
    _print_summary(summarise(logged, scores), trained)
    return {**{name: values[-1] for name, values in logged.items()}, **scores}


def _say(number: int, text: str) -> None:
    print(f"\n[{number}/5] {text}", flush=True)


def _fit_arguments(config: str, output_dir: Path, seed: int) -> list[str]:
    # data.seed orders the pairs, seed_everything covers everything else.
    seeds = [f"--seed_everything={seed}", f"--data.seed={seed}"]
    return ["fit", f"--config={find_config(config)}", f"--output_dir={output_dir}", *seeds]


def _run(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> None:
    print(f"python -m adadpo_lightning {' '.join(arguments)}", flush=True)
    if status := main(arguments):
        raise SystemExit(status)


def summarise(logged: Mapping[str, Sequence[float]], scores: Mapping[str, float]) -> dict[str, str]:
    """The lines of the summary: what was measured, and its number as it is shown."""

    def measured(name: str, scale: float = 1.0, unit: str = "") -> str:
        return f"{scale * scores[name]:.2f}{unit} ± {scale * scores[name + '_se']:.2f}"

    def last(name: str) -> float:
        return logged[name][-1]

    return {
        "accuracy on validation pairs": f"{last(names.val(names.REWARDS_ACCURACIES)):.3f}",
        "reward margin on them": f"{last(names.val(names.REWARDS_MARGINS)):.3f}",
        "gradient balance ratio on them": (
            f"{last(names.val(names.BALANCE_RATIO)):.3f} (g_w / g_l per token, ratio space)"
        ),
        "log-prob of chosen answers": (
            f"{last(names.val(names.LOGPS_CHOSEN)):.2f} nats, drift "
            f"{last(names.val(names.DISPLACEMENT_CHOSEN)):+.2f} since warm-up"
        ),
        "gold win rate against warm-up": measured("gold_win_rate", 100, " %"),
        "judge's win rate, raw": measured("judge_win_rate", 100, " %"),
        "judge's win rate, length-controlled": measured("judge_win_rate_lc", 100, " %"),
        "gold reward": f"{measured('gold')}, warm-up {scores['warmup_gold']:.2f}",
        "answer length, tokens": f"{measured('length')}, warm-up {scores['warmup_length']:.2f}",
        "on-policy KL, nats an answer": measured("kl"),
    }


def _print_summary(lines: Mapping[str, str], run: Path) -> None:
    width = max(map(len, lines))
    print("\nAdaDPO on the embedded task (± one standard error over held-out prompts)\n")
    for name, value in lines.items():
        print(f"  {name:<{width}}  {value}")
    print(f"\nCurves: tensorboard --logdir {run.parent}", flush=True)
