"""`gs://bucket` without a bucket: an emulator of Google Cloud Storage on this machine, for tests and fault injection."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET = "bucket"
STARTS_WITHIN_S = 60.0


@contextmanager
def emulated_bucket(folder: Path) -> Iterator[str]:
    """Serves the files below `folder` as gs://bucket, to this process and to those that it starts; yields that URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    place = ("--host", "127.0.0.1", "--port", str(port))
    command = [sys.executable, "-m", "gcp_storage_emulator", "-d", str(folder), "start", *place, "--default-bucket", BUCKET, "--quiet"]
    with (folder / "emulator.log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    before = dict(os.environ)
    os.environ |= variables(port)
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not _listens(port):
            assert server.poll() is None, f"the emulator ended with {server.returncode}, see {folder}/emulator.log"
            assert time.monotonic() < deadline, f"the emulator does not answer within {STARTS_WITHIN_S:.0f} s, see {folder}/emulator.log"
            time.sleep(0.05)
        yield f"gs://{BUCKET}"
    finally:
        server.terminate()
        server.wait()
        for name in variables(port):
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]


def variables(port: int) -> dict[str, str]:
    """The environment in which every client talks to the emulator: gcsfs, TensorStore, and JAX and Orbax, which use the two."""
    server = f"http://127.0.0.1:{port}"
    # gcsfs would first ask a gRPC service that the emulator does not have, and wait a minute for it
    return {"STORAGE_EMULATOR_HOST": server, "TENSORSTORE_GCS_HTTP_URL": server, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0
