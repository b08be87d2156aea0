"""Raw columns to the common action: every equation against a loop or a closed form."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_pipelines.openx import standardise
from data_pipelines.openx.conventions import Gripper
from data_pipelines.openx.standardise import Composition, openness, parts
from data_pipelines.rlds.schema import Feature, Schema

RNG = np.random.default_rng(3)


def relative_by_loop(commands):
    """Octo's rule, step by step."""
    wanted = [1 if r < -0.1 else -1 if r > 0.1 else 0 for r in commands]
    state = next((-u for u in wanted if u), 1)
    result = []
    for u in wanted:
        state = u or state
        result.append((state + 1) / 2)
    return result


def binarized_by_loop(values):
    """From the last step to the first."""
    state, result = values[-1], []
    for value in values[::-1]:
        state = 1.0 if value > 0.95 else 0.0 if value < 0.05 else state
        result.append(state)
    return result[::-1]


def test_relative_commands():
    for _ in range(50):
        commands = RNG.choice([-1.0, -0.5, -0.05, 0.0, 0.05, 0.5, 1.0], RNG.integers(1, 12))
        np.testing.assert_array_equal(standardise.relative_to_absolute(commands), relative_by_loop(commands))
    np.testing.assert_array_equal(standardise.relative_to_absolute(np.array([0, 0, 1, 0, -1, 0], np.float64)), [1, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(standardise.relative_to_absolute(np.array([0, -1, 0], np.float64)), [0, 1, 1])
    np.testing.assert_array_equal(standardise.relative_to_absolute(np.array([0, 0], np.float64)), [1, 1])


def test_binarize():
    for _ in range(50):
        values = RNG.choice([0.0, 0.03, 0.2, 0.5, 0.8, 0.97, 1.0], RNG.integers(1, 12))
        np.testing.assert_array_equal(standardise.binarize(values), binarized_by_loop(values))
    np.testing.assert_array_equal(standardise.binarize(np.array([1, 0.7, 0.3, 0, 0.4, 1], np.float64)), [1, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(standardise.binarize(np.array([0, 0.2, 0.4], np.float64)), [0, 0.4, 0.4])


@pytest.mark.parametrize(
    ("convention", "raw", "expected"),
    [
        (Gripper.OPEN, [0, 0.25, True], [0, 0.25, 1]),
        (Gripper.CLOSED, [0, 0.25, 1], [1, 0.75, 0]),
        (Gripper.CLIPPED_OPEN, [-1, 0, 0.5, 1], [0, 0, 0.5, 1]),
        (Gripper.CLIPPED_CLOSED, [-1, 0, 0.5, 1], [1, 1, 0.5, 0]),
        (Gripper.SIGNED_OPEN, [-1, 0, 1], [0, 0.5, 1]),
        (Gripper.SIGNED_CLOSED, [-1, 0, 1], [1, 0.5, 0]),
        (Gripper.RELATIVE, [0, 1, 0, -1], [1, 0, 0, 1]),
        (Gripper.CONTINUOUS_OPEN, [1, 0.5, 0], [1, 0, 0]),
        (Gripper.THRESHOLD_CLOSED, [0, 0.4, 0.6, 1], [1, 1, 0, 0]),
        (Gripper.ABSENT, [3, 4], [0, 0]),
        (Gripper.ABSENT_OPEN, [3, 4], [1, 1]),
    ],
    ids=lambda value: value.name if isinstance(value, Gripper) else "",
)
def test_every_convention_makes_1_open(convention, raw, expected):
    np.testing.assert_allclose(openness(np.array(raw, np.float64), convention), expected)


def test_every_known_convention_has_an_equation():
    assert set(standardise.OPENNESS) == set(Gripper) - {Gripper.UNKNOWN}


def test_quaternions_against_scipy():
    quaternions = RNG.normal(size=(200, 4))
    np.testing.assert_allclose(standardise.quaternion_to_euler(quaternions), Rotation.from_quat(quaternions).as_euler("xyz"), atol=1e-9)
    with pytest.raises(ValueError, match="norm zero at step 1"):
        standardise.quaternion_to_euler(np.array([[0, 0, 0, 1.0], [0, 0, 0, 0]]))


def test_composition_of_columns():
    columns = {"action": RNG.normal(size=(5, 9)), "state": RNG.normal(size=(5, 7)), "open": np.array([True, True, False, True, False])}
    made = Composition.parse("action[0:3] + 3*0 + open(open[0:1])")
    rows = made.of(columns.__getitem__, 5)
    assert (rows.dtype, rows.shape, made.width, made.lost_steps, made.columns) == (np.float32, (5, 7), 7, 0, ("action", "open"))
    np.testing.assert_allclose(rows, np.column_stack([columns["action"][:, :3], np.zeros((5, 3)), columns["open"]]), rtol=1e-6)
    assert str(made) == "action[0:3] + 3*0 + open(open[0:1])"

    moved = Composition.parse("reached(state[0:6]) + closed(action[-1:])")
    rows = moved.of(columns.__getitem__, 5)
    assert (rows.shape, moved.lost_steps) == ((4, 7), 1)
    np.testing.assert_allclose(np.cumsum(rows[:, :6], 0)[-1], columns["state"][-1, :6] - columns["state"][0, :6], rtol=1e-5)
    np.testing.assert_allclose(rows[:, 6], 1 - columns["action"][:4, 8], rtol=1e-6)

    turned = Composition.parse("action[0:3] + euler(action[3:7]) + absent_open()")
    rows = turned.of(columns.__getitem__, 5)
    np.testing.assert_allclose(rows[:, 3:6], Rotation.from_quat(columns["action"][:, 3:7]).as_euler("xyz"), atol=1e-6)
    np.testing.assert_array_equal(rows[:, 6], 1)


def test_relative_gripper_is_read_over_the_whole_episode_before_a_step_is_lost():
    columns = {"s": np.zeros((3, 6)), "g": np.array([0.0, 0.0, -1.0])}  # the opening at the last step says that it was closed
    made = Composition.parse("reached(s[0:6]) + relative(g[0:1])")
    np.testing.assert_array_equal(made.of(columns.__getitem__, 3)[:, 6], [0, 0])


def test_two_arms_have_two_grippers():
    columns = {"left": RNG.normal(size=(4, 7)), "right": RNG.normal(size=(4, 7))}
    text = "left[0:6] + closed(left[6:7]) + right[0:6] + open(right[-1:])"
    made = Composition.parse(text)
    assert (made.width, list(made.grippers), str(made), Composition.parse(str(made))) == (14, [6, 13], text, made)
    rows = made.of(columns.__getitem__, 4)
    np.testing.assert_allclose(rows[:, 6], 1 - columns["left"][:, 6], rtol=1e-6)
    np.testing.assert_allclose(rows[:, 13], columns["right"][:, 6], rtol=1e-6)


def test_angles_that_pass_the_cut_are_small_steps():
    angle = np.array([[3.0], [-3.1], [3.1], [0.0], [1.0]])
    made = Composition.parse("reached_angles(a[0:1])").of(lambda key: angle, 5)
    np.testing.assert_allclose(made[:, 0], [2 * np.pi - 6.1, 6.2 - 2 * np.pi, -3.1, 1.0], rtol=1e-6)
    turned = Rotation.from_euler("x", angle)
    np.testing.assert_allclose(made[:, 0], (turned[1:] * turned[:-1].inv()).as_euler("xyz")[:, 0], rtol=1e-6)


def test_what_features_json_lacks():
    schema = Schema(steps={"action": Feature("tensor", "float32", (7,)), "name": Feature("text"), "open": Feature("tensor", "bool")})
    assert Composition.parse("action[0:6] + open(open[0:1])").problems(schema) == []
    wrong = Composition.parse("action[0:3] + action[7:10] + name[0:1] + 2*0 + open(gone[0:1])")
    assert wrong.problems(schema) == ["action[7:10] (its shape is [7])", "step field 'name'", "step field 'gone'"]
    with pytest.raises(ValueError, match="'action' is not one of"):
        parts("action")
