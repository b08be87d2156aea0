"""Metric files, and the error for a loss that is not finite."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.training import metrics
from vpp_jax.training.metrics import (
    JsonLines,
    Lines,
    MetricLog,
    MetricsError,
    TensorBoard,
    WandB,
    best_step,
    evaluated_at,
    read_entries,
    rewind,
)
from vpp_jax.training.phases import PhaseClock
from vpp_jax.training.recorder import Clock, Recorder, TrainingDivergedError
from vpp_jax.training.utilization import Utilization
from vpp_jax.training.workdir import Workdir

USED = {"time/share_step": 0.93, "time/mfu": 0.41, "time/hbm_peak_gib": 14.2}
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
    rewind(path, 5)
    assert read_entries(path) == ENTRIES[:3]
    rewind(path, -1)
    assert path.read_text() == ""
    rewind(tmp_path / "absent", 3)


def test_the_best_step_is_the_earliest_with_the_lowest_value(tmp_path):
    values = {2: 0.5, 4: 0.2, 6: 0.2, 8: 0.1}
    path = write(tmp_path / "m.jsonl", [{"kind": "eval", "step": step, "mse": value} for step, value in values.items()])
    assert best_step(path, "mse", [2, 4, 6]) == 4  # 8 has no checkpoint
    assert best_step(path, "mse", [3]) is None
    assert best_step(path, "other", [2]) is None
    assert (evaluated_at(path, 4), evaluated_at(path, 5), evaluated_at(tmp_path / "absent", 4)) == (True, False, False)


def test_json_numbers_come_back_exactly(tmp_path):
    value = float(np.float32(0.1))
    writer = JsonLines(tmp_path / "m.jsonl")
    writer.write("train", 3, {"loss": value})
    assert read_entries(tmp_path / "m.jsonl")[0]["loss"] == value  # flushed before it is closed
    writer.close()


def test_lines_show_what_a_person_watches(capsys):
    timing = {"time/step_ms": 12.0, "time/examples_per_s": 100.0, "time/data_wait_share": 0.25}
    Lines(10).write("train", 5, {"loss": 0.5, "grad_norm": 2.0, "kl": 3.0} | timing)
    line = "train 5/10  loss 0.5  grad_norm 2  12 ms/step  100 examples/s  waiting for data 25%"
    assert capsys.readouterr().out == line + "\n"
    Lines(10).write("train", 5, {"loss": 0.5, "grad_norm": 2.0} | timing | USED)
    assert capsys.readouterr().out == line + "  goodput 93%  MFU 41.0%  HBM 14.2 GiB\n"


def test_tensorboard_events_are_written_without_tensorflow(tmp_path):
    writer = TensorBoard(tmp_path, start=0)
    writer.write("train", 1, {"loss": 0.5})
    writer.close()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes()


def test_wandb_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MetricsError, match="pip install wandb"):
        WandB(tmp_path, "run", {})


class FakeTime:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds

    def pass_s(self, seconds):
        self.seconds += seconds


class Device:
    def __init__(self, peak):
        self.peak = peak

    def memory_stats(self):
        return None if self.peak is None else {"bytes_in_use": 1, "peak_bytes_in_use": self.peak}


def test_shares_of_the_wall_time():
    now = FakeTime()
    phases = PhaseClock(now)
    for phase, seconds in [("start", 1), ("compile", 4), ("data", 1), ("step", 6), ("eval", 2), ("step", 3), ("save", 1), ("data", 2)]:
        phases.enter(phase)
        now.pass_s(seconds)
    assert phases.for_s == 2
    assert phases.shares() == {"start": 0.05, "compile": 0.2, "data": 0.15, "step": 0.45, "eval": 0.1, "save": 0.05}


@pytest.mark.parametrize(
    ("peaks", "ideal_step_s", "expected"),
    [
        ([3 * 2**30, 5 * 2**30], 0.25, {"mfu": 0.125, "hbm_peak_gib": 5.0}),
        ([None, None], None, {}),  # CPU: neither is known
    ],
)
def test_entries_have_what_the_machine_tells(peaks, ideal_step_s, expected):
    """Two seconds per step, a quarter of them waiting for data, after five that compiled."""
    now, seen = FakeTime(), Remembering()
    phases, clock = PhaseClock(now), Clock(now=now)
    utilization = Utilization(phases, [Device(peak) for peak in peaks], ideal_step_s)
    recorder = Recorder(MetricLog([seen]), clock, log_every=2, batch_size=4, utilization=utilization)
    now.pass_s(1.0)
    phases.enter("compile")
    now.pass_s(5.0)
    clock.start()
    for step in (1, 2):
        phases.enter("data")
        with clock.waits():
            now.pass_s(0.5)
        phases.enter("step")
        now.pass_s(1.5)
        recorder.push(step, {"loss": jnp.float32(step), "grad_norm": jnp.float32(1)}, {}, {})
    recorder.settle()
    ((_, _, values),) = seen.entries
    shares = {"start": 0.1, "compile": 0.5, "data": 0.1, "step": 0.3, "eval": 0.0, "save": 0.0}
    assert values["time/step_ms"] == 2000.0
    assert {name: values.get(f"time/{name}") for name in ("mfu", "hbm_peak_gib")} == {"mfu": None, "hbm_peak_gib": None} | expected
    assert {name: values[f"time/share_{name}"] for name in shares} == pytest.approx(shares)


def test_a_run_logs_where_its_time_went(tmp_path, toy):
    toy.train(toy.ToyStage(toy.toy_config(steps=4, log_every=2, eval_every=2, save_every=2)), tmp_path, ideal_step_s=1e-6)
    *_, last = [entry for entry in read_entries(tmp_path / metrics.JSON_LINES) if entry["kind"] == "train"]
    shares = {name: value for name, value in last.items() if name.startswith("time/share_")}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(shares.values()), "every phase took time"
    assert last["time/mfu"] == pytest.approx(1e-3 / last["time/step_ms"])
    assert "time/hbm_peak_gib" not in last, "the CPU does not tell"


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
    now = FakeTime()
    clock = Clock(total=5.0, now=now)
    clock.start()
    now.pass_s(3.0)
    with clock.paused():
        now.pass_s(20.0)
    with clock.waits():
        now.pass_s(1.0)
    clock.steps = 2
    lap = clock.lap(batch_size=10)
    assert (clock.total, lap["train_s"], lap["step_ms"], lap["data_wait_ms"]) == (9.0, 9.0, 2000.0, 500.0)
    assert (lap["examples_per_s"], lap["data_wait_share"]) == (5.0, 0.25)
    assert clock.lap(10)["examples_per_s"] == 0


def test_terminal_or_lines(tmp_path, monkeypatch, toy):
    config = toy.toy_config()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    log = metrics.open_log(Workdir(tmp_path), config, 3)
    assert any(isinstance(writer, metrics.Terminal) for writer in log._writers)
    log.tick(5)
    log.write("train", 5, {"loss": 1.0})
    log.close()
    assert len(read_entries(tmp_path / "metrics.jsonl")) == 1
