"""Low-polygon visual meshes built from primitives, with flat or smooth normals and planar texture coordinates.

One mesh per link instead of one geom per primitive: the software rasteriser pays per draw call, and planar coordinates in metres give all
wooden parts the same grain. These meshes are only looked at; contacts use MuJoCo's own primitives.
"""

import itertools
from collections.abc import Sequence

import mujoco
import numpy as np
from jaxtyping import Float

TEXTURE_METRES = 0.5  # edge of the square of wood one texture image covers


class MeshBuilder:
    """Collects triangles in a link's frame [m]; `add_to` writes them into an MjSpec."""

    def __init__(self) -> None:
        self._points: list[np.ndarray] = []
        self._normals: list[np.ndarray] = []
        self._coordinates: list[np.ndarray] = []

    def polygon(self, points: Float[np.ndarray, "k 3"], normals: Float[np.ndarray, "k 3"] | None = None) -> "MeshBuilder":
        """A convex polygon, counter-clockwise seen from outside; flat unless per-vertex `normals` are given."""
        flat = np.cross(points[1] - points[0], points[2] - points[0])
        flat = flat / max(float(np.linalg.norm(flat)), 1e-12)
        normals = np.broadcast_to(flat, points.shape) if normals is None else normals
        axis = int(np.argmax(np.abs(flat)))
        planar = points[:, {0: [1, 2], 1: [0, 2], 2: [0, 1]}[axis]] / TEXTURE_METRES
        for i in range(1, len(points) - 1):
            corner = [0, i, i + 1]
            self._points.append(points[corner])
            self._normals.append(normals[corner])
            self._coordinates.append(planar[corner])
        return self

    def hexahedron(self, bottom: Float[np.ndarray, "4 3"], top: Float[np.ndarray, "4 3"]) -> "MeshBuilder":
        """Six quads between two counter-clockwise (seen from `top`'s outside) quadrilaterals."""
        self.polygon(top).polygon(bottom[::-1])
        for i in range(4):
            j = (i + 1) % 4
            self.polygon(np.array([bottom[i], bottom[j], top[j], top[i]]))
        return self

    def box(self, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]) -> "MeshBuilder":
        """An axis-aligned box given by its three ranges."""
        corners = [(x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1])]
        return self.hexahedron(*(np.array([(*corner, level) for corner in corners], np.float64) for level in z))

    def frustum(
        self, lower: tuple[float, float], upper: tuple[float, float], z: tuple[float, float], shift: tuple[float, float] = (0.0, 0.0)
    ) -> "MeshBuilder":
        """Box whose half widths (x, y) change from `lower` at z[0] to `upper` at z[1]; the upper centre moves by `shift`."""
        signs = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
        return self.hexahedron(
            np.array([(s * lower[0], t * lower[1], z[0]) for s, t in signs], np.float64),
            np.array([(shift[0] + s * upper[0], shift[1] + t * upper[1], z[1]) for s, t in signs], np.float64),
        )

    def prism(self, section: list[tuple[float, float]], x: tuple[float, float]) -> "MeshBuilder":
        """A convex (y, z) section, counter-clockwise seen from +x, swept over the range `x`."""
        near = np.array([(x[0], *p) for p in section])
        far = np.array([(x[1], *p) for p in section])
        self.polygon(far).polygon(near[::-1])
        for i in range(len(section)):
            j = (i + 1) % len(section)
            self.polygon(np.array([near[i], near[j], far[j], far[i]]))
        return self

    def tube(
        self,
        start: Sequence[float],
        end: Sequence[float],
        radius: float,
        end_radius: float | None = None,
        *,
        slices: int = 10,
        caps: bool = True,
        round_ends: int = 0,
        inner: float | None = None,
    ) -> "MeshBuilder":
        """Cylinder or cone between two points; `round_ends` > 0 rings make half-sphere ends, `inner` makes a ring with a hole."""
        first, last = np.asarray(start, np.float64), np.asarray(end, np.float64)
        end_radius = radius if end_radius is None else end_radius
        axis = (last - first) / np.linalg.norm(last - first)
        side = np.cross(axis, [1.0, 0.0, 0.0] if abs(axis[0]) < 0.9 else [0.0, 1.0, 0.0])
        side = side / np.linalg.norm(side)
        angles = 2 * np.pi * np.arange(slices + 1) / slices
        around = np.outer(np.cos(angles), side) + np.outer(np.sin(angles), np.cross(axis, side))
        # profile: (centre, radius, normal along the axis, normal across)
        profile = [(first, radius, 0.0, 1.0), (last, end_radius, 0.0, 1.0)]
        if round_ends:
            lift = [0.5 * np.pi * i / round_ends for i in range(1, round_ends + 1)]
            head = [(first - radius * np.sin(a) * axis, radius * np.cos(a), -np.sin(a), np.cos(a)) for a in reversed(lift)]
            tail = [(last + end_radius * np.sin(a) * axis, end_radius * np.cos(a), np.sin(a), np.cos(a)) for a in lift]
            profile = head + profile + tail
        self._revolve(profile, axis, around)
        if inner is not None:
            self._revolve([(last, inner, 0.0, -1.0), (first, inner, 0.0, -1.0)], axis, around)
            for centre, r, sign in ((first, radius, -1.0), (last, end_radius, 1.0)):
                rim = [(centre, r, sign, 0.0), (centre, inner, sign, 0.0)]
                self._revolve(rim if sign > 0 else rim[::-1], axis, around)
        elif caps and not round_ends:
            self.polygon((first + radius * around[:-1])[::-1]).polygon(last + end_radius * around[:-1])
        return self

    def _revolve(self, profile: list, axis: np.ndarray, around: np.ndarray) -> None:
        for (c0, r0, a0, b0), (c1, r1, a1, b1) in itertools.pairwise(profile):
            for i in range(len(around) - 1):
                u, v = around[i], around[i + 1]
                quad = [c0 + r0 * u, c0 + r0 * v, c1 + r1 * v, c1 + r1 * u]
                normals = [a0 * axis + b0 * u, a0 * axis + b0 * v, a1 * axis + b1 * v, a1 * axis + b1 * u]
                if r0 < 1e-9:  # a pole: its first edge has no length
                    quad, normals = quad[1:], normals[1:]
                elif r1 < 1e-9:
                    quad, normals = quad[:3], normals[:3]
                self.polygon(np.array(quad), np.array(normals))

    def add_to(
        self, spec: mujoco.MjSpec, body: mujoco.MjsBody, name: str, *, material: str, rgba: tuple[float, ...] = (1, 1, 1, 1)
    ) -> None:
        """Adds the mesh to `spec` and a visual geom of it, called `name`, to `body`."""
        points = np.concatenate(self._points)
        mesh = spec.add_mesh(name=name)
        mesh.uservert = points.ravel().tolist()
        mesh.usernormal = np.concatenate(self._normals).ravel().tolist()
        mesh.usertexcoord = np.concatenate(self._coordinates).ravel().tolist()
        mesh.userface = np.arange(len(points)).tolist()
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
        body.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_MESH,
            meshname=name,
            material=material,
            rgba=rgba,
            contype=0,
            conaffinity=0,
            group=0,
            mass=0.0,
        )
