"""What runs ahead gives the same, says what went wrong, and leaves no thread behind."""

import gc
import itertools
import signal
import threading
import time

import pytest

from ppl_vae.data.prefetch import Prefetch

NAME = "ppl_vae prefetch"


def threads():
    return [thread for thread in threading.enumerate() if thread.name == NAME]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not threads()


def test_items_come_in_their_order():
    ahead = Prefetch(iter(range(50)), 3)
    assert [ahead.next() for _ in range(50)] == list(range(50))
    with pytest.raises(StopIteration):
        ahead.next()


@pytest.mark.parametrize("num_ahead", [1, 3])
def test_it_runs_ahead_no_further_than_it_may(num_ahead):
    made = []

    def items():
        for i in itertools.count():
            made.append(i)
            yield i

    ahead = Prefetch(items(), num_ahead)
    for taken in range(1, 5):
        ahead.next()
        deadline = time.monotonic() + 5
        while len(made) < taken + num_ahead + 1 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert len(made) == taken + num_ahead + 1  # those waiting, and one in the making
    ahead.close()


def test_an_error_comes_where_its_item_would_have_come():
    def items():
        yield 1
        yield 2
        raise ValueError("row 7 is damaged")

    ahead = Prefetch(items(), 4)
    assert (ahead.next(), ahead.next()) == (1, 2)
    with pytest.raises(ValueError, match="row 7 is damaged"):
        ahead.next()
    assert not threads()
    with pytest.raises(RuntimeError, match="closed"):
        ahead.next()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_ends_the_thread(taken):
    ahead = Prefetch(itertools.count(), 2)
    for _ in range(taken):
        ahead.next()
    assert len(threads()) == 1
    ahead.close()
    assert not threads()
    ahead.close()


def test_a_thread_that_nobody_holds_ends():
    ahead = Prefetch(itertools.count(), 2)
    ahead.next()
    assert len(threads()) == 1
    del ahead
    gc.collect()
    assert not threads()


def test_ctrl_c_while_waiting_ends_it():
    def items():
        yield 0
        time.sleep(0.5)
        yield 1

    ahead = Prefetch(items(), 1)
    ahead.next()
    main = threading.main_thread().ident
    threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        ahead.next()
