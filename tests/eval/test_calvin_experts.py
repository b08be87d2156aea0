"""The scripted experts solve their tasks in every scene, also when their actions are disturbed."""

import numpy as np
import pytest

from eval.benchmarks.calvin_sequences import INITIAL_ROBOT_OBS, generate_sequences, initial_scene_obs
from eval.calvin.scenes import SCENES
from eval.calvin.task_names import FIXTURE_TASKS
from eval.calvin.tasks import TASKS
from eval.envs.calvin_mujoco.environment import CalvinEnvironment
from eval.experts.calvin.expert import act, expert_action


def run(env: CalvinEnvironment, task: str, scene: str, seed: int, noise: float) -> tuple[bool, int]:
    """Success and steps of one episode with Ornstein-Uhlenbeck noise of the given bound on the first six entries of the action."""
    env.reset(task=task, scene=scene, seed=seed, render=False)
    rng, disturbance = np.random.default_rng(seed), np.zeros(6)
    while True:
        action = act(env)
        assert action.shape == (7,)
        assert action.dtype == np.float32
        assert np.abs(action[:6]).max() <= 1.0 + 1e-6
        disturbance = 0.85 * disturbance + np.sqrt(1 - 0.85**2) * rng.standard_normal(6)
        outcome = env.advance(action + np.append(np.clip(noise * disturbance, -noise, noise), 0.0))
        if outcome.done:
            return outcome.success, outcome.steps


@pytest.fixture(scope="module")
def env() -> CalvinEnvironment:
    return CalvinEnvironment("D")


@pytest.mark.parametrize("scene", sorted(SCENES))
def test_experts_solve_every_task(env: CalvinEnvironment, scene: str):
    for task in FIXTURE_TASKS:
        for seed in range(2):
            success, steps = run(env, task, scene, 100 + seed, 0.0)
            assert success, (task, seed)
            assert steps <= 60, (task, seed, steps)


@pytest.mark.slow
@pytest.mark.parametrize("scene", sorted(SCENES))
def test_experts_solve_tasks_on_blocks(env: CalvinEnvironment, scene: str):
    """A sample; `benchmarks/calvin_experts.py` measures the rates."""
    results = {task: run(env, task, scene, 400, 0.0)[0] for task in TASKS if task not in FIXTURE_TASKS}
    assert sum(results.values()) >= 24, [task for task, success in results.items() if not success]  # of 26


@pytest.mark.medium
def test_experts_solve_chains(env: CalvinEnvironment):
    """Five chains of the protocol, from start to end without a reset."""
    lengths = []
    for sequence in generate_sequences(100)[:5]:
        scene_obs = initial_scene_obs(sequence.state)
        env.reset(task=sequence.tasks[0], scene="D", robot_obs=INITIAL_ROBOT_OBS, scene_obs=scene_obs, render=False)
        lengths.append(0)
        for number, task in enumerate(sequence.tasks):
            if number:
                env.begin_task(task)
            while not (outcome := env.advance(act(env))).done:
                pass
            if not outcome.success:
                break
            lengths[-1] += 1
    assert sum(lengths) >= 22, lengths


def test_an_expert_grasps_again_after_a_slip(env: CalvinEnvironment):
    env.reset(task="place_in_drawer", scene="D", seed=5, render=False)
    for _ in range(6):
        env.advance(act(env))
    for _ in range(4):
        env.advance(np.array([0, 0, 0, 0, 0, 0, 1.0]))  # dropped on the way
    assert not any(block.bodies == {"robot"} for block in env.task_state().blocks.values())
    while not (outcome := env.advance(act(env))).done:
        pass
    assert outcome.success


def test_experts_are_deterministic_functions_of_the_state(env: CalvinEnvironment):
    env.reset(task="open_drawer", scene="D", seed=0, render=False)
    situation = env.situation()
    first = act(env)
    for _ in range(3):
        env.advance(first)
    np.testing.assert_array_equal(expert_action("open_drawer", situation), first)  # a situation is a copy: later steps do not change it
    assert not np.array_equal(act(env), first)


@pytest.mark.medium
@pytest.mark.parametrize("scene", sorted(SCENES))
def test_experts_recover_from_noise(env: CalvinEnvironment, scene: str):
    results = {(task, seed): run(env, task, scene, 200 + seed, 0.4)[0] for task in FIXTURE_TASKS for seed in range(5)}
    assert np.mean(list(results.values())) >= 0.97, [key for key, success in results.items() if not success]


def test_random_actions_rarely_solve_anything(env: CalvinEnvironment):
    rng, solved = np.random.default_rng(0), 0
    for seed in range(4):
        env.reset(task="open_drawer", scene="D", seed=seed, render=False)
        while not (outcome := env.advance(env.random_action(rng))).done:
            assert np.isfinite(env.robot_obs()).all()
        solved += outcome.success
        assert not env.failed
    assert solved <= 2
