"""Waiting processes name the ones they wait for; lost processes are given up."""

import json
import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from data_pipelines import storage
from data_pipelines.errors import WriteFailedError
from vpp_jax.training.heartbeat import Heartbeat, OccupiedError

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


# --- one run per work directory -------------------------------------------------------------------------------------------------------


def rewrite(path, **changed):
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def elsewhere(path, **changed):
    """The heartbeat becomes one of process 1 of another container, or of another machine."""
    rewrite(path, pid=1, pids="pid:[1]", **changed)


@pytest.fixture
def left(tmp_path):
    """The heartbeat of a process that was killed: it still says `step`."""
    heartbeat = make(tmp_path, 0, count=1)
    heartbeat.enter("step", 7)
    heartbeat._beat()
    return tmp_path / "00000.json"


def test_a_second_run_is_refused_at_once_on_the_same_machine(tmp_path, project):
    alive = subprocess.Popen(
        [sys.executable, "-c", f"from vpp_jax.training.heartbeat import *; Heartbeat({str(tmp_path)!r}, 0, 1, 60, 600)._beat(); input()"],
        cwd=project,
        stdin=subprocess.PIPE,
    )
    until(lambda: (tmp_path / "00000.json").exists(), 60.0)
    before = (tmp_path / "00000.json").read_bytes()
    begin = time.monotonic()
    with pytest.raises(
        OccupiedError, match=rf"another run is alive in .*: process 0 on .* \(process number {alive.pid}\) is in phase start"
    ):
        make(tmp_path, 0).__enter__()
    assert time.monotonic() - begin < 5
    assert (tmp_path / "00000.json").read_bytes() == before

    alive.kill()
    alive.communicate()
    begin = time.monotonic()
    with make(tmp_path, 0):
        assert time.monotonic() - begin < 5  # a crash is known at once: the heartbeat was every minute


def test_a_restart_after_a_crash_is_not_refused(left, tmp_path):
    rewrite(left, started="0")  # its number now belongs to another process
    with make(tmp_path, 0, count=1):
        pass


def test_a_restarted_container_waits_for_two_heartbeats(left, tmp_path):
    """The new process 1 cannot see the old one, which may be a live one in another container."""
    elsewhere(left)
    begin = time.monotonic()
    with make(tmp_path, 0, count=1):
        assert 2 * EVERY_S <= time.monotonic() - begin < 5


def test_a_second_run_elsewhere_is_refused_when_the_first_one_writes_again(left, tmp_path):
    elsewhere(left, every_s=60)
    writer = threading.Timer(0.3, lambda: elsewhere(left, step=8))
    writer.start()
    with pytest.raises(OccupiedError, match="use another --workdir"):
        make(tmp_path, 0, count=1).__enter__()
    writer.join()


@pytest.mark.parametrize("change", [{"phase": "done"}, {"phase": "failed"}, {"old": True}])
def test_a_run_that_ended_keeps_nobody_waiting(change, left, tmp_path):
    elsewhere(left, every_s=3600, **change)
    if "old" in change:
        os.utime(left, (0, 0))
    with make(tmp_path, 0, count=1):
        pass


def test_a_heartbeat_that_cannot_be_written_ends_nothing(tmp_path, monkeypatch, caplog):
    with make(tmp_path, 0, count=1) as heartbeat:
        monkeypatch.setattr(storage, "write", lambda *unused: (_ for _ in ()).throw(WriteFailedError("no bucket")))
        until(lambda: "no heartbeat: no bucket" in caplog.text)
        assert heartbeat._thread.is_alive()
