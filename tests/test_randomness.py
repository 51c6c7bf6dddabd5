"""The global random state: kept, restored, and written down."""

import random

import numpy as np
import pyro
import pytest
import torch

from ppl_vae.checkpoint import load_checkpoint, save_checkpoint
from ppl_vae.randomness import fork, restore, seed_all, snapshot, untouched


def draw():
    """Something from every generator, odd in number, so that cached halves count."""
    return (
        torch.rand(3).tolist(),
        torch.randn(3).tolist(),
        np.random.rand(3).tolist(),
        np.random.randn(3).tolist(),
        [random.random() for _ in range(3)],
        [random.gauss(0, 1) for _ in range(3)],
    )


def test_a_seed_starts_every_generator():
    streams = []
    for seed in (7, 7, 8):
        seed_all(seed)
        streams.append(draw())
    assert streams[0] == streams[1]
    assert all(one != other for one, other in zip(streams[0], streams[2], strict=True))


@pytest.mark.parametrize("seed", [0, 2**32, 2**40 + 3])
def test_large_seeds_are_taken(seed):
    seed_all(seed)
    first = draw()
    seed_all(seed)
    assert draw() == first


def test_a_snapshot_goes_back_and_is_not_moved_by_what_follows():
    draw()
    state = snapshot()
    expected = [draw(), draw()]
    for _ in range(2):
        seed_all(5)
        restore(state)
        assert [draw(), draw()] == expected


def test_a_snapshot_survives_a_checkpoint(tmp_path):
    draw()
    save_checkpoint(tmp_path / "c", {"random": snapshot()})
    expected = draw()
    seed_all(5)
    restore(load_checkpoint(tmp_path / "c")["random"])
    assert draw() == expected


def test_a_fork_leaves_no_trace():
    seed_all(1)
    expected = draw()
    seed_all(1)
    with fork(seed=2):
        inside = draw()
    assert draw() == expected
    seed_all(2)
    assert draw() == inside != expected


def test_a_fork_without_a_seed_begins_where_the_outer_stream_stands():
    seed_all(1)
    with fork():
        inside = draw()
    assert draw() == inside


def test_a_fork_is_left_by_an_error_too():
    seed_all(1)
    expected = draw()
    seed_all(1)
    try:
        with fork(seed=2):
            draw()
            raise KeyError
    except KeyError:
        pass
    assert draw() == expected


def test_forks_nest():
    seed_all(1)
    expected = draw()
    seed_all(1)
    with fork(seed=2):
        with fork(seed=3):
            draw()
        inner = draw()
    assert draw() == expected
    seed_all(2)
    assert draw() == inner


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_run_untouched_leaves_no_parameter_behind(fails):
    pyro.param("mine", torch.ones(2))
    seed_all(1)
    expected = draw()
    seed_all(1)
    try:
        with untouched(seed=2):
            inside = draw()
            # The parameters of outside are there, what is added does not stay.
            assert torch.equal(pyro.param("mine"), torch.ones(2))
            pyro.param("new", torch.zeros(3))
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert list(pyro.get_param_store()) == ["mine"] and draw() == expected
    seed_all(2)
    assert draw() == inside
