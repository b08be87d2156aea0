"""`vpp eval calvin` over chains: through the host loop and a simulator process, and the dump of the protocol."""

import hashlib
import json
from collections import Counter

import pytest

from eval.benchmarks.calvin_sequences import canonical_text, generate_sequences
from eval.errors import EvaluationError
from vpp_jax.cli.eval import main
from vpp_jax.cli.main import UsageError


def test_dump_writes_the_protocol_without_running_anything(tmp_path, capsys):
    assert main(["calvin", "--sequences", "10", "--dump", str(tmp_path / "chains.json")]) == 0
    content = json.loads((tmp_path / "chains.json").read_text())
    assert content["sequences_sha256"] == hashlib.sha256(canonical_text(generate_sequences(10)).encode()).hexdigest()
    assert json.dumps(content["sequences"], separators=(",", ":")) == canonical_text(generate_sequences(10))
    assert len(content["robot_obs"]) == 15
    assert [len(scene_obs) for scene_obs in content["scene_obs"]] == [24] * 10
    assert "10 chains" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x"], "nothing to evaluate"),
        (["--policy", "expert"], "--out DIR is required"),
        (["--dump", "x.json"], "needs --sequences"),
        (["--policy", "expert", "--out", "x", "--tasks", "dance"], "unknown task 'dance'"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises((UsageError, EvaluationError), match=message):
        main(["calvin", *arguments])


@pytest.mark.medium
def test_chains_run_through_the_host_loop(tmp_path, capsys):
    out = tmp_path / "expert"
    assert main(["calvin", "--sequences", "2", "--policy", "expert", "--out", str(out), "--workers", "1"]) == 0
    results = json.loads((out / "results.json").read_text())
    protocol = results["config"]["protocol"]
    assert (protocol["partial"], protocol["kind"], protocol["steps_per_task"]) == (True, "chains", 360)
    assert (protocol["quality"], protocol["reset_version"]) == ("no_shadows", "fixed")
    assert results["simulator"]["environment_version"]
    assert results["simulator"]["renderer"]
    assert results["metrics"]["chains"] == 2
    lines = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert sorted(tuple(task["task"] for task in line["tasks"]) for line in lines) == sorted(
        sequence.tasks[: line["solved"] + (line["solved"] < 5)]
        for sequence, line in zip(generate_sequences(2), sorted(lines, key=lambda line: line["index"]), strict=True)
    )
    assert results["metrics"]["average_length"] >= 4
    assert "average length" in capsys.readouterr().out
    (theirs,) = json.loads((out / "calvin_results.json").read_text()).values()
    assert theirs["avg_seq_len"] == pytest.approx(sum(theirs["chain_sr"].values()))
    solved = [task["task"] for line in lines for task in line["tasks"] if task["success"]]
    assert {name: cell["success"] for name, cell in theirs["task_info"].items() if cell["success"]} == dict(Counter(solved))


@pytest.mark.medium
def test_a_task_may_take_more_steps_than_published(tmp_path):
    out = tmp_path / "random"
    few = ("--scenes", "D", "--tasks", "open_drawer", "--episodes", "1", "--workers", "1")
    assert main(["calvin", "--policy", "random", "--out", str(out), *few, "--max_steps", "365"]) == 0
    (line,) = map(json.loads, (out / "episodes.jsonl").read_text().splitlines())
    (task,) = line["tasks"]
    assert (task["steps"], task["success"], "ended" in task) == (365, False, False)
    with pytest.raises(EvaluationError, match="ends a task after 100 steps, the protocol after 365"):
        main(["calvin", "--policy", "random", "--out", str(out), *few, "--max_steps=365", '--environment_kwargs={"max_steps": 100}'])
