"""Random initial states from which a given task can be solved."""

import dataclasses

import numpy as np
from jaxtyping import Float

from eval.envs.calvin_mujoco.lights import SWITCH_ON
from eval.envs.calvin_mujoco.scenes import DRAWER_MAX, SWITCH_MAX, Scene

TCP_NEUTRAL = np.array([0.02586889, -0.2313129, 0.5712808])
TCP_EULER_NEUTRAL = np.array([3.09045411, -0.02908596, 1.50013585])
TCP_SPREAD = np.array([0.06, 0.06, 0.04])
SCENE_OBS_SIZE = 24


@dataclasses.dataclass(frozen=True)
class InitialState:
    """Where an episode starts: scene_obs and the pose of the tool centre point [m]."""

    scene_obs: Float[np.ndarray, "24"]
    tcp_position: Float[np.ndarray, "3"]


def sample_initial_state(scene: Scene, task: str, rng: np.random.Generator) -> InitialState:
    """Draws a state in which `task` is still to be done and can be done.

    Joints that matter to the task lie where it can move them far enough; everything else is anywhere. About half of the draws put a joint
    at an end of its range, the others in between.
    """

    def joint(low: float, high: float, ends: tuple[float, ...]) -> float:
        ends = tuple(e for e in ends if low <= e <= high)
        if ends and rng.random() < 0.55:
            return float(rng.choice(ends))
        return float(rng.uniform(low, high))

    slide_range = {"move_slider_left": (0.0, scene.slide_max - 0.165), "move_slider_right": (0.165, scene.slide_max)}.get(
        task, (0.0, scene.slide_max)
    )
    drawer_range = {"open_drawer": (0.0, DRAWER_MAX - 0.135), "close_drawer": (0.135, DRAWER_MAX)}.get(task, (0.0, DRAWER_MAX))
    bulb = {"turn_on_lightbulb": False, "turn_off_lightbulb": True}.get(task, bool(rng.integers(2)))
    led = {"turn_on_led": False, "turn_off_led": True}.get(task, bool(rng.integers(2)))
    scene_obs = np.zeros(SCENE_OBS_SIZE)
    scene_obs[0] = joint(*slide_range, (0.0, scene.slide_max))
    scene_obs[1] = joint(*drawer_range, (0.0, DRAWER_MAX))
    margin = 0.01  # not so close to the threshold that a touch decides
    scene_obs[3] = joint(SWITCH_ON + margin, SWITCH_MAX, (SWITCH_MAX,)) if bulb else joint(0.0, SWITCH_ON - margin, (0.0,))
    scene_obs[4], scene_obs[5] = float(bulb), float(led)
    return InitialState(scene_obs, TCP_NEUTRAL + rng.uniform(-TCP_SPREAD, TCP_SPREAD))
