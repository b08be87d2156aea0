"""The scripted experts solve their tasks in every scene, also when their actions are disturbed."""

import numpy as np
import pytest

from eval.envs.calvin_mujoco.environment import CalvinEnvironment
from eval.envs.calvin_mujoco.scenes import SCENES
from eval.envs.calvin_mujoco.tasks import TASKS


def run(env: CalvinEnvironment, task: str, scene: str, seed: int, noise: float) -> tuple[bool, int]:
    """Success and steps of one episode with Ornstein-Uhlenbeck noise of the given bound on the first six entries of the action."""
    env.reset(task=task, scene=scene, seed=seed, render=False)
    rng, disturbance = np.random.default_rng(seed), np.zeros(6)
    while True:
        action = env.expert_action(rng)
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
    for task in TASKS:
        for seed in range(2):
            success, steps = run(env, task, scene, 100 + seed, 0.0)
            assert success, (task, seed)
            assert steps <= 60, (task, seed, steps)


def test_experts_are_deterministic_functions_of_the_state(env: CalvinEnvironment):
    env.reset(task="open_drawer", scene="D", seed=0, render=False)
    first, second = env.expert_action(np.random.default_rng(0)), env.expert_action(np.random.default_rng(1))
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("scene", sorted(SCENES))
def test_experts_recover_from_noise(env: CalvinEnvironment, scene: str):
    results = {(task, seed): run(env, task, scene, 200 + seed, 0.4)[0] for task in TASKS for seed in range(5)}
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
