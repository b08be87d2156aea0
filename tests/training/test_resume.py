"""A run that was stopped, by whatever means, ends equal to one that was not: bit for bit."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from data_pipelines.config import DatasetConfig
from vpp_jax.config import ConfigError, EvaluatorConfig
from vpp_jax.parallel.mesh import put_batch
from vpp_jax.training import loop
from vpp_jax.training.checkpoint_writing import Checkpoints
from vpp_jax.training.checkpoints import CheckpointError, complete_steps
from vpp_jax.training.evaluation import Evaluation
from vpp_jax.training.loop import train
from vpp_jax.training.metrics import TIMING, parse_entries, read_entries
from vpp_jax.training.packing import flatten
from vpp_jax.training.recorder import TrainingDivergedError
from vpp_jax.training.state import Trainer

STEPS = 30
OPTIONS = {"steps": STEPS, "save_every": 7, "eval_every": 10, "log_every": 4}


def final_state(toy, workdir) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, and the data position."""
    stage = toy.ToyStage(toy.toy_config(**OPTIONS))
    checkpoints = Checkpoints(str(workdir / "checkpoints"), max_to_keep=100)
    step, abstract = checkpoints.latest(), Trainer(stage).abstract
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = checkpoints.restore(step, abstract, jax.tree.map(lambda _: one, abstract))
    leaves = {name: np.asarray(value) for name, value in flatten(state).items()}
    metadata = checkpoints.metadata(step)
    told = {key: value for key, value in metadata.items() if key not in ("train_s", "config", "config_hash", "git_revision")}
    checkpoints.close()
    return leaves | {"data": checkpoints.data_state(step), "metadata": told}


def entries_of(workdir) -> list[dict]:
    path = workdir / "metrics.jsonl"
    return parse_entries(path.read_text()) if path.exists() else []


def logged(workdir) -> list[dict]:
    return [{name: value for name, value in entry.items() if not name.startswith(TIMING)} for entry in entries_of(workdir)]


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
    return max((entry["step"] for entry in entries_of(workdir)), default=0)


@pytest.fixture(scope="module")
def uninterrupted(toy, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    outcome = train(toy.ToyStage(toy.toy_config(**OPTIONS)), workdir)
    assert (outcome.step, outcome.finished, outcome.exit_code) == (STEPS, True, 0)
    return workdir


@pytest.mark.parametrize("place", ["disk", pytest.param("bucket", marks=pytest.mark.slow)])
def test_kill_and_terminate_then_the_same_command(place, toy, start_toy, uninterrupted, tmp_path, request):
    workdir = tmp_path if place == "disk" else epath.Path(request.getfixturevalue("bucket")) / "killed"
    folder = workdir / "checkpoints"
    first = start_toy(workdir, delay=0.01, **OPTIONS)
    wait_until(first, lambda: complete_steps(folder) and last_logged(workdir) >= 8)
    first.kill()  # SIGKILL: no chance to save
    first.communicate()
    standing = complete_steps(folder)[-1]

    second = start_toy(workdir, delay=0.01, **OPTIONS)
    wait_until(second, lambda: len(starts(workdir)) == 2 and last_logged(workdir) >= standing + 4)
    second.send_signal(signal.SIGTERM)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 143, output
    stopped_at = complete_steps(folder)[-1]

    third = start_toy(workdir, **OPTIONS)
    output, _ = third.communicate(timeout=120)
    assert third.returncode == 0, output
    assert starts(workdir) == [0, standing, stopped_at]  # SIGKILL fell back to a regular checkpoint, SIGTERM lost nothing
    assert standing % 7 == 0
    assert standing < stopped_at < STEPS
    assert_equal_runs(toy, uninterrupted, workdir)
    assert not Path("gs:").exists()


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

        def put(batch, mesh, size, fed=fed, stop_at=stop_at):
            if next(fed) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return put_batch(batch, mesh, size)

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

    extended = toy.toy_config(**OPTIONS | {"steps": STEPS + 1})
    with pytest.raises(
        ConfigError, match=rf"learning rate of update \d+ .* --config\.optimizer\.schedule_steps={STEPS} keeps the old curve"
    ):
        train(toy.ToyStage(extended), workdir)  # a cosine over 31 steps would have had other learning rates
    extended = replace(extended, optimizer=replace(extended.optimizer, schedule_steps=STEPS))

    folder = workdir / "checkpoints"
    (folder / "99.orbax-checkpoint-tmp").mkdir()  # left by a killed process
    (folder / "removed" / "2" / "params").mkdir(parents=True)
    (folder / "77").mkdir()  # as on a bucket, where the directory appears before it is complete
    assert complete_steps(folder) == [28, 30]
    assert train(toy.ToyStage(extended), workdir).step == STEPS + 1
    told = f"resumes at step {STEPS} with other values: optimizer.schedule_steps was 0, is {STEPS}; train.steps was {STEPS}, is {STEPS + 1}"
    assert told in capsys.readouterr().out
    last = json.loads((workdir / "runs.jsonl").read_text().splitlines()[-1])
    assert last["changed"] == {"optimizer.schedule_steps": [0, STEPS], "train.steps": [STEPS, STEPS + 1]}
    assert logged(workdir)[-1]["kind"] == "eval"  # of the last step
    assert sorted(entry.name for entry in folder.iterdir()) == ["30", "31", "77", "frozen"]
    assert (workdir / "metrics.jsonl").read_bytes().startswith(before)


def test_an_evaluation_that_fails_leaves_the_checkpoint_and_is_made_up(toy, uninterrupted, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory for the evaluation")

    options = OPTIONS | {"eval_every": 7}
    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "_loss_metrics", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            train(toy.ToyStage(toy.toy_config(**options)), tmp_path / "run")
    assert complete_steps(tmp_path / "run" / "checkpoints") == [7]
    train(toy.ToyStage(toy.toy_config(**options)), tmp_path / "run")
    train(toy.ToyStage(toy.toy_config(**options)), tmp_path / "whole")
    assert_equal_runs(toy, tmp_path / "whole", tmp_path / "run")


def test_a_stop_during_an_evaluation_loses_it_only_until_the_next_start(toy, tmp_path, monkeypatch):
    """Also the last one: the run then is not finished, and the same command finishes it without another update."""
    options = {"steps": 20, "eval_every": 5, "save_every": 100}
    for stop_at in (10, 20):

        def stopped(self, *arguments, stop_at=stop_at, whole=Evaluation._loss_metrics):
            if arguments[2] == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return whole(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Evaluation, "_loss_metrics", stopped)
            outcome = train(toy.ToyStage(toy.toy_config(**options)), tmp_path)
        assert (outcome.step, outcome.finished, outcome.exit_code) == (stop_at, False, 143)
        assert complete_steps(tmp_path / "checkpoints")[-1] == stop_at
    outcome = train(toy.ToyStage(toy.toy_config(**options)), tmp_path)
    assert (outcome.finished, outcome.compile_s < 0.1) == (True, True)  # no training step is compiled
    assert [entry["step"] for entry in logged(tmp_path) if entry["kind"] == "eval"] == [5, 10, 15, 20]


def test_a_preview_that_fails_ends_nothing(toy, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(toy.ToyStage, "plot_predictions", full)
    assert train(toy.ToyStage(toy.toy_config()), tmp_path).finished
    assert "the preview at step 5 failed, training continues: No space left on device" in caplog.text
    assert [entry["step"] for entry in logged(tmp_path) if entry["kind"] == "eval" and entry["loss"] > 0] == [5, 10, 12]


def test_evaluators_have_their_own_cadence_split_and_dataset(toy, tmp_path, monkeypatch):
    asked = []
    source = toy.ToyStage.source
    monkeypatch.setattr(toy.ToyStage, "source", lambda self, *place: asked.append((place[0], place[3:])) or source(self, *place))
    evaluators = (EvaluatorConfig("loss", every=4, batches=1), EvaluatorConfig("loss", every=6, split="train", dataset="calvin"))
    config = toy.toy_config()
    data = replace(config.data, datasets=(DatasetConfig("here", "calvin"),))
    config = replace(config, data=data, train=replace(config.train, evaluators=evaluators))
    train(toy.ToyStage(config), tmp_path)
    losses = {entry["step"]: sorted(entry.keys() & {"loss", "calvin/train/loss"}) for entry in logged(tmp_path) if entry["kind"] == "eval"}
    assert losses == {4: ["loss"], 6: ["calvin/train/loss"], 8: ["loss"], 12: ["calvin/train/loss", "loss"]}
    assert asked == [("train", ()), ("train", ("calvin",)), ("val", ("",))]


def test_best_and_periodic_checkpoints_are_kept(toy, tmp_path, monkeypatch):
    shown = {5: 0.3, 10: 0.1, 15: 0.2, 20: 0.4, 25: 0.5}
    monkeypatch.setattr(Evaluation, "_preview_metrics", lambda self, entry, params, step, stop: {"score": shown[step]})
    options = {"steps": 25, "save_every": 5, "max_to_keep": 1, "keep_best": "score", "keep_period": 15}
    train(toy.ToyStage(toy.toy_config(**options)), tmp_path)
    assert complete_steps(tmp_path / "checkpoints") == [10, 15, 25]


def test_a_metric_that_no_evaluation_has_is_reported(toy, tmp_path, caplog):
    train(toy.ToyStage(toy.toy_config(keep_best="los")), tmp_path)
    assert "train.keep_best is los, which the evaluation of step 5 does not have (has loss" in caplog.text


def test_updates_that_are_not_finite_are_skipped_within_a_budget(toy, tmp_path):
    """One example of 16 is spoiled, so one batch of an epoch of two is: half of the updates are left out."""
    config = toy.toy_config(steps=6, log_every=1, eval_every=0, save_every=1, max_to_keep=10, max_skipped_updates=3)
    assert train(toy.ToyStage(config, size=16, poison=5), tmp_path).finished
    entries = [entry for entry in logged(tmp_path) if entry["kind"] == "train"]
    assert entries[-1]["skipped_updates"] == 3
    assert all(np.isfinite(value) for entry in entries for value in entry.values() if isinstance(value, float))
    one, trainer = jax.sharding.SingleDeviceSharding(jax.devices()[0]), Trainer(toy.ToyStage(config))
    with closing(Checkpoints(tmp_path / "checkpoints", max_to_keep=100)) as checkpoints:
        states = [checkpoints.restore(step, trainer.abstract, jax.tree.map(lambda _: one, trainer.abstract)) for step in range(1, 7)]
    same = [
        np.array_equal(before.params["net/first.kernel"], after.params["net/first.kernel"]) for before, after in itertools.pairwise(states)
    ]
    left_out = ["loss" not in entry for entry in entries]
    assert same == left_out[1:]
    with pytest.raises(TrainingDivergedError, match=r"stopped at step \d, after 2 skipped ones"):
        train(toy.ToyStage(toy.toy_config(steps=6, eval_every=0, max_skipped_updates=2), size=16, poison=5), tmp_path / "smaller")


def test_the_end_is_not_taken_from_a_longer_run(toy, uninterrupted, tmp_path):
    workdir = shutil.copytree(uninterrupted, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    with pytest.raises(ConfigError, match=r"at step 28 of a longer run: set train\.steps above 28 to resume"):
        train(toy.ToyStage(toy.toy_config(**OPTIONS | {"steps": 28})), workdir)


def test_another_configuration_or_other_data_is_refused(toy, uninterrupted):
    with pytest.raises(ConfigError, match=r"train\.ema_decay was 0\.9, is 0\.5"):
        train(toy.ToyStage(toy.toy_config(**OPTIONS | {"ema_decay": 0.5})), uninterrupted)
    longer = toy.toy_config(**OPTIONS | {"steps": STEPS + 1})
    longer = replace(longer, optimizer=replace(longer.optimizer, schedule_steps=STEPS))
    with pytest.raises(ConfigError, match=r"statistics hash abc.*now has other"):
        train(toy.ToyStage(longer, statistics="other"), uninterrupted)


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
