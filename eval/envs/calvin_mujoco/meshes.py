"""Low-polygon visual meshes built from few numbers, with normals smoothed across gentle edges and planar texture coordinates.

One mesh per link instead of one geom per primitive: the software rasteriser pays per draw call, and planar coordinates in metres give all
wooden parts the same grain. These meshes are only looked at; contacts use MuJoCo's own primitives.
"""

import itertools
import math
from collections.abc import Sequence

import mujoco
import numpy as np
from jaxtyping import Float

TEXTURE_METRES = 0.5  # edge of the square of wood one texture image covers
CREASE = math.radians(40.0)  # sharper edges stay edges

Range = tuple[float, float]
Ring = Float[np.ndarray, "n 3"]


def oval(axis: str, at: float, first: Range, second: Range, *, power: float = 2.0, lean: float = 0.0, slices: int = 16) -> Ring:
    """An outline across `axis` at height `at`: an ellipse for `power` 2, nearly its bounding rectangle for a high one.

    `first` and `second` are the outline's ranges along the axes that follow `axis` in the order x, y, z, x, y. It is counter-clockwise seen
    from the axis's positive side. `lean` tilts it: the height's change per metre along `first`.
    """
    angle = 2 * np.pi * (np.arange(slices) + 0.5) / slices
    cosine, sine = np.cos(angle), np.sin(angle)
    u = (first[0] + first[1]) / 2 + (first[1] - first[0]) / 2 * np.sign(cosine) * np.abs(cosine) ** (2 / power)
    v = (second[0] + second[1]) / 2 + (second[1] - second[0]) / 2 * np.sign(sine) * np.abs(sine) ** (2 / power)
    points = np.stack([at + lean * (u - (first[0] + first[1]) / 2), u, v], axis=-1)
    return np.roll(points, "xyz".index(axis), axis=-1)


def disc(axis: str, at: float, centre: tuple[float, float], radius: float, *, slices: int = 16) -> Ring:
    """A circle across `axis`; see `oval`."""
    (u, v), r = centre, radius
    return oval(axis, at, (u - r, u + r), (v - r, v + r), slices=slices)


class MeshBuilder:
    """Collects triangles in a link's frame [m], shape by shape; `add_to` writes them into an MjSpec.

    Args:
      texture_metres: edge of the square that one texture image covers.
    """

    def __init__(self, texture_metres: float = TEXTURE_METRES) -> None:
        self._shapes: list[np.ndarray] = []  # [t 3 3]: triangles, corners counter-clockwise seen from outside
        self._texture_metres = texture_metres

    def polygon(self, points: Float[np.ndarray, "k 3"]) -> "MeshBuilder":
        """A convex polygon, counter-clockwise seen from outside."""
        return self._add([points])

    def box(self, x: Range, y: Range, z: Range) -> "MeshBuilder":
        """An axis-aligned box given by its three ranges."""
        corners = [(x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1])]
        return self.loft([np.array([(*corner, level) for corner in corners], np.float64) for level in z])

    def pillow(self, half: Sequence[float]) -> "MeshBuilder":
        """A box around the origin whose faces have a point in the middle of each side and of the face: for shading without creases."""
        faces = []
        for axis, side, u, v in itertools.product(range(3), (-1, 1), (-1, 1), (-1, 1)):
            quarter = np.array([(0, 0), (u, 0), (u, v), (0, v)])  # cut along the diagonal: all quarters alike
            corners = np.roll(np.insert(quarter, 0, side, axis=1), axis, axis=1) * np.asarray(half)
            faces.append(corners if side * u * v > 0 else corners[[0, 3, 2, 1]])
        return self._add(faces)

    def prism(self, section: Sequence[tuple[float, float]], x: Range) -> "MeshBuilder":
        """A convex (y, z) section, counter-clockwise seen from +x, swept over the range `x`."""
        return self.loft([np.array([(level, *p) for p in section], np.float64) for level in x])

    def tube(
        self, start: Sequence[float], end: Sequence[float], radius: float, end_radius: float | None = None, *, slices: int = 12
    ) -> "MeshBuilder":
        """Cylinder or cone between two points."""
        first, last = np.asarray(start, np.float64), np.asarray(end, np.float64)
        axis = (last - first) / np.linalg.norm(last - first)
        side = np.cross(axis, [1.0, 0.0, 0.0] if abs(axis[0]) < 0.9 else [0.0, 1.0, 0.0])
        side = side / np.linalg.norm(side)
        angles = 2 * np.pi * np.arange(slices) / slices
        around = np.outer(np.cos(angles), side) + np.outer(np.sin(angles), np.cross(axis, side))
        return self.loft([first + radius * around, last + (radius if end_radius is None else end_radius) * around])

    def loft(self, rings: Sequence[Ring], *, closed: bool = False) -> "MeshBuilder":
        """The surface through outlines with equally many points, each counter-clockwise seen from the next one's side.

        Its ends are flat, or meet if it is `closed`: a ring with a hole.
        """
        faces = [] if closed else [rings[0][::-1], rings[-1]]
        for low, high in itertools.pairwise([*rings, rings[0]] if closed else rings):
            ahead = np.stack([low, np.roll(low, -1, 0), np.roll(high, -1, 0), high], axis=1)
            faces += list(ahead)
        return self._add(faces)

    def rod(
        self, path: Sequence[tuple[float, float]], half: Sequence[float], across: Range, chamfer: float, plane: tuple[int, int]
    ) -> "MeshBuilder":
        """A rod with chamfered edges along a `path` in a plane, mitred where it bends.

        Args:
          path: points of its middle, in the coordinates `plane`.
          half: half of the thickness in the plane, for every stretch of the path.
          across: its range along the third axis.
          chamfer: what is cut off each edge [m].
          plane: indices of the path's two axes.
        """
        points = np.asarray(path, np.float64)
        heading = np.diff(points, axis=0)
        heading /= np.linalg.norm(heading, axis=1, keepdims=True)
        left = np.stack([-heading[:, 1], heading[:, 0]], axis=1)
        third = 3 - sum(plane)
        rings = []
        for i, point in enumerate(points):
            before, after = max(i - 1, 0), min(i, len(left) - 1)
            lines = np.stack([left[before], left[after]]) if before != after else np.stack([left[after], heading[after]])
            ring = []
            for side, rise in ((-1, 0), (-1, 1), (-1, 2), (-1, 3), (1, 3), (1, 2), (1, 1), (1, 0)):
                inset = chamfer if rise in (0, 3) else 0.0
                offsets = [side * (half[k] - inset) for k in (before, after)] if before != after else [side * (half[after] - inset), 0.0]
                corner = np.zeros(3)
                corner[list(plane)] = point + np.linalg.solve(lines, offsets)
                corner[third] = (across[0], across[0] + chamfer, across[1] - chamfer, across[1])[rise]
                ring.append(corner)
            rings.append(np.array(ring[::-1] if (plane[1] - plane[0]) % 3 == 1 else ring))
        return self.loft(rings)

    def _add(self, faces: Sequence[np.ndarray]) -> "MeshBuilder":
        triangles = np.array([face[[0, i, i + 1]] for face in faces for i in range(1, len(face) - 1)])
        area = np.linalg.norm(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1)
        self._shapes.append(triangles[area > 1e-12])
        return self

    def add_to(
        self,
        spec: mujoco.MjSpec,
        body: mujoco.MjsBody,
        name: str,
        *,
        material: str,
        rgba: tuple[float, ...] = (1, 1, 1, 1),
        crease: float = CREASE,
    ) -> None:
        """Adds the mesh to `spec` and a visual geom of it, called `name`, to `body`. Edges of at most `crease` are smoothed."""
        points = np.concatenate(self._shapes)
        flat = [_face_normals(shape) for shape in self._shapes]
        axis = np.abs(np.concatenate(flat)).argmax(1)
        planar = np.array([[1, 2], [0, 2], [0, 1]])[axis]  # [t 2]: the axes of the plane that faces a triangle most
        coordinates = np.take_along_axis(points, planar[:, None].repeat(3, 1), axis=2) / self._texture_metres
        mesh = spec.add_mesh(name=name)
        mesh.uservert = points.ravel().tolist()
        mesh.usernormal = np.concatenate([_smooth(*pair, crease) for pair in zip(self._shapes, flat, strict=True)]).ravel().tolist()
        mesh.usertexcoord = coordinates.ravel().tolist()
        mesh.userface = np.arange(3 * len(points)).tolist()
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


def _face_normals(triangles: Float[np.ndarray, "t 3 3"]) -> Float[np.ndarray, "t 3"]:
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def _smooth(triangles: Float[np.ndarray, "t 3 3"], flat: Float[np.ndarray, "t 3"], crease: float) -> Float[np.ndarray, "t 3 3"]:
    """Normals of all corners: the mean, weighted by angles, over those faces around a point that are within `crease` of the own face."""
    edges = np.roll(triangles, -1, 1) - triangles
    edges /= np.linalg.norm(edges, axis=2, keepdims=True)
    angles = np.arccos(np.clip(-(edges * np.roll(edges, 1, 1)).sum(2), -1.0, 1.0)).ravel()
    keys = np.round(triangles.reshape(-1, 3) * 1e6).astype(np.int64)
    _, point = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(point.ravel(), kind="stable")
    normals = np.empty((len(keys), 3))
    for corners in np.split(order, np.flatnonzero(np.diff(point.ravel()[order])) + 1):
        around = flat[corners // 3]
        normals[corners] = (around @ around.T >= math.cos(crease)) @ (around * angles[corners, None])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return normals.reshape(-1, 3, 3)
