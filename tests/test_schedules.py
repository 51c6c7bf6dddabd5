"""Schedules against formulas of their own, and what they refuse."""

import dataclasses
import math
from itertools import pairwise

import pytest

from ppl_vae.schedules import Constant, Cosine, Cyclical, Linear, PerSite, Sigmoid

RAMPS = [Linear, Cosine, Sigmoid]


def test_the_examples_of_the_documentation():
    assert Constant(4.0)(1000) == 4.0 and Constant()(0) == 1.0
    assert [Linear(4)(step) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert [round(Cosine(4)(step), 3) for step in range(6)] == [0.0, 0.146, 0.5, 0.854, 1.0, 1.0]
    assert [round(Sigmoid(4)(step), 3) for step in range(6)] == [0.0, 0.07, 0.5, 0.93, 1.0, 1.0]
    cyclical = Cyclical(num_cycles=2, num_steps=8)
    assert [cyclical(step) for step in range(9)] == [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    assert PerSite({"z1": Constant(1.0), "z2": Linear(10)})(5) == {"z1": 1.0, "z2": 0.5}


@pytest.mark.parametrize("start, end", [(0.0, 1.0), (0.2, 5.0), (3.0, 0.5), (1.0, 0.0)])
@pytest.mark.parametrize("make", RAMPS)
def test_a_ramp_is_monotone_and_stays_between_its_ends(make, start, end):
    ramp = make(50, start=start, end=end)
    weights = [ramp(step) for step in range(80)]
    assert all(min(start, end) <= w <= max(start, end) for w in weights)
    steps = [after - before for before, after in pairwise(weights[:51])]
    assert all(step * (end - start) > 0 for step in steps)


@pytest.mark.parametrize("start, end", [(0.0, 1.0), (1.0, 0.1), (0.1, 0.7), (0.3, 0.9)])
@pytest.mark.parametrize("make", [*RAMPS, lambda *a, **k: Cyclical(2, *a, **k)])
def test_the_ends_are_met_exactly(make, start, end):
    ramp = make(50, start=start, end=end)
    assert ramp(0) == start
    assert [ramp(step) for step in (50, 51, 10**9)] == [end] * 3


@pytest.mark.parametrize("step", [0, 1, 7, 25, 49, 50, 60])
def test_ramps_are_their_formulas(step):
    t = min(step, 50) / 50
    line = 0.5 + 1.5 * t
    assert Linear(50, 0.5, 2.0)(step) == pytest.approx(line, rel=1e-12)
    cosine = 0.5 + 1.5 * math.sin(math.pi * t / 2) ** 2
    assert Cosine(50, 0.5, 2.0)(step) == pytest.approx(cosine, rel=1e-12)
    low, high, here = (1 / (1 + math.exp(-6 * (u - 0.5))) for u in (0, 1, t))
    curve = 0.5 + 1.5 * (here - low) / (high - low)
    assert Sigmoid(50, 0.5, 2.0, steepness=6.0)(step) == pytest.approx(curve, rel=1e-12)


def test_a_steep_sigmoid_is_a_step_and_a_flat_one_a_line():
    assert [Sigmoid(10, steepness=1e5)(s) for s in (4, 5, 6)] == pytest.approx([0, 0.5, 1])
    for step in range(11):
        assert Sigmoid(10, steepness=1e-4)(step) == pytest.approx(step / 10, abs=1e-8)


@pytest.mark.parametrize("num_cycles, num_steps", [(1, 10), (3, 12), (4, 10), (7, 100)])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
def test_cycles_are_their_formula(num_cycles, num_steps, ratio):
    schedule = Cyclical(num_cycles, num_steps, ratio=ratio, start=0.5, end=2.0)
    for step in range(num_steps):
        # In whole numbers: the phase is (step * cycles mod steps) / steps.
        phase = (step * num_cycles % num_steps) / num_steps
        expected = 0.5 + 1.5 * min(1.0, phase / ratio)
        assert schedule(step) == pytest.approx(expected, abs=1e-12), step
    assert schedule(num_steps) == 2.0


def test_schedules_are_values():
    assert Linear(5) == Linear(5, 0.0) != Linear(6)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Linear(5).num_steps = 6
    assert Linear(5, end=2.0).init_args == {"num_steps": 5, "end": 2.0}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Constant(-1.0), "Constant: value is -1.0; accepted is a finite weight >= 0"),
        (lambda: Constant(math.nan), "Constant: value is nan"),
        (lambda: Constant(math.inf), "Constant: value is inf"),
        (lambda: Linear(0), "Linear: num_steps is 0; accepted is >= 1"),
        (lambda: Cosine(5, start=-0.5), "Cosine: start is -0.5"),
        (lambda: Linear(5, end=-0.5), "Linear: end is -0.5"),
        (lambda: Sigmoid(5, steepness=0.0), "Sigmoid: steepness is 0.0; accepted is a number > 0"),
        (lambda: Sigmoid(5, steepness=math.inf), "Sigmoid: steepness is inf"),
        (lambda: Sigmoid(0), "Sigmoid: num_steps is 0"),
        (lambda: Cyclical(0, 5), "Cyclical: num_cycles is 0"),
        (lambda: Cyclical(2, 0), "Cyclical: num_steps is 0"),
        (lambda: Cyclical(2, 10, ratio=0.0), "Cyclical: ratio is 0.0; accepted is 0 < ratio <= 1"),
        (lambda: Cyclical(2, 10, ratio=1.5), "Cyclical: ratio is 1.5"),
        (lambda: Cyclical(2, 10, end=math.nan), "Cyclical: end is nan"),
        (lambda: PerSite({}), "PerSite: sites is empty"),
        (
            lambda: PerSite({"z": PerSite({"z": Constant()})})(0),
            "PerSite: the schedule of site 'z' is itself per site",
        ),
    ],
)
def test_arguments_that_make_no_schedule_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
