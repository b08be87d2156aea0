"""`gs://bucket` without a bucket: an emulator of Google Cloud Storage on this machine, for tests and fault injection.

`gcp-storage-emulator` knows no generations, with which TensorStore guards its manifests against concurrent writers; they are added here.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

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
    command = [sys.executable, __file__, "-d", str(folder), "start", *place, "--default-bucket", BUCKET, "--quiet"]
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


def with_generations(handler: Callable) -> Callable:
    """A handler of the emulator that refuses requests whose condition on the object's generation does not hold, and names the new one."""

    def handle(request: Any, response: Any, storage: Any, *rest: Any, **options: Any) -> None:
        bucket = request.params.get("bucket_name")
        name = request.params.get("object_id") or request.query.get("name", [None])[0]

        def generation() -> int:
            return int(storage.objects.get(bucket, {}).get(name, {}).get("generation", 0))

        wanted, unwanted = (request.query.get(condition, [None])[0] for condition in ("ifGenerationMatch", "ifGenerationNotMatch"))
        if wanted is not None and int(wanted) != generation():
            response.status = HTTPStatus.PRECONDITION_FAILED
        elif unwanted is not None and generation() and int(unwanted) == generation():
            response.status = HTTPStatus.NOT_MODIFIED
        else:
            handler(request, response, storage, *rest, **options)
            response["x-goog-generation"] = str(generation())

    return handle


def serve(arguments: list[str]) -> int:
    """The command `gcp-storage-emulator` with generations."""
    from gcp_storage_emulator import __main__, server

    server.HANDLERS = tuple(
        (pattern, {method: with_generations(handler) for method, handler in handlers.items()}) for pattern, handlers in server.HANDLERS
    )
    return __main__.main(arguments)


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1:]))
