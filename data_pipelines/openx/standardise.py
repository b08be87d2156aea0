"""Raw step columns of an episode to the common action and state: pure functions of arrays with time as first axis.

The gripper equations are those of Octo and OpenVLA. Two of them (`relative`, `binarize`) depend on past and future steps, so they are
applied to complete episodes, before windows are cut.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data_pipelines.openx.conventions import Gripper
from data_pipelines.rlds.schema import Schema

# A gripper command smaller than this means "stay".
COMMAND = 0.1
# A continuous gripper closer than this to 0 or 1 counts as closed or open.
ARRIVED = 0.05
# [t, width] array of a step column
Column = Callable[[str], np.ndarray]


def relative_to_absolute(command: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
    """Commands (+1 close, -1 open, about 0 stay) to openness 0 or 1.

    Before the first command the gripper is in the opposite state of that command; without any command it is open.
    """
    command = np.asarray(command, np.float64)
    wanted = np.where(command < -COMMAND, 1, np.where(command > COMMAND, -1, 0))
    commands = np.flatnonzero(wanted)
    before = -wanted[commands[0]] if len(commands) else 1
    latest = np.maximum.accumulate(np.where(wanted != 0, np.arange(len(wanted)), -1))
    return (np.where(latest >= 0, wanted[latest], before) + 1) / 2


def binarize(openness: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
    """Continuous openness to the state that the gripper is about to reach: 0 or 1; steps in between take that of the next step at 0 or 1.

    Steps in between at the end of the episode get the last raw number.
    """
    openness = np.asarray(openness, np.float64)
    steps = len(openness)
    decided = (openness > 1 - ARRIVED) | (openness < ARRIVED)
    upcoming = np.minimum.accumulate(np.where(decided, np.arange(steps), steps)[::-1])[::-1]
    reached = np.append(openness > 0.5, 0.0)[upcoming]
    return np.where(upcoming < steps, reached, openness[-1:])


OPENNESS: Mapping[Gripper, Callable[[np.ndarray], np.ndarray]] = {
    Gripper.OPEN: lambda g: g,
    Gripper.CLOSED: lambda g: 1 - g,
    Gripper.CLIPPED_OPEN: lambda g: np.clip(g, 0, 1),
    Gripper.CLIPPED_CLOSED: lambda g: 1 - np.clip(g, 0, 1),
    Gripper.SIGNED_OPEN: lambda g: (g + 1) / 2,
    Gripper.SIGNED_CLOSED: lambda g: (1 - g) / 2,
    Gripper.RELATIVE: relative_to_absolute,
    Gripper.CONTINUOUS_OPEN: binarize,
    Gripper.THRESHOLD_CLOSED: lambda g: 1.0 - (g > 0.5),
    Gripper.ABSENT: np.zeros_like,
    Gripper.ABSENT_OPEN: np.ones_like,
}


def openness(values: Float[np.ndarray, "t"], convention: Gripper) -> Float[np.ndarray, "t"]:
    """Raw gripper numbers of a complete episode to 1 open, 0 closed. KeyError for `Gripper.UNKNOWN`."""
    return OPENNESS[convention](np.asarray(values, np.float64))


def quaternion_to_euler(quaternion: Float[np.ndarray, "t 4"]) -> Float[np.ndarray, "t 3"]:
    """(x, y, z, w) of any norm to roll, pitch, yaw in radians, R = Rz(yaw) Ry(pitch) Rx(roll). ValueError if the norm is zero."""
    q = np.asarray(quaternion, np.float64)
    length = np.linalg.norm(q, axis=-1, keepdims=True)
    if not (length > 1e-6).all():
        raise ValueError(f"quaternion of norm zero at step {int(np.argmin(length[:, 0]))}")
    x, y, z, w = np.moveaxis(q / length, -1, 0)
    roll = np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = np.arcsin(np.clip(2 * (w * y - z * x), -1, 1))
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return np.stack([roll, pitch, yaw], -1)


def reached(state: Float[np.ndarray, "t n"]) -> Float[np.ndarray, "t-1 n"]:
    """The achieved motion s[t+1] - s[t], in place of the commanded one."""
    return np.diff(np.asarray(state, np.float64), axis=0)


def reached_angles(state: Float[np.ndarray, "t n"]) -> Float[np.ndarray, "t-1 n"]:
    """The same for angles in radians: from pi - 0.1 to 0.1 - pi an angle grows by 0.2."""
    return (reached(state) + np.pi) % (2 * np.pi) - np.pi


# What a term does with its columns, apart from grippers (`OPENNESS`).
MAPS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "columns": lambda values: values,
    "euler": quaternion_to_euler,
    "reached": reached,
    "reached_angles": reached_angles,
}
GRIPPERS = {convention.name.lower(): convention for convention in OPENNESS}


@dataclass(frozen=True)
class Part:
    """One term of a composition.

    Attributes:
      kind: 'columns': dimensions start:stop of step column `key`; 'euler': Euler angles of the quaternion there; 'reached': its difference
        between steps, 'reached_angles' of angles; a key of `GRIPPERS`: the gripper's openness; 'zeros': `stop` zeros.
      key: '' for zeros and for grippers that no column has.
      start, stop: as in a Python slice: negative numbers count from the end, None is the end.
    """

    kind: str
    key: str = ""
    start: int = 0
    stop: int | None = None

    @property
    def width(self) -> int:
        return 3 if self.kind == "euler" else 1 if self.is_gripper else (self.stop or 0) - self.start

    @property
    def is_gripper(self) -> bool:
        return self.kind in GRIPPERS

    @property
    def lost_steps(self) -> int:
        """Number of steps at the end of an episode without a value."""
        return int(self.kind.startswith("reached"))

    @property
    def needs(self) -> int:
        """Minimum width of the column."""
        return max(-self.start, self.stop or 0)

    def __str__(self) -> str:
        columns = f"{self.key}[{self.start}:{'' if self.stop is None else self.stop}]" if self.key else ""
        return {"columns": columns, "zeros": f"{self.width}*0"}.get(self.kind, f"{self.kind}({columns})")

    def stored(self, column: Column) -> Float[np.ndarray, "t n"]:
        """The values of its columns, as stored."""
        values = column(self.key)
        return np.asarray(values.reshape(len(values), -1)[:, self.start : self.stop], np.float64)

    def of(self, column: Column, steps: int) -> Float[np.ndarray, "t w"]:
        """The values of this part; fewer than `steps` by `lost_steps`."""
        if self.is_gripper:
            return openness(self.stored(column)[:, 0] if self.key else np.zeros(steps), GRIPPERS[self.kind])[:, None]
        return MAPS[self.kind](self.stored(column)) if self.key else np.zeros((steps, self.width))


_PART = re.compile(r"(?P<zeros>\d+)\*0|(?:(?P<kind>\w+)\((?P<inner>[^()]*)\)|(?P<plain>[^()]+))")
_COLUMNS = re.compile(r"(?P<key>[^\[\]()]+)\[(?P<start>-?\d+):(?P<stop>-?\d*)\]")


def parts(text: str) -> tuple[Part, ...]:
    """'action[0:3] + euler(action[3:7]) + closed(action[7:8])' or 'observation/state[0:3] + 3*0', in the order of the result; slices as in
    Python. ValueError says which term is none."""
    return tuple(map(_part, filter(None, text.split(" + "))))


def _part(term: str) -> Part:
    match = _PART.fullmatch(term.strip())
    if match and match["zeros"]:
        return Part("zeros", stop=int(match["zeros"]))
    kind = (match["kind"] or "columns") if match else ""
    columns = _COLUMNS.fullmatch(match["inner"] or match["plain"] or "") if match else None
    if kind in ("absent", "absent_open") and match and not match["inner"]:
        return Part(kind)
    if columns is None or kind not in (*MAPS, *GRIPPERS):
        kinds = ", ".join(f"{name}(KEY[a:b])" for name in (*MAPS, *GRIPPERS) if name != "columns")
        raise ValueError(f"'{term}' is not one of KEY[a:b], N*0, absent(), absent_open(), {kinds}")
    return Part(kind, columns["key"], int(columns["start"]), int(columns["stop"]) if columns["stop"] else None)


@dataclass(frozen=True)
class Composition:
    """How an action or state is composed of step columns."""

    parts: tuple[Part, ...]

    @classmethod
    def parse(cls, text: str) -> "Composition":
        """See `parts`."""
        return cls(parts(text))

    @property
    def width(self) -> int:
        return sum(part.width for part in self.parts)

    @property
    def lost_steps(self) -> int:
        """Number of steps at the end of an episode without a value."""
        return max((part.lost_steps for part in self.parts), default=0)

    @property
    def grippers(self) -> dict[int, Part]:
        """Dimension of the result -> the gripper that it is."""
        starts = np.cumsum([0, *(part.width for part in self.parts)]).tolist()
        return {start: part for start, part in zip(starts, self.parts, strict=False) if part.is_gripper}

    @property
    def columns(self) -> tuple[str, ...]:
        """Step features that it reads, without duplicates."""
        return tuple(dict.fromkeys(part.key for part in self.parts if part.key))

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))

    def problems(self, schema: Schema) -> list[str]:
        """What features.json lacks: missing columns, or columns that are too narrow."""
        found = []
        for part in self.parts:
            if not part.key:
                continue
            feature = schema.steps.get(part.key)
            if feature is None or feature.kind != "tensor":
                found.append(f"step field '{part.key}'")
            elif None not in feature.shape and math.prod(feature.fixed_shape) < part.needs:
                found.append(f"{Part('columns', part.key, part.start, part.stop)} (its shape is {list(feature.shape)})")
        return list(dict.fromkeys(found))

    def of(self, column: Column, steps: int) -> Float[np.ndarray, "t w"]:
        """The values of an episode of `steps` steps, float32. ValueError if they are undefined (a quaternion of norm zero)."""
        rows = steps - self.lost_steps
        return np.concatenate([part.of(column, steps)[:rows] for part in self.parts], 1).astype(np.float32)
