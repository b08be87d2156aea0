"""Kinematics, joints, cameras and controller of the CALVIN scene against figures measured in the original simulator."""

import itertools
from pathlib import Path

import mujoco
import numpy as np
import pytest

from eval.benchmarks.calvin_sequences import INITIAL_ROBOT_OBS
from eval.calvin import rotations
from eval.calvin.scenes import SCENES
from eval.envs.calvin_mujoco.cameras import project_static
from eval.envs.calvin_mujoco.environment import CalvinEnvironment
from eval.envs.calvin_mujoco.inverse_kinematics import InverseKinematics
from eval.envs.calvin_mujoco.model import compile_scene

RECORDED = Path(__file__).parents[1] / "data/calvin/original_motion.npz"
STILL_OPEN = np.array([0.0] * 6 + [1.0])


@pytest.fixture(scope="module")
def env() -> CalvinEnvironment:
    return CalvinEnvironment("D", blocks=False)


def neutral(env: CalvinEnvironment, scene: str = "D", scene_obs: np.ndarray | None = None) -> np.ndarray:
    env.reset(
        task="open_drawer",
        scene=scene,
        seed=0,
        robot_obs=INITIAL_ROBOT_OBS,
        scene_obs=np.zeros(24) if scene_obs is None else scene_obs,
        render=False,
    )
    return env.robot_obs().astype(np.float64)


def test_forward_kinematics_of_the_evaluation_pose(env: CalvinEnvironment):
    obs = neutral(env)
    np.testing.assert_allclose(obs[:3], INITIAL_ROBOT_OBS[:3], atol=2e-5)
    np.testing.assert_allclose(obs[3:6], INITIAL_ROBOT_OBS[3:6], atol=2e-5)
    np.testing.assert_allclose(obs[6:], INITIAL_ROBOT_OBS[6:], atol=2e-5)
    np.testing.assert_allclose(env.data.body("panda_hand").xpos, [0.01844, -0.23486, 0.71104], atol=2e-5)


def test_euler_angles_agree_with_scipy():
    from scipy.spatial.transform import Rotation

    for euler in np.random.default_rng(0).uniform(-1.5, 1.5, (50, 3)) * [2.0, 1.0, 2.0]:
        reference = Rotation.from_euler("xyz", euler)
        matrix = rotations.matrix_from_euler(euler)
        np.testing.assert_allclose(matrix, reference.as_matrix(), atol=1e-12)
        np.testing.assert_allclose(rotations.euler_from_matrix(matrix), euler, atol=1e-9)
        w, x, y, z = rotations.quaternion_from_euler(*euler)
        np.testing.assert_allclose(Rotation.from_quat([x, y, z, w]).as_matrix(), matrix, atol=1e-12)
    np.testing.assert_allclose(
        rotations.wrap(np.array([np.pi + 0.1, -np.pi - 0.1, 0.3, -7.0])), [-np.pi + 0.1, np.pi - 0.1, 0.3, 2 * np.pi - 7.0]
    )


STATIC_PIXELS = [
    ((0.0, -0.08, 0.44), (92.05, 100.13)),
    ((0.44, -0.18, 0.44), (172.04, 125.07)),
    ((-0.44, -0.18, 0.44), (-3.85, 114.66)),
    ((-0.44, 0.14, 0.6478), (15.14, 18.93)),
    ((0.44, 0.14, 0.6478), (191.48, 14.03)),
    ((-0.12, -0.12, 0.484), (57.15, 97.99)),
    ((0.3, 0.16, 0.6694), (159.89, 6.33)),
    ((0.02586889, -0.2313129, 0.5712808), (57.28, 103.14)),
]


def test_static_camera_projects_to_the_original_pixels(env: CalvinEnvironment):
    points, pixels = (np.array(x) for x in zip(*STATIC_PIXELS, strict=True))
    np.testing.assert_allclose(project_static(points), pixels, atol=0.1)
    # the compiled camera, not only the formula
    neutral(env)
    camera = env.data.camera("rgb_static")
    local = (points - camera.xpos) @ camera.xmat.reshape(3, 3)
    focal = 100.0 / np.tan(np.radians(env.compiled.model.camera("rgb_static").fovy[0]) / 2)
    np.testing.assert_allclose(
        np.stack([100 - focal * local[:, 0] / local[:, 2], 100 + focal * local[:, 1] / local[:, 2]], -1), pixels, atol=0.1
    )


def test_rendered_button_and_bulb_are_where_they_project():
    env = CalvinEnvironment("D", blocks=False)
    neutral(env, scene_obs=np.array([0, 0, 0, 0.088, 1, 0] + [0.0] * 18))
    env.lights.bulb = True
    image = env.observation()["rgb_static"].astype(int)
    yellow = np.argwhere((image[..., 0] > 150) & (image[..., 1] > 150) & (image[..., 2] < 60))
    assert len(yellow) > 20
    centre = yellow[:, ::-1].mean(0) + 0.5
    ball = project_static(np.array([[0.3, 0.16, 0.669]]))[0]  # its lower part is cut off by the image's upper edge or the cabinet
    np.testing.assert_allclose(centre, ball, atol=2.5)


def test_gripper_camera_axes(env: CalvinEnvironment):
    neutral(env)
    hand = env.data.body("panda_hand")
    camera = env.data.camera("rgb_gripper")
    axes = hand.xmat.reshape(3, 3).T @ camera.xmat.reshape(3, 3)
    np.testing.assert_allclose(axes, np.array([[-0.0008, 1, 0], [0.96356, 0.00077, -0.2675], [-0.2675, -0.00021, -0.96356]]).T, atol=1e-3)
    np.testing.assert_allclose(hand.xmat.reshape(3, 3).T @ (camera.xpos - hand.xpos), [-0.1, 0, 0], atol=1e-9)


@pytest.mark.parametrize("scene", sorted(SCENES))
def test_table_joints_move_along_the_tabulated_axes(scene: str):
    compiled = compile_scene(scene)
    data = mujoco.MjData(compiled.model)
    up_slope = np.array([0.0, 0.5, np.sqrt(0.75)])
    expected = {
        "slide": ((-1.0, 0, 0), {"A": 0.28, "B": 0.304, "C": 0.24, "D": 0.28}[scene]),
        "drawer": ((0, -1.0, 0), 0.22),
        "button": ((0, 0, -1.0), 0.02),
        "switch": (up_slope, 0.088),
    }
    for name, (axis, travel) in expected.items():
        joint = compiled.model.joint(f"base__{name}")
        mujoco.mj_kinematics(compiled.model, data)
        np.testing.assert_allclose(data.joint(f"base__{name}").xaxis, axis, atol=1e-9)
        np.testing.assert_allclose(joint.range, [0.0, travel])
        assert int(joint.qposadr[0]) == getattr(compiled, name)


def test_parts_are_where_the_table_says():
    compiled = compile_scene("D")
    data = mujoco.MjData(compiled.model)
    mujoco.mj_kinematics(compiled.model, data)

    def box(name: str) -> np.ndarray:
        geom, size = data.geom(name), compiled.model.geom(name).size
        corners = np.array(list(itertools.product(*[(-s, s) for s in size]))) @ geom.xmat.reshape(3, 3).T + geom.xpos
        return np.stack([corners.min(0), corners.max(0)])

    np.testing.assert_allclose(box("drawer_front"), [[-0.04, -0.18, 0.30], [0.40, -0.16, 0.40]], atol=1e-6)
    np.testing.assert_allclose(box("drawer_bar"), [[0.06, -0.26, 0.34], [0.30, -0.24, 0.38]], atol=1e-6)
    np.testing.assert_allclose(box("base_top"), [[-0.44, -0.18, 0.40], [0.44, 0.18, 0.44]], atol=1e-6)
    np.testing.assert_allclose(box("slide_panel_contact")[:, 0], [-0.10, 0.18], atol=1e-6)
    np.testing.assert_allclose(data.body("switch_link").xpos, [0.30, 0.06093, 0.49489], atol=1e-6)


# control step: 1, 2, 3, 4, 5, 6, measured in the original from the neutral pose
RESPONSES = {
    "x": (np.array([1.0, 0, 0, 0, 0, 0, 1]), lambda d: 1e3 * d[0], [9.75, 15.17, 17.68, 18.85, 19.40, 19.65]),
    "z": (np.array([0, 0, -1.0, 0, 0, 0, 1]), lambda d: 1e3 * d[2], [-10.20, -15.62, -18.02, -19.07, -19.54, -19.75]),
    "yaw": (np.array([0, 0, 0, 0, 0, 1.0, 1]), lambda d: d[5], [0.0220, 0.0376, 0.0446, 0.0477, 0.0490, 0.0496]),
}


@pytest.mark.parametrize("name", sorted(RESPONSES))
def test_step_responses_within_ten_percent(env: CalvinEnvironment, name: str):
    action, measure, reference = RESPONSES[name]
    start = neutral(env)
    got = []
    for i in range(6):
        env.advance(action if i == 0 else STILL_OPEN)
        got.append(measure(env.robot_obs() - start))
    np.testing.assert_allclose(got, reference, rtol=0.10)


def test_lag_of_a_held_command_within_ten_percent(env: CalvinEnvironment):
    start = neutral(env)
    lag = []
    for i in range(10):
        env.advance(RESPONSES["x"][0])
        lag.append(20.0 * (i + 1) - 1e3 * (env.robot_obs() - start)[0])
    np.testing.assert_allclose([*lag[:6], lag[9]], [10.2, 15.2, 17.7, 19.2, 20.2, 21.2, 26.3], rtol=0.10)


def test_gripper_timing(env: CalvinEnvironment):
    neutral(env)
    widths = {}
    for command in (-1.0, 1.0):
        widths[command] = []
        for _ in range(6):
            env.advance(np.array([0.0] * 6 + [command]))
            widths[command].append(env.robot_obs()[6])
        for _ in range(10):
            env.advance(np.array([0.0] * 6 + [command]))
    np.testing.assert_allclose(widths[-1.0][:5], [0.0344, 0.0148, 0.0064, 0.0027, 0.0012], rtol=0.1)
    np.testing.assert_allclose(widths[1.0], [0.0250, 0.0563, 0.0698, 0.0756, 0.0781, 0.0792], rtol=0.1)


def test_the_target_persists_and_is_not_clipped(env: CalvinEnvironment):
    start = neutral(env)
    for k in (3.0, -1.0):
        env.advance(np.array([0, 0, k, 0, 0, 0, 1.0]))
    for _ in range(15):
        env.advance(STILL_OPEN)
    np.testing.assert_allclose(env.robot_obs()[2] - start[2], 0.04, atol=5e-4)
    np.testing.assert_allclose(env.controller.target_position - start[:3], [0, 0, 0.04], atol=1e-6)


def test_inverse_kinematics_are_those_of_bullet():
    """Poses asked of PyBullet during random motion, and its answers."""
    with np.load(RECORDED) as file:
        joints, positions, quaternions, results = (file[f"ik_{name}"] for name in ("joints", "position", "quaternion_xyzw", "result"))
    solver = InverseKinematics()
    for q, position, (x, y, z, w), result in zip(joints, positions, quaternions, results, strict=True):
        np.testing.assert_allclose(solver.solve(q, position, np.array([w, x, y, z])), result, atol=1e-9)


def test_free_motion_is_that_of_the_original():
    """Sequences of random actions recorded in the original, some of them with a block in the hand."""
    with np.load(RECORDED) as file:
        starts, scenes, actions, recorded = (file[name] for name in ("initial_robot_obs", "initial_scene_obs", "actions", "robot_obs"))
    env = CalvinEnvironment("D", block_order="original")
    errors = []
    for start, scene, sequence, expected in zip(starts, scenes, actions, recorded, strict=True):
        env.reset(task="open_drawer", seed=0, robot_obs=start, scene_obs=scene, render=False)
        for action, robot_obs in zip(sequence, expected[1:], strict=True):
            if env.advance(action).done:
                env.begin_task("open_drawer")
            errors.append(np.abs(env.robot_obs() - robot_obs))
    errors = np.stack(errors)
    assert np.percentile(np.linalg.norm(errors[:, :3], axis=1), 99) < 3.5e-3  # m
    assert np.percentile(errors[:, 7:14].max(1), 99) < 0.01  # rad


def test_arm_keeps_its_pose_without_commands(env: CalvinEnvironment):
    start = neutral(env)
    for _ in range(60):
        env.advance(STILL_OPEN)
    assert np.linalg.norm(env.robot_obs()[:3] - start[:3]) < 1e-4  # no droop, no drift


def test_soft_limits_hold_and_joints_do_not_jump(env: CalvinEnvironment):
    from eval.envs.calvin_mujoco.panda import SOFT_LIMITS

    neutral(env)
    previous = env.robot_obs()[7:14]
    rng = np.random.default_rng(0)
    for i in range(150):
        env.advance(np.append(np.array([1.0, 0.0, 1.0, 0, 0, 0]) + 0.3 * rng.standard_normal(6) if i < 60 else rng.uniform(-1, 1, 6), 1.0))
        joints = env.robot_obs()[7:14]
        assert np.abs(joints - previous).max() < 2.05 / 30  # the motors' 2 rad/s, in free space
        assert (joints > SOFT_LIMITS[:, 0] - 0.02).all()
        assert (joints < SOFT_LIMITS[:, 1] + 0.02).all()
        previous = joints
        if env._needs_reset:
            break


@pytest.mark.parametrize(("joint", "speed", "loss"), [("slide", 0.5, 0.087), ("drawer", 0.5, 0.033)])
def test_coulomb_friction_decelerates(env: CalvinEnvironment, joint: str, speed: float, loss: float):
    neutral(env, scene_obs=np.array([0.02, 0.02] + [0.0] * 22))
    dof = getattr(env.compiled, joint)
    env.data.qvel[dof] = speed
    mujoco.mj_step1(env.compiled.model, env.data)
    speeds = [speed]
    for _ in range(3):
        env.advance(STILL_OPEN)
        speeds.append(env.data.qvel[dof])
    np.testing.assert_allclose(-np.diff(speeds), loss, rtol=0.10)


def test_switch_stays_where_it_is_despite_its_weight(env: CalvinEnvironment):
    neutral(env, scene_obs=np.array([0, 0, 0, 0.07] + [0.0] * 20))
    for _ in range(60):
        env.advance(STILL_OPEN)
    assert abs(env.task_state().switch - 0.07) < 1e-3


def test_button_returns_as_the_original(env: CalvinEnvironment):
    neutral(env, scene_obs=np.array([0, 0, 0.02] + [0.0] * 21))
    env.data.qpos[env.compiled.button], env.data.qvel[env.compiled.button] = 0.02, 0.0
    mujoco.mj_step1(env.compiled.model, env.data)
    heights = []
    for _ in range(4):
        env.advance(STILL_OPEN)
        heights.append(env.task_state().button)
    np.testing.assert_allclose(heights, [0.0115, 0.0050, 0.0021, 0.0009], rtol=0.1)


@pytest.mark.parametrize(
    ("scene", "button", "switch", "door", "door_max", "drawer", "plank"),
    [
        ("A", -0.28, 0.30, (-0.10, 0.18), (-0.38, -0.10), 0.10, (-0.36, 0.16)),
        ("B", 0.28, -0.32, (0.088, 0.368), (-0.216, 0.064), 0.18, (-0.18, 0.34)),
        ("C", -0.12, -0.32, (0.06, 0.34), (-0.18, 0.10), 0.10, (-0.18, 0.34)),
        ("D", -0.12, 0.30, (-0.10, 0.18), (-0.38, -0.10), 0.18, (-0.36, 0.16)),
    ],
)
def test_what_differs_between_the_scenes(scene, button, switch, door, door_max, drawer, plank):
    compiled = compile_scene(scene)
    data = mujoco.MjData(compiled.model)
    mujoco.mj_kinematics(compiled.model, data)

    def span(name: str) -> np.ndarray:
        centre, half = data.geom(name).xpos[0], compiled.model.geom(name).size[0]
        return np.array([centre - half, centre + half])

    np.testing.assert_allclose(data.geom("button_contact").xpos[:2], [button, -0.12], atol=1e-6)
    np.testing.assert_allclose(data.body("switch_link").xpos[0], switch, atol=1e-6)
    np.testing.assert_allclose(span("slide_panel_contact"), door, atol=1e-6)
    np.testing.assert_allclose(span("drawer_front"), [drawer - 0.22, drawer + 0.22], atol=1e-6)
    np.testing.assert_allclose(span("plank"), plank, atol=1e-6)
    data.qpos[compiled.slide] = compiled.scene.slide_max
    mujoco.mj_kinematics(compiled.model, data)
    np.testing.assert_allclose(span("slide_panel_contact"), door_max, atol=1e-6)
