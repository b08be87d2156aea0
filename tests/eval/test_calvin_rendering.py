"""What the cameras see: a recorded frame, colours of patches against the original's EGL renders, lights, sizes, qualities."""

import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.calvin_images import compare
from eval.calvin.scenes import SCENES, WOODS
from eval.envs.calvin_mujoco.cameras import STATIC_EYE, project_static, static_axes
from eval.envs.calvin_mujoco.environment import CalvinEnvironment
from eval.envs.calvin_mujoco.limits import QUALITIES
from eval.envs.calvin_mujoco.model import compile_scene
from eval.envs.calvin_mujoco.rendering import why_not
from eval.envs.calvin_mujoco.textures import wood_texture

NEUTRAL = np.array([0.0] * 6 + [0.08, -1.21779206, 1.03987646, 2.11978261, -2.34205014, -0.87015947, 1.64119093, 0.55344928, 1.0])
# mean rgb of parts in the original's EGL renders
PATCHES = {
    "A": {
        "top": (121, 71, 47),
        "front": (106, 63, 40),
        "drawer_front": (97, 58, 38),
        "inclined": (115, 68, 46),
        "drawer_floor": (109, 64, 44),
    },
    "B": {
        "top": (247, 196, 143),
        "front": (197, 159, 112),
        "drawer_front": (184, 148, 106),
        "inclined": (224, 177, 125),
        "drawer_floor": (242, 193, 135),
    },
    "C": {
        "top": (153, 100, 57),
        "front": (121, 82, 50),
        "drawer_front": (97, 58, 38),
        "inclined": (150, 100, 58),
        "drawer_floor": (109, 64, 44),
    },
    "D": {
        "top": (167, 125, 84),
        "front": (124, 93, 61),
        "drawer_front": (125, 93, 61),
        "inclined": (137, 101, 68),
        "drawer_floor": (160, 121, 80),
    },
}


@pytest.fixture(scope="module")
def env() -> CalvinEnvironment:
    return CalvinEnvironment("D", quality="faithful", blocks=False)


def image(env: CalvinEnvironment, scene: str, **parts: float) -> np.ndarray:
    scene_obs = np.zeros(24)
    scene_obs[:6] = [parts.get(name, 0.0) for name in ("slide", "drawer", "button", "switch", "bulb", "led")]
    env.reset(task="open_drawer", scene=scene, seed=0, robot_obs=NEUTRAL, scene_obs=scene_obs, render=False)
    return env.observation()["rgb_static"].astype(np.float64)


def patch(image: np.ndarray, point: tuple[float, float, float]) -> np.ndarray:
    u, v = np.round(project_static(np.array([point]))[0] - 0.5).astype(int)
    return image[v - 1 : v + 2, u - 1 : u + 2].reshape(-1, 3).mean(0)


def test_a_recorded_frame(reference_data):
    """A frame of the original dataset, reduced to half its size: mean absolute differences, of 255."""
    with np.load(reference_data / "calvin" / "episode_0358482.npz") as frame:
        errors = {quality: compare(frame, CalvinEnvironment("D", quality=quality, block_order="original")) for quality in QUALITIES}
    assert errors["faithful"]["rgb_static"] <= 6.0
    assert errors["faithful"]["rgb_gripper"] <= 5.5
    assert errors["no_shadows"]["rgb_static"] <= 11.0
    assert errors["no_shadows"]["rgb_gripper"] <= 11.0


def test_visual_meshes_are_closed_and_face_outwards():
    model = compile_scene("D").model
    for i in range(model.nmesh):
        if model.mesh(i).name in ("floor", "base_grooves"):  # flat
            continue
        points = model.mesh_vert[model.mesh_vertadr[i] :][: model.mesh_vertnum[i]].astype(np.float64)
        faces = model.mesh_face[model.mesh_faceadr[i] :][: model.mesh_facenum[i]]
        corners = points[faces]
        volume = np.einsum("ti,ti->t", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
        assert volume > 1e-7, model.mesh(i).name
        _, index = np.unique(np.round(points * 1e5).astype(int), axis=0, return_inverse=True)
        a, b = index.ravel()[faces], index.ravel()[np.roll(faces, -1, 1)]
        edges = set(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)) - {(k, k) for k in range(len(points))}
        assert all((end, start) in edges for start, end in edges), model.mesh(i).name


def test_what_is_drawn_takes_no_part_in_the_physics():
    model = compile_scene("D").model
    drawn = np.flatnonzero(model.geom_group == 0)
    assert len(drawn) > 30
    assert not model.geom_contype[drawn].any()
    assert not model.geom_conaffinity[drawn].any()
    assert not np.isin(drawn, [model.pair_geom1, model.pair_geom2]).any()


@pytest.mark.parametrize("scene", sorted(SCENES))
def test_patch_colours_in_faithful_quality(env: CalvinEnvironment, scene: str):
    table = SCENES[scene]
    closed, opened = image(env, scene), image(env, scene, drawer=0.22)
    inclined = (0.42, 0.10, 0.5785) if scene in "AD" else (0.41, 0.06, 0.5093)  # clear of switch, door and robot
    got = {
        "top": patch(closed, (0.36, -0.05, 0.44)),
        "front": patch(closed, (0.36, -0.18, 0.42)),
        "drawer_front": patch(closed, (table.drawer_x + 0.17, -0.18, 0.35)),
        "inclined": patch(closed, inclined),
        "drawer_floor": patch(opened, (table.drawer_x + 0.08, -0.28, 0.34)),
    }
    for name, colour in PATCHES[scene].items():
        assert np.abs(got[name] - colour).max() <= 20, (name, got[name], colour)


def test_lights_change_colour_and_models_are_not_mixed_up(env: CalvinEnvironment):
    other = CalvinEnvironment("D", quality="faithful", blocks=False)
    led, bulb = (-0.12, 0.155, 0.6638), (0.3, 0.14, 0.669)
    dark = image(env, "D")
    lit = image(other, "D", bulb=1, led=1, switch=0.088)
    dark_again = env.observation()["rgb_static"].astype(np.float64)
    np.testing.assert_array_equal(dark, dark_again)  # the two share a compiled scene
    assert (patch(lit, led)[[0, 2]] < 30).all()
    assert patch(lit, led)[1] > 200
    assert patch(lit, bulb)[2] < 30
    np.testing.assert_allclose(patch(lit, bulb)[:2], 211, atol=25)
    np.testing.assert_allclose(patch(dark, bulb), 211, atol=25)
    np.testing.assert_allclose(patch(dark, led), 254, atol=10)


def test_only_the_faithful_quality_has_shadows(env: CalvinEnvironment):
    bright = CalvinEnvironment("D", quality="no_shadows", blocks=False)
    point = (0.03, -0.155, 0.44)  # under the hand
    in_shadow, without = patch(image(env, "D"), point), patch(image(bright, "D"), point)
    assert (without - in_shadow).min() > 4
    np.testing.assert_allclose(patch(image(bright, "D"), (0.36, -0.05, 0.44)), patch(image(env, "D"), (0.36, -0.05, 0.44)), atol=2)


def test_sizes_and_determinism():
    env = CalvinEnvironment("A", static_size=96, gripper_size=64)
    first = env.reset(task="open_drawer", seed=1).observation
    assert first["rgb_static"].shape == (96, 96, 3)
    assert first["rgb_gripper"].shape == (64, 64, 3)
    again = env.observation()
    for name in ("rgb_static", "rgb_gripper"):
        np.testing.assert_array_equal(first[name], again[name])
        assert first[name] is not again[name]
    with pytest.raises(ValueError, match="image size"):
        CalvinEnvironment("A", static_size=4096).reset(task="open_drawer", seed=0)


def test_wood_has_the_tabulated_mean():
    for wood in WOODS.values():
        texture = wood_texture(wood)
        assert texture.dtype == np.uint8
        np.testing.assert_allclose(texture.reshape(-1, 3).mean(0), wood.rgb, atol=3)
    np.testing.assert_array_equal(wood_texture(WOODS["dark"], seed=3), wood_texture(WOODS["dark"], seed=3))


def test_missing_graphics_say_what_to_install():
    code = (
        "from eval.envs.registry import make_environment; e = make_environment('calvin_mujoco');"
        "e.reset(task='open_drawer', seed=0, render=False); e.observation()"
    )
    cases = (
        ({"MUJOCO_GL": "glfw"}, "only 'egl' and 'osmesa'"),
        ({"MUJOCO_GL": "disable"}, "set MUJOCO_GL=egl"),
        ({"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "glx"}, "unset PYOPENGL_PLATFORM"),
        ({"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "77"}, "set MUJOCO_EGL_DEVICE_ID to the number of a device that exists"),
    )
    for variables, message in cases:
        clean = {name: value for name, value in os.environ.items() if name not in ("PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID")}
        done = subprocess.run([sys.executable, "-c", code], env=clean | variables, capture_output=True, text=True, timeout=120)
        assert done.returncode != 0
        assert message in done.stderr
        assert "apt-get" not in done.stderr


@pytest.mark.parametrize(
    ("backend", "error", "advice"),
    [
        ("egl", AttributeError("'NoneType' object has no attribute 'eglQueryString'"), "libegl1 libgl1"),
        ("egl", ValueError("invalid literal for int() with base 10: 'cuda:0'"), "set MUJOCO_EGL_DEVICE_ID"),
        ("egl", RuntimeError("The MUJOCO_EGL_DEVICE_ID environment variable must be an integer between 0 and 0"), "or unset it"),
        ("egl", ImportError("Cannot initialize a EGL device display. This likely means that"), "no device answers"),
        ("egl", RuntimeError("EGL_BAD_ALLOC"), "NVIDIA_DRIVER_CAPABILITIES=all"),
        ("osmesa", AttributeError("'NoneType' object has no attribute 'glGetError'"), "libosmesa6"),
        ("osmesa", ImportError("The PYOPENGL_PLATFORM environment variable is set to 'egl'"), "unset PYOPENGL_PLATFORM"),
        ("osmesa", RuntimeError("Failed to create GL context"), "makes no context"),
    ],
)
def test_advice_fits_the_cause(backend, error, advice):
    assert advice in why_not(backend, error)


def test_depth_in_metres():
    """Ranges measured in the original's neutral scene D (which has blocks; they do not change the extremes)."""
    env = CalvinEnvironment("D", depth=True, blocks=False)
    env.reset(task="open_drawer", seed=0, robot_obs=NEUTRAL, scene_obs=np.zeros(24), render=False)
    observation = env.observation()
    assert set(env.observation_spec()) == set(observation)
    static, gripper = observation["depth_static"], observation["depth_gripper"]
    assert (static.shape, static.dtype, gripper.shape) == ((200, 200), np.float32, (84, 84))
    np.testing.assert_allclose([static.min(), static.max()], [3.76, 6.21], rtol=0.03)
    np.testing.assert_allclose(gripper.max(), 0.789, rtol=0.05)
    point = np.array([0.36, -0.05, 0.44])  # free table: along the camera's axis
    u, v = np.round(project_static(point[None])[0] - 0.5).astype(int)
    np.testing.assert_allclose(static[v, u], (point - STATIC_EYE) @ static_axes()[2], atol=0.01)
