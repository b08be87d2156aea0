"""Chains and initial states against hashes of what the original generates, and CALVIN's metrics against counts by hand."""

import json

import numpy as np
import pytest

from eval.benchmarks import calvin_sequences
from eval.benchmarks.calvin_chains import Chains, summarize_chains, table
from eval.benchmarks.calvin_sequences import (
    CATEGORIES,
    CHAIN_LENGTH,
    DIGESTS,
    TASK_NAMES,
    _chains_from,
    apply_task,
    digest,
    dump,
    fnv1_32,
    generate_sequences,
    initial_scene_obs,
    initial_symbolic_states,
    is_valid,
)
from eval.calvin.tasks import TASKS
from eval.report.collect import Evaluation, Run
from eval.report.success import closed_loop
from eval.statistics import wilson_interval

STATE = {
    "led": 0,
    "lightbulb": 0,
    "slider": "right",
    "drawer": "closed",
    "red_block": "table",
    "blue_block": "table",
    "pink_block": "slider_right",
    "grasped": 0,
}


def test_chains_are_the_originals():
    assert digest(generate_sequences(10)) == DIGESTS[10]


def test_other_chains_are_refused(monkeypatch):
    monkeypatch.setattr(calvin_sequences, "is_valid", lambda state, tasks: len(set(tasks)) == CHAIN_LENGTH)
    with pytest.raises(RuntimeError, match="the 10 chains are not the original's"):
        generate_sequences.__wrapped__(10)


@pytest.mark.parametrize(
    ("place", "values", "tasks"),
    [
        (
            0,
            [1, 1, "left", "open", "slider_left", "table", "slider_right", 0],
            "rotate_blue_block_right move_slider_right lift_red_block_slider place_in_slider turn_off_lightbulb",
        ),
        (
            1,
            [1, 1, "right", "open", "slider_right", "table", "slider_left", 0],
            "turn_off_led push_into_drawer lift_blue_block_drawer place_in_slider close_drawer",
        ),
        (
            999,
            [1, 0, "left", "closed", "slider_right", "slider_left", "table", 0],
            "move_slider_right turn_on_lightbulb push_pink_block_left open_drawer push_into_drawer",
        ),
    ],
)
def test_some_of_the_thousand_chains(place: int, values: list, tasks: str):
    """All of them take half a minute: `generate_sequences` compares their digest whenever it draws them."""
    order = list(range(1000))
    np.random.RandomState(0).shuffle(order)
    parts = np.array_split(range(1000), 192)
    number = next(i for i, part in enumerate(parts) if order[place] in part)
    state = initial_symbolic_states()[number]
    assert list(state.values()) == values
    assert " ".join(_chains_from(state, number, len(parts[number]))[order[place] - parts[number][0]]) == tasks
    if place == 0:
        np.testing.assert_allclose(initial_scene_obs(state)[[11, 17, 23]], [1.885941006, 1.488143438, 1.468398686], atol=1e-9)


def test_hash_of_python_strings():
    assert fnv1_32("hello world") == 3799943344
    assert fnv1_32("dict_values([1, 1, 'left', 'open', 'slider_left', 'table', 'slider_right', 0])") == 2138410836
    assert fnv1_32(str(STATE.values())) == 432992106


def test_symbolic_states_and_tasks():
    states = initial_symbolic_states()
    assert len(states) == 192
    assert set(TASK_NAMES) == set(TASKS)
    assert len(set(CATEGORIES.values())) == 11
    assert all(digest([s]) for s in generate_sequences(10))


@pytest.mark.parametrize(
    ("changes", "task", "effect"),
    [
        ({}, "move_slider_left", {"slider": "left"}),
        ({}, "move_slider_right", None),
        ({}, "close_drawer", None),
        ({"drawer": "open"}, "push_into_drawer", None),  # two blocks on the table
        ({"drawer": "open", "blue_block": "slider_left"}, "push_into_drawer", {"red_block": "drawer"}),
        ({}, "lift_pink_block_slider", None),  # behind the door
        ({"slider": "left"}, "lift_pink_block_slider", {"pink_block": "grasped", "grasped": 1}),
        ({"red_block": "grasped", "grasped": 1}, "place_in_slider", {"red_block": "slider_right", "grasped": 0}),
        ({"red_block": "grasped", "grasped": 1}, "rotate_blue_block_left", None),  # the hand is not free
        ({"red_block": "grasped", "grasped": 1}, "stack_block", {"red_block": "stacked_top", "blue_block": "stacked_bottom", "grasped": 0}),
        ({"red_block": "grasped", "grasped": 1, "pink_block": "table"}, "stack_block", None),  # two blocks it could be stacked on
        ({"red_block": "stacked_top", "blue_block": "stacked_bottom"}, "unstack_block", {"red_block": "table", "blue_block": "table"}),
        ({"led": 1}, "turn_on_led", None),
    ],
)
def test_rules(changes: dict, task: str, effect: dict | None):
    state = {**STATE, **changes}
    assert apply_task(state, task) == (None if effect is None else {**state, **effect})


def test_a_chain_has_each_category_once():
    assert is_valid(STATE, ("turn_on_led", "open_drawer"))
    assert not is_valid(STATE, ("open_drawer", "close_drawer"))
    assert not is_valid(STATE, ("turn_on_led", "turn_on_lightbulb"))


def test_initial_states_follow_the_symbols():
    for sequence in generate_sequences(10):
        scene_obs, state = initial_scene_obs(sequence.state), sequence.state
        assert (scene_obs[0] > 0) == (state["slider"] == "left")
        assert (scene_obs[1] > 0) == (state["drawer"] == "open")
        for start, colour in ((6, "red"), (12, "blue"), (18, "pink")):
            x, y = scene_obs[start : start + 2]
            place = state[f"{colour}_block"]
            assert (y > 0) == (place != "table")
            assert (x < 0) == (place == "slider_left")


def test_dump_and_episodes_agree():
    data = json.loads(json.dumps(dump(10)))
    episodes = Chains(10).all_episodes()
    assert data["sequences_sha256"] == DIGESTS[10]
    assert [tuple(tasks) for _, tasks in data["sequences"]] == [episode.tasks for episode in episodes]
    np.testing.assert_array_equal(data["scene_obs"], [episode.initial_state["scene_obs"] for episode in episodes])
    assert {episode.scene for episode in episodes} == {"D"}


def test_only_the_whole_protocol_is_called_complete():
    assert Chains(1000).complete
    assert not Chains(100).complete
    assert not Chains(1000, max_steps=240).complete
    assert "Partial" in Chains(100).note("calvin_mujoco")
    assert "Partial" not in Chains(1000).note("calvin_mujoco")
    described = Chains(10).describe("calvin_mujoco")
    assert "Simulated in calvin_mujoco, not in the original" in described["note"]


def test_metrics_by_hand():
    def chain(solved: int, failure: str = "") -> dict:
        tasks = [{"task": "open_drawer", "success": True, "steps": 20 + i} for i in range(solved)]
        if solved < 5:
            tasks.append({"task": "turn_on_led", "success": False, "steps": 360, **({"failure": failure} if failure else {})})
        return {"solved": solved, "tasks": tasks}

    metrics = summarize_chains([chain(5), chain(3), chain(0, "block escaped"), chain(2)])
    assert metrics["average_length"] == 2.5
    assert [metrics["in_a_row"][str(i)]["successes"] for i in range(1, 6)] == [3, 3, 2, 1, 1]
    assert sum(cell["rate"] for cell in metrics["in_a_row"].values()) == metrics["average_length"]
    assert (metrics["in_a_row"]["3"]["low"], metrics["in_a_row"]["3"]["high"]) == wilson_interval(2, 4)
    assert (metrics["tasks"]["turn_on_led"]["successes"], metrics["tasks"]["turn_on_led"]["trials"]) == (0, 3)
    assert metrics["tasks"]["open_drawer"]["trials"] == 10
    assert metrics["failures"] == {"block escaped": 1}


def test_a_run_without_a_scored_chain_has_a_table():
    assert "average length - over 0 chains" in table({"metrics": summarize_chains([])})


def test_the_report_shows_chains(tmp_path):
    tasks = [{"task": "open_drawer", "success": True, "steps": 20}] * 4 + [{"task": "turn_on_led", "success": False, "steps": 360}]
    metrics = summarize_chains([{"solved": 4, "tasks": tasks}])
    results = {"complete": True, "metrics": metrics, "config": {"protocol": Chains(10).describe("calvin_mujoco")}}
    html = closed_loop(Run(tmp_path, evaluations={"policy": Evaluation("policy", results, [], tmp_path)}))
    assert "average length 4.00 over 1 chains" in html
    assert "at least 5 in a row" in html
    assert "Partial protocol: 10 chains" in html
    assert 'data-scene="D" data-task="open_drawer"' in html
