"""The evaluator's side of a simulator process: starts it, sends one request at a time, detects when it dies or hangs."""

import contextlib
import fcntl
import json
import os
import selectors
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.errors import WorkerFailure
from eval.worker.vpp_worker.protocol import PROTOCOL_VERSION, FrameBuffer, ProtocolError, pack

_WORKER = Path(__file__).resolve().with_name("worker")
_PROJECT = _WORKER.parents[1]
_PIPE_BYTES = 1 << 20  # one observation fits
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}  # simulators scale over processes
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ, Linux only


@dataclass(frozen=True)
class WorkerCommand:
    """How to start a worker.

    Attributes:
      environment: name in `eval.envs.registry`, or module:Class.
      kwargs: of the environment.
      expert: name in `eval.experts.registry`, or module:function; '': the registered expert of the environment.
      python: interpreter. A different one than this process's sees its own packages only: it inherits neither PYTHONPATH nor PYTHONHOME.
      variables: environment variables in addition to this process's own.
      own_experts: whether another interpreter can import this project's experts: it has jaxtyping.
    """

    environment: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    expert: str = ""
    python: str = sys.executable
    variables: Mapping[str, str] = field(default_factory=dict)
    own_experts: bool = False

    def arguments(self) -> list[str]:
        chosen = ["--environment", self.environment, "--kwargs", json.dumps(dict(self.kwargs)), "--expert", self.expert]
        if self._own_interpreter():  # may be of a checkout that is not installed; at the end of the path it shadows nothing
            chosen += ["--path", str(_PROJECT)]
        elif self.own_experts:
            chosen += ["--package", str(_WORKER.parent)]
        return [self.python, str(_WORKER), *chosen]

    def process_environment(self) -> dict[str, str]:
        inherited = dict(os.environ)
        if not self._own_interpreter():
            for name in ("PYTHONPATH", "PYTHONHOME"):
                inherited.pop(name, None)
        return {**_ONE_THREAD, **inherited, **self.variables}

    def _own_interpreter(self) -> bool:
        """Links are not followed: those of virtual environments lead to the same interpreter."""
        return os.path.abspath(shutil.which(self.python) or self.python) == os.path.abspath(sys.executable)


class WorkerProcess:
    """One worker. After `send`, `receive` returns None until the answer is complete; at most one request is pending."""

    def __init__(self, command: WorkerCommand, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        self._buffer = FrameBuffer()
        self._deadline: float | None = None
        self._request = ""
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command.arguments(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=command.process_environment()
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._arrived, self._wake = os.pipe()  # readable while something has arrived
        os.set_blocking(self._arrived, False)
        os.set_blocking(self._wake, False)
        self._lock, self._closed = threading.Lock(), False
        threading.Thread(target=self._read, name=f"worker-{self._process.pid}", daemon=True).start()
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # above the user's limit: slower only
                fcntl.fcntl(self._stdout.fileno(), _SET_PIPE_SIZE, _PIPE_BYTES)

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._arrived

    @property
    def waiting(self) -> bool:
        return self._deadline is not None

    @property
    def deadline(self) -> float:
        """`time.monotonic()` at which the current request times out; infinity without one."""
        return self._deadline if self._deadline is not None else float("inf")

    def send(self, request: Mapping[str, Any], timeout: float) -> None:
        """Sends a request that must be answered within `timeout` seconds."""
        if self.waiting:
            raise RuntimeError(f"{request['command']} sent while {self._request} is not answered")
        self._request, self._deadline = str(request["command"]), time.monotonic() + timeout
        try:
            self._stdin.write(pack(dict(request)))
            self._stdin.flush()
        except (BrokenPipeError, OSError) as error:
            raise WorkerFailure(self._death()) from error

    def receive(self) -> dict[str, Any] | None:
        """The answer if it has arrived. Raises WorkerFailure on an error answer, on death, and after the deadline."""
        try:
            closed, message = self._next()
        except ProtocolError as error:
            raise WorkerFailure(f"worker {self.pid}: {error}") from error
        if message is None:
            if closed:
                raise WorkerFailure(self._death())
            if time.monotonic() > self.deadline:
                raise WorkerFailure(f"worker {self.pid} did not answer '{self._request}' in time{self._log_tail()}")
            return None
        self._deadline = None
        if "error" in message:
            raise WorkerFailure(f"'{self._request}' failed in the worker: {message['error']}\n{message.get('traceback', '')}".rstrip())
        return message

    def request(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """`send`, then wait for the answer."""
        self.send(request, timeout)
        while True:
            message = self.receive()
            if message is not None:
                return message
            wait_for([self], self.deadline - time.monotonic())

    def kill(self) -> None:
        """Ends the process now; safe to call twice."""
        self._process.kill()
        self._process.wait()
        self._close_pipes()

    def close(self, patience: float = 5.0) -> None:
        """Requests the worker to exit; kills it if it does not."""
        try:
            self._stdin.write(pack({"command": "close"}))
            self._stdin.close()
            self._process.wait(patience)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            pass
        self.kill()

    def _read(self) -> None:
        """The reader thread: takes answers out of the pipe as they come. A worker whose answer is larger than the pipe would otherwise be
        stuck, and past its deadline, while this process runs the policy."""
        descriptor = self._stdout.fileno()
        while True:
            try:
                data = os.read(descriptor, _PIPE_BYTES)
            except OSError:  # the pipe was closed here
                data = b""
            with self._lock:
                self._buffer.feed(data)
                self._closed = not data
                with contextlib.suppress(OSError):  # nobody listens any more
                    os.write(self._wake, b"!")
            if not data:
                self._stdout.close()
                return

    def _next(self) -> tuple[bool, dict[str, Any] | None]:
        """Whether the stream has ended, and the oldest complete answer."""
        with self._lock:
            with contextlib.suppress(BlockingIOError):
                os.read(self._arrived, _PIPE_BYTES)
            return self._closed, self._buffer.next_message()

    def _death(self) -> str:
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return f"worker {self.pid} closed its pipe{self._log_tail()}"
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"worker {self.pid} {how} during '{self._request or 'start'}'{self._log_tail()}"

    def _log_tail(self, limit: int = 2000) -> str:
        try:
            text = self._log.read_bytes()[-limit:].decode("utf-8", "replace").strip()
        except OSError:
            return ""
        return f"\nlast output ({self._log}):\n{text}" if text else ""

    def _close_pipes(self) -> None:
        with self._lock:
            if self._arrived < 0:
                return
            with contextlib.suppress(OSError):
                self._stdin.close()
            for descriptor in (self._arrived, self._wake):
                os.close(descriptor)
            self._arrived = self._wake = -1


def hello(render: bool = False) -> dict[str, Any]:
    """The first request to every worker; with `render` a missing renderer is reported now, not at the first image."""
    return {"command": "hello", "protocol": PROTOCOL_VERSION, "render": render}


def wait_for(workers: Sequence[WorkerProcess], seconds: float) -> None:
    """Returns once one of the workers has something to read, or after `seconds`."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.fileno(), selectors.EVENT_READ)
        selector.select(max(0.0, seconds))
