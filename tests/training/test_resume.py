"""A run that was stopped, by whatever means, ends equal to one that was not: bit for bit."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from vpp_jax.config import ConfigError
from vpp_jax.parallel.mesh import put_batch
from vpp_jax.training import loop
from vpp_jax.training.checkpoints import CheckpointError, Checkpoints, complete_steps
from vpp_jax.training.loop import train
from vpp_jax.training.metrics import TIMING, read_entries
from vpp_jax.training.packing import flatten
from vpp_jax.training.recorder import TrainingDivergedError
from vpp_jax.training.state import Trainer

STEPS = 30
OPTIONS = {"steps": STEPS, "save_every": 7, "eval_every": 10, "log_every": 4}


def final_state(toy, workdir) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, and the data position."""
    stage = toy.ToyStage(toy.toy_config(**OPTIONS))
    checkpoints = Checkpoints(workdir / "checkpoints", max_to_keep=100)
    step, abstract = checkpoints.latest(), Trainer(stage).abstract
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = checkpoints.restore(step, abstract, jax.tree.map(lambda _: one, abstract))
    leaves = {name: np.asarray(value) for name, value in flatten(state).items()}
    metadata = checkpoints.metadata(step)
    told = {key: value for key, value in metadata.items() if key not in ("train_s", "config", "config_hash", "git_revision")}
    checkpoints.close()
    return leaves | {"data": checkpoints.data_state(step), "metadata": told}


def logged(workdir) -> list[dict]:
    entries = read_entries(workdir / "metrics.jsonl")
    return [{name: value for name, value in entry.items() if not name.startswith(TIMING)} for entry in entries]


def assert_equal_runs(toy, one, other):
    left, right = final_state(toy, one), final_state(toy, other)
    assert left.keys() == right.keys()
    different = [name for name in left if not np.array_equal(left[name], right[name])]
    assert not different
    assert logged(one) == logged(other)


def wait_until(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"ended with {process.returncode} too early: {process.communicate()[0]}")
        if condition():
            return
        time.sleep(0.01)
    process.kill()
    pytest.fail(f"too slow: {process.communicate()[0]}")


def starts(workdir) -> list[int]:
    """The step at which each process of the run began."""
    path = workdir / "runs.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def last_logged(workdir) -> int:
    return max((entry["step"] for entry in read_entries(workdir / "metrics.jsonl")), default=0)


@pytest.fixture(scope="module")
def uninterrupted(toy, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    outcome = train(toy.ToyStage(toy.toy_config(**OPTIONS)), workdir)
    assert (outcome.step, outcome.finished, outcome.exit_code) == (STEPS, True, 0)
    return workdir


def test_kill_and_terminate_then_the_same_command(toy, start_toy, uninterrupted, tmp_path):
    folder = tmp_path / "checkpoints"
    first = start_toy(tmp_path, delay=0.01, **OPTIONS)
    wait_until(first, lambda: complete_steps(folder) and last_logged(tmp_path) >= 8)
    first.kill()  # SIGKILL: no chance to save
    first.communicate()
    standing = complete_steps(folder)[-1]

    second = start_toy(tmp_path, delay=0.01, **OPTIONS)
    wait_until(second, lambda: len(starts(tmp_path)) == 2 and last_logged(tmp_path) >= standing + 4)
    second.send_signal(signal.SIGTERM)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 143, output
    stopped_at = complete_steps(folder)[-1]

    third = start_toy(tmp_path, **OPTIONS)
    output, _ = third.communicate(timeout=120)
    assert third.returncode == 0, output
    assert starts(tmp_path) == [0, standing, stopped_at]  # SIGKILL fell back to a regular checkpoint, SIGTERM lost nothing
    assert standing % 7 == 0
    assert standing < stopped_at < STEPS
    assert_equal_runs(toy, uninterrupted, tmp_path)


def test_control_c_saves_and_a_second_one_exits_at_once(start_toy, tmp_path):
    process = start_toy(tmp_path, delay=0.02, **OPTIONS)
    wait_until(process, lambda: last_logged(tmp_path) >= 4)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Ctrl-C again" in output
    saved = complete_steps(tmp_path / "checkpoints")
    assert saved[-1] >= 4

    process = start_toy(tmp_path, delay=0.5, **OPTIONS)  # a batch takes four seconds
    wait_until(process, lambda: len(starts(tmp_path)) == 2)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert time.monotonic() - begin < 2
    assert complete_steps(tmp_path / "checkpoints") == saved


def test_stops_between_and_at_logged_saved_and_evaluated_steps(toy, uninterrupted, tmp_path, monkeypatch):
    """SIGTERM arrives while batch n is put on the device: step n is finished, n is saved."""
    for stop_at in (5, 10, 21):
        fed = itertools.count((complete_steps(tmp_path / "checkpoints") or [0])[-1] + 1)

        def put(batch, mesh, fed=fed, stop_at=stop_at):
            if next(fed) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return put_batch(batch, mesh)

        monkeypatch.setattr(loop, "put_batch", put)
        outcome = train(toy.ToyStage(toy.toy_config(**OPTIONS)), tmp_path)
        assert (outcome.exit_code, outcome.finished) == (143, False)
        assert complete_steps(tmp_path / "checkpoints")[-1] == outcome.step
    monkeypatch.undo()
    train(toy.ToyStage(toy.toy_config(**OPTIONS)), tmp_path)
    assert_equal_runs(toy, uninterrupted, tmp_path)


def test_data_order_and_cadence(toy, uninterrupted):
    entries = logged(uninterrupted)
    assert [entry["step"] for entry in entries if entry["kind"] == "train"] == list(range(4, STEPS + 1, 4))
    assert [entry["step"] for entry in entries if entry["kind"] == "eval"] == [10, 20, 30]
    assert all(entry["rows_shown"] > 0 for entry in entries if entry["kind"] == "eval")  # what `preview` returned
    steps = [entry["step"] for entry in entries]
    assert steps == sorted(steps)
    assert complete_steps(uninterrupted / "checkpoints") == [28, 30]  # max_to_keep=2
    assert len(json.loads((uninterrupted / "first_batch.png").read_text())) == 8


def test_a_stage_may_start_from_given_parameters(toy, tmp_path, monkeypatch):
    """The first update starts from them (and so does the EMA), a resumed run from its own checkpoint."""
    given = {name: jax.numpy.full(shape, 0.25) for name, shape in toy.SHAPES.items()}
    asked = []
    monkeypatch.setattr(toy.ToyStage, "load_trainable", lambda self, shardings: asked.append(set(shardings)) or given)

    def stage(steps):
        config = toy.toy_config(steps=steps)
        return toy.ToyStage(replace(config, optimizer=replace(config.optimizer, learning_rate=0.0)))

    train(stage(2), tmp_path)
    one, trainer = jax.sharding.SingleDeviceSharding(jax.devices()[0]), Trainer(stage(2))
    checkpoints = Checkpoints(tmp_path / "checkpoints", max_to_keep=100)
    state = checkpoints.restore(2, trainer.abstract, jax.tree.map(lambda _: one, trainer.abstract))
    checkpoints.close()
    for name, value in given.items():
        np.testing.assert_array_equal(state.params[name], value)
        np.testing.assert_allclose(state.ema[name], value, rtol=1e-6)
    train(stage(3), tmp_path)
    assert asked == [set(given)]


def test_a_finished_run_has_nothing_left_and_can_be_extended(toy, uninterrupted, tmp_path, capsys):
    workdir = shutil.copytree(uninterrupted, tmp_path / "run")
    before = (workdir / "metrics.jsonl").read_bytes()
    assert train(toy.ToyStage(toy.toy_config(**OPTIONS)), workdir).finished
    assert "nothing left to do" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert not json.loads((workdir / "runs.jsonl").read_text().splitlines()[0])["changed"]

    folder = workdir / "checkpoints"
    (folder / "99.orbax-checkpoint-tmp").mkdir()  # left by a killed process
    (folder / "removed" / "2" / "params").mkdir(parents=True)
    (folder / "77").mkdir()  # as on a bucket, where the directory appears before it is complete
    assert complete_steps(folder) == [28, 30]
    assert train(toy.ToyStage(toy.toy_config(**OPTIONS | {"steps": STEPS + 1})), workdir).step == STEPS + 1
    assert f"resumes at step {STEPS} with other values: train.steps was {STEPS}, is {STEPS + 1}" in capsys.readouterr().out
    assert json.loads((workdir / "runs.jsonl").read_text().splitlines()[-1])["changed"] == {"train.steps": [STEPS, STEPS + 1]}
    assert sorted(entry.name for entry in folder.iterdir()) == ["30", "31", "77", "frozen"]
    assert (workdir / "metrics.jsonl").read_bytes().startswith(before)


def test_the_end_is_not_taken_from_a_longer_run(toy, uninterrupted, tmp_path):
    workdir = shutil.copytree(uninterrupted, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    with pytest.raises(ConfigError, match=r"at step 28 of a longer run: set train\.steps above 28 to resume"):
        train(toy.ToyStage(toy.toy_config(**OPTIONS | {"steps": 28})), workdir)


def test_another_configuration_or_other_data_is_refused(toy, uninterrupted):
    with pytest.raises(ConfigError, match=r"train\.ema_decay was 0\.9, is 0\.5"):
        train(toy.ToyStage(toy.toy_config(**OPTIONS | {"ema_decay": 0.5})), uninterrupted)
    with pytest.raises(ConfigError, match=r"statistics hash abc.*now has other"):
        train(toy.ToyStage(toy.toy_config(**OPTIONS | {"steps": STEPS + 1}), statistics="other"), uninterrupted)


def test_nan_stops_with_the_leaf_and_the_field(toy, tmp_path):
    with pytest.raises(TrainingDivergedError, match=r"6 of 6 gradients are not finite, first head/last\.bias; .* values in y"):
        train(toy.ToyStage(toy.toy_config(), size=16, poison=5), tmp_path)
    assert not any(np.isnan(entry["loss"]) for entry in read_entries(tmp_path / "metrics.jsonl"))


def test_a_model_that_does_not_fit_is_refused_with_three_lists(toy, uninterrupted, monkeypatch):
    shapes = toy.SHAPES | {"head/last.bias": (5,), "head/new.bias": (1,)}
    del shapes["net/first.bias"]
    checkpoints = Checkpoints(uninterrupted / "checkpoints", max_to_keep=2)
    monkeypatch.setattr(toy, "SHAPES", shapes)
    abstract = Trainer(toy.ToyStage(toy.toy_config(steps=2))).abstract
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore(STEPS, abstract, abstract)
    message = str(caught.value)
    assert "1 missing: head/new.bias; 1 unexpected: net/first.bias; 1 wrong shape: head/last.bias (4,), expected (5,)" in message
    checkpoints.close()


def test_orbax_itself_reads_the_items(uninterrupted):
    """The files are ordinary Orbax items: large tensors by name, small ones as one vector per type."""
    restored = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(uninterrupted / "checkpoints" / str(STEPS) / "params")
    assert set(restored) == {"large", "packed"}
    assert restored["large"]["net/hidden.kernel"].shape == (520, 520)
