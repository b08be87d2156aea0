"""The adapter to the original CALVIN simulator, on a made-up checkout: hydra, omegaconf and calvin_env are stand-ins of a few lines."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eval.benchmarks import calvin_chains
from eval.benchmarks.calvin_sequences import generate_sequences
from eval.benchmarks.registry import get_benchmark
from eval.envs.calvin_mujoco.environment import CalvinEnvironment
from eval.errors import EvaluationError
from eval.experts.registry import get_expert
from eval.worker_process import WorkerCommand
from vpp_jax.cli.eval import _parser, main
from vpp_jax.cli.main import main as vpp

CONFIGURATIONS = {
    "tasks/new_playtable_tasks": {"_target_": "tasks", "tasks": ["open_drawer", "move_slider_left"]},
    "cameras/cameras/static": {"width": 200},
    "cameras/cameras/gripper": {"width": 84},
    **{f"scene/calvin_scene_{name}": {"name": name} for name in "ABCD"},
    "robot/panda": {"euler_obs": True, "filename": "panda"},
    "robot/panda_longer_finger": {"filename": "longer"},
    "env/play_table_env": {"_target_": "environment"},
}
OMEGACONF = """
import json
class OmegaConf:
    load = staticmethod(lambda path: json.loads(open(path).read()))
    create = staticmethod(lambda tree: type("Tree", (), {"env": tree | {"_target_": tree["env"]["_target_"]}}))
    merge = staticmethod(lambda one, other: one | other)
"""
HYDRA = """
import enum, types
import numpy as np

class State(enum.Enum):
    ON = 1
    OFF = 0

def instantiate(tree, **options):
    return Tasks(tree["tasks"]) if tree["_target_"] == "tasks" else Environment(tree, **options)

"""
DRAWER = """
class Environment:
    '''The drawer moves by the first number of each action; all 34 tasks are solved by moving it 0.1 m.

    Images of the EGL renderer are 1, others 0; only connection 0 has it.
    '''
    action_repeat, open_connections = 8, set()
    def __init__(self, tree, **options):
        assert tree["robot"]["filename"] == "longer" and tree["robot"]["euler_obs"]
        assert not options["use_vr"] and not options["show_gui"]
        self.cid = next(number for number in range(9) if number not in self.open_connections)
        self.open_connections.add(self.cid)
        self.egl, self.steps, self.drawer, self.action = options["use_egl"] and self.cid == 0, 0, 0.0, None
        light = types.SimpleNamespace(on=0, get_state=lambda: light.on)
        self.light = light
        self.button = types.SimpleNamespace(state=State.OFF, light=light)
        self.scene = types.SimpleNamespace(buttons=[self.button], reset=self.reset_scene, step=lambda: None)
        self.robot = types.SimpleNamespace(reset=lambda state: setattr(self, "robot_obs", state), apply_action=self.act)
        self.p = types.SimpleNamespace(stepSimulation=self.simulate, setPhysicsEngineParameter=self.set)
    def set(self, deterministicOverlappingPairs, physicsClientId):
        self.fixed_order = deterministicOverlappingPairs
    def reset_scene(self, scene_obs):
        self.scene_obs, self.drawer, self.light.on = scene_obs, 0.0, int(scene_obs[5])
        self.button.state = State(self.light.on)
    def act(self, action):
        assert action[-1] in (-1, 1)
        self.action = action
    def simulate(self, physicsClientId):
        self.steps += 1
        self.drawer += 0.002 * (self.action[0] if self.action is not None else 0)
    def get_info(self):
        return {"drawer": self.drawer, "steps": self.steps}
    def get_state_obs(self):
        return {"robot_obs": self.robot_obs, "scene_obs": self.scene_obs}
    def get_camera_obs(self):
        return {"rgb_static": np.full((200, 200, 3), self.egl, np.uint8), "rgb_gripper": np.zeros((84, 84, 3), np.uint8)}, {}
    def close(self):
        self.open_connections.discard(self.cid)
    def __del__(self):
        self.close()

class Tasks:
    def __init__(self, names):
        self.tasks = dict.fromkeys(names)
    def get_task_info_for_set(self, start, end, names):
        assert (end["steps"] - start["steps"]) % 8 == 0
        return names if abs(end["drawer"] - start["drawer"]) > 0.1 else set()
"""

# The MuJoCo table in the clothes of the original: body and link numbers, contacts as tuples, its objects for scene and robot.
PORT = """
from eval.calvin.tasks import TASKS
from eval.envs.calvin_mujoco.environment import CalvinEnvironment

TABLE_LINKS = {name: number for number, name in enumerate(("base_link", "button_link", "switch_link", "slide_link", "drawer_link"), -1)}
TABLE_LINKS["plank_link"] = 6
ROBOT_LINKS = {"hand": 8, "finger1": 10, "finger2": 11, "link7": 7}

class Environment:
    cid, action_repeat = 0, 8
    def __init__(self, tree, **options):
        self.port = CalvinEnvironment(tree["scene"]["name"], block_order="original", max_steps=10**6)
        self.blocks = self.port.compiled.scene.block_order
        self.button = types.SimpleNamespace(light=types.SimpleNamespace(get_state=lambda: int(self.port.lights.led)), state=None)
        self.scene = types.SimpleNamespace(buttons=[self.button], reset=self.reset_scene, step=self.step)
        self.robot = types.SimpleNamespace(reset=self.reset_robot, apply_action=lambda action: setattr(self, "action", action))
        self.p = types.SimpleNamespace(stepSimulation=lambda physicsClientId: None, setPhysicsEngineParameter=lambda **options: None)
    def reset_scene(self, scene_obs):
        self.button.state, self.scene_obs = State.OFF, scene_obs
    def reset_robot(self, robot_obs):
        self.port.reset(task="open_drawer", robot_obs=robot_obs, scene_obs=self.scene_obs, render=False)
        self.tell()
    def step(self):
        self.port.begin_task("open_drawer")  # which this task is and whether it is solved does not matter
        self.port.advance(self.action)
        self.tell()
    def tell(self):
        self.robot.target_pos, self.robot.target_orn = self.port.controller.target_position, self.port.controller.target_euler
        self.button.prev_is_pressed = self.port.lights.button_pressed
    def number(self, touch):
        body, link = touch
        if body == "robot":
            return (0, 0, 0, 0, ROBOT_LINKS[link])
        if body == "table":
            return (0, 0, 5, 0, TABLE_LINKS[link])
        return (0, 0, 2 + self.blocks.index(body) if body in self.blocks else 6, 0, -1)
    def get_info(self):
        state = self.port.task_state()
        blocks = {}
        for number, colour in enumerate(self.blocks):
            block = state.blocks[colour]
            blocks[f"block_{colour}"] = {
                "uid": 2 + number,
                "contacts": [self.number(touch) for touch in block.touches],
                "current_lin_vel": block.linear_velocity,
                "current_ang_vel": block.angular_velocity,
            }
        table = {"uid": 5, "links": TABLE_LINKS}
        robot = {"uid": 0, "contacts": [self.number(touch) for touch in state.robot_touches]}
        return {"state": state, "robot_info": robot, "scene_info": {"fixed_objects": {"table": table}, "movable_objects": blocks}}
    def get_state_obs(self):
        return {"robot_obs": self.port.robot_obs(), "scene_obs": self.port.scene_obs()}
    def close(self):
        self.port.close()

class Tasks:
    def __init__(self, names):
        self.tasks = dict.fromkeys(names)
    def get_task_info_for_set(self, start, end, names):
        return {name for name in names if TASKS[name].predicate(start["state"], end["state"])}
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    return made_up_checkout(tmp_path, monkeypatch, DRAWER)


def made_up_checkout(tmp_path: Path, monkeypatch, simulator: str) -> Path:
    """A folder that looks like a checkout, and stand-ins for hydra and omegaconf on the path, with this simulator."""
    from eval.benchmarks.calvin_sequences import TASK_NAMES

    folder = tmp_path / "calvin_env"
    for name, content in CONFIGURATIONS.items():
        path = folder / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content | ({"tasks": list(TASK_NAMES)} if "tasks" in content else {})))
    packages = tmp_path / "packages"
    (packages / "hydra").mkdir(parents=True)
    (packages / "hydra" / "__init__.py").write_text("from hydra import utils\n")
    (packages / "hydra" / "utils.py").write_text(HYDRA + simulator)
    (packages / "omegaconf.py").write_text(OMEGACONF)
    monkeypatch.syspath_prepend(str(packages))
    for name in ("hydra", "hydra.utils", "omegaconf"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


@pytest.fixture
def adapter(project):
    spec = importlib.util.spec_from_file_location("adapter", project / "eval/worker/vpp_simulators/calvin_pybullet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CalvinPyBullet


def lit(on: bool) -> dict:
    scene_obs = np.zeros(24)
    scene_obs[5] = on
    return {"robot_obs": np.arange(15.0), "scene_obs": scene_obs}


def test_every_scene_is_drawn_by_the_renderer_asked_for(adapter, checkout):
    simulator = adapter(str(checkout))
    for scene in ("D", "A", "D", "A"):
        simulator.reset(task="open_drawer", scene=scene, **lit(False))
        assert (simulator.scene, simulator.observation()["rgb_static"].max()) == (scene, 1)
        assert simulator._env.open_connections == {0}
    simulator.close()


def test_a_step_is_eight_of_the_physics_and_the_task_is_the_originals(adapter, checkout):
    simulator = adapter(str(checkout), max_steps=9)
    assert len(simulator.tasks) == 34
    simulator.reset(task="open_drawer", scene="D", **lit(False))
    outcomes = [simulator.advance(np.array([1.0, 0, 0, 0, 0, 0, 1])) for _ in range(7)]
    assert [outcome.success for outcome in outcomes] == [False] * 6 + [True]
    simulator.begin_task("move_slider_left")
    assert [simulator.advance(np.array([0.0, 0, 0, 0, 0, 0, 1])).done for _ in range(9)] == [False] * 8 + [True]
    observation = simulator.observation()
    assert observation["rgb_static"].dtype == np.uint8
    assert observation["robot_obs"].tolist() == list(range(15))
    assert "rgb_static" not in simulator.observation(render=False)


@pytest.mark.parametrize(("version", "on", "expected"), [("original", True, 0), ("fixed", True, 1), ("fixed", False, 0)])
def test_both_reset_versions(adapter, checkout, version, on, expected):
    simulator = adapter(str(checkout), reset_version=version)
    simulator.reset(task="turn_off_led", scene="D", **lit(on))
    assert simulator._env.button.state.value == expected


def test_nothing_of_an_episode_reaches_the_next_one(adapter, checkout):
    simulator = adapter(str(checkout))
    simulator.reset(task="open_drawer", scene="D", **lit(False))
    assert simulator._env.fixed_order == 1
    simulator._env.robot.gripper_action, simulator._env.button.prev_is_pressed = -1, True
    simulator.reset(task="open_drawer", scene="D", **lit(False))
    assert (simulator._env.robot.gripper_action, simulator._env.button.prev_is_pressed) == (1, False)


def test_mistakes_are_named(adapter, checkout, tmp_path):
    with pytest.raises(ValueError, match="is no checkout of calvin_env"):
        adapter(str(tmp_path))
    with pytest.raises(ValueError, match="renderer must be 'egl' or 'tiny'"):
        adapter(str(checkout), renderer="vulkan")
    simulator = adapter(str(checkout))
    with pytest.raises(ValueError, match="starts episodes from given states"):
        simulator.reset(task="open_drawer", scene="D", seed=1)
    with pytest.raises(ValueError, match="unknown scene 'E'"):
        simulator.reset(task="open_drawer", scene="E", **lit(False))


def test_the_command_runs_it_where_it_is_installed(checkout, tmp_path, monkeypatch, project, capsys):
    monkeypatch.setenv("VPP_SIMULATORS", str(tmp_path / "simulators"))
    out = tmp_path / "out"
    command = ["calvin", "--environment=calvin_pybullet", "--policy=random", f"--out={out}", "--workers=1", "--max_steps=3"]
    with pytest.raises(EvaluationError, match=r"not installed .*run `vpp sim install calvin_pybullet --checkout=DIR` first"):
        main([*command, "--sequences=2"])
    with pytest.raises(EvaluationError, match="calvin_pybullet starts from given states"):
        main(command)
    (tmp_path / "simulators").mkdir()
    installed = {"name": "calvin_pybullet", "python": sys.executable, "checkout": str(checkout)}
    (tmp_path / "simulators" / "calvin_pybullet.json").write_text(json.dumps(installed))
    assert main([*command, "--sequences=2", f"--python_path={tmp_path / 'packages'}:{project}"]) == 0
    results = json.loads((out / "results.json").read_text())
    protocol = results["config"]["protocol"]
    assert (protocol["renderer"], protocol["reset_version"]) == ("egl", "original")
    assert results["published"] is False
    assert results["conditions"] == {
        "simulator": "calvin_pybullet",
        "version": "calvin_env of unknown commit",
        "renderer": "not rendered",
        "reset_version": "original",
    }
    assert "Simulated in the original CALVIN environment, its EGL renderer" in protocol["note"]
    assert results["simulator"]["renderer"] == "not rendered"
    first = json.loads((out / "episodes.jsonl").read_text().splitlines()[0])
    assert first["tasks"][0]["instruction"]  # CALVIN's, told by the benchmark

    assert vpp(["sim", "install", "calvin_pybullet", f"--checkout={tmp_path}"]) == 1
    assert "has no calvin_env/envs/play_table_env.py" in " ".join(capsys.readouterr().err.split())


def test_only_whole_runs_in_the_original_are_published_numbers():
    from eval.benchmarks.calvin_chains import Chains

    assert Chains(1000).published("calvin_pybullet", "egl")
    assert not Chains(1000).published("calvin_pybullet", "tiny")
    assert not Chains(100).published("calvin_pybullet", "egl")
    assert not Chains(1000).published("calvin_mujoco", "")


@pytest.mark.parametrize(
    ("flags", "published"),
    [
        (["--environment=calvin_pybullet", "--checkpoint=x"], True),
        (["--environment=calvin_pybullet", "--checkpoint=x", '--environment_kwargs={"renderer": "tiny"}'], False),
        (["--environment=calvin_pybullet", "--checkpoint=x", "--max_steps=400"], False),
        (["--environment=calvin_pybullet", "--policy=expert"], False),
        (["--checkpoint=x"], False),
    ],
)
def test_what_may_be_called_published(flags, published, monkeypatch):
    monkeypatch.setattr(calvin_chains, "generate_sequences", lambda count: generate_sequences(10))  # drawing 1000 takes a minute
    arguments = _parser(["calvin"]).parse_args(["calvin", "--sequences=1000", *flags])
    plan = get_benchmark("calvin").plan(arguments)
    assert plan.published is published
    assert "published" not in plan.description  # results say so only when they are complete


@pytest.mark.medium
def test_experts_act_in_the_original_as_in_the_port(adapter, tmp_path, monkeypatch):
    """The port behind the adapter: what experts are told there (bodies and links by number, Euler angles) leads to the same chain."""
    adapted = adapter(str(made_up_checkout(tmp_path, monkeypatch, PORT)), reset_version="fixed")
    port = CalvinEnvironment("A", block_order="original")  # the scene whose blocks are in an order of their own
    rng = np.random.default_rng(0)
    port.reset(task="turn_on_led", seed=3, render=False)
    start = {"robot_obs": port.robot_obs(), "scene_obs": port.scene_obs()}
    port.reset(task="turn_on_led", render=False, **start)
    adapted.reset(task="turn_on_led", scene="A", **start)
    for task in ("turn_on_led", "lift_blue_block_table", "stack_block"):
        port.begin_task(task)
        adapted.begin_task(task)
        outcome = None
        while outcome is None or not outcome.done:
            told, seen = get_expert("calvin_pybullet")(adapted, rng), get_expert("calvin_mujoco")(port, rng)
            np.testing.assert_allclose(told, seen, atol=1e-4)  # Euler angles and back, in float32
            outcome = adapted.advance(seen)
            assert port.advance(seen).success == outcome.success
        assert outcome.success


@pytest.mark.medium
def test_the_command_runs_experts_there(tmp_path, monkeypatch, project):
    checkout = made_up_checkout(tmp_path, monkeypatch, PORT)
    monkeypatch.setenv("VPP_SIMULATORS", str(tmp_path))
    (tmp_path / "calvin_pybullet.json").write_text(
        json.dumps({"name": "calvin_pybullet", "python": sys.executable, "checkout": str(checkout)})
    )
    out = tmp_path / "out"
    command = ["calvin", "--environment=calvin_pybullet", "--policy=expert", "--sequences=1", "--workers=1", f"--out={out}"]
    assert main([*command, f"--python_path={tmp_path / 'packages'}:{project}"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["config"]["environment"]["expert"] == "calvin_pybullet"
    assert results["metrics"]["average_length"] >= 1


def test_experts_load_no_simulator(tmp_path, project):
    """In the interpreter of the original simulator there is neither MuJoCo nor the rest of this project."""
    program = f"""
import sys
sys.path.insert(0, {str(project / "eval" / "worker")!r})
from vpp_worker.process import find_expert, import_package
import_package({str(project / "eval")!r})
find_expert("calvin_pybullet")
print(*sorted({{name.split(".")[0] for name in sys.modules}} & {{"mujoco", "dm_env", "jax", "vpp_jax", "data_pipelines", "eval"}}))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["eval"], done.stderr


def test_another_interpreter_gets_the_experts(tmp_path):
    command = WorkerCommand("module:Class", python="/somewhere/python", own_experts=True)
    assert command.arguments()[-2] == "--package"
    assert command.arguments()[-1].endswith("eval")
    assert "--package" not in WorkerCommand("module:Class", python="/somewhere/python").arguments()
