"""Off-screen rendering with MuJoCo's classic renderer: one OpenGL context per process, one set of buffers per compiled scene.

The context is made when the first image is asked for, so that environments without images need no graphics library. MUJOCO_GL chooses the
backend ('egl' or 'osmesa'); unset, EGL is tried first, then OSMesa.
"""

import functools
import importlib
import math
import os
import re
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float, UInt8

from eval.envs.calvin_mujoco.cameras import FAR
from eval.envs.calvin_mujoco.limits import MAX_IMAGE, MIN_IMAGE
from eval.envs.calvin_mujoco.model import SceneModel

# Pattern of (backend: error) -> what helps; the first one that is found counts.
ADVICE = (
    (r"MUJOCO_EGL_DEVICE_ID|^egl: ValueError", "set MUJOCO_EGL_DEVICE_ID to the number of a device that exists, or unset it"),
    (r"PYOPENGL_PLATFORM", "unset PYOPENGL_PLATFORM, which chooses another platform than MUJOCO_GL does"),
    (
        r"^egl:.*(display|context|EGL_|GLError)",
        "EGL is installed, but no device answers: the GPU driver's EGL libraries are missing (in a container set "
        "NVIDIA_DRIVER_CAPABILITIES=all), or /dev/dri may not be read; without a GPU: apt-get install -y libegl-mesa0 libgl1-mesa-dri",
    ),
    (r"^osmesa:.*(context|OSMESA_)", "OSMesa is installed, but makes no context: use MUJOCO_GL=egl"),
    (r"^egl:", "install the libraries: apt-get install -y --no-install-recommends libegl1 libgl1"),
    (r"^osmesa:", "install the library: apt-get install -y --no-install-recommends libosmesa6, or use MUJOCO_GL=egl"),
)


class RenderingUnavailable(RuntimeError):
    """No usable OpenGL library on this machine."""


@functools.lru_cache(maxsize=1)
def graphics_context() -> tuple[Any, str]:
    """The process's OpenGL context (made current) and its backend's name.

    Sets LP_NUM_THREADS=0 unless it is set: Mesa's software rasteriser then stays on the calling thread, as suits one simulator process per
    core.

    Raises:
      RenderingUnavailable: neither EGL nor OSMesa works here.
    """
    os.environ.setdefault("LP_NUM_THREADS", "0")
    asked = os.environ.get("MUJOCO_GL", "").lower()
    if asked in ("disable", "disabled", "off", "false", "0"):
        raise RenderingUnavailable(f"MUJOCO_GL={asked} forbids rendering; set MUJOCO_GL=egl")
    if asked not in ("", "egl", "osmesa"):
        raise RenderingUnavailable(f"MUJOCO_GL={asked}: only 'egl' and 'osmesa' render without a screen")
    failures = []
    for backend in [asked] if asked else ["egl", "osmesa"]:
        platform = os.environ.get("PYOPENGL_PLATFORM")
        try:
            context = importlib.import_module(f"mujoco.{backend}").GLContext(MAX_IMAGE, MAX_IMAGE)
            context.make_current()
            return context, backend
        except Exception as error:  # a missing library shows as ImportError, AttributeError, RuntimeError or a GL error, by backend
            failures.append(why_not(backend, error))
            os.environ.pop("PYOPENGL_PLATFORM", None) if platform is None else os.environ.update(PYOPENGL_PLATFORM=platform)
    raise RenderingUnavailable(f"cannot render without a screen. {'. '.join(failures)}")


def why_not(backend: str, error: Exception) -> str:
    """What failed, and what helps against it."""
    reason = f"{backend}: {type(error).__name__}: {' '.join(str(error).split())}"
    return f"{reason.removesuffix('.')}; {next(advice for pattern, advice in ADVICE if re.search(pattern, reason))}"


def renderer_name() -> str:
    """What draws the images: backend and OpenGL renderer string, e.g. 'egl, llvmpipe (LLVM 15.0.6, 256 bits)'."""
    _, backend = graphics_context()
    gl = importlib.import_module("OpenGL.GL")
    return f"{backend}, {gl.glGetString(gl.GL_RENDERER).decode()}"


class SceneRenderer:
    """Draws one compiled scene; shared by all environments of the process that use it (see `scene_renderer`)."""

    def __init__(self, compiled: SceneModel) -> None:
        graphics_context()
        self.compiled, self.model = compiled, compiled.model
        self._context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_50)
        self._scene = mujoco.MjvScene(self.model, maxgeom=200)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = (1, 0, 0, 0, 0, 0)
        self._option.sitegroup[:] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
        self._scene.flags[:] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_CULL_FACE] = 1
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = int(compiled.quality == "faithful")
        self._flipped: dict[int, np.ndarray] = {}

    def prepare(self, data: mujoco.MjData, bulb: bool, led: bool) -> None:
        """Takes over the state to draw: positions, and the colours of the two lights."""
        self.model.geom_rgba[self.compiled.bulb_geom] = (1.0, 1.0, 0.0, 1.0) if bulb else (1.0, 1.0, 1.0, 1.0)
        self.model.geom_rgba[self.compiled.led_geom] = (0.0, 1.0, 0.0, 1.0) if led else (1.0, 1.0, 1.0, 1.0)
        mujoco.mjv_updateScene(self.model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene)

    def draw(self, data: mujoco.MjData, camera: str, size: int) -> UInt8[np.ndarray, "size size 3"]:
        """One square image of the prepared state."""
        rectangle = self._render(data, camera, size)
        image = self._flipped.setdefault(size, np.empty((size, size, 3), np.uint8))
        mujoco.mjr_readPixels(image, None, rectangle, self._context)
        return np.ascontiguousarray(image[::-1])  # OpenGL's rows start at the bottom

    def depth(self, data: mujoco.MjData, camera: str, size: int) -> Float[np.ndarray, "size size"]:
        """Distance along the camera's axis [m], float32, at most the original's far plane of that camera."""
        rectangle = self._render(data, camera, size)
        z = np.empty((size, size), np.float32)
        mujoco.mjr_readPixels(None, z, rectangle, self._context)
        extent, clip = self.model.stat.extent, self.model.vis.map
        near, far = clip.znear * extent, clip.zfar * extent
        return np.minimum(near / (1.0 - z[::-1].astype(np.float64) * (1.0 - near / far)), FAR[camera]).astype(np.float32)

    def _render(self, data: mujoco.MjData, camera: str, size: int) -> mujoco.MjrRect:
        if not MIN_IMAGE <= size <= MAX_IMAGE:
            raise ValueError(f"image size must be {MIN_IMAGE}...{MAX_IMAGE} pixels, not {size}")
        self._camera.fixedcamid = self.model.camera(camera).id
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = int(_sees_sky(self.model, data, self._camera.fixedcamid))
        mujoco.mjv_updateCamera(self.model, data, self._camera, self._scene)
        rectangle = mujoco.MjrRect(0, 0, size, size)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        mujoco.mjr_render(rectangle, self._scene, self._context)
        return rectangle


def _sees_sky(model: mujoco.MjModel, data: mujoco.MjData, camera: int) -> bool:
    """Whether some corner of the image looks above the floor's far edge. The white sky costs as much as half of the table: drawn only when
    seen.
    """
    half = math.tan(math.radians(model.cam_fovy[camera]) / 2)
    x, y, z = data.cam_xmat[camera].reshape(3, 3)[2]  # vertical components of the camera's right, up and backward axes
    return bool(half * (abs(x) + abs(y)) - z > -0.03 * math.sqrt(1 + 2 * half * half))


@functools.lru_cache(maxsize=16)
def scene_renderer(compiled: SceneModel) -> SceneRenderer:
    """The process's renderer of a compiled scene."""
    return SceneRenderer(compiled)
