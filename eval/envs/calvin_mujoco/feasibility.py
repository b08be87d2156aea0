"""The tasks that are feasible in the current state, for play data."""

from typing import TYPE_CHECKING

from eval.calvin.scenes import TABLE_X, open_shelf
from eval.calvin.tasks import BLOCKS, BlockState, TaskState
from eval.envs.calvin_mujoco.initial_states import BUTTON_CLEARANCE

if TYPE_CHECKING:
    from eval.envs.calvin_mujoco.environment import CalvinEnvironment

MARGIN = 0.015  # m beyond a predicate's threshold
TABLE, SHELF, DRAWER = ("table", "base_link"), ("table", "plank_link"), ("table", "drawer_link")


def feasible_tasks(env: "CalvinEnvironment") -> dict[str, list[str]]:
    """Family of tasks -> its feasible tasks. Play draws a family first: one per part of the table, and one each for rotating, pushing and
    lifting every block.
    """
    state, scene = env.task_state(), env.compiled.scene
    held = [c for c in BLOCKS if c in state.blocks and state.blocks[c].bodies == {"robot"}]
    families: dict[str, list[str]] = {}
    if held:
        low, high = open_shelf(scene, state.slide)
        free = [c for c in state.blocks if c not in held and state.blocks[c].touches == {TABLE}]
        families["place_in_slider"] = ["place_in_slider"] if high - low > 0.18 and not _crowded(state, low, high) else []
        families["place_in_drawer"] = ["place_in_drawer"] if state.drawer > 0.15 else []
        families["stack"] = ["stack_block"] if len(free) == 1 else []
        return {name: tasks for name, tasks in families.items() if tasks}
    families["slider"] = [
        *(["move_slider_left"] if state.slide < scene.slide_max - 0.15 - MARGIN else []),
        *(["move_slider_right"] if state.slide > 0.15 + MARGIN else []),
    ]
    families["drawer"] = [
        *(["open_drawer"] if state.drawer < 0.10 - MARGIN else []),
        *(["close_drawer"] if state.drawer > 0.12 + MARGIN else []),
    ]
    families["bulb"] = ["turn_off_lightbulb" if state.bulb else "turn_on_lightbulb"]
    families["led"] = ["turn_off_led" if state.led else "turn_on_led"]
    families["unstack"] = ["unstack_block"] if any(b.bodies and b.bodies <= set(BLOCKS) for b in state.blocks.values()) else []
    for colour, block in state.blocks.items():
        families |= _block_families(env, state, colour, block)
    return {name: tasks for name, tasks in families.items() if tasks}


def _block_families(env: "CalvinEnvironment", state: TaskState, colour: str, block: BlockState) -> dict[str, list[str]]:
    supports = {touch for touch in block.touches if touch[0] != "robot"}
    if supports == {TABLE} and _in_reach(env, block):
        return {
            f"rotate {colour}": [f"rotate_{colour}_block_{side}" for side in ("right", "left")],
            f"push {colour}": [f"push_{colour}_block_{side}" for side, sign in (("right", 1), ("left", -1)) if _stays(env, block, sign)],
            f"lift {colour}": [f"lift_{colour}_block_table"],
            "push_into_drawer": ["push_into_drawer"] if state.drawer > 0.15 and block.touches == {TABLE} else [],
        }
    low, high = open_shelf(env.compiled.scene, state.slide)
    in_shelf = supports == {SHELF} and low + 0.06 < block.position[0] < high - 0.06
    in_drawer = supports == {DRAWER} and state.drawer > 0.15 and -0.13 - state.drawer < block.position[1] < -0.21
    place = "slider" if in_shelf else "drawer" if in_drawer else ""
    return {f"lift {colour}": [f"lift_{colour}_block_{place}"]} if place else {}


def _in_reach(env: "CalvinEnvironment", block: BlockState) -> bool:
    low, high = TABLE_X[env.scene]
    x, y, _ = block.position
    button = abs(x - env.compiled.scene.button_x) < BUTTON_CLEARANCE and abs(y + 0.12) < BUTTON_CLEARANCE
    return bool(low - 0.04 < x < high + 0.02 and -0.16 < y < -0.03 and not button)


def _stays(env: "CalvinEnvironment", block: BlockState, sign: int) -> bool:
    low, high = TABLE_X[env.scene]
    return bool(low - 0.05 < block.position[0] + 0.13 * sign < high + 0.03)


def _crowded(state: TaskState, low: float, high: float) -> bool:
    """Whether the open half of the shelf has no space for another block."""
    return any(block.touches == {SHELF} and low + 0.03 < block.position[0] < high - 0.03 for block in state.blocks.values())
