"""The steps asked for are traced, and no others."""

import jax
import pytest

from vpp_jax.training.loop import train
from vpp_jax.training.profiling import WARM_UP, StepProfile


def test_a_run_traces_early_steps(toy, tmp_path):
    config = toy.toy_config(steps=WARM_UP + 3, eval_every=0, profile_steps=2)
    train(toy.ToyStage(config), tmp_path)
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert b"step_num" in trace.read_bytes(), "viewers group events by step"


@pytest.mark.parametrize(
    ("start", "count", "last", "expected"),
    [(0, 2, 9, ["start 2", "stop 4"]), (7, 1, 20, ["start 9", "stop 10"]), (0, 0, 9, []), (0, 50, 4, ["start 2", "stop 4"])],
)
def test_which_steps(tmp_path, monkeypatch, start, count, last, expected):
    """The last case: a run that ends while it is traced."""
    seen, now = [], [0]
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: seen.append(f"start {now[0]}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append(f"stop {now[0]}"))
    profile = StepProfile(tmp_path, start, count)
    for step in range(start, last):
        now[0] = step
        profile.at(step)
    now[0] = last
    profile.close()
    assert seen == expected
