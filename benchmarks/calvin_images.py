"""How far the MuJoCo CALVIN's images are from recorded ones: renders the recorded states.

    python benchmarks/calvin_images.py [--scene D] [--repeats 20] [--json FILE] FRAME.npz ...

A frame is one file of the recorded dataset: robot_obs [15], scene_obs [24] with blocks in the scene's order, rgb_static and rgb_gripper.
Printed for each quality: the mean absolute difference of each camera's images, of 255, and the CPU time of rendering both [ms].
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from eval.envs.calvin_mujoco.environment import VERSION, CalvinEnvironment
from eval.envs.calvin_mujoco.limits import QUALITIES, SCENES
from eval.envs.calvin_mujoco.rendering import renderer_name
from vpp_jax.cli.parser import Parser
from vpp_jax.common.files import write_atomically

SIZES = {"rgb_static": 200, "rgb_gripper": 84}  # of the recorded images


def compare(frame: Mapping[str, np.ndarray], environment: CalvinEnvironment) -> dict[str, float]:
    """Mean absolute difference of 255 for each camera; images that were reduced to 1/k of their edge are compared with means over k x k."""
    environment.reset(task="open_drawer", robot_obs=frame["robot_obs"], scene_obs=frame["scene_obs"], render=False)
    images, errors = environment.observation(), {}
    for name, size in SIZES.items():
        edge = frame[name].shape[0]
        reduced = images[name].reshape(edge, size // edge, edge, size // edge, 3).mean((1, 3))
        errors[name] = float(np.abs(reduced - frame[name].astype(np.float64)).mean())
    return errors


def main() -> None:
    """Command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("frames", nargs="+", type=Path, metavar="FRAME.npz")
    parser.add_argument("--scene", default="D", choices=SCENES, help="of the frames")
    parser.add_number("--repeats", int, 20, "observations rendered for the CPU time", at_least=1, at_most=10_000)
    parser.add_output("--json", help="also write the figures there")
    arguments = parser.parse_args()
    results = {}
    for quality in QUALITIES:
        environment = CalvinEnvironment(arguments.scene, quality=quality, block_order="original")
        found = {}
        for path in arguments.frames:
            with np.load(path) as frame:
                found[path.name] = compare(frame, environment)
        start = time.process_time()
        for _ in range(arguments.repeats):
            environment.observation()
        cpu_ms = 1000 * (time.process_time() - start) / arguments.repeats
        means = {name: float(np.mean([errors[name] for errors in found.values()])) for name in SIZES}
        results[quality] = {"mean": means, "cpu_ms": cpu_ms, "frames": found}
        text = ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())
        print(f"*{quality}*: {text} of 255 over {len(found)} frames, {cpu_ms:.1f} cpu-ms")
    if arguments.json:
        made_with = {"environment_version": VERSION, "renderer": renderer_name()}
        write_atomically(arguments.json, json.dumps({**made_with, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
