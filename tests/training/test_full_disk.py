"""A run on a disk that fills up: one paragraph, nothing lost, and the same command continues when there is room again.

A limit on the length of files stands for the full disk: it needs no privileges, and ends writes at every place where a full disk would.
"""

import json
import resource
from contextlib import closing, contextmanager
from dataclasses import replace

import numpy as np
import pytest

from data_pipelines.rlds.tfrecord import write_records
from eval.recording import write_video
from eval.results import Journal, write_json
from vpp_jax.common.os_errors import explain
from vpp_jax.interop.safetensors_file import make_header, write_file
from vpp_jax.training.checkpoints import complete_steps
from vpp_jax.training.loop import train
from vpp_jax.training.metrics import JsonLines, TensorBoard, append_line, read_entries
from vpp_jax.training.workdir import Workdir


@contextmanager
def longest_file(length: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.medium
@pytest.mark.parametrize("length", [1_000, 300_000])  # at which file the disk is full: the first ones, the large arrays of a checkpoint
def test_a_run_continues_from_the_last_good_checkpoint(toy, tmp_path, length):
    config = {"steps": 12, "save_every": 4, "max_to_keep": 10}

    def run(place, **changes):
        with closing(Workdir(place)) as workdir:
            settings = toy.toy_config(**config | changes)
            optimizer = replace(settings.optimizer, schedule="constant", warmup_ratio=0.0)
            return train(toy.ToyStage(replace(settings, optimizer=optimizer)), workdir)

    run(tmp_path / "whole")
    run(tmp_path / "cut", steps=4)
    with longest_file(length), pytest.raises(Exception) as caught:
        run(tmp_path / "cut")
    text = explain(caught.value)
    assert "What was complete before is unharmed" in text, caught.value
    assert complete_steps(tmp_path / "cut" / "checkpoints")[0] == 4
    run(tmp_path / "cut")
    for name in ("whole", "cut"):
        assert complete_steps(tmp_path / name / "checkpoints")[-1] == 12
    shown = [[(e["step"], e["kind"], e.get("loss")) for e in read_entries(tmp_path / name / "metrics.jsonl")] for name in ("whole", "cut")]
    assert shown[0][-3:] == shown[1][-3:]


def journal(path, data):
    with Journal(path) as file:
        file.append({"data": data})


def json_lines(path, data):
    with closing(JsonLines(path)) as file:
        file.write("train", 1, {f"value_{number}": 1.0 for number in range(100)})


def tensorboard(path, data):
    with closing(TensorBoard(path, 0)) as file:
        file.write("train", 1, {"x" * 3000: 1.0})


def safetensors(path, data):
    array = np.zeros(1000, np.float32)
    write_file(path, make_header({"a": array}), [("a", array)])


@pytest.mark.parametrize(
    "write",
    [
        journal,
        json_lines,
        tensorboard,
        safetensors,
        lambda path, data: append_line(path, {"data": data}),
        lambda path, data: write_json(path, data),
        lambda path, data: write_records(path, [data.encode()]),
        lambda path, data: write_video(path, np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), np.uint8), 8.0),
    ],
)
def test_every_writer_says_so_and_leaves_no_half_of_a_file(tmp_path, write):
    with longest_file(200), pytest.raises(Exception) as caught:
        write(tmp_path / "file", json.dumps(list(range(1000))))
    assert "What was complete before is unharmed" in explain(caught.value), repr(caught.value)
    assert str(tmp_path) in explain(caught.value), repr(caught.value)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.stat().st_size < 100 for path in left), left  # an empty file, or the first record of TensorBoard
