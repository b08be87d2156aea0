"""A situation with the derived quantities that the experts for tasks on blocks use."""

import math

import numpy as np
from jaxtyping import Float

from eval.calvin.scenes import DOOR_WIDTH, EDGE, TABLE_TOP, block_length
from eval.calvin.situation import Situation
from eval.calvin.tasks import BLOCKS, BlockState
from eval.experts.calvin.servo import length

NOTHING = 0.035  # gripper width [m] at which there is no block between closed fingers


class BlockScene:
    """A situation, the block that is held, and geometry of blocks."""

    def __init__(self, situation: Situation) -> None:
        self.situation = situation
        self.table, self.start, self.state, self.hand = situation.table, situation.start, situation.state, situation.hand
        self.tcp, self.tool, self.width, self.closing = self.hand.position, self.hand.rotation, self.hand.width, self.hand.closing
        self.held = next((c for c in BLOCKS if self._is_held(c)), None)

    def _is_held(self, colour: str) -> bool:
        fingers = {("robot", "finger1"), ("robot", "finger2")}
        return self.closing and self.width > NOTHING and fingers <= self.state.blocks[colour].touches

    def block(self, colour: str) -> BlockState:
        """The block's state now."""
        return self.state.blocks[colour]

    def dimensions(self, colour: str) -> Float[np.ndarray, "3"]:
        """Edges along the block's own axes [m]."""
        return np.array([block_length(self.table, colour), EDGE, EDGE])

    def half_extent(self, colour: str, direction: Float[np.ndarray, "3"]) -> float:
        """Half of the block's size along a world direction [m]."""
        return float(np.abs(direction @ self.block(colour).rotation) @ self.dimensions(colour) / 2)

    def enclosed(self) -> str | None:
        """A block between the fingers, held or not."""
        nearest, distance = None, math.inf
        for colour in BLOCKS if self.width > NOTHING else ():
            local = self.tool.T @ (self.block(colour).position - self.tcp)
            if abs(local[0]) < 0.055 and abs(local[1]) < 0.042 and -0.05 < local[2] < 0.036 and length(local) < distance:
                nearest, distance = colour, length(local)
        return nearest

    def in_shelf(self, colour: str) -> bool:
        """Whether the block is in the cabinet."""
        x, y, z = self.block(colour).position
        return bool(y > 0.02 and z > TABLE_TOP and self.table.cavity[0] < x < self.table.cavity[1])

    def in_drawer(self, colour: str) -> bool:
        """Whether the block is in the drawer."""
        return bool(self.block(colour).position[2] < 0.42)


def door_handle(scene: BlockScene) -> float:
    """x [m] of the sliding door's handle."""
    return scene.table.slide_x + DOOR_WIDTH / 2 - scene.state.slide
