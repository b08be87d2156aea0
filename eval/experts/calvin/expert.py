"""The scripted expert of the CALVIN table: small programs that act only through the 7-dim relative actions and see the privileged state.

A policy is to imitate it, so each program is a pure function of the current state (and of the state in which the task began): it has no
hidden phase and draws no random numbers, and a policy has one answer per state to learn.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from eval.calvin.situation import Observed, Situation, observed_situation
from eval.experts.calvin.blocks import block_action, free_hand
from eval.experts.calvin.strokes import FIXTURE_PROGRAMS, fixture_action


def act(environment: Any, rng: np.random.Generator | None = None) -> Float[np.ndarray, "7"]:
    """The action for the environment's current task and state, float32; see `eval.experts.registry`."""
    del rng
    return expert_action(environment.task, environment.situation())


def act_in_original(environment: Any, rng: np.random.Generator | None = None) -> Float[np.ndarray, "7"]:
    """The same for the adapter to the original simulator, which knows nothing of this project and tells its state as plain arrays."""
    del rng
    told = environment.privileged_state()
    start, now = (Observed(**told.pop(moment)) for moment in ("start", "now"))
    return expert_action(environment.task, observed_situation(start=start, now=now, **told))


def expert_action(task: str, situation: Situation) -> Float[np.ndarray, "7"]:
    """The action for `task`, float32 [7]."""
    if task not in FIXTURE_PROGRAMS:
        action = block_action(task, situation)
    else:
        action = free_hand(situation, wanted=None) if situation.state.blocks else None
        action = fixture_action(task, situation) if action is None else action
    return action.astype(np.float32)
