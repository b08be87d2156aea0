"""Heartbeat files: what each process of a run is doing, so that a waiting process can name the ones it is waiting for.

    WORKDIR/heartbeats/00003.json    {"process": 3, "host": ..., "pid": ..., "phase": "step", "step": 1200, "for_s": 0.8, "error": ""}

A thread writes the file every few seconds, also while the process is blocked in a collective. A process stuck in one phase for three
heartbeats reads the other files: it logs, once per phase, which processes it is waiting for, and gives up if one failed or is lost.

The file also keeps a second run out of the directory: a process does not start while the process of its number is alive. One that was
killed cannot say so. On the same machine the system knows; from another one, or another container, its file is watched for two heartbeats.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines import storage
from data_pipelines.storage import Location
from vpp_jax.common.errors import VppError
from vpp_jax.training.phases import PhaseClock

log = logging.getLogger(__name__)

# Heartbeats in one phase before a process logs which processes it is waiting for.
PATIENCE = 3
WAITING, ENDED = ("step", "save", "eval", "start", "compile"), ("done", "failed")
# Heartbeats within which a process that is alive writes its file, its delays included.
WATCHED = 2.5


class OccupiedError(VppError):
    """A work directory in which another run is alive."""


def process_identity(pid: int | str = "self") -> dict[str, str]:
    """What tells a process of this machine from every other one, also from one with its number: {} where the system does not say.

    pids: the name space of process numbers; each container has its own, in which it is process 1.
    """
    try:
        # after the name of the program, which is in brackets and may contain spaces, the start time is field 20
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot": boot, "pids": os.readlink("/proc/self/ns/pid"), "started": started}
    except OSError:
        return {}


@dataclass(frozen=True)
class Peer:
    """Another process according to its file. silent_s: age of its file relative to ours, both by the file system's clock."""

    process: int
    phase: str = "not seen yet"
    step: int = 0
    for_s: float = 0.0
    silent_s: float = 0.0
    host: str = ""
    error: str = ""

    def __str__(self) -> str:
        if not self.host:
            return f"process {self.process} has not been seen yet"
        where = f"process {self.process} on {self.host}: {self.phase}, step {self.step}"
        if self.error:
            return f"{where}: {self.error}"
        return where + (f", silent for {self.silent_s:.0f} s" if self.silent_s > 5 else f", for {self.for_s:.0f} s")


class Heartbeat:
    """Context manager; `enter(phase, step)` announces the next phase, and `phases` adds up the time in each.

    OccupiedError where the process of this number is alive already.

    Args:
      folder: a path or a URL.
      every_s: seconds between heartbeats.
      lost_after_s: seconds without a heartbeat after which a process counts as lost.
      give_up: called from the thread with a message when another process failed or is lost; meant to end this one.
    """

    def __init__(
        self, folder: Location, process: int, count: int, every_s: float, lost_after_s: float, give_up: Callable[[str], Any] = log.error
    ):
        self._folder, self._process, self._count = storage.location(folder), process, count
        self._every_s, self._lost_after_s, self._give_up = every_s, lost_after_s, give_up
        self.phases, self._step, self._error = PhaseClock(), 0, ""
        self._reported, self._suspects, self._begun = "", set(), time.time()
        self._ended, self._writing = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._require_alone()
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._ended.set()
        self._thread.join()
        self.phases.enter("failed" if error else "done")
        self._error = str(error or "")
        self._try_beat()

    def enter(self, phase: str, step: int | None = None) -> None:
        """This process starts `phase`, one of `PHASES`."""
        self.phases.enter(phase)
        self._step = self._step if step is None else step

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """`phase` inside the block, the previous phase after it."""
        before = self.phases.phase
        self.enter(phase)
        yield
        self.enter(before)

    def peers(self) -> list[Peer]:
        """The other processes according to their files; files from before this process started are ignored."""
        try:
            files = storage.list_files(self._folder)
        except (OSError, ValueError):  # ours is written again before they are needed
            files = {}
        own = files.get(self._name(self._process))
        ours, oldest = own.modified_s if own else time.time(), self._begun - self._lost_after_s
        found = []
        for process in range(self._count):
            if process == self._process:
                continue
            try:
                dated, entry = files[self._name(process)].modified_s, json.loads(storage.read(self._path(process)))
            except (KeyError, OSError, ValueError):
                dated, entry = 0.0, {}
            if dated < oldest or (entry["phase"] in ENDED and dated < self._begun):
                found.append(Peer(process))
            else:
                known = {name: entry[name] for name in ("phase", "step", "for_s", "host", "error")}
                found.append(Peer(process, silent_s=ours - dated, **known))
        return found

    def gone(self) -> list[Peer]:
        """Processes that failed or stopped their heartbeat. Waits for a few heartbeats: one that was just killed still looks alive."""
        deadline = time.monotonic() + (PATIENCE + 1) * self._every_s
        while True:
            self._try_beat()
            found = [peer for peer in self.peers() if peer.host and (peer.phase == "failed" or self._misses(peer))]
            if found or time.monotonic() > deadline:
                return found
            time.sleep(self._every_s / 10)

    def fail(self, error: str) -> None:
        """Publishes why this process ends, and waits until the others have read it: their exit may depend on ours."""
        self.phases.enter("failed")
        self._error = error
        deadline = time.monotonic() + 2 * PATIENCE * self._every_s
        self._try_beat()
        while time.monotonic() < deadline and any(peer.phase not in ENDED and not self._misses(peer) for peer in self.peers()):
            time.sleep(self._every_s / 10)

    def _misses(self, peer: Peer) -> bool:
        return peer.silent_s > PATIENCE * self._every_s

    def _require_alone(self) -> None:
        path = self._path(self._process)
        try:
            seen, file = json.loads(storage.read(path)), storage.file_info(path)
        except (FileNotFoundError, ValueError):
            return
        if seen["phase"] in ENDED or time.time() - file.modified_s > self._lost_after_s:
            return
        known = process_identity()
        if known and all(seen.get(name) == known[name] for name in ("boot", "pids")):
            alive = seen["pid"] != os.getpid() and process_identity(seen["pid"]).get("started") == seen["started"]
        else:
            alive = self._is_written_again(path, file, WATCHED * seen.get("every_s", self._every_s))
        if alive:
            raise OccupiedError(
                f"another run is alive in {storage.parent(self._folder)}: process {seen['process']} on {seen['host']} (process number "
                f"{seen['pid']}) is in phase {seen['phase']}, step {seen['step']}. Wait for it, stop it, or use another --workdir"
            )

    def _is_written_again(self, path: Location, before: storage.FileInfo, within_s: float) -> bool:
        log.info("%s is of a process elsewhere: watching it for %.0f s", path, within_s)
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            time.sleep(min(1.0, within_s / 10))
            if storage.file_info(path) != before:
                return True
        return False

    def _name(self, process: int) -> str:
        return f"{process:05d}.json"

    def _path(self, process: int) -> Location:
        return storage.join(self._folder, self._name(process))

    def _beat(self) -> None:
        entry = {
            "process": self._process,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "phase": self.phases.phase,
            "step": self._step,
            "for_s": round(self.phases.for_s, 1),
            "error": self._error,
            "every_s": self._every_s,
            **process_identity(),
        }
        with self._writing:
            storage.write(self._path(self._process), json.dumps(entry).encode())

    def _try_beat(self) -> None:
        """A heartbeat that cannot be written is no reason to end a run: the next one may be."""
        try:
            self._beat()
        except OSError as error:
            log.warning("no heartbeat: %s", error)

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self._try_beat()
            if self._count > 1 and self.phases.phase in WAITING and self.phases.for_s > PATIENCE * self._every_s:
                self._report_waiting()

    def _report_waiting(self) -> None:
        peers, phase = self.peers(), self.phases.phase
        here = f"process {self._process} is in phase {phase}, step {self._step}, for {self.phases.for_s:.0f} s"
        silent = {peer.process for peer in peers if peer.host and peer.silent_s > self._lost_after_s}
        lost = [peer for peer in peers if peer.phase == "failed" or peer.process in silent & self._suspects]
        self._suspects = silent  # twice in a row: after a suspension of the machines the first look finds every process silent
        if lost:
            self._give_up(f"{here} and gives up: {'; '.join(map(str, lost))}")
        elsewhere = [peer for peer in peers if (peer.phase, peer.step) != (phase, self._step) or peer.silent_s > 2 * self._every_s]
        reported = f"{phase} {self._step} {[(peer.process, peer.phase) for peer in elsewhere]}"
        if elsewhere and reported != self._reported:
            self._reported = reported
            shown = "; ".join(map(str, elsewhere[:8])) + (f"; and {len(elsewhere) - 8} more" if len(elsewhere) > 8 else "")
            log.warning("%s, waiting for: %s", here, shown)
