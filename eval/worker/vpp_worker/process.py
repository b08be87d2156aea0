"""One simulator in one process: reads commands from stdin, answers on stdout, never imports JAX.

    PYTHON eval/worker --environment calvin_mujoco --kwargs '{"static_size": 200}'

`PYTHON` is any interpreter (3.8 or newer) with NumPy, msgpack and the simulator: each simulator may have its own virtual environment, and
sees its own packages only, not the evaluator's. Messages are framed by `protocol`. Commands and their answers:

| command | fields | answer |
|---|---|---|
| hello | protocol, render | protocol, environment, environment_version, versions, python, tasks, scenes, action_mode, renderer |
| reset | task, scene, seed, initial_state, instruction, render, video_stride | instruction, outcome, initial_state_id, observation |
| begin_task | task, instruction, render | instruction, outcome, observation; no reset (the next task of a chain) |
| advance | actions [k a] — or source 'expert' / 'random', steps, seed — and render | executed, outcome, observation |
| recording | first | images {view: uint8 [n h w 3]} from number `first`, steps int [n] since the reset, left: how many follow |
| close | | the process ends |

With a `video_stride` an image of every camera is recorded every so many control steps, and of the last one.

An `instruction` that is not '' replaces the simulator's own. Answers have an observation if `render`.

`advance` steps the physics without rendering, stops early when the task is solved or the episode ends, and renders at most one
observation, at the end and only if the task is not finished. A failing command answers {'error': message, 'traceback': text}.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import sys
import tempfile
import traceback
from typing import Any, Callable

import numpy as np
from vpp_worker.protocol import PROTOCOL_VERSION, ConnectionClosed, read_message, write_message

RECORDING_BYTES = 32 * 1024 * 1024  # of one answer to `recording`
VERSIONED = ("mujoco", "dm-control", "dm-env", "scipy", "msgpack", "metaworld", "pybullet", "libero")


def build_environment(name: str, kwargs: dict[str, Any]) -> Any:
    """`name` is `module:Class` or a name of `eval.envs.registry`."""
    if ":" in name:
        return _imported(name)(**kwargs)
    return _registry("eval.envs.registry", name).make_environment(name, **kwargs)


def find_expert(name: str) -> Callable[[Any, np.random.Generator], np.ndarray | None]:
    """`name` is `module:function` or a name of `eval.experts.registry`."""
    return _imported(name) if ":" in name else _registry("eval.experts.registry", name).get_expert(name)


def import_package(directory: str) -> None:
    """Imports the package in `directory`, but for which nothing of its parent directory can be imported then."""
    name = os.path.basename(directory)
    spec = importlib.util.spec_from_file_location(name, os.path.join(directory, "__init__.py"), submodule_search_locations=[directory])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


def _imported(name: str) -> Any:
    module, attribute = name.split(":", 1)
    return getattr(importlib.import_module(module), attribute)


def _registry(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise ValueError(f"{name!r} is part of vpp_jax, which is not installed in {sys.executable}; or give a module:attribute") from error


class Spool:
    """Images of an episode in a temporary file without a name: a long episode with large images takes no memory."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the worker lives
        self.clear()

    def clear(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._frames: list[tuple[int, int, dict[str, tuple[str, tuple[int, ...]]]]] = []  # (step, offset, view -> dtype and shape)

    def add(self, step: int, images: dict[str, np.ndarray]) -> None:
        offset = self._file.seek(0, os.SEEK_END)
        for image in images.values():
            self._file.write(np.ascontiguousarray(image).data)
        self._frames.append((step, offset, {view: (image.dtype.str, image.shape) for view, image in images.items()}))

    def read(self, first: int, most: int) -> dict[str, Any]:
        """Images from number `first`, at least one and about `most` bytes of them, their steps, and how many are left after them."""
        views: dict[str, list[np.ndarray]] = {}
        steps: list[int] = []
        size = 0
        for step, offset, layout in self._frames[first:]:
            if steps and size >= most:
                break
            self._file.seek(offset)
            for view, (kind, shape) in layout.items():
                data = self._file.read(np.dtype(kind).itemsize * int(np.prod(shape)))
                views.setdefault(view, []).append(np.frombuffer(data, kind).reshape(shape))
                size += len(data)
            steps.append(step)
        images = {view: np.stack(frames) for view, frames in views.items()}
        return {"images": images, "steps": np.asarray(steps, np.int32), "left": len(self._frames) - first - len(steps)}


class Worker:
    """Executes commands for one environment."""

    def __init__(self, name: str, environment: Any, expert: str = "") -> None:
        self.name = name
        self.environment = environment
        self.expert = expert  # default: the expert registered under the environment's name
        self.video_stride = 0
        self.steps = 0
        self.recorded = Spool()

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        command = message.get("command")
        handlers = {
            "hello": self.hello,
            "reset": self.reset,
            "begin_task": self.begin_task,
            "advance": self.advance,
            "recording": self.recording,
        }
        if command not in handlers:
            raise ValueError(f"unknown command {command!r}; this worker knows {', '.join(handlers)} and close")
        return handlers[command](**{key: value for key, value in message.items() if key != "command"})

    def hello(self, protocol: int, render: bool = False) -> dict[str, Any]:
        if protocol != PROTOCOL_VERSION:
            raise ValueError(f"the evaluator has protocol {protocol}, this worker {PROTOCOL_VERSION}: use one version of vpp_jax")
        versions = {"numpy": np.__version__}
        for package in VERSIONED:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return {
            "protocol": PROTOCOL_VERSION,
            "environment": self.name,
            "environment_version": str(getattr(self.environment, "version", "")),
            "renderer": str(getattr(self.environment, "renderer", "")) if render else "not rendered",
            "tasks": list(getattr(self.environment, "tasks", ())),
            "scenes": list(getattr(self.environment, "scenes", ())),
            "action_mode": str(getattr(self.environment, "action_mode", "")),
            "versions": versions,
            "python": platform.python_version(),
        }

    def reset(
        self, task: str, scene: str | None, seed: int, initial_state: dict[str, Any], render: bool, video_stride: int, instruction: str = ""
    ) -> dict[str, Any]:
        self.environment.reset(task=task, scene=scene, seed=seed, render=False, **initial_state)
        self._instruct(instruction)
        self.steps = 0
        self.video_stride = video_stride
        self.recorded.clear()
        if video_stride:
            self._record()
        state = self.environment.observation(render=False)
        digest = hashlib.sha256(b"".join(np.asarray(state[key]).tobytes() for key in sorted(state))).hexdigest()
        outcome = {"success": False, "done": False}
        return {"instruction": self.environment.instruction, "initial_state_id": digest[:16], **self._result(outcome, render)}

    def begin_task(self, task: str, render: bool, instruction: str = "") -> dict[str, Any]:
        self.environment.begin_task(task)
        self._instruct(instruction)
        return {"instruction": self.environment.instruction, **self._result({"success": False, "done": False}, render)}

    def _instruct(self, instruction: str) -> None:
        if instruction:
            self.environment.instruction = instruction

    def advance(self, render: bool, actions: np.ndarray | None = None, source: str = "", steps: int = 0, seed: int = 0) -> dict[str, Any]:
        if (actions is None) == (not source):
            raise ValueError("advance needs either actions or a source")
        choose, count = (self._source(source, seed), steps) if actions is None else (iter(actions).__next__, len(actions))
        outcome: dict[str, Any] = {"success": False, "done": False}
        executed = 0
        while executed < count and not (outcome["success"] or outcome["done"]):
            result = self.environment.advance(choose())
            executed += 1
            self.steps += 1
            outcome = {"success": bool(result.success), "done": bool(result.done), "failure": getattr(result, "failure", "")}
            if self.video_stride and (self.steps % self.video_stride == 0 or outcome["success"] or outcome["done"]):
                self._record()
        return {"executed": executed, **self._result(outcome, render)}

    def recording(self, first: int) -> dict[str, Any]:
        return self.recorded.read(first, RECORDING_BYTES)

    def _source(self, source: str, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        if source == "random":
            return functools.partial(self.environment.random_action, rng)
        if source != "expert":
            raise ValueError(f"unknown action source {source!r}: 'expert' or 'random'")

        if not self.expert and ":" in self.name:
            raise ValueError(f"{self.name} has no registered expert: give one as module:function")
        expert = find_expert(self.expert or self.name)

        def choose() -> np.ndarray:
            action = expert(self.environment, rng)
            if action is None:
                raise ValueError(f"the scripted expert of {self.name} has no action for this task and state")
            return action

        return choose

    def _result(self, outcome: dict[str, Any], render: bool) -> dict[str, Any]:
        result: dict[str, Any] = {"outcome": outcome}
        if render and not (outcome["success"] or outcome["done"]):
            result["observation"] = self.environment.observation(render=True)
        return result

    def _record(self) -> None:
        observation = self.environment.observation(render=True)
        self.recorded.add(self.steps, {key: np.asarray(value) for key, value in observation.items() if np.ndim(value) == 3})


def serve(worker: Worker, requests: io.BufferedIOBase, replies: io.BufferedIOBase) -> None:
    """Answers until `close` or the end of `requests` (the evaluator has exited)."""
    while True:
        try:
            message = read_message(requests)
        except ConnectionClosed:
            return
        if message.get("command") == "close":
            return
        try:
            reply = worker.answer(message)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        write_message(replies, reply)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python eval/worker", description="One simulator process of the closed-loop evaluator.")
    parser.add_argument("--environment", required=True, help="name in eval.envs.registry, or module:Class")
    parser.add_argument("--kwargs", type=json.loads, default={}, help="constructor arguments, as a JSON object")
    parser.add_argument("--expert", default="", help="name in eval.experts.registry, or module:function (default: the environment's own)")
    parser.add_argument("--path", help="directory to add at the end of the module path")
    parser.add_argument("--package", help="directory of a package to make importable, without what stands beside it")
    arguments = parser.parse_args(argv)
    if arguments.path:
        sys.path.append(arguments.path)
    if arguments.package:
        import_package(arguments.package)
    # The pipes carry the protocol: what the simulator prints, from Python or C, goes to stderr.
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        worker = Worker(arguments.environment, build_environment(arguments.environment, arguments.kwargs), arguments.expert)
    except Exception as error:
        write_message(replies, {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})
        return 1
    serve(worker, requests, replies)
    close = getattr(worker.environment, "close", None)
    if close is not None:
        close()
    return 0
