"""Schedules of a loss's options: values against torch's own schedulers, and what a loss with schedules is."""

import dataclasses
import math

import pytest
import torch

from adadpo_lightning.errors import UserError
from adadpo_lightning.losses import DPO, SFT, AdaDPO, Mixture, Schedule, available_losses, build_loss
from adadpo_lightning.losses.testing import sample_pairs
from adadpo_lightning.training.rebuild import describe_loss, make_loss

X = sample_pairs(5, seed=2)


def torchs_values(start, end, shape, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=start)
    scheduler = {
        "linear": lambda: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, end / start, total),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total, end),
    }[shape]()
    values = [optimizer.param_groups[0]["lr"]]
    for _ in range(total):
        optimizer.step()
        scheduler.step()
        values.append(optimizer.param_groups[0]["lr"])
    return values


@pytest.mark.parametrize(("start", "end", "shape"), [(0.5, 0.1, "linear"), (0.5, 0.1, "cosine"), (0.1, 0.3, "cosine")])
def test_values_are_those_of_torchs_schedulers(start, end, shape):
    schedule = Schedule(start, end, shape)
    values = [schedule.at(step, 7) for step in range(8)]
    assert values == pytest.approx(torchs_values(start, end, shape, 7), rel=1e-12)
    assert (values[0], values[-1], schedule.at(9, 7)) == (start, end, end)


def test_dpo_shifts_linear_schedule():
    """As its authors' trainer: l_min + (l_max - l_min) * (current_step / max_steps), and from l_max down."""
    for step in range(11):
        assert Schedule(0.75, 1.0).at(step, 10) == pytest.approx(0.75 + (1.0 - 0.75) * (step / 10), rel=1e-15)
        assert Schedule(1.0, 0.75).at(step, 10) == pytest.approx(1.0 - (1.0 - 0.75) * (step / 10), rel=1e-15)


def numeric_options():
    for key in available_losses():
        for field in dataclasses.fields(build_loss(key)):
            value = getattr(build_loss(key), field.name)
            if isinstance(value, float):
                yield key, field.name, value


@pytest.mark.parametrize(("key", "name", "value"), list(numeric_options()))
def test_every_numeric_option_may_have_one(key, name, value):
    end = 0.9 * value if value else 0.01
    loss = build_loss(key, **{name: {"from": value, "to": end, "schedule": "linear"}})
    assert loss.scheduled
    assert loss.at(0, 10) == build_loss(key)
    middle = loss.at(5, 10)
    assert not middle.scheduled
    assert getattr(middle, name) == loss.scheduled_values(5, 10)[name] == pytest.approx((value + end) / 2)
    assert torch.equal(middle(X).per_pair, build_loss(key, **{name: getattr(middle, name)})(X).per_pair)


def test_a_loss_without_schedules_is_itself():
    for loss in (DPO(), SFT()):
        assert loss.at(3, 10) is loss
        assert not loss.scheduled


def test_mixtures():
    loss = Mixture([DPO(beta=Schedule(0.1, 0.3)), SFT()], [1.0, {"from": 0.4, "to": 0.0}])
    assert loss.scheduled_values(1, 2) == pytest.approx({"weight_1": 0.2, "part_0/beta": 0.2})
    wanted = Mixture([DPO(beta=0.2), SFT()], [1.0, 0.2])
    torch.testing.assert_close(loss.at(1, 2)(X).reduce(5, 9), wanted(X).reduce(5, 9), rtol=1e-14, atol=0)
    assert loss.at(2, 2).weights == [1.0, 0.0]
    assert Mixture([loss, SFT()], [0.5, 1.0]).weights[1] == Schedule(0.2, 0.0)
    with pytest.raises(UserError, match="write the mixture flat"):
        Mixture([loss], [Schedule(1.0, 2.0)])
    for wrong in (Schedule(0.0, 0.0), Schedule(-0.1, 1.0)):
        with pytest.raises(UserError, match="weights"):
            Mixture([SFT()], [wrong])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beta": {"from": 0.1, "to": 0.0}}, "loss.beta: expected a finite number above 0, got 0.0 at the end"),
        ({"beta": {"from": -1, "to": 0.1}}, "loss.beta: .* got -1.0 at the first step"),
        ({"label_smoothing": {"from": 0.0, "to": 0.5}}, "loss.label_smoothing"),
        ({"ceiling": {"from": 2.0, "to": 0.5}, "floor": 0.6}, "loss.floor: expected at most the ceiling 0.5"),
        # Both ends are fine, and between them the two cross.
        (
            {"ceiling": {"from": 1, "to": 2, "schedule": "cosine"}, "floor": {"from": 1, "to": 2}},
            "loss.floor: .* in the course of the run",
        ),
        ({"beta": {"from": 0.1}}, "loss.beta: expected a schedule with the keys from, to and schedule"),
        ({"beta": {"from": 0.1, "to": 0.2, "steps": 3}}, "loss.beta: expected a schedule with the keys"),
        ({"beta": {"from": 0.1, "to": 0.2, "schedule": "cubic"}}, "loss.beta: .* linear or cosine, got 'cubic'"),
        ({"beta": {"from": "x", "to": 0.2}}, "loss.beta: expected a finite number as 'from'"),
        ({"beta": {"from": 0.1, "to": math.inf}}, "loss.beta: expected a finite number as 'to'"),
        ({"apply": {"from": 0, "to": 1}}, "loss.apply: expected a value like 'margin'"),
    ],
    ids=str,
)
def test_wrong_schedules_are_named_when_the_loss_is_built(options, said):
    with pytest.raises(UserError, match=said):
        build_loss("adadpo", **options)


def test_a_switch_has_no_schedule():
    with pytest.raises(UserError, match=r"loss.length_normalize"):
        build_loss("ipo", length_normalize={"from": 0, "to": 1})


def test_a_checkpoints_description_gives_the_loss_again():
    cosine = AdaDPO(beta=Schedule(0.1, 0.01, "cosine"), floor=Schedule(0.1, 0.2))
    for loss in (cosine, Mixture([cosine, SFT()], [1.0, Schedule(0.1, 0.2)])):
        again = make_loss(describe_loss(loss))
        assert repr(again) == repr(loss)
        assert again.scheduled_values(3, 7) == loss.scheduled_values(3, 7)
