"""The worker as a process: protocol, errors, what it must not import, and what it must not draw."""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import msgpack
import numpy as np
import pytest

from eval.errors import WorkerFailure
from eval.worker.vpp_worker.protocol import PROTOCOL_VERSION, ConnectionClosed, FrameBuffer, ProtocolError, pack, read_message, unpack
from eval.worker_process import WorkerCommand, WorkerProcess, hello

HERE = str(Path(__file__).parent)
PROJECT = Path(__file__).resolve().parents[2]


def fake(**kwargs) -> WorkerCommand:
    return WorkerCommand("fake_simulator:Counter", kwargs, "fake_simulator:expert", variables={"PYTHONPATH": HERE})


@pytest.fixture
def start(tmp_path):
    processes = []

    def starter(**kwargs) -> WorkerProcess:
        processes.append(WorkerProcess(fake(**kwargs), tmp_path / "worker.log"))
        return processes[-1]

    yield starter
    for process in processes:
        process.kill()


def reset(**changes) -> dict:
    request = {"command": "reset", "task": "count_up", "scene": "A", "seed": 1, "initial_state": {}, "render": True, "video_stride": 0}
    return request | changes


def test_messages_survive_the_frame():
    message = {
        "text": "schiebe die Tür – nach links",
        "image": np.random.default_rng(0).integers(0, 255, (5, 4, 3), dtype=np.uint8),
        "vector": np.linspace(0, 1, 7, dtype=np.float32),
        "nested": {"scalar": np.float64(0.1), "flag": True, "nothing": None, "list": [1, 2]},
    }
    frame = pack(message)
    assert (unpack(frame[4:])["image"] == message["image"]).all()
    buffer = FrameBuffer()
    received = []
    for start in range(0, len(frame) * 2, 11):  # two frames, arriving in pieces that respect no border
        buffer.feed((frame + frame)[start : start + 11])
        while (complete := buffer.next_message()) is not None:
            received.append(complete)
    assert len(received) == 2
    for copy in received:
        assert copy["text"] == message["text"]
        assert copy["vector"].dtype == np.float32
        assert (copy["vector"] == message["vector"]).all()
        assert copy["nested"] == {"scalar": 0.1, "flag": True, "nothing": None, "list": [1, 2]}


def test_protocol_refuses_objects_garbage_and_giants():
    with pytest.raises(ProtocolError, match="object"):
        pack({"actions": np.array([{}], dtype=object)})
    with pytest.raises(ProtocolError, match="cannot be sent"):
        pack({"actions": object()})
    with pytest.raises(ProtocolError, match="not valid msgpack"):
        unpack(b"\xc1\xc1")
    with pytest.raises(ProtocolError, match="announces"):
        read_message(io.BytesIO(b"\xff\xff\xff\xff"))
    with pytest.raises(ConnectionClosed):
        read_message(io.BytesIO(pack({"a": 1})[:-1]))


def test_worker_answers_every_command(start):
    worker = start()
    assert worker.request(hello(), 30)["renderer"] == "not rendered"  # asking for it may start a graphics library
    greeting = worker.request(hello(render=True), 30)
    assert greeting["renderer"] == "none"
    assert greeting["protocol"] == PROTOCOL_VERSION
    assert greeting["environment_version"] == "fake-1"
    assert greeting["tasks"] == ["count_up", "count_down"]
    assert "numpy" in greeting["versions"]

    begun = worker.request(reset(initial_state={"state": 0.5}), 30)
    assert begun["instruction"] == "count up"
    assert begun["observation"]["rgb_static"].shape == (200, 200, 3)
    assert begun["observation"]["robot_obs"][0] == 0.5
    assert worker.request(reset(initial_state={"state": 0.5}), 30)["initial_state_id"] == begun["initial_state_id"]
    assert worker.request(reset(initial_state={"state": 0.6}), 30)["initial_state_id"] != begun["initial_state_id"]

    # the goal is passed after 11 steps of 0.1 (binary 0.1 rounds so that ten do not exceed 1): the rest of the chunk is not executed
    early = worker.request({"command": "advance", "actions": np.full((4, 7), 0.1), "render": True}, 30)
    assert (early["executed"], early["outcome"]["success"]) == (4, False)
    late = worker.request({"command": "advance", "actions": np.full((20, 7), 0.1), "render": True}, 30)
    assert late["outcome"]["success"]
    assert late["executed"] < 20
    assert "observation" not in late


def test_sources_run_inside_the_worker_and_repeat(start):
    worker = start()
    outcomes = []
    for _ in range(2):
        worker.request(reset(render=False), 30)
        outcomes.append(worker.request({"command": "advance", "source": "random", "steps": 9, "seed": 5, "render": True}, 30))
    assert outcomes[0]["observation"]["robot_obs"].tobytes() == outcomes[1]["observation"]["robot_obs"].tobytes()
    worker.request(reset(render=False), 30)
    expert = worker.request({"command": "advance", "source": "expert", "steps": 100, "seed": 5, "render": False}, 30)
    assert expert["outcome"]["success"]


def test_nothing_is_drawn_between_observations(start, tmp_path):
    log = tmp_path / "renders"
    worker = start(render_log=str(log))
    worker.request(reset(), 30)
    worker.request({"command": "advance", "actions": np.zeros((6, 7)), "render": True}, 30)
    worker.request({"command": "advance", "actions": np.zeros((6, 7)), "render": False}, 30)
    assert log.read_text().splitlines() == ["1 0", "1 6"]


def test_recording_returns_frames_of_the_episode(start):
    worker = start()
    worker.request(reset(video_stride=4, render=False), 30)
    worker.request({"command": "advance", "source": "expert", "steps": 100, "seed": 0, "render": False}, 30)
    recording = worker.request({"command": "recording", "first": 0}, 30)
    assert recording["left"] == 0
    steps = recording["steps"].tolist()
    assert steps[:3] == [0, 4, 8]
    assert steps[-1] in (10, 11)  # the solving step is in the video whatever the rhythm
    assert recording["images"]["rgb_gripper"].shape == (len(steps), 84, 84, 3)


def test_a_recording_larger_than_a_frame_arrives_in_parts(start):
    """Images of 2.2 MB each: 32 MiB hold about fifteen of them."""
    worker = start(size=850, goal=10.0)
    worker.request(reset(video_stride=1, render=False), 30)
    worker.request({"command": "advance", "actions": np.zeros((40, 7)), "render": False}, 30)
    steps, parts, left = [], 0, 1
    while left:
        part = worker.request({"command": "recording", "first": len(steps)}, 30)
        assert sum(images.nbytes for images in part["images"].values()) < 40 << 20
        steps, parts, left = [*steps, *part["steps"].tolist()], parts + 1, part["left"]
    assert (steps, parts) == (list(range(41)), 3)


def test_an_exception_comes_back_with_its_traceback_and_the_worker_lives(start):
    worker = start()
    with pytest.raises(WorkerFailure, match=r"unknown task 'fly'(.|\n)*fake_simulator\.py"):
        worker.request(reset(task="fly"), 30)
    with pytest.raises(WorkerFailure, match="unknown command 'jump'"):
        worker.request({"command": "jump"}, 30)
    assert worker.request(reset(), 30)["instruction"] == "count up"


def test_an_environment_that_cannot_be_built_says_why(start):
    with pytest.raises(WorkerFailure, match="unexpected keyword argument 'colour'"):
        start(colour="red").request(hello(), 30)


def test_another_protocol_is_refused(start):
    with pytest.raises(WorkerFailure, match="protocol 99"):
        start().request({"command": "hello", "protocol": 99}, 30)


def test_death_names_signal_and_last_output(start):
    worker = start(trouble={"kill": 1})
    worker.request(reset(), 30)
    with pytest.raises(WorkerFailure, match=r"killed by signal 9 during 'advance'(.|\n)*trouble ahead"):
        worker.request({"command": "advance", "actions": np.zeros((6, 7)), "render": True}, 30)


def test_a_hanging_worker_is_noticed(start):
    worker = start(trouble={"hang": 1})
    worker.request(reset(), 30)
    with pytest.raises(WorkerFailure, match="did not answer 'advance' in time"):
        worker.request({"command": "advance", "actions": np.zeros((6, 7)), "render": True}, 0.5)


def test_worker_ends_when_the_evaluator_is_gone(tmp_path):
    command = fake()
    process = subprocess.Popen(
        command.arguments(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=command.process_environment()
    )
    process.communicate(pack(hello()), timeout=30)  # closes the pipe after one request
    assert process.returncode == 0


# --- other interpreters

FOREIGN_SIMULATOR = """
import importlib.util, json, sys
import numpy as np
from fake_simulator import Counter

class Foreign(Counter):
    def __init__(self, look_for):
        super().__init__()
        found = {name: importlib.util.find_spec(name) is not None for name in look_for}
        self.version = json.dumps({"numpy": [np.__version__, np.__file__], "found": found, "path": sys.path})
"""


@pytest.fixture(scope="module")
def foreign_python(tmp_path_factory) -> Path:
    """A virtual environment with NumPy, under another version number, and msgpack. Both are links to ours: no index is needed."""
    home = tmp_path_factory.mktemp("foreign")
    venv.create(home, symlinks=True, with_pip=False)
    (packages,) = home.glob("lib/python*/site-packages")
    ours = Path(np.__file__).parents[1]
    (packages / "numpy").mkdir()
    for entry in (ours / "numpy").iterdir():
        if entry.name not in ("version.py", "__pycache__"):
            (packages / "numpy" / entry.name).symlink_to(entry)
    version = (ours / "numpy" / "version.py").read_text()
    (packages / "numpy" / "version.py").write_text(version + "\nversion = __version__ = full_version = '1.2.3'\n")
    for path in [*ours.glob("numpy.libs"), Path(msgpack.__file__).parent]:
        (packages / path.name).symlink_to(path)
    return home / "bin" / "python"


def foreign_greeting(command: WorkerCommand, log: Path) -> dict:
    """What the simulator of another interpreter finds there; one episode shows that arrays pass between two NumPys."""
    worker = WorkerProcess(command, log)
    try:
        greeting = worker.request(hello(), 60)
        begun = worker.request(reset(), 60)
        assert begun["observation"]["rgb_static"].shape == (200, 200, 3)
        moved = worker.request({"command": "advance", "actions": np.full((20, 7), 0.1), "render": True}, 60)
        assert moved["outcome"]["success"]
        return greeting
    finally:
        worker.kill()


def test_another_interpreter_keeps_its_own_packages(foreign_python, tmp_path, monkeypatch, project):
    """Neither what this interpreter has installed nor its PYTHONPATH and working directory reach the simulator."""
    (tmp_path / "foreign_simulator.py").write_text(FOREIGN_SIMULATOR)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(project), str(Path(np.__file__).parents[1])]))
    monkeypatch.chdir(project)
    absent = ["eval", "vpp_jax", "data_pipelines", "configs", "tests", "jax", "pytest", "protocol", "process"]
    command = WorkerCommand(
        "foreign_simulator:Foreign",
        {"look_for": absent},
        "fake_simulator:expert",
        str(foreign_python),
        {"PYTHONPATH": os.pathsep.join([str(tmp_path), HERE])},
    )
    greeting = foreign_greeting(command, tmp_path / "worker.log")
    seen = json.loads(greeting["environment_version"])
    assert np.__version__ != "1.2.3"
    assert greeting["versions"]["numpy"] == "1.2.3"
    assert seen["numpy"] == ["1.2.3", str(next(foreign_python.parents[1].glob("lib/python*/site-packages/numpy/__init__.py")))]
    assert seen["found"] == dict.fromkeys(absent, False)
    assert seen["path"][0] == str(project / "eval" / "worker")


def test_our_environments_need_our_package(foreign_python, tmp_path):
    worker = WorkerProcess(WorkerCommand("calvin_mujoco", python=str(foreign_python)), tmp_path / "worker.log")
    with pytest.raises(WorkerFailure, match="'calvin_mujoco' is part of vpp_jax, which is not installed in /"):
        worker.request(hello(), 60)
    worker.kill()


def test_an_installed_copy_starts_the_same_worker(foreign_python, tmp_path):
    """As a wheel has it: our packages beside other ones in one directory, of which the simulator sees nothing."""
    site = tmp_path / "site-packages"
    for package in ("eval", "vpp_jax/common"):
        shutil.copytree(PROJECT / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "vpp_jax/__init__.py", site / "vpp_jax")
    (site / "installed_here.py").touch()
    simulators = tmp_path / "simulators"
    simulators.mkdir()
    (simulators / "foreign_simulator.py").write_text(FOREIGN_SIMULATOR)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import eval.worker_process as w, json; assert {str(site)!r} in w.__file__;"
        "command = w.WorkerCommand('foreign_simulator:Foreign', {'look_for': ['installed_here', 'eval']},"
        f"python={str(foreign_python)!r}, variables={{'PYTHONPATH': {os.pathsep.join([str(simulators), HERE])!r}}});"
        f"worker = w.WorkerProcess(command, w.Path({str(tmp_path / 'worker.log')!r})); print(json.dumps(worker.request(w.hello(), 60)));"
        "worker.close()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    output = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment, cwd=tmp_path, timeout=120)
    greeting = json.loads(output)
    seen = json.loads(greeting["environment_version"])
    assert seen["numpy"][0] == "1.2.3"
    assert seen["found"] == {"installed_here": False, "eval": False}
    assert seen["path"][0] == str(site / "eval" / "worker")


def test_the_worker_runs_on_old_interpreters(project):
    """Its directory holds a package that needs NumPy and msgpack only, in the syntax of Python 3.8, and adapters to other simulators."""
    directory = project / "eval" / "worker"
    entries = {path.name for path in directory.iterdir()} - {"__pycache__"}
    assert entries == {"__init__.py", "__main__.py", "vpp_worker", "vpp_simulators"}
    for path in directory.rglob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        theirs = {"hydra", "omegaconf"} if path.parent.name == "vpp_simulators" else set()
        assert {name.split(".")[0] for name in imported} - sys.stdlib_module_names <= {"numpy", "msgpack", "vpp_worker", *theirs}


def test_worker_and_environments_import_no_jax(project):
    code = (
        "import sys, vpp_worker.process, eval.envs.registry, eval.envs.base, eval.experts.registry;"
        "vpp_worker.process.build_environment('fake_simulator:Counter', {});"
        "heavy = {'jax', 'flax', 'tensorflow', 'torch'} & set(sys.modules); assert not heavy, heavy"
    )
    path = os.pathsep.join([str(project), str(project / "eval" / "worker"), HERE])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path}, cwd=project)
