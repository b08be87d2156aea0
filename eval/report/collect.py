"""Reads a run directory. Any part may be missing; the report then says so."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError

STAGES = ("vae", "video", "policy")
POLICIES = ("policy", "random", "expert")


@dataclass(frozen=True)
class StageRun:
    """One training work directory."""

    name: str
    curves: dict[str, tuple[list[float], list[float]]]  # metric -> (steps, values)
    starts: list[dict[str, Any]]  # one entry per start or resume, with its compilation time
    config: dict[str, Any] | None
    first_batch: Path | None
    previews: list[Path]  # oldest first


@dataclass(frozen=True)
class Evaluation:
    """One closed-loop evaluation directory."""

    name: str
    results: dict[str, Any]
    episodes: list[dict[str, Any]]
    directory: Path

    @property
    def videos(self) -> list[tuple[dict[str, Any], Path]]:
        """(journal line, video file) of the recorded episodes whose file exists, in the order of the protocol."""
        pairs = [(record, self.directory / record["video"]) for record in self.episodes if record.get("video")]
        inside = self.directory.resolve()  # a journal must not put other files of this machine into a page that is passed on
        return [(record, path) for record, path in pairs if path.is_file() and path.resolve().is_relative_to(inside)]


@dataclass(frozen=True)
class Run:
    """All parts of a run directory."""

    directory: Path
    datasets: list[dict[str, Any]] = field(default_factory=list)
    stages: dict[str, StageRun] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def training_scenes(self) -> set[str]:
        """Scenes of the demonstrations; empty if no dataset lists them."""
        scenes: set[str] = set()
        for dataset in self.datasets:
            named = dataset.get("settings", {}).get("scenes", ())
            scenes.update(named.split(",") if isinstance(named, str) else named)
        return scenes


def collect(directory: Path) -> Run:
    """Reads `directory`: data/, vae/, video/, policy/, eval/*/ and timing.json, as far as present."""
    if not directory.is_dir():
        raise EvaluationError(f"there is no run directory {directory}")
    stages = {name: _stage(name, directory / name) for name in STAGES if (directory / name).is_dir()}
    found = sorted((directory / "eval").glob("*/results.json")) if (directory / "eval").is_dir() else []
    evaluations = {path.parent.name: _evaluation(path.parent) for path in found}
    order = [*[name for name in POLICIES if name in evaluations], *sorted(evaluations.keys() - set(POLICIES))]
    run = Run(
        directory=directory,
        datasets=[_json(path) for path in sorted((directory / "data").rglob("build_report.json"))],
        stages=stages,
        evaluations={name: evaluations[name] for name in order},
        seconds=_seconds(directory / "timing.json"),
    )
    if not (run.datasets or run.stages or run.evaluations or run.seconds):
        raise EvaluationError(f"{directory} holds nothing to report: expected data/, vae/, video/, policy/, eval/ or timing.json")
    return run


def _stage(name: str, directory: Path) -> StageRun:
    first_batch = directory / "first_batch.png"
    images = [path for path in directory.rglob("*.png") if path != first_batch and "checkpoints" not in path.parts]
    return StageRun(
        name=name,
        curves=read_curves(directory / "metrics.jsonl"),
        starts=_lines(directory / "runs.jsonl"),
        config=_json(directory / "config.json") if (directory / "config.json").is_file() else None,
        first_batch=first_batch if first_batch.is_file() else None,
        previews=sorted(images, key=lambda path: (path.parent, path.name)),
    )


def read_curves(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Every number of `metrics.jsonl` by name, those of evaluations as `eval/...`. A step written twice counts with its last value."""
    values: dict[str, dict[float, float]] = {}
    for entry in _lines(path):
        step = entry.pop("step", None)
        if not isinstance(step, int | float):
            continue
        prefix = "" if entry.get("kind", "train") == "train" else f"{entry['kind']}/"
        for name, value in _numbers(entry, prefix):
            values.setdefault(name, {})[step] = value
    return {name: (sorted(points), [points[step] for step in sorted(points)]) for name, points in values.items()}


def _numbers(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


def _evaluation(directory: Path) -> Evaluation:
    episodes = sorted(_lines(directory / "episodes.jsonl"), key=lambda record: record["index"])
    return Evaluation(directory.name, _json(directory / "results.json"), episodes, directory)


def _seconds(path: Path) -> dict[str, float]:
    """`timing.json` holds {name: seconds} or {name: {"seconds": ...}}."""
    if not path.is_file():
        return {}
    entries = {name: entry.get("seconds") if isinstance(entry, dict) else entry for name, entry in _json(path).items()}
    return {name: float(seconds) for name, seconds in entries.items() if isinstance(seconds, int | float)}


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, none if it is absent; a line cut off by a kill is skipped."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise EvaluationError(f"{path} is not valid JSON: {error}") from error
