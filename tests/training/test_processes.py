"""`vpp train` as two processes over loopback: the same data, losses and parameters as one, and a signal to either stops both."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tools.synthetic_episodes import write_episodes
from vpp_jax.cli.config_flag import add_config_flag, parse
from vpp_jax.cli.parser import Parser
from vpp_jax.training.checkpoints import complete_steps, list_tensors, load_params
from vpp_jax.training.loop import train
from vpp_jax.training.metrics import read_entries
from vpp_jax.training.stages.registry import make_stage

pytestmark = pytest.mark.medium
STEPS = 40


@pytest.fixture(scope="module")
def flags(project, tmp_path_factory) -> list[str]:
    """The configuration, on data made here. Adam's eps: see tools/meshes.py."""
    data = tmp_path_factory.mktemp("data")
    write_episodes(data)
    return [
        "--config=tests/configs/faults_vae.py",
        f"--config.data.datasets[0].path={data}",
        f"--config.train.steps={STEPS}",
        "--config.train.log_every=1",
        "--config.train.peer_timeout_s=120",
        "--config.optimizer.eps=1e-4",
        "--config.optimizer.learning_rate=5e-4",
    ]


def launch(flags, workdir, processes: int, project) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for index in range(processes):
        several = {"VPP_COORDINATOR": f"127.0.0.1:{port}", "VPP_SHARD_INDEX": str(index), "VPP_NUM_SHARDS": str(processes)}
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", "vpp_jax", "train", *flags, f"--workdir={workdir}"],
                cwd=project,
                env=os.environ | several,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return running


def test_two_processes_stopped_through_one_end_as_one_would(flags, project, tmp_path):
    parser = Parser()
    add_config_flag(parser)
    stage, whole, parts = make_stage(parse(parser, flags)[0]), tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    two = launch(flags, parts, 2, project)
    train(stage, whole)

    deadline = time.monotonic() + 240
    while len(read_entries(parts / "metrics.jsonl")) < 15 and all(p.poll() is None for p in two) and time.monotonic() < deadline:
        time.sleep(0.01)
    two[1].send_signal(signal.SIGTERM)  # not the one that writes the logs
    output = "\n".join(process.communicate(timeout=300)[0] for process in two)
    assert [process.returncode for process in two] == [143, 143], output
    stopped = max(complete_steps(parts / "checkpoints"))
    assert 15 <= stopped < STEPS
    assert [entry["step"] for entry in read_entries(parts / "metrics.jsonl")] == list(range(1, stopped + 1))
    assert sorted(path.name for path in (parts / "heartbeats").iterdir()) == ["00000.json", "00001.json"]

    train(stage, parts)  # resumes as one process, with the next batch of the same order
    one, other = ([entry["loss"] for entry in read_entries(run / "metrics.jsonl") if entry["kind"] == "train"] for run in (whole, parts))
    np.testing.assert_allclose(one[:10], other[:10], rtol=1e-5)
    np.testing.assert_allclose(one, other, rtol=1e-3)  # rounding grows from step to step; another batch would differ by a tenth
    wanted = list_tensors(whole, item="params")
    expected, params = (load_params(run, wanted, item="params") for run in (whole, parts))
    for name, value in expected.items():
        scale = max(float(np.abs(value).max()), 5e-4)
        np.testing.assert_allclose(params[name] / scale, value / scale, atol=1e-2, err_msg=name)
