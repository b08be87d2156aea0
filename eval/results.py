"""Files of a measurement: `results.json`, with one schema for all commands, and an append-only journal.

`results.json` holds schema_version, command, config and its hash, git revision, library versions, device, start, seconds and metrics.
The journal (`episodes.jsonl`) gets one line per finished unit of work, flushed at once, so that an interrupted run resumes from it.
"""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError
from vpp_jax.common import text_files
from vpp_jax.common.files import AppendedFile, write_atomically
from vpp_jax.common.json_values import config_hash, to_jsonable
from vpp_jax.common.provenance import cpu_cores, cpu_model, git_revision, library_versions

SCHEMA_VERSION = 1


def device_description() -> dict[str, Any]:
    """Host processor and memory; the accelerator as JAX names it, if this process has loaded JAX (it is not loaded for this)."""
    description: dict[str, Any] = {
        "cpu": cpu_model(),
        "cpu_cores": cpu_cores(),
        "platform": platform.platform(),
    }
    if hasattr(os, "sysconf"):
        description["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    if "jax" in sys.modules:
        devices = sys.modules["jax"].devices()
        description |= {"backend": devices[0].platform, "accelerator": devices[0].device_kind, "accelerators": len(devices)}
    return description


def write_json(path: Path, value: Any) -> Path:
    """Writes JSON so that `path` never holds half a file."""
    write_atomically(path, json.dumps(to_jsonable(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def read_json(path: Path) -> Any:
    """The value in a JSON file. FileFormatError where it is damaged."""
    return text_files.read_json(path)


def write_results(
    path: Path,
    *,
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    started: float,
    seconds: float,
    command: Sequence[str] | None = None,
    **extra: Any,
) -> Path:
    """Writes `results.json` at `path`.

    `started` is a Unix time, `seconds` what this process took, `command` defaults to this process's own; `extra` entries (say, the
    simulator's versions) stand beside the common ones.
    """
    common = {
        "schema_version": SCHEMA_VERSION,
        "command": list(command if command is not None else sys.argv),
        "config": config,
        "config_hash": config_hash(config),
        "git_revision": git_revision(),
        "versions": library_versions(),
        "device": device_description(),
        "start": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
    }
    clash = common.keys() & extra.keys()
    if clash:
        raise ValueError(f"results.json already has an entry named {', '.join(sorted(clash))}")
    return write_json(path, {**common, **extra, "metrics": metrics})


class Journal:
    """An append-only file of JSON lines. `append` returns after the line was flushed to disk.

    A last line without its newline is incomplete (the process was killed): it is dropped and its work is repeated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            content = path.read_bytes()
            complete = content[: content.rfind(b"\n") + 1]
            for number, line in enumerate(complete.split(b"\n")[:-1], start=1):
                try:
                    self.records.append(json.loads(line))
                except ValueError as error:  # of JSON, or of UTF-8
                    raise EvaluationError(f"{path}, line {number}: not JSON ({error}); move the file away to start over") from error
            if len(complete) < len(content):
                os.truncate(path, len(complete))
        self._file = AppendedFile(path)

    def append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(to_jsonable(record), ensure_ascii=False, allow_nan=False) + "\n"
        self._file.append(line.encode(), sync=True)
        self.records.append(to_jsonable(record))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
