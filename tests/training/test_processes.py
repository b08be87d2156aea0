"""The real command as two processes over loopback: the same data, losses and parameters as one, and any of them may be told to stop."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vpp_jax.training.checkpoints import complete_steps, contents, load_params
from vpp_jax.training.metrics import read_entries

pytestmark = pytest.mark.slow
STEPS = 60


@pytest.fixture(scope="module")
def launch(project, tmp_path_factory):
    """launch(workdir, processes) -> running processes."""
    root = tmp_path_factory.mktemp("processes")
    sys.path.insert(0, str(project / "benchmarks"))
    from loader import synthetic_dataset

    (root / "data").mkdir()
    synthetic_dataset(root / "data", episodes=4, steps=24, size=16)

    def start(workdir: Path, processes: int) -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # Adam would give parameters whose gradient is rounding alone a step of full size: see tests/meshes.py
        command = [
            sys.executable, "-m", "vpp_jax", "train", "--config=tests/configs/faults_vae.py", f"--workdir={workdir}",
            f"--config.data.datasets[0].path={root / 'data'}", f"--config.train.steps={STEPS}", "--config.train.log_every=1",
            "--config.optimizer.eps=1e-4", "--config.train.peer_timeout_s=120",
        ]  # fmt: skip
        running = []
        for index in range(processes):
            several = {"VPP_COORDINATOR": f"127.0.0.1:{port}", "VPP_PROCESS_INDEX": str(index), "VPP_PROCESS_COUNT": str(processes)}
            environment = os.environ | (several if processes > 1 else {})
            pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            running.append(subprocess.Popen(command, cwd=project, env=environment, **pipe))
        return running

    return start


def finish(running: list[subprocess.Popen]) -> tuple[list[int], str]:
    output = "\n".join(process.communicate(timeout=300)[0] for process in running)
    return [process.returncode for process in running], output


def test_two_processes_stopped_through_one_end_as_one_would(launch, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    codes, output = finish(launch(whole, 1))
    assert codes == [0], output

    two = launch(parts, 2)
    deadline = time.monotonic() + 240
    while len(read_entries(parts / "metrics.jsonl")) < 20 and all(p.poll() is None for p in two) and time.monotonic() < deadline:
        time.sleep(0.01)
    two[1].send_signal(signal.SIGTERM)  # not the one that writes the logs
    codes, output = finish(two)
    assert codes == [143, 143], output
    stopped = max(complete_steps(parts / "checkpoints"))
    assert 20 <= stopped < STEPS
    assert [entry["step"] for entry in read_entries(parts / "metrics.jsonl")] == list(range(1, stopped + 1))
    assert sorted(path.name for path in (parts / "heartbeats").iterdir()) == ["00000.json", "00001.json"]

    codes, output = finish(launch(parts, 1))  # onto one process: the next batch is the next one of the same order
    assert codes == [0], output
    one, other = ([entry["loss"] for entry in read_entries(run / "metrics.jsonl") if entry["kind"] == "train"] for run in (whole, parts))
    np.testing.assert_allclose(one, other, rtol=1e-4)  # sixty steps of float32 sums in another order
    wanted = contents(whole, item="params")
    expected, params = (load_params(run, wanted, item="params") for run in (whole, parts))
    for name, value in expected.items():
        scale = float(np.abs(value).max())
        np.testing.assert_allclose(params[name] / scale, value / scale, atol=1e-3, err_msg=name)
