"""The how-to's simulator and benchmark, as they stand there, run by the real command."""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from eval.benchmarks.registry import get_benchmark
from eval.closed_loop import evaluate
from eval.errors import EvaluationError
from eval.host_loop import LoopOptions
from eval.policies import PolicyMetadata
from eval.worker_process import WorkerCommand


@pytest.fixture
def files(project, tmp_path, monkeypatch) -> Path:
    """The files of the how-to in a directory of their own."""
    page = (project / "docs" / "how-to" / "own_simulator.md").read_text()
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in blocks] == ["my_simulator.py", "my_benchmark.py"]
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_benchmark", raising=False)
    return tmp_path


def test_the_command_runs_it(files, project):
    flags = ["--policy=expert", "--expert=my_simulator:expert", "--python_path=.", "--episodes=2", "--workers=1", "--num_videos=1"]
    command = [sys.executable, "-m", "vpp_jax", "eval", "my_benchmark:LINE", *flags, "--out=runs/line"]
    options = {"cwd": files, "env": os.environ | {"PYTHONPATH": f"{project}:{files}"}, "capture_output": True, "text": True}
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr
    results = json.loads((files / "runs/line/results.json").read_text())
    assert results["metrics"]["overall"]["successes"] == results["metrics"]["overall"]["trials"] == 4
    assert results["simulator"]["renderer"] == "NumPy"
    assert results["config"]["protocol"]["benchmark"] == "line"
    assert len(list((files / "runs/line/videos").glob("*.mp4"))) == 1
    refused = subprocess.run([*command, "--tasks=go_up"], **options)
    assert refused.returncode == 1
    assert "unknown task 'go_up'" in refused.stderr


class Seeing:
    """Goes where the instruction says; remembers the state it was given."""

    def __init__(self, proprio_dim: int = 1):
        self.metadata = PolicyMetadata({"primary": 64}, action_dim=1, action_horizon=5, n_action_steps=5, proprio_dim=proprio_dim)
        self.states: list[np.ndarray] = []

    def act(self, observations, seeds):
        self.states.append(observations.proprio)
        assert observations.images["primary"].shape == (1, 64, 64, 3)
        sign = [-1.0 if text == "go left" else 1.0 for text in observations.text]
        return np.repeat(np.array(sign, np.float32)[:, None, None], 5, axis=1)


def test_a_policy_gets_the_views_and_the_state_by_their_roles(files):
    benchmark, policy = get_benchmark("my_benchmark:LINE"), Seeing()
    arguments = {"scenes": ("line",), "tasks": "go_left,go_right", "episodes": 1, "seed": 0, "max_steps": 0}
    plan = benchmark.plan(Namespace(**arguments))
    run = {
        "episodes": plan.episodes,
        "command": WorkerCommand(benchmark.environment, variables={"PYTHONPATH": str(files)}),
        "options": LoopOptions(workers=1, max_steps=plan.max_steps),
        "protocol": plan.description,
        "summarize": plan.summarize,
    }
    results = evaluate(files / "out", policy=policy, interface=benchmark.interface, **run)
    assert results["metrics"]["overall"]["rate"] == 1.0
    assert {state.shape for state in policy.states} == {(1, 1)}
    without = type(benchmark.interface)({"primary": "front"})
    with pytest.raises(EvaluationError, match="the policy needs proprio"):
        evaluate(files / "blind", policy=Seeing(), interface=without, **run)
