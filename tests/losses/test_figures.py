"""What the figures of docs/losses.md draw: the gradients of the losses themselves."""

import importlib.util
from pathlib import Path

import pytest
import torch

from adadpo_lightning.losses import AdaDPO, PairwiseLoss, available_losses, build_loss, loss_class

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/losses.md").read_text(encoding="utf-8")
SPEC = importlib.util.spec_from_file_location("make_loss_figures", ROOT / "scripts/make_loss_figures.py")
figures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(figures)


def test_each_family_has_its_figure_on_the_page():
    families = figures.families()
    plain = {key for key in available_losses() if isinstance(build_loss(key), PairwiseLoss) and key[:3] != "ada"}
    plain -= {"lddpo", "wpo", "pldpo"}  # of more than the two sums of a pair
    assert {key for keys in families.values() for key in keys} >= plain
    for group in families:
        assert (ROOT / f"docs/assets/losses/{group}.png").is_file()
        assert f"(assets/losses/{group}.png)" in PAGE


@pytest.mark.parametrize("key", available_losses())
def test_each_loss_is_on_the_page_and_in_the_readme(key):
    name = key if key == "sft" else key.removeprefix("ada")
    assert f"| `{name}` |" in PAGE
    assert f"`{name}`" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert loss_class(key).group in ("margin", "remedy", "side-wise", "reference-free", "listwise", "likelihood")


def test_curves_of_dpo_are_the_logistic_functions():
    loss = build_loss("dpo")
    line = figures.path(loss)
    wanted = 0.1 * torch.sigmoid(-line.across)
    for curve in figures.curves(loss, line.pairs).values():
        torch.testing.assert_close(curve, wanted)
    coefficient = AdaDPO()(line.pairs).coefficient
    torch.testing.assert_close(coefficient, (line.across / 3).exp().clamp(max=2.0))
