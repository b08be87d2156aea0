"""Draws the gallery of the CALVIN table: `python tools/calvin_gallery.py` writes docs/reference/images/calvin/ and
docs/reference/calvin_gallery.md.

One sheet of the four scenes seen by both cameras, and one strip of frames per task, solved by its scripted expert in scene D.
"""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from eval.calvin.scenes import SCENES
from eval.calvin.tasks import TASKS
from eval.envs.calvin_mujoco.environment import VERSION, CalvinEnvironment
from eval.experts.registry import get_expert
from vpp_jax.common.files import write_atomically

DOCS = Path(__file__).resolve().parents[1] / "docs" / "reference"
IMAGES = DOCS / "images" / "calvin"
FRAMES, HEIGHT = 6, 150


def scene_sheet() -> np.ndarray:
    """Four scenes, side by side; above the static camera's view, below the gripper's."""
    columns = []
    for name in SCENES:
        env = CalvinEnvironment(name, quality="faithful", static_size=250, gripper_size=250)
        observation = env.reset(task="open_drawer", seed=4).observation
        columns.append(np.concatenate([observation["rgb_static"], observation["rgb_gripper"]], axis=0))
    return np.concatenate(columns, axis=1)


def expert_run(env: CalvinEnvironment, task: str, seed: int, drawn: set[int]) -> tuple[bool, int, list[np.ndarray]]:
    """One episode: success, steps, and the static camera's images before the first and after other steps in `drawn`."""
    expert, rng, frames, done = get_expert("calvin_mujoco"), np.random.default_rng(0), [], False
    env.reset(task=task, seed=seed, render=False)
    step = 0
    while True:
        if step in drawn:
            frames.append(env.observation()["rgb_static"])
        if done:
            return outcome.success, step, frames
        outcome = env.advance(expert(env, rng))
        step, done = outcome.steps, outcome.done


def task_strip(env: CalvinEnvironment, task: str) -> tuple[np.ndarray, int]:
    """Images evenly spread over the expert's way from the start to success, and the number of steps."""
    for seed in itertools.count():
        success, steps, _ = expert_run(env, task, seed, set())
        if success:  # episodes repeat exactly: the second run is only drawn
            drawn = set(np.linspace(0, steps, FRAMES).round().astype(int).tolist())
            return np.concatenate(expert_run(env, task, seed, drawn)[2], axis=1), steps
    raise AssertionError


def save(image: np.ndarray, name: str) -> None:
    """Writes a JPEG of the page."""
    Image.fromarray(image).save(IMAGES / f"{name}.jpg", quality=82)


def main() -> None:
    """Draws everything."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    save(scene_sheet(), "scenes")
    env = CalvinEnvironment("D", quality="faithful", static_size=HEIGHT, gripper_size=64)
    lines = [
        "# CALVIN table: gallery",
        "",
        f"Drawn by `python tools/calvin_gallery.py`, environment version {VERSION}, quality *faithful*.",
        "",
        "Scenes A, B, C and D from random starts; top: static camera, bottom: gripper camera:",
        "",
        "![scenes](images/calvin/scenes.jpg)",
        "",
        "The 34 tasks in scene D, each solved by its scripted expert; from the first to the last step:",
        "",
    ]
    for task in TASKS.values():
        strip, steps = task_strip(env, task.name)
        save(strip, task.name)
        lines += [
            f"**{task.name}**: {task.evaluation_instruction} ({steps} steps)",
            "",
            f"![{task.name}](images/calvin/{task.name}.jpg)",
            "",
        ]
    write_atomically(DOCS / "calvin_gallery.md", "\n".join(lines))


if __name__ == "__main__":
    main()
