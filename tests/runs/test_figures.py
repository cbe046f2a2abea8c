"""Figures by what is on their axes, from logs that TensorBoard's writer and Lightning's CSV logger wrote."""

import pytest
from lightning.pytorch.loggers import CSVLogger
from matplotlib.colors import to_hex
from torch.utils.tensorboard import SummaryWriter

from adadpo_lightning.cli import main
from adadpo_lightning.errors import UserError
from adadpo_lightning.runs.figures import CHARTS, choose_charts, colours, draw, legend, overview, plot_runs
from adadpo_lightning.runs.logs import Curve, Run, read_runs


def write_events(folder, curves, purge=None):
    with SummaryWriter(str(folder / "tensorboard"), purge_step=purge) as writer:
        for tag, points in curves.items():
            for step, value in points.items():
                writer.add_scalar(tag, value, step)


def write_csv(folder, curves):
    logger = CSVLogger(folder, name="csv")
    for tag, points in curves.items():
        for step, value in points.items():
            logger.log_metrics({tag: value}, step=step)
    logger.save()


POINTS = {4: 1.0, 9: 0.5, 14: 0.25}
CURVES = {
    "train/grad_balance/ratio": POINTS,
    "val/grad_balance/ratio": {9: 0.4},
    "train/rewards/margins": {4: 0.0, 9: -1.0},
    "train/logps/chosen_per_token": POINTS,
    "train/logps/rejected_per_token": {4: -2.0},
    "epoch": {4: 0.0},
}


@pytest.mark.parametrize("write", [write_events, write_csv])
def test_curves_come_back_as_they_were_logged(tmp_path, write):
    write(tmp_path / "dpo", CURVES)
    (run,) = read_runs([str(tmp_path / "dpo")])
    assert run.name == "dpo"
    assert run.curves["train/grad_balance/ratio"] == Curve((4, 9, 14), (1.0, 0.5, 0.25))
    assert run.curves["val/grad_balance/ratio"].steps == (9,)


@pytest.mark.parametrize("write", [write_events, write_csv])
def test_after_a_resume_the_later_value_of_a_step_counts(tmp_path, write):
    write(tmp_path, {"train/loss": {1: 1.0, 2: 2.0, 3: 3.0}})
    write(tmp_path, {"train/loss": {2: 20.0, 3: 30.0, 4: 40.0}})
    (run,) = read_runs([str(tmp_path)])
    assert run.curves["train/loss"] == Curve((1, 2, 3, 4), (1.0, 20.0, 30.0, 40.0))


def test_versions_of_csv_logs_are_taken_in_the_order_of_their_numbers(tmp_path):
    for value in range(12):
        write_csv(tmp_path, {"train/loss": {1: float(value)}})
    assert read_runs([str(tmp_path)])[0].curves["train/loss"].values == (11.0,)


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    write_events(tmp_path, {"train/loss": {1: float("nan"), 2: 0.5, 3: float("inf")}})
    assert read_runs([str(tmp_path)])[0].curves["train/loss"] == Curve((2,), (0.5,))


def test_a_directory_of_runs_stands_for_all_of_them_and_names_tell_them_apart(tmp_path):
    for name in ("a/dpo", "b/dpo"):
        write_events(tmp_path / name, CURVES)
    write_csv(tmp_path / "b/simpo", CURVES)
    assert [run.name for run in read_runs([str(tmp_path)])] == ["a/dpo", "b/dpo", "b/simpo"]
    named = [str(tmp_path / "b/simpo"), str(tmp_path / "a/dpo"), str(tmp_path / "a/dpo/tensorboard")]
    assert [run.name for run in read_runs(named)] == ["simpo", "dpo"]


def runs():
    return [
        Run("dpo", {"train/grad_balance/ratio": Curve((0, 1), (1.0, 0.01)), "val/kl/chosen": Curve((1,), (0.1,))}),
        Run("adadpo", {"train/grad_balance/ratio": Curve((0, 1), (1.0, 1.0))}),
    ]


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_the_balance_is_drawn_on_a_log_axis_with_a_line_at_one():
    (axes,) = draw(runs(), CHARTS["balance"]).axes
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "optimizer step"
    assert axes.get_ylabel() == "chosen gradient / rejected gradient"
    lines = lines_of(axes)
    assert lines["dpo train ratio"].get_xydata().tolist() == [[0.0, 1.0], [1.0, 0.01]]
    assert lines["adadpo train ratio"].get_xydata().tolist() == [[0.0, 1.0], [1.0, 1.0]]
    assert set(lines["_mark"].get_ydata()) == {1.0}
    low, high = axes.get_ylim()
    assert low < 0.01
    assert high > 1.0
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert {"0.01", "0.1", "1"} <= set(labels)


def test_a_balance_that_stays_at_one_has_an_axis_with_numbers():
    (axes,) = draw(runs()[1:], CHARTS["balance"]).axes
    assert axes.get_ylim() == (0.8, 1.25)
    inside = [tick for tick in axes.get_yticks() if 0.8 <= tick <= 1.25]
    assert len(inside) >= 3
    assert 1.0 in inside


def test_chosen_and_rejected_share_a_colour_and_differ_in_dash_and_validation_has_points():
    curves = {
        f"{stage}/logps/{side}_per_token": Curve((0, 1), (-1.0, -2.0))
        for stage in ("train", "val")
        for side in ("chosen", "rejected")
    }
    (axes,) = draw([Run("dpo", curves)], CHARTS["logps"]).axes
    lines = lines_of(axes)
    assert len({line.get_color() for line in lines.values()}) == 1
    assert lines["dpo val chosen"].get_linestyle() != lines["dpo val rejected"].get_linestyle()
    assert lines["dpo val chosen"].get_marker() == "o"
    assert lines["dpo train chosen"].get_marker() == "None"
    assert axes.get_yscale() == "linear"


def test_the_legend_names_runs_and_styles_that_occur():
    names = [handle.get_label() for handle in legend(runs(), [CHARTS["balance"]])]
    assert names == ["dpo", "adadpo", "training"]
    assert [handle.get_label() for handle in legend(runs(), [CHARTS["kl"]])] == ["dpo", "chosen", "validation"]
    names = [handle.get_label() for handle in legend(runs(), list(CHARTS.values()))]
    assert names == ["dpo", "adadpo", "chosen", "training", "validation"]
    figure = draw(runs(), CHARTS["balance"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dpo", "adadpo", "training"]


def simulated(colour):
    """As someone without green cones sees it (Viénot, Brettel and Mollon 1999), in linear RGB."""
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92 for c in (r, g, b))
    yellow, blue = 0.29275 * r + 0.70725 * g, -0.02234 * r + 0.02234 * g + b
    return yellow, blue


@pytest.mark.parametrize("count", [2, 6, 7, 16])
def test_colours_differ_without_red_green_vision_too(count):
    found = [simulated(to_hex(colour)) for colour in colours(count)]
    assert len(found) == count
    for i, a in enumerate(found):
        for b in found[:i]:
            assert sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 > 0.015


def test_the_overview_has_all_charts_and_one_legend():
    charts = choose_charts(runs(), [])
    assert list(charts) == ["balance", "kl"]
    figure = overview(runs(), list(charts.values()))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Gradient balance", "KL to the reference"]
    assert len(figure.legends) == 1


def test_any_logged_metric_can_be_drawn_and_a_ratio_is_on_a_log_axis():
    found = [Run("a", {"train/grad_norm/ratio": Curve((0,), (1.0,)), "val/loss": Curve((0,), (1.0,))})]
    charts = choose_charts(found, ["grad_norm/ratio", "val/loss"])
    assert list(charts) == ["grad_norm_ratio", "loss"]
    assert [chart.log for chart in charts.values()] == [True, False]
    with pytest.raises(UserError, match=r"metric: no run has 'grad_norm/rato'; did you mean 'grad_norm/ratio'\?"):
        choose_charts(found, ["grad_norm/rato"])
    with pytest.raises(UserError, match=r"metric: no run has 'kl'"):
        choose_charts(found, ["kl"])
    with pytest.raises(UserError, match=r"no run has metrics of a chart"):
        choose_charts(found, [])


def test_the_command_writes_png_and_svg(tmp_path, capsys):
    write_events(tmp_path / "dpo", CURVES)
    write_csv(tmp_path / "adadpo", CURVES)
    output = tmp_path / "figures"
    assert main(["plot", str(tmp_path / "dpo"), str(tmp_path / "adadpo"), "--output", str(output)]) == 0
    names = {f"{name}.{end}" for name in ("balance", "logps", "margin", "overview") for end in ("png", "svg")}
    assert {path.name for path in output.iterdir()} == names
    assert set(capsys.readouterr().out.split()) == {str(output / name) for name in names}
    assert (output / "balance.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (output / "balance.svg").read_text()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nosuch", r"nosuch: expected the output directory of a run, found nothing"),
        ("file", r"file: expected the output directory of a run, found a file"),
        ("empty", r"empty: holds no logs: neither TensorBoard event files nor csv"),
        ("started", r"started: its logs hold no metric yet"),
    ],
)
def test_paths_that_hold_no_run_are_user_errors(tmp_path, capsys, path, message):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    write_events(tmp_path / "started", {"epoch": {}})
    assert main(["plot", str(tmp_path / path), "--output", str(tmp_path / "out")]) == 2
    import re

    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'adadpo-lightning\[plot\]'"):
        plot_runs([str(tmp_path)], str(tmp_path / "out"))
