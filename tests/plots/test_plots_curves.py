"""The learning curves: what is drawn, where it is cut, what it is called."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ppl_vae import plots

STEPS = 100


def metrics(sites=("z1", "z2"), weight=lambda t: min(1.0, 5 * t)):
    """A run that starts at -540 nats and settles at -104."""
    lines = []
    noise = np.random.default_rng(0).normal(size=STEPS)
    for i in range(STEPS):
        t = (i + 1) / STEPS
        bound = -104 - 500 * math.exp(-30 * t) + noise[i]
        kl = {site: (10 + 8 * j) * (1 - math.exp(-9 * t)) for j, site in enumerate(sites)}
        logged = {"step": 100 * (i + 1), "bound": bound, "kl": kl, "reconstruction": bound + 20}
        lines.append({"split": "train", "weight": weight(t), "loss": -bound, **logged})
        if i % 10 == 9:
            elbo = {"elbo": bound - 2, "elbo_standard_error": 0.3}
            lines.append({"split": "valid", **logged, **elbo})
    return lines


def panels(figure: Figure) -> dict:
    return {axes.get_title("left"): axes for axes in figure.axes}


def test_learning_curves_have_a_panel_for_each_quantity(legend):
    found = panels(plots.learning_curves(metrics()))
    assert list(found) == ["Bound on log p(x)", "KL", "Reconstruction", "Weight of the KL"]
    top = found["Bound on log p(x)"]
    assert legend(top.get_legend()) == [
        "estimator's bound, training",
        "estimator's bound, validation",
        "ELBO, validation",
    ]
    assert [len(line.get_xdata()) for line in top.get_lines()] == [100, 10, 10]
    (band,) = top.collections
    elbo = top.get_lines()[2].get_ydata()
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(elbo.max() + 0.3)
    assert legend(found["KL"].get_legend()) == ["z1", "z2"]


def test_a_site_keeps_its_colour_in_every_panel_and_figure():
    lines = metrics(weight=lambda t: {"z1": t, "z2": 1.0})
    found = panels(plots.learning_curves(lines))
    kl = [to_hex(line.get_color()) for line in found["KL"].get_lines()]  # z1 twice, z2 twice
    weight = [to_hex(line.get_color()) for line in found["Weight of the KL"].get_lines()]
    assert kl[0] == kl[1] == weight[0] != kl[2] == kl[3] == weight[1]
    units = plots.active_units({"z2": [0.5], "z1": [0.9]}).axes[0]
    assert {to_hex(line.get_color()) for line in units.get_lines()[:2]} == set(weight)
    assert to_hex(units.get_lines()[0].get_color()) == weight[1]


def test_more_sites_than_colours_are_still_told_apart(legend):
    found = panels(plots.learning_curves(metrics(sites=[f"z{i}" for i in range(9)])))
    assert len({to_hex(line.get_color()) for line in found["KL"].get_lines()}) == 9
    assert found["KL"].get_legend() is None  # it would hide the curves
    assert legend(found["KL"].figure.legends[0]) == [f"z{i}" for i in range(9)]


def test_first_steps_do_not_squash_the_axis_and_the_cut_is_said():
    lines = metrics()
    lines[50]["bound"] = -1e9
    top = plots.learning_curves(lines).axes[0]
    low, high = top.get_ylim()
    assert -135 < low < -108
    assert -103 < high < -95
    assert top.get_title("right") == "cut: lowest −1e+09"


@pytest.mark.parametrize("slope", [1.0, 0.0])
def test_a_curve_without_transient_is_drawn_whole(slope):
    lines = [{"step": i, "bound": -100 + slope * i} for i in range(40)]
    top = plots.learning_curves(lines).axes[0]
    low, high = top.get_ylim()
    assert low < -100
    assert high > -100 + 39 * slope
    assert top.get_title("right") == ""


def test_kl_and_weight_are_drawn_from_zero():
    found = panels(plots.learning_curves(metrics()))
    assert found["KL"].get_ylim()[0] <= 0 < 18 < found["KL"].get_ylim()[1]
    assert (
        found["Weight of the KL"].get_ylim()[0] <= 0 < 1 < found["Weight of the KL"].get_ylim()[1]
    )


def test_a_weight_of_one_needs_no_panel():
    constant = panels(plots.learning_curves(metrics(weight=lambda t: 1.0)))
    assert "Weight of the KL" not in constant
    half = panels(plots.learning_curves(metrics(weight=lambda t: 0.5)))
    assert "Weight of the KL" in half


def test_one_line_is_a_visible_point():
    figure = plots.learning_curves(metrics(sites=("z",))[:1])
    (line,) = figure.axes[0].get_lines()
    assert line.get_marker() == "o"
    low, high = figure.axes[0].get_ylim()
    assert low < line.get_ydata()[0] < high
    assert "KL of z" in panels(figure)
    assert plots.png(figure)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_one_split_alone(split):
    lines = [line for line in metrics() if line["split"] == split]
    top = plots.learning_curves(lines).axes[0]
    assert len(top.get_lines()) == {"train": 1, "valid": 2}[split]


def test_missing_keys_leave_panels_and_points_out():
    lines = metrics()
    for line in lines:
        del line["reconstruction"], line["kl"]
    del lines[3]["bound"]
    found = panels(plots.learning_curves(lines))
    assert list(found) == ["Bound on log p(x)", "Weight of the KL"]
    assert len(found["Bound on log p(x)"].get_lines()[0].get_xdata()) == STEPS - 1
    assert plots.png(plots.learning_curves([{}]))


def test_without_density_the_log_prior_stands_for_the_kl():
    lines = [{"step": i, "bound": -50.0 - i, "log_prior": {"z": -20.0}} for i in range(9)]
    assert list(panels(plots.learning_curves(lines))) == ["Bound on log p(x)", "Log prior of z"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_values_that_are_not_finite_are_gaps_and_counted(bad):
    lines = metrics()
    lines[40]["bound"] = lines[41]["bound"] = bad
    top = plots.learning_curves(lines).axes[0]
    assert np.isfinite(top.get_ylim()).all()
    assert np.isnan(top.get_lines()[0].get_ydata()).sum() == 2
    assert "2 not finite" in top.get_title("right")
    lines[-1]["elbo"] = bad
    band = plots.learning_curves(lines).axes[0].collections[0].get_paths()
    assert all(np.isfinite(path.vertices).all() for path in band)
    nothing = plots.learning_curves([{"step": 0, "bound": bad}, {"step": 1, "bound": bad}])
    assert plots.png(nothing)


def test_no_metrics_is_an_error():
    with pytest.raises(ValueError, match="at least one line"):
        plots.learning_curves([])
