"""Random initial states in which a task is feasible."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from eval.calvin.scenes import DRAWER_FLOOR, DRAWER_MAX, EDGE, SHELF_TOP, SWITCH_MAX, TABLE_TOP, TABLE_X, Scene, block_length, open_shelf
from eval.envs.calvin_mujoco.blocks import STANDARD_ORDER
from eval.envs.calvin_mujoco.lights import SWITCH_ON

TCP_NEUTRAL = np.array([0.02586889, -0.2313129, 0.5712808])
TCP_EULER_NEUTRAL = np.array([3.09045411, -0.02908596, 1.50013585])
TCP_SPREAD = np.array([0.06, 0.06, 0.04])
SCENE_OBS_SIZE = 24
BUTTON_CLEARANCE = 0.09  # m from the button's axis to the centre of a block, so that fingers fit between
MAX_TRIES = 2000
SHELF_YAW = math.pi / 8  # blocks lie in the shelf with their long side within this of the depth direction, as in the evaluation


@dataclasses.dataclass(frozen=True)
class InitialState:
    """Where an episode starts: scene_obs (blocks in standard order) and the pose of the tool centre point [m, rad].

    `held` is a block that the gripper holds instead of what scene_obs says of it.
    """

    scene_obs: Float[np.ndarray, "24"]
    tcp_position: Float[np.ndarray, "3"]
    tcp_euler: Float[np.ndarray, "3"] = dataclasses.field(default_factory=TCP_EULER_NEUTRAL.copy)
    held: str | None = None


def sample_initial_state(scene: Scene, task: str, rng: np.random.Generator, blocks: bool = True) -> InitialState:
    """Draws a state in which `task` is still to be done and can be done.

    Joints that matter to the task lie where it can move them far enough; everything else is anywhere. About half of the draws put a joint
    at an end of its range, the others in between. Blocks lie on the table or in the open part of the shelf, apart from each other, with
    room for the task.
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
    if task in ("place_in_drawer", "push_into_drawer") or task.endswith("block_drawer"):
        drawer_range = (0.17, DRAWER_MAX)
    bulb = {"turn_on_lightbulb": False, "turn_off_lightbulb": True}.get(task, bool(rng.integers(2)))
    led = {"turn_on_led": False, "turn_off_led": True}.get(task, bool(rng.integers(2)))
    scene_obs = np.zeros(SCENE_OBS_SIZE)
    scene_obs[0] = joint(*slide_range, (0.0, scene.slide_max))
    scene_obs[1] = joint(*drawer_range, (0.0, DRAWER_MAX))
    margin = 0.01  # not so close to the threshold that a touch decides
    scene_obs[3] = joint(SWITCH_ON + margin, SWITCH_MAX, (SWITCH_MAX,)) if bulb else joint(0.0, SWITCH_ON - margin, (0.0,))
    scene_obs[4], scene_obs[5] = float(bulb), float(led)
    tcp = TCP_NEUTRAL + rng.uniform(-TCP_SPREAD, TCP_SPREAD)
    if not blocks:
        return InitialState(scene_obs, tcp)
    held = str(rng.choice(STANDARD_ORDER)) if task in ("place_in_slider", "place_in_drawer", "stack_block") else None
    if task.endswith("block_slider") or task == "place_in_slider":  # a door at one of its ends: an opening of a hand's width at least
        scene_obs[0] = rng.choice([0.0, scene.slide_max])
    poses = _sample_blocks(scene, task, held, float(scene_obs[0]), float(scene_obs[1]), rng)
    scene_obs[6:] = np.concatenate([poses[colour] for colour in STANDARD_ORDER])
    return InitialState(scene_obs, tcp, held=held)


# --- blocks

# x ranges of block centres in the two halves of the shelf, as in the original's random resets
SHELF_X = {
    "A": ((-0.32, -0.16), (-0.05, 0.13)),
    "B": ((-0.12, 0.06), (0.15, 0.33)),
    "C": ((-0.12, 0.06), (0.15, 0.30)),
    "D": ((-0.32, -0.16), (-0.05, 0.13)),
}
TABLE_Y, SHELF_Y = (-0.15, -0.03), (0.07, 0.105)
SHELF_DEPTH = (0.047, 0.158)  # y [m] between the door and the back wall, at the height of a block's top
DOOR_FRONT = -0.02  # y [m] up to which blocks on the table leave room for a finger before the cabinet


def _sample_blocks(
    scene: Scene, task: str, held: str | None, slide: float, drawer: float, rng: np.random.Generator
) -> dict[str, Float[np.ndarray, "6"]]:
    """Colour -> xyz and Euler angles, with a minimal distance between blocks."""
    colour = next((c for c in STANDARD_ORDER if f"_{c}_" in task), None)
    for _ in range(MAX_TRIES):
        poses: dict[str, np.ndarray] = {}
        others = [c for c in STANDARD_ORDER if c not in (held, colour)]
        if colour is not None:
            poses[colour] = _special_pose(scene, task, colour, slide, drawer, rng)
        if held is not None:
            poses[held] = np.array([0.0, 0.0, 0.9, 0.0, 0.0, 0.0])  # out of the way until it is put between the fingers
        for number, other in enumerate(others):
            must_be_on_table = task in ("stack_block", "unstack_block", "push_into_drawer") and number == 0
            poses[other] = _table_pose(scene, other, rng) if must_be_on_table or rng.random() < 0.5 else _shelf_pose(scene, other, rng)
        if task == "unstack_block":
            below, top = others[0], others[1]
            poses[below][1] = rng.uniform(TABLE_Y[0], -0.08)  # the upper one must not touch the cabinet's handles
            tilt = rng.uniform(-0.3, 0.3)
            poses[top] = poses[below] + np.array([*rng.uniform(-0.006, 0.006, 2), EDGE, 0.0, 0.0, tilt])
        if task == "push_into_drawer":
            poses[others[0]][0] = rng.uniform(scene.drawer_x - 0.10, scene.drawer_x + 0.10)
            for other in others[1:]:
                poses[other] = _shelf_pose(scene, other, rng)
        stacked = (others[0], others[1]) if task == "unstack_block" else ()
        if _apart(scene, poses, stacked) and _has_room(scene, task, colour, poses):
            return poses
    raise RuntimeError(f"no placement of the blocks found for {task!r} in scene {scene.name} after {MAX_TRIES} tries")


def _table_pose(scene: Scene, colour: str, rng: np.random.Generator) -> Float[np.ndarray, "6"]:
    x, yaw = rng.uniform(*TABLE_X[scene.name]), rng.uniform(-math.pi, math.pi)
    deep = (block_length(scene, colour) * abs(math.sin(yaw)) + EDGE * abs(math.cos(yaw))) / 2
    y = rng.uniform(TABLE_Y[0], min(TABLE_Y[1], DOOR_FRONT - deep))
    return np.array([x, y, TABLE_TOP + EDGE / 2, 0, 0, yaw])


def _shelf_pose(scene: Scene, colour: str, rng: np.random.Generator) -> Float[np.ndarray, "6"]:
    x = rng.uniform(*SHELF_X[scene.name][rng.integers(2)])
    yaw = math.pi / 2 + rng.uniform(-SHELF_YAW, SHELF_YAW)
    deep = (block_length(scene, colour) * abs(math.sin(yaw)) + EDGE * abs(math.cos(yaw))) / 2
    y = rng.uniform(max(SHELF_Y[0], SHELF_DEPTH[0] + deep), max(SHELF_Y[1], SHELF_DEPTH[0] + deep))
    return np.array([x, min(y, SHELF_DEPTH[1] - deep), SHELF_TOP + EDGE / 2, 0, 0, yaw])


def _special_pose(scene: Scene, task: str, colour: str, slide: float, drawer: float, rng: np.random.Generator) -> Float[np.ndarray, "6"]:
    """The position of the block of the task."""
    if task.endswith("block_slider"):
        low, high = open_shelf(scene, slide)
        pose = _shelf_pose(scene, colour, rng)
        pose[0] = rng.uniform(max(low + 0.09, min(SHELF_X[scene.name][0])), min(high - 0.09, max(SHELF_X[scene.name][1])))
        return pose
    if task.endswith("block_drawer"):
        back, front = -0.18, -0.16 - drawer  # edge of the table above, front plate
        x, y = rng.uniform(scene.drawer_x - 0.10, scene.drawer_x + 0.10), rng.uniform(front + 0.06, back - 0.05)
        return np.array([x, y, DRAWER_FLOOR + EDGE / 2, 0, 0, math.pi / 2 + rng.uniform(-SHELF_YAW, SHELF_YAW)])
    return _table_pose(scene, colour, rng)


def _apart(scene: Scene, poses: dict[str, np.ndarray], stacked: tuple[str, ...]) -> bool:
    """Whether no two blocks (but the stacked ones) are closer than fingers need."""
    for one, two in (("red", "blue"), ("red", "pink"), ("blue", "pink")):
        reach = (block_length(scene, one) + block_length(scene, two)) / 2 + 0.035
        if {one, two} != set(stacked) and np.linalg.norm(poses[one][:3] - poses[two][:3]) < reach:
            return False
    return True


def _has_room(scene: Scene, task: str, colour: str | None, poses: dict[str, np.ndarray]) -> bool:
    """Blocks on the table have a minimal distance to the button; a block to be pushed has a free path and remains on the table."""
    button = np.array([scene.button_x, -0.12])
    if any(pose[2] > 0.4 and np.linalg.norm(pose[:2] - button) < BUTTON_CLEARANCE for pose in poses.values()):
        return False
    if task.startswith("push_") and colour is not None:
        start, direction = poses[colour][:2], 1.0 if task.endswith("right") else -1.0
        if not -0.34 < start[0] + 0.13 * direction < 0.40:
            return False
        obstacles = [button] + [pose[:2] for name, pose in poses.items() if name != colour and pose[1] < 0.03]
        for obstacle in obstacles:
            ahead = direction * (obstacle[0] - start[0])
            if -0.12 < ahead < 0.23 and abs(obstacle[1] - start[1]) < 0.10:
                return False
    return True
