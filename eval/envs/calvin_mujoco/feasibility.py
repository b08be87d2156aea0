"""Which tasks can be done in the state the simulation is in: what play is made of."""

from typing import TYPE_CHECKING

from eval.envs.calvin_mujoco.initial_states import BUTTON_CLEARANCE, TABLE_X, open_shelf
from eval.envs.calvin_mujoco.tasks import BLOCKS, BlockState, TaskState

if TYPE_CHECKING:
    from eval.envs.calvin_mujoco.environment import CalvinEnvironment

MARGIN = 0.015  # m beyond a predicate's threshold
TABLE, SHELF, DRAWER = ("table", "base_link"), ("table", "plank_link"), ("table", "drawer_link")


def feasible_tasks(env: "CalvinEnvironment") -> dict[str, list[str]]:
    """Family of tasks -> those of its tasks that can be done now. Families are what play draws from first: twelve tasks move a
    block about, only two the door.
    """
    state, scene = env.task_state(), env.compiled.scene
    held = [c for c in BLOCKS if c in state.blocks and state.blocks[c].bodies == {"robot"}]
    if held:
        low, high = open_shelf(scene, state.slide)
        free = [c for c in state.blocks if c not in held and state.blocks[c].touches == {TABLE}]
        families = {
            "place_in_slider": ["place_in_slider"] if high - low > 0.18 and not _crowded(state, low, high) else [],
            "place_in_drawer": ["place_in_drawer"] if state.drawer > 0.15 else [],
            "stack": ["stack_block"] if len(free) == 1 else [],
        }
        return {name: tasks for name, tasks in families.items() if tasks}
    families = {
        "slider": [
            *(["move_slider_left"] if state.slide < scene.slide_max - 0.15 - MARGIN else []),
            *(["move_slider_right"] if state.slide > 0.15 + MARGIN else []),
        ],
        "drawer": [
            *(["open_drawer"] if state.drawer < 0.10 - MARGIN else []),
            *(["close_drawer"] if state.drawer > 0.12 + MARGIN else []),
        ],
        "bulb": ["turn_off_lightbulb" if state.bulb else "turn_on_lightbulb"],
        "led": ["turn_off_led" if state.led else "turn_on_led"],
        "rotate": [],
        "push": [],
        "lift": [],
        "unstack": ["unstack_block"] if any(b.bodies and b.bodies <= set(BLOCKS) for b in state.blocks.values()) else [],
        "push_into_drawer": [],
    }
    for colour, block in state.blocks.items():
        if block.touches == {TABLE} and _in_reach(env, block):
            families["rotate"] += [f"rotate_{colour}_block_{side}" for side in ("right", "left")]
            families["push"] += [f"push_{colour}_block_{side}" for side, sign in (("right", 1), ("left", -1)) if _stays(env, block, sign)]
            families["lift"].append(f"lift_{colour}_block_table")
            if state.drawer > 0.15:
                families["push_into_drawer"] = ["push_into_drawer"]
        elif block.touches == {SHELF}:
            low, high = open_shelf(scene, state.slide)
            if low + 0.06 < block.position[0] < high - 0.06:
                families["lift"].append(f"lift_{colour}_block_slider")
        elif block.touches == {DRAWER} and state.drawer > 0.15 and -0.13 - state.drawer < block.position[1] < -0.21:
            families["lift"].append(f"lift_{colour}_block_drawer")
    return {name: tasks for name, tasks in families.items() if tasks}


def _in_reach(env: "CalvinEnvironment", block: BlockState) -> bool:
    low, high = TABLE_X[env.scene]
    x, y, _ = block.position
    button = abs(x - env.compiled.scene.button_x) < BUTTON_CLEARANCE and abs(y + 0.12) < BUTTON_CLEARANCE
    return bool(low - 0.04 < x < high + 0.02 and -0.16 < y < -0.03 and not button)


def _stays(env: "CalvinEnvironment", block: BlockState, sign: int) -> bool:
    low, high = TABLE_X[env.scene]
    return bool(low - 0.05 < block.position[0] + 0.13 * sign < high + 0.03)


def _crowded(state: TaskState, low: float, high: float) -> bool:
    """Whether blocks in the open half of the shelf leave no room for another one."""
    return any(block.touches == {SHELF} and low + 0.03 < block.position[0] < high - 0.03 for block in state.blocks.values())
