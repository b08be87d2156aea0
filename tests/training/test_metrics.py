"""Metric files, and the error for a loss that is not finite."""

import json
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.training import metrics
from vpp_jax.training.metrics import JsonLines, Lines, MetricLog, MetricsError, TensorBoard, WandB, read_entries, rewind
from vpp_jax.training.recorder import Clock, Recorder, TrainingDivergedError

ENTRIES = [
    {"kind": "train", "step": 4, "loss": 1.0},
    {"kind": "eval", "step": 5, "loss": 2.0},
    {"kind": "train", "step": 5, "loss": 0.1},
    {"kind": "train", "step": 6, "loss": 3.0},
]


def write(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_rewind_keeps_what_a_checkpoint_has_seen(tmp_path):
    path = write(tmp_path / "m.jsonl", ENTRIES)
    with path.open("a") as file:
        file.write('{"kind": "train", "st')  # the process was killed here
    rewind(path, 5, evaluated=True)
    assert read_entries(path) == ENTRIES[:3]
    rewind(write(path, ENTRIES), 5, evaluated=False)  # the evaluation at 5 will be run again
    assert read_entries(path) == [ENTRIES[0], ENTRIES[2]]
    rewind(path, -1, evaluated=False)
    assert path.read_text() == ""
    rewind(tmp_path / "absent", 3, evaluated=True)


def test_json_numbers_come_back_exactly(tmp_path):
    value = float(np.float32(0.1))
    writer = JsonLines(tmp_path / "m.jsonl")
    writer.write("train", 3, {"loss": value})
    assert read_entries(tmp_path / "m.jsonl")[0]["loss"] == value  # flushed before it is closed
    writer.close()


def test_lines_show_what_a_person_watches(capsys):
    timing = {"time/step_ms": 12.0, "time/examples_per_s": 100.0, "time/data_wait_share": 0.25}
    Lines(10).write("train", 5, {"loss": 0.5, "grad_norm": 2.0, "kl": 3.0} | timing)
    assert capsys.readouterr().out == "train 5/10  loss 0.5  grad_norm 2  12 ms/step  100 examples/s  waiting for data 25%\n"


def test_tensorboard_events_are_written_without_tensorflow(tmp_path):
    writer = TensorBoard(tmp_path, start=0)
    writer.write("train", 1, {"loss": 0.5})
    writer.close()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes()


def test_wandb_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MetricsError, match="pip install wandb"):
        WandB(tmp_path, {})


class Remembering:
    def __init__(self):
        self.entries = []

    def write(self, kind, step, values):
        self.entries.append((kind, step, dict(values)))

    def close(self):
        pass


def test_entries_are_means_of_their_window_one_step_late():
    seen = Remembering()
    recorder = Recorder(MetricLog([seen]), Clock(), log_every=3, batch_size=4)
    for step in range(1, 8):
        numbers = {"loss": jnp.float32(step), "grad_norm": jnp.float32(1), "learning_rate": jnp.float32(step / 10)}
        recorder.push(step, numbers, {}, {})
        assert len(seen.entries) == (step - 1) // 3  # the entry of step 3 appears when step 4 runs
    recorder.settle()
    (_, first, values), (_, second, later) = seen.entries
    assert (first, second) == (3, 6)
    assert (values["loss"], later["loss"]) == (2.0, 5.0)
    assert values["learning_rate"] == pytest.approx(0.3)  # as used at step 3, not a mean
    assert [entry["loss"] for entry in recorder.window] == [7.0]


def test_the_loop_counts_skipped_records(tmp_path, monkeypatch, toy):
    monkeypatch.setattr(toy.ToySource, "skipped", {"file record 3": "NaN or infinite values"}, raising=False)
    toy.train(toy.ToyStage(toy.toy_config(steps=2, log_every=1, eval_every=0)), tmp_path)
    assert [entry[metrics.SKIPPED] for entry in read_entries(tmp_path / metrics.JSON_LINES)] == [1, 1]


def test_skipped_records_are_counted_once_there_are_some():
    seen, skipped = Remembering(), {}
    recorder = Recorder(MetricLog([seen]), Clock(), log_every=1, batch_size=4, skipped=lambda: len(skipped))
    for step in range(1, 4):
        recorder.push(step, {"loss": jnp.float32(1), "grad_norm": jnp.float32(1)}, {}, {})
        recorder.settle()
        skipped[f"file record {step}"] = "empty instruction"
    assert [values.get(metrics.SKIPPED) for _, _, values in seen.entries] == [None, 1, 2]


def test_divergence_names_step_leaf_and_field():
    recorder = Recorder(MetricLog([]), Clock(), log_every=1, batch_size=1)
    squares = {"unet/b.kernel": jnp.float32(jnp.inf), "unet/a.kernel": jnp.float32(1), "unet/c.kernel": jnp.float32(jnp.nan)}
    batch = {"action": np.array([1.0, np.nan]), "video": np.zeros(3, np.uint8)}
    recorder.push(7, {"loss": jnp.float32(1), "grad_norm": jnp.float32(jnp.nan)}, squares, batch)
    with pytest.raises(TrainingDivergedError, match=r"step 7: .*2 of 3 gradients .*first unet/b\.kernel; .*infinite values in action"):
        recorder.settle()


def test_clock_counts_training_only():
    clock = Clock(total=5.0)
    clock.start()
    time.sleep(0.02)
    with clock.paused():
        time.sleep(0.2)
    with clock.waits():
        time.sleep(0.02)
    clock.steps = 2
    lap = clock.lap(batch_size=10)
    assert 0.04 <= clock.total - 5.0 < 0.15
    assert lap["time/examples_per_s"] == pytest.approx(20 / (clock.total - 5.0), rel=0.1)
    assert 0.2 < lap["time/data_wait_share"] < 0.8
    assert clock.lap(10)["time/examples_per_s"] == 0


def test_terminal_or_lines(tmp_path, monkeypatch, toy):
    config = toy.toy_config()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    log = metrics.open_log(tmp_path, config, 3)
    assert any(isinstance(writer, metrics.Terminal) for writer in log._writers)
    log.tick(5)
    log.write("train", 5, {"loss": 1.0})
    log.close()
    assert len(read_entries(tmp_path / "metrics.jsonl")) == 1
