"""`benchmarks/calvin_original.py`: recordings that the port itself made are reproduced, and what differs is counted."""

import json
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest

from benchmarks.calvin_original import GROUPS, group, measure
from eval.benchmarks.calvin_sequences import INITIAL_ROBOT_OBS, TASK_NAMES
from eval.envs.calvin_mujoco.environment import CalvinEnvironment
from eval.experts.registry import get_expert


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A sequence, two strokes that open the drawer there, the second one too short to do so here, and pairs of states."""
    directory = tmp_path_factory.mktemp("recordings")
    env, rng, expert = CalvinEnvironment("D", block_order="original"), np.random.default_rng(0), get_expert("calvin_mujoco")
    env.reset(task="open_drawer", seed=0, robot_obs=INITIAL_ROBOT_OBS, render=False)
    scene_obs = env.scene_obs().astype(np.float64)
    actions = np.stack([env.random_action(rng) for _ in range(5)])
    env.reset(task="open_drawer", robot_obs=INITIAL_ROBOT_OBS, scene_obs=scene_obs, render=False)
    robot, scene = [env.robot_obs()], [env.scene_obs()]
    for action in actions:
        env.advance(action)
        robot.append(env.robot_obs())
        scene.append(env.scene_obs())
    start = {"initial_robot_obs": INITIAL_ROBOT_OBS, "initial_scene_obs": scene_obs}
    contact = np.array([False] * 4 + [True] * 2)
    sequence = {"actions": actions, "robot_obs": np.stack(robot), "scene_obs": np.stack(scene), "robot_contact": contact}
    sequence["robot_obs"][-1, 0] += 1.0  # after the contact
    np.savez(directory / "random_free.npz", **{name: np.stack([value]) for name, value in (start | sequence).items()})

    env.reset(task="open_drawer", robot_obs=INITIAL_ROBOT_OBS, scene_obs=scene_obs, render=False)
    before = {"robot_obs": env.robot_obs().tolist(), "scene_obs": env.scene_obs().tolist()}
    stroke = [expert(env, rng)]
    while not env.advance(stroke[-1]).done:
        stroke.append(expert(env, rng))
    after = {"robot_obs": env.robot_obs().tolist(), "scene_obs": env.scene_obs().tolist()}
    strokes = start | {"task": "open_drawer", "actions": np.stack(stroke), "success": True, "success_again": True}
    strokes = {name: np.stack([value, value]) for name, value in strokes.items()}
    np.savez(directory / "displaced_strokes.npz", length=np.array([len(stroke), 3]), **strokes)
    pairs = [{"initial": before, "goal": after}, {"initial": after, "goal": before}]
    (directory / "recorded_pairs.json").write_text(json.dumps({"open_drawer": pairs}))
    return directory


def test_what_differs_is_counted(recordings, capsys):
    with ThreadPool(1) as pool:
        figures = measure(recordings, ["free", "low", "strokes", "pairs"], pool)
    assert "random_low.npz is not there" in capsys.readouterr().out
    assert "low" not in figures
    assert figures["free"]["steps"] == 3  # those before the contact
    assert figures["free"]["tcp_mm"]["p99"] < 1e-6
    assert figures["free"]["joints_rad"]["p99"] < 1e-6
    line = figures["strokes"]["groups"]["table parts"]
    assert (line["n"], line["there"], line["here"], line["points"], line["agreement"]) == (2, 1.0, 0.5, -50.0, 0.5)
    assert figures["pairs"] == {"pairs": 2, "solved": 1, "missed": ["open_drawer/1"]}


def test_groups():
    """Every task is in one group; pushing into the drawer counts as pushing."""
    assert {group(task) for task in TASK_NAMES} == set(GROUPS)
    assert len(GROUPS) == 7
    assert group("push_into_drawer") == group("push_red_block_left") == "push"
    assert [group(f"lift_red_block_{place}") for place in ("table", "slider", "drawer")] == ["lift table", "lift slider", "lift drawer"]
