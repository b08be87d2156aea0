"""Single tasks from recorded states: both forms of the file, what is refused, and a run that is stopped and resumed."""

import json

import numpy as np
import pytest

from eval.benchmarks.calvin_sequences import INITIAL_ROBOT_OBS
from eval.benchmarks.recorded_states import digest, plan_states, read_states
from eval.errors import EvaluationError
from vpp_jax.cli.eval import main

SCENE_OBS = np.array([0.0, 0, 0, 0, 0, 0, *[0.05, -0.12, 0.46, 0, 0, 0], *[0.15, -0.12, 0.46, 0, 0, 0], *[0.25, -0.12, 0.46, 0, 0, 0.5]])
STATE = {"robot_obs": INITIAL_ROBOT_OBS.tolist(), "scene_obs": SCENE_OBS.tolist()}
OPEN = SCENE_OBS.copy()
OPEN[1] = 0.2


@pytest.fixture
def states(tmp_path):
    opened = {"robot_obs": STATE["robot_obs"], "scene_obs": OPEN.tolist()}
    content = {"open_drawer": [STATE, {"initial": STATE, "goal": opened}], "close_drawer": [opened | {"scene": "A"}]}
    (tmp_path / "states.json").write_text(json.dumps(content))
    return tmp_path / "states.json"


def test_both_forms_hold_the_same_states(states, tmp_path):
    arrays = {"task": ["open_drawer", "open_drawer", "close_drawer"], "scene": ["D", "D", "A"], "robot_obs": [STATE["robot_obs"]] * 3}
    arrays["initial_scene_obs"] = [SCENE_OBS, SCENE_OBS, OPEN]
    np.savez(tmp_path / "states.npz", **{name: np.array(value) for name, value in arrays.items()})
    one, two = read_states(states), read_states(tmp_path / "states.npz")
    assert [(state.task, state.scene) for state in one] == list(zip(arrays["task"], arrays["scene"], strict=True))
    assert digest(one) == digest(two)
    np.testing.assert_array_equal(one[2].scene_obs, OPEN)
    assert digest(one) != digest(one[:2])


def test_every_state_is_one_episode_of_its_own(states):
    plan = plan_states(states, (), 0, seed=0, simulator="some")
    assert [(episode.index, episode.tasks, episode.scene) for episode in plan.episodes] == [
        (0, ("open_drawer",), "D"),
        (1, ("open_drawer",), "D"),
        (2, ("close_drawer",), "A"),
    ]
    assert len({episode.seed for episode in plan.episodes}) == 3
    assert (plan.max_steps, plan.description["states"], plan.description["partial"]) == (240, 3, True)
    (closing,) = plan_states(states, ("close_drawer",), 0, seed=0).episodes
    assert closing.seed == plan.episodes[2].seed  # whatever else is evaluated


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"dance": [STATE]}, "state 0: unknown task 'dance'"),
        ({"open_drawer": [STATE | {"scene": "E"}]}, "state 0: unknown scene 'E'"),
        ({"open_drawer": [STATE, STATE | {"robot_obs": [0.0] * 14}]}, r"state 1: robot_obs must be 15 finite numbers, is of shape \(14,\)"),
        ({"open_drawer": [{"robot_obs": STATE["robot_obs"]}]}, "cannot be read as recorded states .*scene_obs"),
        ({"open_drawer": []}, "holds no state"),
        ([STATE], "cannot be read as recorded states"),
    ],
)
def test_mistakes_are_named(content, message, tmp_path):
    (tmp_path / "states.json").write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match=message):
        read_states(tmp_path / "states.json")


def test_other_files_are_refused(states, tmp_path):
    (tmp_path / "states.npz").write_bytes(b"no archive")
    with pytest.raises(EvaluationError, match="cannot be read as recorded states"):
        read_states(tmp_path / "states.npz")
    with pytest.raises(EvaluationError, match=r"are in a \.json or \.npz file"):
        read_states(tmp_path / "states.pkl")
    with pytest.raises(EvaluationError, match="two protocols"):
        main(["calvin", f"--states={states}", "--sequences=2", "--policy=expert", "--out=x"])
    with pytest.raises(EvaluationError, match="holds no state of turn_on_led"):
        main(["calvin", f"--states={states}", "--tasks=turn_on_led", "--policy=expert", "--out=x"])


@pytest.mark.medium
def test_the_command_starts_from_them_and_resumes(states, tmp_path):
    command = ["calvin", f"--states={states}", "--policy=expert", "--workers=1", f"--out={tmp_path / 'out'}"]
    assert main(command) == 0
    lines = (tmp_path / "out" / "episodes.jsonl").read_text().splitlines()
    (tmp_path / "out" / "episodes.jsonl").write_text("\n".join(lines[:1]) + "\n")
    (tmp_path / "out" / "results.json").unlink()
    assert main(command) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["episodes"], results["continued_episodes"], results["published"]) == (3, 1, False)
    assert results["metrics"]["tasks"]["open_drawer"]["successes"] == 2
    assert results["metrics"]["scenes"]["A"]["tasks"]["close_drawer"]["successes"] == 1

    def outcome(line):
        return {name: value for name, value in json.loads(line).items() if name != "seconds"}

    again = (tmp_path / "out" / "episodes.jsonl").read_text().splitlines()
    assert [outcome(line) for line in again] == [outcome(line) for line in lines]
    assert outcome(lines[0])["initial_state_id"] == outcome(lines[1])["initial_state_id"]  # the same recorded state

    moved = json.loads(states.read_text())
    moved["open_drawer"][0]["scene_obs"][0] = 0.1
    states.write_text(json.dumps(moved))
    with pytest.raises(EvaluationError, match=r"holds a different evaluation \(protocol\.states_sha256"):
        main(command)
