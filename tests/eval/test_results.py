"""results.json and the journal: what is written, and what a stop in the middle leaves."""

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest

from eval.results import SCHEMA_VERSION, Journal, read_json, write_results


def test_results_hold_everything_needed_to_repeat_them(tmp_path):
    path = write_results(
        tmp_path / "deep" / "results.json",
        metrics={"rate": np.float32(0.5), "nan": math.nan},
        config={"seed": 1, "tasks": ("a", "b"), "out": Path("x")},
        started=time.time(),
        seconds=1.23456,
        command=["vpp", "eval"],
        simulator={"renderer": "egl"},
    )
    results = read_json(path)
    common = "schema_version command config config_hash git_revision versions device start seconds metrics"
    assert results.keys() == {*common.split(), "simulator"}
    assert results["schema_version"] == SCHEMA_VERSION
    assert results["metrics"] == {"rate": 0.5, "nan": None}
    assert results["config"] == {"seed": 1, "tasks": ["a", "b"], "out": "x"}
    assert results["versions"]["numpy"] == np.__version__
    assert results["device"]["cpu_cores"] >= 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_extra_entries_cannot_replace_common_ones(tmp_path):
    with pytest.raises(ValueError, match="device"):
        write_results(tmp_path / "r.json", metrics={}, config={}, started=0, seconds=0, device="mine")


def test_journal_continues_and_drops_a_half_written_line(tmp_path):
    path = tmp_path / "episodes.jsonl"
    with Journal(path) as journal:
        journal.append({"index": 0, "text": "zieh den Griff – öffne"})
        journal.append({"index": 1})
        assert len(path.read_text().splitlines()) == 2  # on disk before the journal is closed
    with path.open("ab") as file:
        file.write(b'{"index": 2, "solv')
    with Journal(path) as journal:
        assert [record["index"] for record in journal.records] == [0, 1]
        journal.append({"index": 2})
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "episodes.jsonl"
    path.write_text('{"index": 0}\nnonsense\n{"index": 1}\n')
    with pytest.raises(ValueError, match="line 2"):
        Journal(path)
