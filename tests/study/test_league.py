"""The league's statistics and report, on results made up with known answers."""

import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats

from adadpo_lightning.study.comparisons import Comparison
from adadpo_lightning.study.grid import Arm, StudyConfig
from adadpo_lightning.study.league import (
    all_comparisons,
    at,
    baseline,
    choices,
    corrected,
    difference,
    standing,
)
from adadpo_lightning.study.league_figures import draw_league, label_dots
from adadpo_lightning.study.league_tables import ranking
from adadpo_lightning.study.report import render
from adadpo_lightning.study.results import MEASURES, Results, table_of
from adadpo_lightning.study.statistics import holm, t_test

SEEDS = range(20, 25)
RATES = (2e-4, 1e-3)
ARMS = {
    "dpo": Arm("dpo"),
    "adadpo": Arm("adadpo", twin_of="dpo"),
    "simpo": Arm("simpo", betas=[2.0, 4.0]),
    "adasimpo": Arm("adasimpo", twin_of="simpo", betas=[2.0, 4.0]),
    "simper": Arm("simper", strength=None, learning_rates=[1e-4, 2e-4, 5e-4, 1e-3]),
    "null": Arm("dpo", control="noise", against="dpo", training_seed=1),
    "static": Arm("adadpo", control="static", against="dpo", coefficient_of="adadpo"),
}


def study(**options):
    grid = {"learning_rates": list(RATES), "betas": [0.1, 1.0], "seeds": list(SEEDS), "arms": ARMS}
    return StudyConfig("nowhere", name="league", report="league", **{**grid, **options})


def made_up(league, gold, noise=0.2, drop=(), seed=0):
    """Results whose gold win rate is `gold(arm, lr, strength, seed)` and a little noise."""
    draw, rows = np.random.default_rng(seed), {}
    for arm, seed in itertools.product(league.arms, league.seeds):
        for lr, strength in itertools.product(league.rates_of(arm), league.strengths_of(arm)):
            value = gold(arm, lr, strength, seed) + noise * draw.standard_normal()
            rows[arm, lr, strength, seed] = {"gold": value, "kl": 1.0 + draw.random()}
    for key in drop:
        del rows[key]
    return Results(table_of(rows))


LEVEL = {"dpo": 60, "adadpo": 64, "simpo": 55, "adasimpo": 55, "simper": 58, "null": 60, "static": 64}


def planted(arm, lr, strength, seed):
    return LEVEL[arm] + seed - 20 - 8 * (lr == 1e-3)


def test_holm_and_the_t_test_are_those_of_the_books():
    # Holm 1979 by its definition: reject in order while p <= alpha / (m - i); the adjusted p is the least alpha.
    values = list(np.random.default_rng(3).uniform(0, 0.2, 7))
    for adjusted, target in zip(holm(values), values, strict=True):
        for alpha in (adjusted * 0.999, min(1.0, adjusted * 1.001)):
            rejected = set()
            for place, p in enumerate(sorted(values)):
                if p > alpha / (len(values) - place):
                    break
                rejected.add(p)
            assert (target in rejected) == (alpha > adjusted or adjusted == 1.0)
    assert holm([]) == []
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    draws = np.random.default_rng(4).normal(1, 1, 5)
    assert t_test(list(draws)) == pytest.approx(stats.ttest_rel(draws, np.zeros(5)).pvalue)
    assert (t_test([0.0, 0.0]), t_test([2.0, 2.0])) == (1.0, 0.0)
    assert math.isnan(t_test([1.0]))


def test_a_best_cell_is_chosen_on_other_seeds_than_it_is_scored_on():
    # Four cells of pure noise: chosen and scored on the same seeds the best has a mean above 0, here it has not.
    draw = np.random.default_rng(5)
    scores, cursed = [], []
    for _ in range(200):
        table = pd.DataFrame(draw.standard_normal((4, 5)))
        scores.append(at(table, choices(table)).by_seed.mean())
        cursed.append(table.mean(axis=1).max())
    assert abs(np.mean(scores)) < 3 * np.std(scores) / 14
    assert np.mean(cursed) > 0.3
    # By hand: the seed at which cell "a" is best has no part in its own choice.
    table = pd.DataFrame({1: {"a": 9.0, "b": 1.0}, 2: {"a": 0.0, "b": 1.0}, 3: {"a": 0.0, "b": 1.0}})
    assert choices(table) == {1: "b", 2: "a", 3: "a"}
    assert at(table, choices(table)).by_seed.to_dict() == {1: 1.0, 2: 0.0, 3: 0.0}
    assert choices(table[[1]]) == {}


def test_a_standing_counts_its_whole_grid():
    league = study()
    gone = ("dpo", 2e-4, 1.0, 21)  # failed under one seed
    found = standing(league, made_up(league, planted, noise=0.0, drop=[gone]), "dpo", "gold")
    assert (found.cells, found.of) == (3, 4)
    assert found.point == (2e-4, 0.1)
    assert found.near == 1 / 4  # two cells are 8 points below, and one has no result
    assert found.mean.by_seed.to_dict() == pytest.approx({s: 60 + s - 20 - 16 / 3 for s in SEEDS})
    assert found.best.by_seed.to_dict() == pytest.approx({s: 60 + s - 20 for s in SEEDS})
    assert standing(league, made_up(league, planted), "simper", "gold").of == 4


def test_differences_are_paired_by_seed_over_shared_cells_or_whole_grids():
    league = study()
    results = made_up(league, planted, noise=0.0, drop=[("adadpo", 1e-3, 0.1, 20)])
    twin = difference(results, Comparison("adadpo", "dpo", "twin"), "gold", best=False)
    assert twin.by_seed.tolist() == pytest.approx([4.0] * 5)  # the lost cell counts on neither side
    other = difference(results, Comparison("simpo", "dpo", "loss"), "gold", best=False)
    assert other.by_seed.tolist() == pytest.approx([-5.0] * 5)  # no strength in common
    best = difference(results, Comparison("simper", "dpo", "loss"), "gold", best=True)
    assert best.by_seed.tolist() == pytest.approx([-2.0] * 5)


def test_every_twin_and_control_is_compared_with_its_own():
    league = study()
    results = made_up(league, planted)
    assert baseline(league) == "dpo"
    assert [(each.title, each.role) for each in all_comparisons(league, results)] == [
        ("adadpo - dpo", "twin"),
        ("adasimpo - simpo", "twin"),
        ("null - dpo", "noise"),
        ("static - dpo", "static"),
        ("adadpo - static", "adapting to each pair"),
    ]


def test_corrected_nulls_are_rarely_separated_and_a_planted_effect_is():
    league = study(arms={"dpo": Arm("dpo"), **{f"a{i}": Arm("adadpo", twin_of="dpo") for i in range(12)}})
    family = [Comparison(f"a{i}", "dpo", "twin") for i in range(12)]
    alone, remain, found = 0, 0, 0
    for number in range(6):
        null = corrected(made_up(league, lambda *_: 50.0, seed=number), family, "gold", best=False)
        alone += any(each.difference.p < 0.05 for each in null)
        remain += any(each.separated for each in null)
        planted_at = made_up(league, lambda arm, *_: 52.0 if arm == "a7" else 50.0, seed=number)
        separated = [
            each.comparison.arm for each in corrected(planted_at, family, "gold", best=False) if each.separated
        ]
        found += "a7" in separated
    # The 12 share dpo's noise, so they err together: still far more often one by one than corrected.
    assert alone >= 3
    assert remain <= 2
    assert found >= 5


def test_the_report_says_what_was_planted(tmp_path):
    league = study()
    results = made_up(league, planted, drop=[("simpo", 1e-3, 4.0, 22)])
    assert [each.arm for each in ranking(league, results, "gold")][:2] in (["adadpo", "static"], ["static", "adadpo"])
    figures = draw_league(league, results, tmp_path)
    text = render(league, results, figures)
    assert "nan" not in text
    gold = text[text.index("## gold WR") : text.index("## Figures")]
    twin = next(line for line in gold.splitlines() if line.startswith("| adadpo - dpo (twin)"))
    assert re.search(r"\| \*\*\+(3\.[89]|4\.[012]) \[", twin)
    null = next(line for line in gold.splitlines() if line.startswith("| null - dpo (noise)"))
    assert "**" not in null
    simpo = next(line for line in gold.splitlines() if line.startswith("| simpo |"))
    assert [cell.strip() for cell in simpo.split("|")][2] == "3/4"
    assert "Differences of cell means: 2 of 5 are separated from zero at 5 % one by one, 2 after Holm's" in gold
    assert set(figures) == {"gold_against_kl", "gold_differences"}
    for name in figures:
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
        assert f"({name}.png)" in text


def test_one_seed_ranks_nothing():
    league = study(seeds=[20])
    results = made_up(league, planted)
    text = render(league, results, {})
    assert "nan" not in text
    assert "none can be tested with fewer than two seeds" in text


def test_without_a_judge_the_accuracy_ranks():
    league = study(arms={"dpo": Arm("dpo"), "ipo": Arm("ipo", strength="tau")})
    results = made_up(league, lambda *_: 50.0)
    table = results.table.assign(gold=math.nan, lc=math.nan, kl=math.nan, accuracy=70.0)
    results = Results(table[list(MEASURES)])
    text = render(league, results, {})
    assert "## reward accuracy" in text
    assert "nan" not in text


def test_names_of_dots_cover_neither_each_other_nor_the_dots():
    draw = np.random.default_rng(0)
    dots = {f"loss{i}": (x, 50 + y) for i, (x, y) in enumerate(draw.normal(0, 0.05, (40, 2)))}
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(*zip(*dots.values(), strict=True))
    axes.set_xlim(-1, 1)
    label_dots(axes, dots)
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) == 40
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert not any(box.contains(*axes.transData.transform(at)) for box in boxes for at in dots.values())
