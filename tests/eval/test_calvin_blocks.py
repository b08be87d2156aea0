"""Blocks in the scene: sizes, rest heights, contact reporting, frictions, resets, order, escape."""

import mujoco
import numpy as np
import pytest

from eval.benchmarks.calvin_sequences import generate_sequences, initial_scene_obs
from eval.calvin.scenes import SCENES, block_length
from eval.calvin.task_names import FIXTURE_TASKS
from eval.calvin.tasks import TASKS
from eval.envs.calvin_mujoco.environment import CalvinEnvironment
from eval.envs.calvin_mujoco.initial_states import sample_initial_state
from eval.envs.calvin_mujoco.model import ROBOT_JOINTS, compile_scene
from eval.experts.calvin.expert import act

STILL = np.array([0.0] * 6 + [1.0])
HELD = 2 + len(ROBOT_JOINTS)  # kinematic trees that motors keep awake: robot, button, and the motors' drives


@pytest.fixture(scope="module")
def env() -> CalvinEnvironment:
    return CalvinEnvironment("D", max_steps=10**6)


def with_blocks(red=(0.1, -0.1, 0.46), blue=(-0.3, 0.09, 0.461), pink=(0.25, -0.22, 0.3623), drawer=0.22) -> np.ndarray:
    scene_obs = np.zeros(24)
    scene_obs[1] = drawer
    for start, place in ((6, red), (12, blue), (18, pink)):
        scene_obs[start : start + 3] = place
    return scene_obs


def place(env: CalvinEnvironment, scene_obs: np.ndarray, scene: str = "D") -> None:
    env.reset(task="open_drawer", scene=scene, seed=0, scene_obs=scene_obs, render=False)


def test_blocks_come_to_rest_at_the_measured_heights(env: CalvinEnvironment):
    place(env, with_blocks(red=(0.1, -0.1, 0.465), blue=(-0.3, 0.09, 0.465), pink=(0.25, -0.22, 0.37)))
    for _ in range(40):
        env.advance(STILL)
    state = env.task_state()
    heights = {colour: block.position[2] for colour, block in state.blocks.items()}
    np.testing.assert_allclose([heights["red"], heights["blue"], heights["pink"]], [0.4600, 0.4610, 0.3623], atol=5e-4)
    assert [sorted(state.blocks[c].touches) for c in ("red", "blue", "pink")] == [
        [("table", "base_link")],
        [("table", "plank_link")],
        [("table", "drawer_link")],
    ]
    assert max(np.abs(block.linear_velocity).max() for block in state.blocks.values()) < 1e-3


def test_what_rests_sleeps_but_still_touches_and_wakes_when_moved(env: CalvinEnvironment):
    scene_obs = with_blocks(blue=(0.1, -0.1, 0.50))  # on the red one
    place(env, scene_obs)
    for _ in range(20):
        env.advance(STILL)
    assert env.data.ntree_awake == HELD
    assert env.data.ncon == 0
    touches = {colour: sorted(block.touches) for colour, block in env.task_state().blocks.items()}
    on_red = [("blue", "block"), ("table", "base_link")]
    assert touches == {"red": on_red, "blue": [("red", "block")], "pink": [("table", "drawer_link")]}
    start = env.task_state().blocks["pink"].position
    env.data.qvel[env.compiled.drawer] = -0.6  # the drawer carries its block along
    for _ in range(3):
        env.advance(STILL)
    assert env.task_state().blocks["pink"].position[1] - start[1] > 0.01
    assert env.data.ntree_awake == HELD + 2
    for _ in range(30):
        env.advance(STILL)
    assert env.data.ntree_awake == HELD


def test_touches_do_not_depend_on_sleep(env: CalvinEnvironment):
    """Against contacts computed from the positions alone, in a scene whose other half sleeps while a block is grasped."""
    owner = {f"block_{c}": c for c in ("red", "blue", "pink")}
    env.reset(task="lift_pink_block_table", scene="D", seed=0, render=False)
    model, asleep = env.compiled.model, 0
    names = [model.body(int(body)).name for body in model.geom_bodyid]
    awake = mujoco.MjData(model)
    for _ in range(25):
        env.advance(act(env))
        asleep += env.data.ntree_awake < model.ntree
        awake.qpos[:] = env.data.qpos
        mujoco.mj_forward(model, awake)
        pairs = {(names[a], names[b]) for a, b in awake.contact.geom}
        for name, colour in owner.items():
            others = {b if a == name else a for a, b in pairs if name in (a, b)}
            links = {("block" if other in owner else other.removeprefix("panda_")) for other in others}
            assert {link for _, link in env.task_state().blocks[colour].touches} == links
    assert asleep > 20


@pytest.mark.parametrize(("gap", "reported"), [(0.0, True), (0.0005, True), (0.0010, False)])
def test_contacts_are_reported_up_to_half_a_millimetre(env: CalvinEnvironment, gap: float, reported: bool):
    place(env, with_blocks())
    joint = env.compiled.model.joint("block_red").qposadr[0]
    env.data.qpos[joint + 2] = 0.46 + gap
    mujoco.mj_step1(env.compiled.model, env.data)
    assert (("table", "base_link") in env.task_state().blocks["red"].touches) is reported


def test_friction_of_pairs_is_the_product():
    model = compile_scene("D").model
    kinds = {"block_red_contact": 0.7, "block_blue_contact": 0.7, "base_top": 0.5, "drawer_bar": 0.5}
    kinds |= {"finger1_pad": 1.0, "floor_contact": 1.0}
    found = 0
    for pair in range(model.npair):
        one, two = (model.geom(int(g[pair])).name for g in (model.pair_geom1, model.pair_geom2))
        if one in kinds and two in kinds:
            np.testing.assert_allclose(model.pair_friction[pair][:2], kinds[one] * kinds[two])
            found += 1
    assert found == 12  # 15 pairs of the six, without floor-table (2) and table-table (1)


def test_a_sliding_block_decelerates_by_friction(env: CalvinEnvironment):
    place(env, with_blocks(red=(0.0, -0.1, 0.46)))
    for _ in range(10):
        env.advance(STILL)
    dof = env.compiled.model.joint("block_red").dofadr[0]
    env.data.qvel[dof] = 0.8
    mujoco.mj_step1(env.compiled.model, env.data)
    env.advance(STILL)
    before = env.data.qvel[dof]
    for _ in range(2):
        env.advance(STILL)
    np.testing.assert_allclose((before - env.data.qvel[dof]) * 30 / 2, 0.35 * 9.8, rtol=0.10)


@pytest.mark.parametrize("scene", sorted(SCENES))
def test_sizes_masses_and_inertias(scene: str):
    compiled = compile_scene(scene)
    inertias = {0.04: (2.667e-4,) * 3, 0.056: (2.667e-4, 3.947e-4, 3.947e-4), 0.08: (2.667e-4, 6.667e-4, 6.667e-4)}
    for colour, body in compiled.blocks.items():
        length = block_length(SCENES[scene], colour)
        np.testing.assert_allclose(compiled.model.geom(f"block_{colour}_contact").size, [length / 2, 0.02, 0.02])
        np.testing.assert_allclose(compiled.model.body_mass[body], 1.0)
        np.testing.assert_allclose(sorted(compiled.model.body_inertia[body]), sorted(inertias[length]), rtol=1e-3)
    sizes = {"A": ("pink", "red", "blue"), "B": ("red", "pink", "blue"), "C": ("blue", "pink", "red"), "D": ("blue", "red", "pink")}[scene]
    assert [block_length(SCENES[scene], colour) for colour in sizes] == [0.04, 0.056, 0.08]


@pytest.mark.parametrize(
    ("scene", "order"),
    [("A", ("pink", "blue", "red")), ("B", ("red", "blue", "pink")), ("C", ("blue", "red", "pink")), ("D", ("red", "blue", "pink"))],
)
def test_scene_obs_order(scene: str, order: tuple[str, ...]):
    places = {"red": -0.02, "blue": 0.08, "pink": 0.18}  # clear of the buttons
    for block_order, names in (("standard", ("red", "blue", "pink")), ("original", order)):
        env = CalvinEnvironment(scene, block_order=block_order)
        scene_obs = with_blocks(*[(places[name], -0.1, 0.46) for name in names], drawer=0.0)
        env.reset(task="open_drawer", seed=0, scene_obs=scene_obs, render=False)
        np.testing.assert_allclose(env.scene_obs()[[6, 12, 18]], [places[name] for name in names], atol=1e-3)
        for name in names:
            np.testing.assert_allclose(env.task_state().blocks[name].position[0], places[name], atol=1e-3)


def test_chains_start_where_the_protocol_says(env: CalvinEnvironment):
    for sequence in generate_sequences(10):
        scene_obs = initial_scene_obs(sequence.state)
        place(env, scene_obs)
        np.testing.assert_allclose(env.scene_obs(), scene_obs, atol=2e-3)


def test_an_escaped_block_ends_the_task_and_is_named(env: CalvinEnvironment):
    place(env, with_blocks(red=(0.1, -0.6, 0.46)))  # nothing there but the floor
    for _ in range(60):
        outcome = env.advance(STILL)
        if outcome.done:
            break
    assert outcome.done
    assert not outcome.success
    assert outcome.failure == env.failure == "block escaped"


def test_reset_closes_the_gripper_around_a_block(env: CalvinEnvironment):
    for task in ("place_in_slider", "place_in_drawer", "stack_block"):
        env.reset(task=task, scene="B", seed=3, render=False)
        held = [colour for colour, block in env.start_state.blocks.items() if block.bodies == {"robot"}]
        assert len(held) == 1
        assert {body for body, _ in env.start_state.robot_touches} == set(held)
        np.testing.assert_allclose(env.robot_obs()[6], 0.0407, atol=0.001)


def test_a_held_block_does_not_creep(env: CalvinEnvironment):
    env.reset(task="place_in_slider", scene="D", seed=1, render=False)
    held = next(c for c, block in env.start_state.blocks.items() if block.bodies == {"robot"})
    offset = env.task_state().blocks[held].position - env.controller.tcp_position()
    for _ in range(150):
        env.advance(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    np.testing.assert_allclose(env.task_state().blocks[held].position - env.controller.tcp_position(), offset, atol=1e-3)


@pytest.mark.parametrize("scene", sorted(SCENES))
def test_random_starts_are_at_rest_and_unsolved(env: CalvinEnvironment, scene: str):
    for task in TASKS:
        env.reset(task=task, scene=scene, seed=7, render=False)
        assert not TASKS[task].predicate(env.start_state, env.task_state())
        before = env.task_state().blocks
        for _ in range(3):
            env.advance(np.append(np.zeros(6), env.controller.gripper_command))
        for colour, block in env.task_state().blocks.items():
            assert np.linalg.norm(block.position - before[colour].position) < 2e-3, (task, colour)


def test_an_empty_table_has_only_fixture_tasks():
    env = CalvinEnvironment("D", blocks=False)
    assert env.tasks == FIXTURE_TASKS
    env.reset(task="open_drawer", seed=0, render=False)
    np.testing.assert_array_equal(env.scene_obs()[6:], 0.0)
    with pytest.raises(ValueError, match="needs blocks"):
        env.reset(task="stack_block")
    # joints and lights do not depend on whether there are blocks
    rows = [sample_initial_state(SCENES["D"], "open_drawer", np.random.default_rng(0), blocks).scene_obs[:6] for blocks in (True, False)]
    np.testing.assert_array_equal(*rows)


def test_absolute_actions_reach_the_pose(env: CalvinEnvironment):
    absolute = CalvinEnvironment("D", action_mode="absolute")
    absolute.reset(task="open_drawer", seed=0, render=False)
    goal = absolute.robot_obs()[:6].astype(float)
    goal[:3] += [0.03, 0.02, -0.02]
    for _ in range(20):
        absolute.advance(np.append(goal, 1.0))
    np.testing.assert_allclose(absolute.robot_obs()[:3], goal[:3], atol=1e-3)
    assert not np.isfinite(absolute.action_spec().maximum[0])


@pytest.mark.medium
@pytest.mark.parametrize("scene", sorted(SCENES))
def test_random_actions_never_go_unnoticed(scene: str):
    """`benchmarks/calvin_experts.py --random` does ten thousand steps per scene."""
    env, rng = CalvinEnvironment(scene), np.random.default_rng(0)
    env.reset(task="open_drawer", seed=0, render=False)
    for _ in range(1500):
        outcome = env.advance(env.random_action(rng))
        if outcome.done:
            assert outcome.success or outcome.failure in ("", "block escaped")
            env.reset(render=False)
        positions = [block.position for block in env.task_state().blocks.values()]
        assert np.isfinite(positions).all()
        assert all(position[2] > 0.2 for position in positions)
