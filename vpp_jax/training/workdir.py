"""The directory of a run, on a file system or in a bucket.

An object in a bucket cannot be appended to. A run there writes its files (metrics.jsonl, runs.jsonl, train.log, TensorBoard events,
previews, ...) into a temporary local directory, and uploads those that changed at each log entry and before each checkpoint; a run that
resumes fetches them first. Checkpoints, heartbeats and compiled programs are written to the bucket directly.
"""

import logging
import shutil
import tempfile
from pathlib import Path

from data_pipelines import storage
from data_pipelines.storage import Location
from vpp_jax.common.errors import VppError
from vpp_jax.common.files import write_atomically

log = logging.getLogger(__name__)

SCHEME = "gs://"  # Orbax commits checkpoints without renaming on gs:// only
PARTIAL = ".tmp"  # what `write_atomically` has not completed


class WorkdirError(VppError):
    """A place that cannot hold a run."""


class Workdir:
    """`place` is where a run is; `local`, the same unless that is in a bucket, is where process 0 writes its files.

    WorkdirError, or an error of the bucket, if nothing can be written there.
    """

    def __init__(self, place: Location):
        self.place, self._uploaded = storage.location(place), {}
        if isinstance(self.place, Path):
            self.local = self.place
            self.local.mkdir(parents=True, exist_ok=True)
            return
        if not self.place.startswith(SCHEME) or "/" not in self.place.removeprefix(SCHEME):
            raise WorkdirError(f"{place} cannot hold a run: expected a local path, or a folder in a bucket, {SCHEME}BUCKET/RUN")
        self.local = Path(tempfile.mkdtemp(prefix="vpp-"))
        self._fetch(self.place)

    def __str__(self) -> str:
        return str(self.place)

    @property
    def in_bucket(self) -> bool:
        return not isinstance(self.place, Path)

    @property
    def name(self) -> str:
        return storage.name_of(self.place)

    @property
    def heartbeats(self) -> Location:
        return storage.join(self.place, "heartbeats")

    @property
    def checkpoints(self) -> Location:
        return storage.join(self.place, "checkpoints")

    @property
    def beside(self) -> Location:
        """The directory that contains this one, and perhaps other runs."""
        return self.place.resolve().parent if isinstance(self.place, Path) else storage.parent(self.place)

    def _fetch(self, place: str) -> None:
        """The files directly in the directory: those that a resumed run reads or appends to."""
        try:
            names = list(storage.list_files(place))
        except FileNotFoundError:
            return
        for name in filter(None, names):
            write_atomically(self.local / name, storage.read(storage.join(place, name)))
        self._uploaded = self._versions()

    def upload(self) -> None:
        """Uploads the files that changed since the last call; does nothing on a file system. OSError if that fails."""
        if not self.in_bucket:
            return
        for path, version in self._versions().items():
            if self._uploaded.get(path) != version:
                storage.write(storage.join(self.place, *path.relative_to(self.local).parts), path.read_bytes())
                self._uploaded[path] = version

    def try_upload(self) -> None:
        """`upload`, but a failure is only logged: the next call makes up for it."""
        try:
            self.upload()
        except OSError as error:
            log.warning("not uploaded: %s", error)

    def _versions(self) -> dict[Path, tuple[int, int]]:
        files = [path for path in sorted(self.local.rglob("*")) if path.is_file() and path.suffix != PARTIAL]
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}

    def close(self) -> None:
        """A last upload; the temporary directory is deleted if that succeeds."""
        if self.in_bucket and self.local.exists():
            try:
                self.upload()
            except OSError as error:
                log.error("%s; what was not uploaded is in %s", error, self.local)
            else:
                shutil.rmtree(self.local, ignore_errors=True)
