"""An evaluation whose own process and whose simulators are killed, ten times, ends as one that nothing happened to."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_host_loop import comparable, journal_lines

from eval.results import read_json

HERE = Path(__file__).parent
KILLS = 10
PROGRAM = """
import sys
from pathlib import Path
from test_host_loop import Drifting, Episode, choose_video_episodes, whole
episodes = [Episode(index, ("count_up", "count_down"), "A", 100 + index) for index in range(24)]
videos = choose_video_episodes(episodes, 6)
whole(Path(sys.argv[1]), Drifting(), episodes, {"delay": 0.004, "size": 32}, video_episodes=videos, retries=KILLS)
"""


def start(out: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    return subprocess.Popen([sys.executable, "-c", PROGRAM.replace("KILLS", str(KILLS)), str(out)], env=environment, stderr=subprocess.PIPE)


def finished(out: Path) -> int:
    path = out / "episodes.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.medium
def test_ten_kills_change_nothing(tmp_path):
    calm = start(tmp_path / "calm")
    assert calm.wait(600) == 0, calm.stderr.read().decode()

    moment, out, evaluation = random.Random(0), tmp_path / "killed", start(tmp_path / "killed")
    for kill in range(KILLS):
        before, deadline = finished(out), time.monotonic() + 600
        while finished(out) == before and evaluation.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(moment.uniform(0.0, 0.1))
        assert evaluation.poll() is None, f"the evaluation ended before kill {kill}: {evaluation.stderr.read().decode()}"
        if kill % 2:
            evaluation.kill()
            evaluation.wait()
            evaluation = start(out)
        else:
            children = Path(f"/proc/{evaluation.pid}/task/{evaluation.pid}/children").read_text().split()
            os.kill(int(moment.choice(children)), signal.SIGKILL)
    assert evaluation.wait(600) == 0, evaluation.stderr.read().decode()

    lines = [journal_lines(tmp_path / name) for name in ("calm", "killed")]
    assert comparable(lines[0]) == comparable(lines[1])
    results = [read_json(tmp_path / name / "results.json") for name in ("calm", "killed")]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[1]["failures"]["worker_restarts"] >= KILLS // 2
    assert {record["video"] for record in lines[1] if "video" in record} == {
        str(path.relative_to(out)) for path in (out / "videos").glob("*.mp4")
    }
