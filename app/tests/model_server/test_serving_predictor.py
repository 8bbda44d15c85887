"""So many predictions at once, so many waiting, each with a deadline."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from model_server.worker.errors import BusyError, DeadlineError
from model_server.worker.predictor import AbandonedError, Predictor


def _never(error: DeadlineError) -> None:
    pytest.fail(f"given up: {error.message}")


def test_returns_the_result_and_how_long_it_waited_and_ran() -> None:
    result, queued, ran = Predictor(1, 1, 5).run(lambda: time.sleep(0.05) or "done", _never)
    assert result == "done"
    assert queued < 0.05 <= ran


def test_raises_what_the_call_raises_and_goes_on() -> None:
    predictor = Predictor(1, 1, 5)
    with pytest.raises(ZeroDivisionError):
        predictor.run(lambda: 1 / 0, _never)
    with pytest.raises(RuntimeError, match="exit"):
        predictor.run(lambda: exec("raise SystemExit"), _never)
    assert predictor.run(lambda: 1, _never)[0] == 1


def test_one_at_a_time() -> None:
    predictor = Predictor(1, 10, 5)
    running: list[int] = []
    most: list[int] = []

    def call() -> None:
        running.append(1)
        most.append(len(running))
        time.sleep(0.01)
        running.pop()

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(lambda _: predictor.run(call, _never), range(8)))
    assert max(most) == 1


def test_a_full_queue_refuses_at_once() -> None:
    predictor = Predictor(1, 1, 5)
    release = threading.Event()
    with ThreadPoolExecutor(2) as clients:
        accepted = [clients.submit(predictor.run, release.wait, _never) for _ in range(2)]
        time.sleep(0.1)
        with pytest.raises(BusyError):
            predictor.run(lambda: 1, _never)
        release.set()
        assert all(future.result()[0] for future in accepted)
    assert predictor.run(lambda: 1, _never)[0] == 1


def test_a_call_whose_time_is_over_before_it_began_never_begins() -> None:
    predictor = Predictor(1, 1, 0.1, on_stuck=lambda: None)
    release, begun, given_up = threading.Event(), threading.Event(), threading.Event()
    with ThreadPoolExecutor(2) as clients:
        first = clients.submit(predictor.run, release.wait, lambda _error: given_up.set())
        time.sleep(0.02)
        second = clients.submit(predictor.run, begun.set, _never)
        with pytest.raises(DeadlineError):
            second.result()
        assert given_up.wait(1)
        assert not first.done(), "its thread is still in the model"
        release.set()
        with pytest.raises(AbandonedError):
            first.result()
    assert predictor.run(lambda: "next", _never)[0] == "next"
    assert not begun.is_set()


def test_each_of_many_calls_is_given_up_at_its_own_time() -> None:
    predictor = Predictor(3, 0, 0.2, on_stuck=lambda: None)
    late: list[float] = []

    def late_call(number: int) -> None:
        time.sleep(number * 0.05)
        began = time.monotonic()
        with pytest.raises(AbandonedError):
            predictor.run(lambda: time.sleep(0.35), lambda _error: late.append(time.monotonic() - began))

    with ThreadPoolExecutor(3) as clients:
        list(clients.map(late_call, range(3)))
    assert len(late) == 3
    assert all(0.2 <= seconds < 0.34 for seconds in late), late


def test_a_call_that_does_not_come_back_is_reported() -> None:
    stuck, release = threading.Event(), threading.Event()
    predictor = Predictor(1, 1, 0.05, on_stuck=stuck.set)
    with ThreadPoolExecutor(1) as clients:
        call = clients.submit(predictor.run, release.wait, lambda _error: None)
        assert stuck.wait(2)
        release.set()
        with pytest.raises(AbandonedError):
            call.result()
