"""Builds a dataset shard by shard in worker processes; an interrupted build resumes.

A recipe defines the episodes and how to record one. Each worker records the episodes of one shard and writes that file; a shard depends on
its episodes only, so the result does not depend on the number of workers.
"""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, Protocol, runtime_checkable

from data_pipelines import storage
from data_pipelines.builders import writer
from data_pipelines.errors import DataError
from data_pipelines.rlds.schema import Schema
from data_pipelines.rlds.tfrecord import write_records
from data_pipelines.storage import FileInfo, Location

PROGRESS_DIRECTORY, PLAN_FILE, REPORT_FILE = "unfinished", "build_plan.json", "build_report.json"
Progress = Callable[[int, int, str], None]


class Recorded(NamedTuple):
    """The result of one job: records (possibly none), number of attempts, and why the job was skipped, if it was."""

    payloads: tuple[bytes, ...]
    attempts: int
    skipped: tuple[str, ...] = ()


@runtime_checkable
class Recipe(Protocol):
    """Defines a dataset. Sent to worker processes, so it must be picklable."""

    name: str
    version: str
    description: str
    episodes_per_shard: int

    def schema(self) -> Schema: ...
    def settings(self) -> dict[str, Any]:
        """Everything that the written bytes depend on, as JSON."""
        ...

    def metadata(self) -> dict[str, Any]:
        """Content of metadata.json; {} for none."""
        ...

    def jobs(self) -> dict[str, list[Any]]:
        """Split -> episodes to record, in order."""
        ...

    def group(self, job: Any) -> str:
        """Key by which success rates are reported, e.g. the task."""
        ...

    def open(self) -> Any:
        """The resource for recording (a simulator), opened once per shard; has `close()`."""

    def record(self, resource: Any, job: Any) -> Recorded: ...


class Shard(NamedTuple):
    """One file to write."""

    split: str
    file: str
    jobs: tuple[Any, ...]


def plan_shards(recipe: Recipe) -> list[Shard]:
    shards = []
    for split, jobs in recipe.jobs().items():
        parts = [jobs[start : start + recipe.episodes_per_shard] for start in range(0, len(jobs), recipe.episodes_per_shard)]
        names = [writer.shard_name(recipe.name, split, number, len(parts)) for number in range(len(parts))]
        shards += [Shard(split, name, tuple(part)) for name, part in zip(names, parts, strict=True)]
    return shards


def build(recipe: Recipe, directory: Location, workers: int = 1, progress: Progress | None = None) -> dict:
    """Writes the dataset; shards finished by an earlier run of the same recipe are reused. Returns the report (also in REPORT_FILE).

    Args:
      directory: a path or a URL.
      workers: processes; 0 records in this one.
      progress: called with (episodes done, episodes planned, what was just finished).
    Raises:
      DataError: `directory` contains something else or a build with other settings, or a shard is empty.
    """
    directory = storage.location(directory)
    claim(recipe, directory)
    shards = plan_shards(recipe)
    finished = finished_shards(directory, shards)
    total, done = sum(len(shard.jobs) for shard in shards), sum(len(shard.jobs) for shard in shards if shard.file in finished)
    if progress is not None:
        progress(done, total, f"{len(finished)} shard(s) from an earlier run" if finished else "")
    for shard, entry in _run(recipe, [shard for shard in shards if shard.file not in finished], directory, workers):
        finished[shard.file] = entry
        done += len(shard.jobs)
        if progress is not None:
            progress(done, total, shard.file)
    return finish(recipe, directory, shards, finished)


def write_shard(recipe: Recipe, shard: Shard, directory: Location) -> dict:
    """Records the episodes of one shard and writes it; returns its report entry. Runs in a worker process."""
    payloads, attempts, kept, skipped = [], {}, {}, []
    resource = recipe.open()
    try:
        for job in shard.jobs:
            recorded, group = recipe.record(resource, job), recipe.group(job)
            attempts[group] = attempts.get(group, 0) + recorded.attempts
            kept[group] = kept.get(group, 0) + len(recorded.payloads)
            payloads += recorded.payloads
            skipped += recorded.skipped
    finally:
        resource.close()
    if not payloads and not skipped:
        raise DataError(f"{shard.file}: none of {sum(attempts.values())} attempts succeeded ({', '.join(sorted(attempts))})")
    return save_shard(shard, directory, payloads, attempts, kept, skipped)


def save_shard(
    shard: Shard, directory: Location, payloads: Sequence[bytes], attempts: dict[str, int], kept: dict[str, int], skipped: Sequence[str]
) -> dict:
    """Writes the file of a shard and then its report entry; returns the entry."""
    size = write_records(storage.join(directory, shard.file), payloads)
    entry = {
        "file": shard.file,
        "split": shard.split,
        "episodes": len(payloads),
        "bytes": size,
        "attempts": attempts,
        "kept": kept,
        "skipped": list(skipped),
    }
    storage.write(storage.join(directory, PROGRESS_DIRECTORY, f"{shard.file}.json"), json.dumps(entry).encode())
    return entry


def _run(recipe: Recipe, shards: Sequence[Shard], directory: Location, workers: int) -> Iterator[tuple[Shard, dict]]:
    if workers <= 0 or not shards:
        for shard in shards:
            yield shard, write_shard(recipe, shard, directory)
        return
    # spawn: a forked child would inherit the parent's graphics context and locks
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(shards)), mp_context=context, initializer=_start_worker) as pool:
        futures = {pool.submit(write_shard, recipe, shard, directory): shard for shard in shards}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            reason = "a worker process was killed (out of memory?) or could not start"
            raise DataError(f"{directory}: {reason}; re-run the command to resume with the missing shards") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Makes a worker exit silently on Ctrl-C (sent to the whole process group), and when its parent exits for any reason."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


@runtime_checkable
class Origin(Protocol):
    """The part of `Recipe` that `claim` and `finish` use; `schema` may also return the tree of a features.json."""

    name: str
    version: str
    description: str

    def schema(self) -> Schema | dict: ...
    def settings(self) -> dict[str, Any]: ...
    def metadata(self) -> dict[str, Any]: ...


def claim(recipe: Origin, directory: Location) -> None:
    """Starts a build in `directory`, or checks that the existing build has the same settings."""
    asked = json.loads(json.dumps({"dataset": recipe.name, "version": recipe.version, **recipe.settings()}))
    path, present = storage.join(directory, PLAN_FILE), _files(directory)
    if PLAN_FILE in present:
        found = json.loads(storage.read(path))
        names = [name for name in sorted(asked | found) if found.get(name) != asked.get(name)]
        if names:
            changed = "; ".join(f"{name}: {found.get(name)}, now {asked.get(name)}" for name in names)
            raise DataError(f"{directory} contains a build with other settings ({changed}). Use another --out, or remove that directory")
    elif any(not name.startswith(".") for name in (*present, *_folders(directory))):  # .*.tmp: another process is starting the build
        raise DataError(f"{directory} is not empty and does not contain a build of {recipe.name}; use another --out")
    else:
        storage.write(path, json.dumps(asked, indent=1).encode())


def _files(directory: Location) -> dict[str, FileInfo]:
    """`storage.list_files`; {} where there is no such directory."""
    try:
        return storage.list_files(directory)
    except FileNotFoundError:
        return {}


def _folders(directory: Location) -> list[str]:
    try:
        return storage.list_dirs(directory)
    except FileNotFoundError:
        return []


def finished_shards(directory: Location, shards: Sequence[Shard]) -> dict[str, dict]:
    """File -> report entry of the shards that are complete."""
    present, unfinished = _files(directory), storage.join(directory, PROGRESS_DIRECTORY)
    report = json.loads(storage.read(storage.join(directory, REPORT_FILE)))["shards"] if REPORT_FILE in present else []
    entries = {entry["file"]: entry for entry in report}
    wanted = {f"{shard.file}.json" for shard in shards}
    for name in _files(unfinished).keys() & wanted:
        entry = json.loads(storage.read(storage.join(unfinished, name)))
        entries[entry["file"]] = entry
    sizes = {name: found.size for name, found in present.items()}
    files = [shard.file for shard in shards]
    return {file: entries[file] for file in files if file in entries and sizes.get(file) == entries[file]["bytes"]}


def finish(recipe: Origin, directory: Location, shards: Sequence[Shard], finished: dict[str, dict]) -> dict:
    """Writes metadata and report of a complete build; returns the report."""
    entries = [finished[shard.file] for shard in shards]
    splits = {}
    for split in dict.fromkeys(shard.split for shard in shards):
        mine = [entry for entry in entries if entry["split"] == split]
        if not any(entry["episodes"] for entry in mine):
            first = next((problem for entry in mine for problem in entry["skipped"]), "no episode was recorded")
            raise DataError(f"{directory}: split {split} is empty, all of its episodes were skipped; first: {first}")
        splits[split] = writer.WrittenSplit(tuple(entry["episodes"] for entry in mine), sum(entry["bytes"] for entry in mine))
    attempts = _total(entry["attempts"] for entry in entries)
    kept = _total(entry["kept"] for entry in entries)
    report = {
        "dataset": recipe.name,
        "version": recipe.version,
        "settings": recipe.settings(),
        "attempts": attempts,
        "kept": kept,
        "kept_fraction": {group: kept[group] / count for group, count in attempts.items()},
        "episodes": {split: sum(written.shard_lengths) for split, written in splits.items()},
        "bytes": {split: written.num_bytes for split, written in splits.items()},
        "skipped": [problem for entry in entries for problem in entry.get("skipped", ())],
        "shards": entries,
    }
    storage.write(storage.join(directory, REPORT_FILE), json.dumps(report, indent=1).encode())
    writer.write_metadata(directory, recipe.schema(), recipe.name, recipe.version, splits, recipe.description, recipe.metadata())
    storage.remove_dir(storage.join(directory, PROGRESS_DIRECTORY))
    for name in _files(directory):
        if name.startswith(".") and name.endswith(".tmp"):  # partial files of killed processes
            storage.remove(storage.join(directory, name))
    return report


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for entry in counts:
        for group, count in entry.items():
            total[group] = total.get(group, 0) + count
    return dict(sorted(total.items()))
