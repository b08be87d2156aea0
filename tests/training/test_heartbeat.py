"""Waiting processes name the ones they wait for; lost processes are given up."""

import json
import logging
import time

import pytest

from vpp_jax.training.heartbeat import Heartbeat

EVERY_S = 0.02


def make(folder, process, count=2, lost_after_s=10.0, told=None):
    return Heartbeat(folder, process, count, EVERY_S, lost_after_s, (told if told is not None else []).append)


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "too slow"
        time.sleep(0.01)


def test_files_say_what_each_process_does(tmp_path):
    with make(tmp_path, 0) as first, make(tmp_path, 1) as second:
        second.enter("data", 7)
        with second.during("eval"):
            until(lambda: first.peers()[0].phase == "eval")
        until(lambda: (first.peers()[0].phase, first.peers()[0].step) == ("data", 7))
        assert second.peers()[0].process == 0
    assert [json.loads((tmp_path / f"{index:05d}.json").read_text())["phase"] for index in range(2)] == ["done", "done"]


def test_a_process_that_waits_names_the_others(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    with make(tmp_path, 0, count=3) as first, make(tmp_path, 1, count=3) as second:
        second.enter("data", 6)
        first.enter("step", 7)
        until(lambda: "process 0 is in phase step, step 7" in caplog.text)
    message = next(record.getMessage() for record in caplog.records if "process 0 is in phase" in record.getMessage())
    assert "process 1 on " in message
    assert "data, step 6" in message
    assert "process 2 has not been seen yet" in message


def test_nothing_is_logged_while_all_are_in_the_same_phase(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    first, second = make(tmp_path, 0), make(tmp_path, 1)
    for heartbeat in (first, second):
        heartbeat.enter("step", 3)
        heartbeat._beat()
    first._report_waiting()
    assert caplog.text == ""
    second.enter("data", 3)
    second._beat()
    first._report_waiting()
    first._report_waiting()
    assert caplog.text.count("waiting for: process 1") == 1  # once for as long as nothing changes


def test_a_process_that_failed_or_is_lost_is_given_up(tmp_path):
    told = []
    with make(tmp_path, 0, told=told) as first:
        first.enter("step", 4)
        with pytest.raises(RuntimeError), make(tmp_path, 1):
            raise RuntimeError("no such shard")
        until(lambda: told)
    assert "process 0 is in phase step, step 4" in told[0]
    assert "gives up: process 1 on " in told[0]
    assert "no such shard" in told[0]

    told = []
    with make(tmp_path / "other", 0, lost_after_s=0.3, told=told) as first:
        second = make(tmp_path / "other", 1)
        second._beat()  # once, and never again: a process that was killed
        first.enter("step", 4)
        assert "silent" not in str(first.peers()[0])
        until(lambda: told)
        assert "gives up: process 1 on " in told[0]
        assert [peer.process for peer in first.gone()] == [1]


def test_files_of_an_earlier_run_do_not_count(tmp_path):
    with make(tmp_path, 1):
        pass
    with make(tmp_path, 0) as first:
        assert str(first.peers()[0]) == "process 1 has not been seen yet"
