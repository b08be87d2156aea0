"""The adapter to the original CALVIN simulator, on a made-up checkout: hydra, omegaconf and calvin_env are stand-ins of a few lines."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from eval.errors import EvaluationError
from vpp_jax.cli.eval import main
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
import enum, sys, types
import numpy as np

class State(enum.Enum):
    ON = 1
    OFF = 0

class Environment:
    '''The drawer moves by the first number of each action; all 34 tasks are solved by moving it 0.1 m.'''
    cid, action_repeat = 0, 8
    def __init__(self, tree, **options):
        assert tree["robot"]["filename"] == "longer" and tree["robot"]["euler_obs"]
        assert not options["use_vr"] and not options["show_gui"]
        self.egl, self.steps, self.drawer, self.action = options["use_egl"], 0, 0.0, None
        light = types.SimpleNamespace(on=0, get_state=lambda: light.on)
        self.light = light
        self.button = types.SimpleNamespace(state=State.OFF, light=light)
        self.scene = types.SimpleNamespace(buttons=[self.button], reset=self.reset_scene, step=lambda: None)
        self.robot = types.SimpleNamespace(reset=lambda state: setattr(self, "robot_obs", state), apply_action=self.act)
        self.p = types.SimpleNamespace(stepSimulation=self.simulate)
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
        pass

class Tasks:
    def __init__(self, names):
        self.tasks = dict.fromkeys(names)
    def get_task_info_for_set(self, start, end, names):
        assert (end["steps"] - start["steps"]) % 8 == 0
        return names if abs(end["drawer"] - start["drawer"]) > 0.1 else set()

def instantiate(tree, **options):
    return Tasks(tree["tasks"]) if tree["_target_"] == "tasks" else Environment(tree, **options)
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    from eval.benchmarks.calvin_sequences import TASK_NAMES

    folder = tmp_path / "calvin_env"
    for name, content in CONFIGURATIONS.items():
        path = folder / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content | ({"tasks": list(TASK_NAMES)} if "tasks" in content else {})))
    packages = tmp_path / "packages"
    (packages / "hydra").mkdir(parents=True)
    (packages / "hydra" / "__init__.py").write_text("from hydra import utils\n")
    (packages / "hydra" / "utils.py").write_text(HYDRA)
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
    assert f"reset {version}" in simulator.version


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
    with pytest.raises(EvaluationError, match="calvin_pybullet runs chains"):
        main(command)
    (tmp_path / "simulators").mkdir()
    installed = {"name": "calvin_pybullet", "python": sys.executable, "checkout": str(checkout)}
    (tmp_path / "simulators" / "calvin_pybullet.json").write_text(json.dumps(installed))
    assert main([*command, "--sequences=2", f"--python_path={tmp_path / 'packages'}:{project}"]) == 0
    results = json.loads((out / "results.json").read_text())
    protocol = results["config"]["protocol"]
    assert (protocol["published"], protocol["renderer"], protocol["reset_version"]) == (False, "egl", "original")
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
