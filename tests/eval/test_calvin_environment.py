"""The CALVIN environment's contract: dm_env, resets, lights, task predicates, seeds, registry, imports."""

import subprocess
import sys

import dm_env
import mujoco
import numpy as np
import pytest

from eval.calvin.scenes import SCENES
from eval.calvin.task_names import FIXTURE_TASKS
from eval.calvin.tasks import TASKS, TaskState, get_task
from eval.envs.base import LanguageEnvironment, Outcome
from eval.envs.calvin_mujoco.environment import CalvinEnvironment
from eval.envs.calvin_mujoco.initial_states import TCP_NEUTRAL, TCP_SPREAD, sample_initial_state
from eval.envs.calvin_mujoco.instructions import TRAINING_INSTRUCTIONS, training_instructions
from eval.envs.calvin_mujoco.lights import Lights
from eval.envs.registry import make_environment
from eval.experts.calvin.expert import act

STILL = np.array([0.0] * 6 + [1.0])


@pytest.fixture(scope="module")
def env() -> CalvinEnvironment:
    return CalvinEnvironment("D")


# --- dm_env and the interface


def test_specs_and_time_steps():
    env = make_environment("calvin_mujoco", scene="A", static_size=48, gripper_size=32, max_steps=3)
    assert isinstance(env, LanguageEnvironment)
    assert isinstance(env, dm_env.Environment)
    step = env.reset(task="open_drawer", seed=0)
    assert step.first()
    spec = env.observation_spec()
    assert set(spec) == set(step.observation) == {"rgb_static", "rgb_gripper", "robot_obs", "scene_obs"}
    for _ in range(3):
        for name, value in step.observation.items():
            spec[name].validate(value)
        action = env.random_action(np.random.default_rng(0))
        env.action_spec().validate(action)
        step = env.step(action)
    assert step.last()
    assert step.discount == 1.0  # out of steps, not solved
    assert step.reward == 0.0
    assert env.step(STILL).first()  # after the end a new episode starts
    assert env.task == "open_drawer"
    assert env.instruction == TASKS["open_drawer"].evaluation_instruction


def test_advance_does_not_render_and_stops_at_the_end(env: CalvinEnvironment):
    env.reset(task="open_drawer", scene="D", seed=0, render=False)
    assert set(env.observation(render=False)) == {"robot_obs", "scene_obs"}
    outcome = env.advance(STILL)
    assert outcome == Outcome(False, False, 1)
    env.max_steps, before = 2, env.max_steps
    assert env.advance(STILL) == Outcome(False, True, 2)
    env.max_steps = before
    with pytest.raises(RuntimeError, match="call reset"):
        env.advance(STILL)


def test_bad_input_is_named(env: CalvinEnvironment):
    env.reset(task="open_drawer", scene="D", seed=0, render=False)
    with pytest.raises(ValueError, match="action: expected 7 finite"):
        env.advance(np.zeros(6))
    with pytest.raises(ValueError, match="action: expected 7 finite"):
        env.advance(np.array([np.nan] * 7))
    with pytest.raises(ValueError, match="unknown CALVIN task 'open_door'"):
        env.reset(task="open_door")
    with pytest.raises(ValueError, match="unknown CALVIN scene 'E'"):
        env.reset(scene="E")
    with pytest.raises(TypeError, match="unknown options"):
        env.reset(colour="red")
    with pytest.raises(ValueError, match="scene_obs: expected 24"):
        env.reset(scene_obs=np.zeros(23))
    with pytest.raises(ValueError, match="did you mean 'calvin_mujoco'"):
        make_environment("calvin_mujuco")
    with pytest.raises(ValueError, match="quality"):
        CalvinEnvironment("D", quality="best")
    with pytest.raises(ValueError, match="'fast' is called 'no_shadows'"):
        CalvinEnvironment("D", quality="fast")
    with pytest.raises(ValueError, match="reset_version"):
        CalvinEnvironment("D", reset_version="new")


def test_simulator_does_not_import_jax():
    code = (
        "import sys, numpy as np; from eval.envs.registry import make_environment; "
        "from eval.experts.registry import get_expert; e = make_environment('calvin_mujoco');"
        "e.reset(task='open_drawer', seed=0, render=False); e.advance(get_expert('calvin_mujoco')(e, np.random.default_rng(0)));"
        "assert not {'jax', 'flax', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_diverged_simulation_is_reported_as_failed(env: CalvinEnvironment):
    for poison in (np.nan, 1e6):
        env.reset(task="open_drawer", scene="D", seed=0, render=False)
        env.data.qvel[2] = poison
        outcome = env.advance(STILL)
        if not env.failed:  # the motors brake within a control step: then nothing has escaped
            assert np.isfinite(env.data.qpos).all()
            continue
        assert outcome == Outcome(False, True, 1, "diverged")
    assert env.reset(task="open_drawer", seed=1, render=False).first()  # and the next episode is fine
    assert not env.advance(STILL).done


def test_nan_ends_the_episode(env: CalvinEnvironment):
    env.reset(task="open_drawer", scene="D", seed=0, render=False)
    env.data.qpos[env.compiled.slide] = np.nan
    outcome = env.advance(STILL)
    assert outcome.done
    assert env.failed
    assert not outcome.success


def test_dm_control_sees_the_same_state(env: CalvinEnvironment):
    env.reset(task="open_drawer", scene="B", seed=2, render=False)
    for _ in range(5):
        env.advance(act(env))
    physics = env.dm_control_physics()
    np.testing.assert_allclose(physics.named.data.site_xpos["tcp"], env.data.site("tcp").xpos, atol=1e-9)
    np.testing.assert_allclose(physics.named.data.qpos["base__drawer"], env.task_state().drawer)


# --- resets


def test_same_seed_same_episode():
    runs = []
    for _ in range(2):
        env = CalvinEnvironment("B")
        rng = np.random.default_rng(5)
        env.reset(task="move_slider_left", seed=11, render=False)
        trace = [env.robot_obs(), env.scene_obs()]
        for _ in range(20):
            env.advance(env.random_action(rng))
            trace += [env.robot_obs(), env.scene_obs()]
        runs.append(np.concatenate(trace))
    np.testing.assert_array_equal(*runs)


def test_earlier_episodes_do_not_matter(env: CalvinEnvironment):
    traces = []
    for junk in (0, 30):
        env.reset(task="turn_on_led", scene="D", seed=3, render=False)
        for _ in range(junk):
            env.advance(np.array([0.3, 0.5, -0.5, 0.1, 0, 0, -1.0]))
        env.reset(task="open_drawer", scene="D", seed=4, render=False)
        for _ in range(10):
            env.advance(act(env))
        traces.append(np.concatenate([env.robot_obs(), env.scene_obs()]))
    np.testing.assert_array_equal(*traces)


def test_reset_takes_robot_and_scene_obs(env: CalvinEnvironment):
    env.reset(task="open_drawer", scene="C", seed=8, render=False)
    for _ in range(8):
        env.advance(env.random_action(np.random.default_rng(1)))
    robot, scene = env.robot_obs(), env.scene_obs()
    env.reset(task="open_drawer", scene="C", seed=9, robot_obs=robot, scene_obs=scene, render=False)
    np.testing.assert_allclose(env.robot_obs()[6:], robot[6:], atol=2e-3)  # the pose is of the step before, when the hand moved
    np.testing.assert_allclose(env.scene_obs(), scene, atol=5e-3)  # the hand may have set a block rocking


@pytest.mark.parametrize("scene", sorted(SCENES))
@pytest.mark.parametrize("task", sorted(FIXTURE_TASKS))
def test_initial_states_are_feasible(scene: str, task: str):
    table = SCENES[scene]
    partial = 0
    for seed in range(60):
        state = sample_initial_state(table, task, np.random.default_rng(seed))
        slide, drawer, button, switch, bulb, led = state.scene_obs[:6]
        assert 0 <= slide <= table.slide_max
        assert 0 <= drawer <= 0.22
        assert button == 0
        assert 0 <= switch <= 0.088
        assert (switch > 0.044) == bool(bulb)
        assert (np.abs(state.tcp_position - TCP_NEUTRAL) <= TCP_SPREAD).all()
        start = TaskState(slide, drawer, 0.0, switch, bool(bulb), bool(led))
        joint, end = {
            "open_drawer": ("drawer", 0.22),
            "close_drawer": ("drawer", 0.0),
            "move_slider_left": ("slide", table.slide_max),
            "move_slider_right": ("slide", 0.0),
        }.get(task, ("", 0.0))
        goal = (
            start._replace(**{joint: end}) if joint else start._replace(**{"bulb" if "bulb" in task else "led": task.startswith("turn_on")})
        )
        assert TASKS[task].predicate(start, goal)
        assert not TASKS[task].predicate(start, start)
        partial += 0.01 < drawer < 0.21
    assert partial > 5


def test_random_start_reaches_the_drawn_position(env: CalvinEnvironment):
    for seed in range(10):
        wanted = sample_initial_state(SCENES["D"], "open_drawer", np.random.default_rng(seed)).tcp_position
        env.reset(task="open_drawer", scene="D", seed=seed, render=False)
        np.testing.assert_allclose(env.robot_obs()[:3], wanted, atol=1e-3)


def test_tasks_chain_without_a_reset(env: CalvinEnvironment):
    env.reset(task="turn_on_led", scene="D", seed=0, render=False)
    while not (outcome := env.advance(act(env))).done:
        pass
    assert outcome.success
    before = env.robot_obs()
    env.begin_task("turn_off_led")
    np.testing.assert_array_equal(before, env.robot_obs())
    while not (outcome := env.advance(act(env))).done:
        pass
    assert outcome.success  # including letting the button come up first
    assert env.instruction == "press the button to turn off the led light"


# --- lights


def press(lights: Lights) -> bool:
    for q in (0.0, 0.009, 0.011, 0.02, 0.011, 0.005, 0.0):
        lights.update(q, 0.0)
    return lights.led


def test_button_toggles_once_per_press():
    lights = Lights()
    lights.reset(bulb=False, led=False, button_q=0.0)
    assert [press(lights) for _ in range(4)] == [True, False, True, False]


def test_led_that_starts_on_needs_two_presses_in_the_original():
    fixed, original = Lights("fixed"), Lights("original")
    for lights in (fixed, original):
        lights.reset(bulb=False, led=True, button_q=0.0)
    assert [press(fixed) for _ in range(2)] == [False, True]
    assert [press(original) for _ in range(2)] == [True, False]


def test_pressed_memory_survives_resets_only_in_the_original():
    for version, expected in (("fixed", True), ("original", False)):
        lights = Lights(version)
        lights.reset(bulb=False, led=False, button_q=0.0)
        lights.update(0.02, 0.0)
        lights.reset(bulb=False, led=False, button_q=0.0)
        lights.update(0.02, 0.0)
        assert lights.led is expected


def test_switch_sets_the_bulb_by_level():
    lights = Lights()
    lights.reset(bulb=False, led=False, button_q=0.0)
    seen = []
    for q in (0.0, 0.0439, 0.0441, 0.088, 0.0441, 0.0439, 0.0):
        lights.update(0.0, q)
        seen.append(lights.bulb)
    assert seen == [False, False, True, True, True, False, False]
    lights.reset(bulb=True, led=False, button_q=0.0)  # reset puts the switch's own state to off; q = 0.088 is consistent after one step
    lights.update(0.0, 0.088)
    assert lights.bulb
    lights.reset(bulb=True, led=False, button_q=0.0)
    lights.update(0.0, 0.0)
    assert lights.bulb  # the bulb changes only when the switch's own state does


def test_both_versions_in_the_environment():
    presses = {}
    for version in ("fixed", "original"):
        env = CalvinEnvironment("D", reset_version=version, blocks=False)
        scene_obs = np.zeros(24)
        scene_obs[5] = 1.0
        env.reset(task="turn_off_led", seed=0, scene_obs=scene_obs, render=False)
        count, was, outcome = 0, False, Outcome(False, False, 0)
        while not outcome.done:
            outcome = env.advance(act(env))
            count, was = count + (env.lights.button_pressed and not was), env.lights.button_pressed
        assert outcome.success
        presses[version] = count
    assert presses == {"fixed": 1, "original": 2}


# --- tasks and instructions

STATE = TaskState(slide=0.1, drawer=0.1, button=0.0, switch=0.0, bulb=False, led=False)


@pytest.mark.parametrize(
    ("task", "change", "solved"),
    [
        ("move_slider_left", {"slide": 0.2501}, True),
        ("move_slider_left", {"slide": 0.2499}, False),
        ("move_slider_left", {"slide": 0.0}, False),
        ("move_slider_right", {"slide": -0.0501}, True),
        ("move_slider_right", {"slide": 0.0}, False),
        ("move_slider_right", {"slide": 0.28}, False),
        ("open_drawer", {"drawer": 0.2201}, True),
        ("open_drawer", {"drawer": 0.2199}, False),
        ("close_drawer", {"drawer": -0.0201}, True),
        ("close_drawer", {"drawer": 0.0}, False),
        ("turn_on_lightbulb", {"bulb": True}, True),
        ("turn_on_lightbulb", {"led": True}, False),
        ("turn_on_lightbulb", {}, False),
        ("turn_off_lightbulb", {"bulb": True}, False),
        ("turn_off_lightbulb", {}, False),  # it was off: nothing to turn off
        ("turn_on_led", {"led": True}, True),
        ("turn_on_led", {"bulb": True}, False),
        ("turn_off_led", {}, False),
    ],
)
def test_predicates_on_hand_made_pairs(task: str, change: dict, solved: bool):
    assert get_task(task).predicate(STATE, STATE._replace(**change)) is solved


@pytest.mark.parametrize(("task", "light"), [("turn_off_lightbulb", "bulb"), ("turn_off_led", "led")])
def test_turning_off_needs_the_light_on_before(task: str, light: str):
    on = STATE._replace(**{light: True})
    assert get_task(task).predicate(on, STATE)
    assert not get_task(task).predicate(on, on)


def test_training_instructions_are_our_own():
    assert set(TRAINING_INSTRUCTIONS) == set(TASKS)
    evaluation = {task.evaluation_instruction.lower() for task in TASKS.values()}
    everything = [s for name in TASKS for s in training_instructions(name)]
    assert len(everything) == len({s.lower() for s in everything})
    assert not evaluation & {s.lower() for s in everything}
    assert min(len(training_instructions(name)) for name in TASKS) >= 10
    assert all(s == s.strip() and s for s in everything)
    with pytest.raises(ValueError, match="no training instructions"):
        training_instructions("dance")


def test_the_reported_pose_is_one_physics_step_old(env: CalvinEnvironment):
    """As in the original: joints are those of the moment, the hand's pose is that from which the last physics step started."""
    env.reset(task="open_drawer", scene="D", seed=1, render=False)
    forward = np.array([1.0, 0, 0, 0, 0, 0, 1])
    for _ in range(3):
        env.advance(forward)
    jacobian = np.zeros((3, env.compiled.model.nv))
    mujoco.mj_jacSite(env.compiled.model, env.data, jacobian, None, env.compiled.tcp)
    velocity = jacobian @ env.data.qvel
    assert 0.2 < velocity[0] < 0.8  # m/s
    np.testing.assert_allclose(env.data.site("tcp").xpos - env.robot_obs()[:3], velocity / 240.0, atol=3e-5)


def test_environments_do_not_share_what_a_command_changes():
    """The force of the fingers' motors is part of the model, which environments of a scene would share."""
    widths = []
    for other in (False, True):
        env, second = CalvinEnvironment("D", blocks=False), CalvinEnvironment("D", blocks=False)
        for one in (env, second):
            one.reset(task="open_drawer", seed=0, render=False)
        for step in range(8):
            env.advance(np.array([0.0] * 6 + [-1.0 if step < 4 else 1.0]))
            if other:
                second.advance(np.array([0.0] * 6 + [1.0 if step < 4 else -1.0]))
        widths.append(env.robot_obs()[6])
    assert widths[0] == widths[1]
