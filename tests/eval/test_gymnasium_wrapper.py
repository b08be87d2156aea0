"""The gymnasium face of the simulators."""

import numpy as np

from eval.envs.gymnasium_wrapper import GymnasiumEnvironment


def test_an_episode_through_gymnasium():
    env = GymnasiumEnvironment("calvin_mujoco", scene="D", static_size=32, gripper_size=32, max_steps=3)
    observation, info = env.reset(seed=0, options={"task": "open_drawer"})
    assert env.observation_space.contains(observation)
    assert info["instruction"] == "pull the handle to open the drawer"
    again, _ = env.reset(seed=0, options={"task": "open_drawer"})
    np.testing.assert_array_equal(observation["robot_obs"], again["robot_obs"])
    for step in range(3):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert (reward, terminated, truncated) == (0.0, False, step == 2)
    assert env.render().shape == (32, 32, 3)
