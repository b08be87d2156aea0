"""CALVIN's evaluation chains and their initial states, exactly as the original generates them.

A chain is five tasks that can be done one after the other according to symbolic rules, starting from one of 192 symbolic states. Everything
random comes from numpy's legacy generators with fixed seeds, so the chains are the same on every machine. Chains for another count are
*not* a prefix of those for 1000.
"""

import collections
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

CHAIN_LENGTH = 5
BATCH = 2048  # draws checked at once
COLOURS = ("red", "blue", "pink")
DIGESTS = {  # of the original's chains
    10: "00c17c55c909ae9f5f6be2d034510da144ea78a1c582ddb70eb876c35c37d76b",
    100: "eb32872848c46d47ec710108e661500e771b0aa546eeea0c7584828b0e11617d",
    1000: "961386371b028e8dc35df74eac85e797083c0f2345382a1120ddc8ced4db9e6c",
}
State = dict[str, Any]  # led, lightbulb, slider, drawer, red_block, blue_block, pink_block, grasped: in this order


class Sequence(NamedTuple):
    """One chain and the symbolic state it starts from."""

    state: State
    tasks: tuple[str, ...]


class Rule(NamedTuple):
    """A task can be done where all `condition`s hold, and changes the state by `effect`."""

    condition: Mapping[str, Any]
    effect: Mapping[str, Any]


def _rules() -> dict[str, list[Rule]]:
    """Task -> its variants, in the order of the planner's table (it decides which chains are drawn)."""
    free = {"grasped": 0}
    rules: dict[str, list[Rule]] = {}
    for verb in ("rotate", "push"):
        for c in COLOURS:
            for side in ("right", "left"):
                rules[f"{verb}_{c}_block_{side}"] = [Rule({f"{c}_block": "table", **free}, {})]
    rules["move_slider_left"] = [Rule({"slider": "right", **free}, {"slider": "left"})]
    rules["move_slider_right"] = [Rule({"slider": "left", **free}, {"slider": "right"})]
    rules["open_drawer"] = [Rule({"drawer": "closed", **free}, {"drawer": "open"})]
    rules["close_drawer"] = [Rule({"drawer": "open", **free}, {"drawer": "closed"})]
    for c in COLOURS:
        taken = {f"{c}_block": "grasped", "grasped": 1}
        rules[f"lift_{c}_block_table"] = [Rule({f"{c}_block": "table", **free}, taken)]
        rules[f"lift_{c}_block_slider"] = [
            Rule({f"{c}_block": "slider_left", "slider": "right", **free}, taken),
            Rule({f"{c}_block": "slider_right", "slider": "left", **free}, taken),
        ]
        rules[f"lift_{c}_block_drawer"] = [Rule({f"{c}_block": "drawer", "drawer": "open", **free}, taken)]
    # a block stored while the door is on the right counts as being in the right half, odd as that is
    rules["place_in_slider"] = [
        Rule({f"{c}_block": "grasped", "slider": side, "grasped": 1}, {f"{c}_block": f"slider_{side}", "grasped": 0})
        for c in COLOURS
        for side in ("right", "left")
    ]
    rules["place_in_drawer"] = [
        Rule({f"{c}_block": "grasped", "drawer": "open", "grasped": 1}, {f"{c}_block": "drawer", "grasped": 0}) for c in COLOURS
    ]
    rules["stack_block"] = [
        Rule(
            {f"{a}_block": "grasped", f"{b}_block": "table", "grasped": 1},
            {f"{a}_block": "stacked_top", f"{b}_block": "stacked_bottom", "grasped": 0},
        )
        for a, b in itertools.permutations(COLOURS, 2)
    ]
    rules["unstack_block"] = [
        Rule({f"{a}_block": "stacked_top", f"{b}_block": "stacked_bottom", **free}, {f"{a}_block": "table", f"{b}_block": "table"})
        for a, b in itertools.permutations(COLOURS, 2)
    ]
    for light, name in (("lightbulb", "lightbulb"), ("led", "led")):
        rules[f"turn_on_{name}"] = [Rule({light: 0, **free}, {light: 1})]
        rules[f"turn_off_{name}"] = [Rule({light: 1, **free}, {light: 0})]
    in_slider = ("slider_right", "slider_left")
    rules["push_into_drawer"] = [
        Rule({f"{c}_block": "table", f"{a}_block": x, f"{b}_block": y, "drawer": "open", **free}, {f"{c}_block": "drawer"})
        for c in COLOURS
        for a, b in [tuple(other for other in COLOURS if other != c)]
        for x in in_slider
        for y in in_slider
    ]
    return rules


RULES = _rules()
TASK_NAMES = tuple(RULES)


def _category(task: str) -> str:
    """A chain has at most one task of each category."""
    words = task.split("_")
    if words[0] == "lift":
        return f"lift_{words[-1]}"
    if task == "push_into_drawer":
        return task
    return {
        "rotate": "move_block",
        "push": "move_block",
        "move": "slider",
        "open": "drawer",
        "close": "drawer",
        "place": "place",
        "turn": "light",
        "stack": "stack",
        "unstack": "unstack",
    }[words[0]]


CATEGORIES = {task: _category(task) for task in TASK_NAMES}
CATEGORY_NUMBERS = np.unique(list(CATEGORIES.values()), return_inverse=True)[1]


def apply_task(state: State, task: str) -> State | None:
    """The state after `task`, or None unless exactly one variant of it can be done."""
    possible = [rule for rule in RULES[task] if all(state[key] == value for key, value in rule.condition.items())]
    return {**state, **possible[0].effect} if len(possible) == 1 else None


def is_valid(state: State, tasks: Iterable[str]) -> bool:
    """Whether the tasks can be done one after the other from `state`, and are of different categories."""
    current: State | None = state
    categories = set()
    for task in tasks:
        if CATEGORIES[task] in categories:
            return False
        categories.add(CATEGORIES[task])
        current = apply_task(current, task)
        if current is None:
            return False
    return True


def initial_symbolic_states() -> list[State]:
    """The 192 states: one or two blocks on the table, at most one in each half of the slider."""
    values = {"led": (0, 1), "lightbulb": (0, 1), "slider": ("right", "left"), "drawer": ("closed", "open")}
    values |= {f"{c}_block": ("table", "slider_right", "slider_left") for c in COLOURS} | {"grasped": (0,)}
    states = (dict(zip(values, choice, strict=True)) for choice in itertools.product(*values.values()))

    def allowed(state: State) -> bool:
        places = [state[f"{c}_block"] for c in COLOURS]
        return places.count("table") in (1, 2) and places.count("slider_right") < 2 and places.count("slider_left") < 2

    return [state for state in states if allowed(state)]


@functools.lru_cache(maxsize=8)
def generate_sequences(count: int = 1000) -> tuple[Sequence, ...]:
    """The chains of an evaluation with `count` chains (six million draws for 1000; cached). Raises RuntimeError if they
    differ from the original's, for counts whose digest is known.
    """
    if count < 1:
        raise ValueError(f"an evaluation needs at least one chain, not {count}")
    states = initial_symbolic_states()
    parts = np.array_split(range(count), len(states))
    sequences = [
        Sequence(state, tasks)
        for number, (state, part) in enumerate(zip(states, parts, strict=True))
        for tasks in _chains_from(state, number, len(part))
    ]
    order = list(range(count))
    np.random.RandomState(0).shuffle(order)
    ordered = tuple(sequences[i] for i in order)
    if digest(ordered) != DIGESTS.get(count, digest(ordered)):
        raise RuntimeError(f"the {count} chains are not the original's: numpy's legacy random numbers have changed")
    return ordered


def _chains_from(state: State, number: int, count: int) -> list[tuple[str, ...]]:
    """The first `count` chains that can be done from the state with this number."""
    rng, possible = np.random.RandomState(number), _first_two(state)
    drawn = np.empty((BATCH, len(TASK_NAMES)), np.int64)
    rows = list(drawn)
    chains: list[tuple[str, ...]] = []
    while len(chains) < count:
        drawn[:] = np.arange(len(TASK_NAMES))
        collections.deque(map(rng.shuffle, rows), maxlen=0)  # the same draws as `permutation`, without its allocation
        candidates = drawn[_may_be_valid(possible, drawn), :CHAIN_LENGTH].tolist()
        named = (tuple(TASK_NAMES[task] for task in candidate) for candidate in candidates)
        chains += [tasks for tasks in named if is_valid(state, tasks)]
    return chains[:count]


def _first_two(state: State) -> Bool[np.ndarray, "tasks tasks"]:
    """Which two tasks can be done one after the other from `state`."""
    possible = np.zeros((len(TASK_NAMES), len(TASK_NAMES)), bool)
    for row, task in zip(possible, TASK_NAMES, strict=True):
        after = apply_task(state, task)
        if after is not None:
            row[:] = [apply_task(after, second) is not None for second in TASK_NAMES]
    return possible


def _may_be_valid(possible: Bool[np.ndarray, "tasks tasks"], drawn: Int[np.ndarray, "draws tasks"]) -> Bool[np.ndarray, "draws"]:
    """Rules out most draws at once: those whose first two tasks cannot be done, or that have two tasks of one category."""
    categories = 1 << CATEGORY_NUMBERS[drawn[:, :CHAIN_LENGTH]]
    distinct = categories.sum(1) == np.bitwise_or.reduce(categories, 1)
    return distinct & possible[drawn[:, 0], drawn[:, 1]]


def canonical_text(sequences: Iterable[Sequence]) -> str:
    """Compact JSON of [[state values], [tasks]] per chain; its SHA-256 identifies a list of chains."""
    return json.dumps([[list(s.state.values()), list(s.tasks)] for s in sequences], separators=(",", ":"))


def digest(sequences: Iterable[Sequence]) -> str:
    """SHA-256 of the canonical text."""
    return hashlib.sha256(canonical_text(sequences).encode()).hexdigest()


# --- the state the simulator starts from

INITIAL_ROBOT_OBS = np.array(
    [
        0.02586889,
        -0.2313129,
        0.5712808,
        3.09045411,
        -0.02908596,
        1.50013585,
        0.07999963,
        -1.21779124,
        1.03987629,
        2.11978254,
        -2.34205014,
        -0.87015899,
        1.64119093,
        0.55344928,
        1.0,
    ]
)
SLIDER_PLACES = {
    "slider_left": np.array([-2.40851662e-01, 9.24044687e-02, 4.60990009e-01]),
    "slider_right": np.array([7.03416330e-02, 9.24044687e-02, 4.60990009e-01]),
}
TABLE_PLACES = (np.array([5.00000896e-02, -1.20000177e-01, 4.59990009e-01]), np.array([2.29995412e-01, -1.19995140e-01, 4.59990010e-01]))
SLIDE_LEFT, DRAWER_OPEN, SWITCH_UP = 0.28, 0.22, 0.088


def fnv1_32(text: str) -> int:
    """FNV-1, 32 bits, offset basis 0, over UTF-16-LE bytes: what the original's hash library makes of a Python string."""
    value = 0
    for byte in text.encode("utf-16-le"):
        value = (value * 0x01000193) % 2**32 ^ byte
    return value


def initial_scene_obs(state: State) -> Float[np.ndarray, "24"]:
    """scene_obs (blocks red, blue, pink) of a symbolic state in scene D; which of the two places, and yaws, are drawn from its hash."""
    rng = np.random.RandomState(fnv1_32(str(state.values())))
    places = list(TABLE_PLACES)
    rng.shuffle(places)
    lowest, highest = 3 * np.pi / 8, 5 * np.pi / 8
    red, blue, pink = (state[f"{c}_block"] for c in COLOURS)
    on_table = {"red": 0, "blue": 1 if red == "table" else 0, "pink": 1}
    scene_obs = np.zeros(24)
    scene_obs[:6] = (
        SLIDE_LEFT if state["slider"] == "left" else 0.0,
        DRAWER_OPEN if state["drawer"] == "open" else 0.0,
        0.0,
        SWITCH_UP if state["lightbulb"] else 0.0,
        state["lightbulb"],
        state["led"],
    )
    for start, colour, place in ((6, "red", red), (12, "blue", blue), (18, "pink", pink)):
        scene_obs[start : start + 3] = places[on_table[colour]] if place == "table" else SLIDER_PLACES[place]
        scene_obs[start + 5] = rng.uniform(lowest, highest)
    return scene_obs


def dump(count: int) -> dict[str, Any]:
    """Chains and initial states of an evaluation, as JSON-able data."""
    sequences = generate_sequences(count)
    return {
        "sequences": [[list(s.state.values()), list(s.tasks)] for s in sequences],
        "sequences_sha256": digest(sequences),
        "robot_obs": INITIAL_ROBOT_OBS.tolist(),
        "scene_obs": [initial_scene_obs(s.state).tolist() for s in sequences],
        "block_order": list(COLOURS),
    }
