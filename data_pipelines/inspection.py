"""What a dataset directory holds and what is wrong with it: `vpp data inspect`.

Works from features.json and the records, so it also covers datasets that are not in the registry. A *defect* makes a record unusable
(the loader fails on it or skips it); a *warning* does not stop training but should be looked at.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from data_pipelines import statistics
from data_pipelines.errors import BadRecordError
from data_pipelines.instructions import flat_list, instructions_of
from data_pipelines.openx.local_copy import missing_keys, unusable_stages
from data_pipelines.openx.registry import POLICY_COLUMNS
from data_pipelines.openx.robot_spec import RobotSpec
from data_pipelines.openx.robots import known_robot
from data_pipelines.rlds import images
from data_pipelines.rlds.dataset import DatasetInfo, Episode, RLDSDataset
from data_pipelines.rlds.schema import ACTION, IS_FIRST, IS_LAST, LANGUAGE_INSTRUCTION, OBSERVATION, Schema

MAX_DEFECTS = 100
# An image without contrast is a placeholder for a missing camera.
BLANK_SPREAD = 1.0
# Name of the composed action in the report, next to the columns as stored.
COMMON_ACTION = "action as trained"
INSTRUCTION_KEYS = (LANGUAGE_INSTRUCTION, "natural_language_instruction", "instructions")


def inspect_dataset(path: str | Path, index_dir: str | Path | None = None, images_per_episode: int = 1, robot: str = "") -> dict:
    """Report of every split, as JSON.

    Args:
      robot: what describes the robot, as in `find_robot`; "": nothing where no file and no row does.
      images_per_episode: images decoded per camera and episode to find damaged and blank ones; all other columns are read completely.
    """
    info = DatasetInfo.read(path)
    schema, spec = Schema.read(info.directory), known_robot(info, robot)
    features = {name: {"kind": it.kind, "dtype": it.dtype, "shape": list(it.shape)} for name, it in schema.steps.items()}
    report = {
        "dataset": info.name,
        "version": info.version,
        "directory": str(info.directory),
        "features": features,
        "episode_features": sorted(schema.episode),
        "robot": _described(spec, schema) if spec else None,
        "splits": {},
    }
    for name, split in info.splits.items():
        entry = {
            "shards": len(split.files),
            "shards_present": len(split.present),
            "shards_absent": list(split.absent),
            "episodes_listed": sum(split.shard_lengths),
        }
        if split.present:
            episode_filter = spec.episode_filter if spec else None
            dataset = RLDSDataset(path, name, index_dir=index_dir, on_bad_record="skip", episode_filter=episode_filter)
            entry |= _Survey(schema, spec, images_per_episode).of(dataset)
        report["splits"][name] = entry
    return report


def _described(spec: RobotSpec, schema: Schema) -> dict:
    """What the description says of the dataset."""
    return {
        "name": spec.name,
        "views": spec.cameras,
        "control_hz": spec.control_hz,
        "action": spec.action,
        "missing": missing_keys(spec, schema),
        "unusable": unusable_stages(spec),
    }


class _Survey:
    """One pass over the episodes of a split."""

    def __init__(self, schema: Schema, spec: RobotSpec | None, images_per_episode: int):
        self.schema, self.images_per_episode = schema, images_per_episode
        self.spec = spec if spec and spec.action_parts and not spec.action_parts.problems(schema) else None
        self.numbers = {
            name: _Range()
            for name, feature in schema.steps.items()
            if not feature.why_no_vector() and not feature.is_raw_image and name.startswith((ACTION, f"{OBSERVATION}/"))
        }
        if self.spec:
            self.numbers[COMMON_ACTION] = _Range()
        self.instructions = {name: Counter() for name, feature in schema.steps.items() if feature.kind == "text"}
        self.instructions |= {
            name: Counter() for name, feature in schema.episode.items() if feature.kind == "text" and name.endswith(INSTRUCTION_KEYS)
        }
        self.cameras = {name: _Camera() for name in schema.cameras}
        self.defects: list[str] = []
        self.warnings: dict[str, list[str]] = {}  # what -> where
        if spec is not None and not spec.why_unusable(POLICY_COLUMNS):
            self.defects += [f"features.json: {problem}" for problem in statistics.column_problems(schema, spec)]
        for name, feature in schema.steps.items():
            if feature.kind == "tensor" and (why := feature.why_no_vector()) and name.startswith((ACTION, f"{OBSERVATION}/")):
                self.warnings[f"field '{name}' {why}: it cannot be an action or a state"] = []

    def of(self, dataset: RLDSDataset) -> dict:
        self.defects += [f"{defect.where}: {defect.problem}" for defect in dataset.defects]
        for number in range(len(dataset)):
            try:
                self._episode(dataset[number])
            except BadRecordError as error:
                self._defect(error)
        for name, camera in self.cameras.items():
            if camera.blank:
                self.warnings[f"camera '{name}': {camera.blank} of {camera.checked} images checked are blank"] = []
        lengths = dataset.lengths
        spread = {"min": int(lengths.min()), "mean": float(lengths.mean()), "max": int(lengths.max())} if len(lengths) else {}
        texts = {
            name: {"distinct": len(counter), "empty_steps": counter.get("", 0), "most_common": [*map(list, counter.most_common(10))]}
            for name, counter in self.instructions.items()
        }
        return {
            "episodes": len(dataset),
            "episodes_filtered": dataset.num_filtered,
            "steps": dataset.num_steps,
            "steps_per_episode": spread,
            "cameras": {name: camera.report() for name, camera in sorted(self.cameras.items())},
            "numbers": {name: found.report() for name, found in self.numbers.items()},
            "instructions": texts,
            "defects": self.defects[:MAX_DEFECTS],
            "defects_total": len(self.defects),
            "warnings": [
                {"problem": problem, "records": len(where), "first": where[0] if where else ""} for problem, where in self.warnings.items()
            ],
        }

    def _episode(self, episode: Episode) -> None:
        """Checks every column separately, so that a damaged column does not hide defects in others."""
        for name, found in self.numbers.items():
            self._guard(lambda name=name, found=found: found.add(episode, name, self._values(episode, name)))
        for name, counter in self.instructions.items():
            self._guard(lambda name=name, counter=counter: self._texts(episode, name, counter))
        for name, camera in self.cameras.items():
            steps = np.linspace(0, len(episode) - 1, min(self.images_per_episode, len(episode))).astype(int)
            self._guard(lambda name=name, camera=camera, steps=steps: self._images(episode, name, camera, steps))
        # RLDS: the first step, and only it, is_first; the last, and only it, is_last
        for name, expected in ((IS_FIRST, 0), (IS_LAST, len(episode) - 1)):
            if name in self.schema.steps:
                self._guard(lambda name=name, expected=expected: self._flag(episode, name, expected))

    def _values(self, episode: Episode, name: str) -> np.ndarray:
        if self.spec and name == COMMON_ACTION:
            return statistics.actions(episode, self.spec)
        return np.asarray(episode.column(name), np.float64).reshape(len(episode), -1)

    def _guard(self, check) -> None:
        try:
            check()
        except BadRecordError as error:
            self._defect(error)

    def _defect(self, error: BadRecordError) -> None:
        field = f", field '{error.field}'" if error.field else ""
        self.defects.append(f"{Path(error.where).name}{field}: {error.problem}")

    def _warn(self, episode: Episode, problem: str) -> None:
        self.warnings.setdefault(problem, []).append(Path(episode.where).name)

    def _texts(self, episode: Episode, name: str, counter: Counter) -> None:
        column = episode.column(name) if name in self.schema.steps else [episode.metadata(name)]
        steps = [instructions_of(flat_list(value), episode.where) or ("",) for value in column]
        counter.update(text for texts in steps for text in texts)
        if name.endswith(INSTRUCTION_KEYS) and ("",) in steps:
            raise episode.bad(name, f"empty instruction at step {steps.index(('',))}")

    def _images(self, episode: Episode, name: str, camera: "_Camera", steps: np.ndarray) -> None:
        blank = camera.add(episode, name, steps)
        flag = f"episode_metadata/has_{name.rsplit('/', 1)[-1]}"
        if flag in self.schema.episode and bool(np.any(episode.metadata(flag))) == blank:
            says, are = ("true", "blank") if blank else ("false", "not blank")
            self._warn(episode, f"'{flag}' is {says}, but the images of '{name}' are {are}")

    def _flag(self, episode: Episode, name: str, expected: int) -> None:
        steps = np.flatnonzero(episode.column(name)).tolist()
        if expected not in steps:
            self._warn(episode, f"field '{name}' is not set at the {'first' if name == IS_FIRST else 'last'} step")
        elif len(steps) > 1:
            self._warn(episode, f"field '{name}' is set at other steps too")


class _Range:
    """Minimum, mean and maximum per dimension, streamed."""

    def __init__(self):
        self.count = 0
        self.low, self.high, self.total = np.array(np.inf), np.array(-np.inf), np.array(0.0)  # broadcast to the width of the column

    def add(self, episode: Episode, name: str, values: np.ndarray) -> None:
        good = np.isfinite(values).all(-1)
        if good.any():
            self.low = np.minimum(self.low, values[good].min(0))
            self.high = np.maximum(self.high, values[good].max(0))
            self.total = self.total + values[good].sum(0)
            self.count += int(good.sum())
        if not good.all():
            raise episode.bad(name, f"NaN or infinite values at step {int(np.argmin(good))}")

    def report(self) -> dict:
        if not self.count:
            return {"width": 0}
        return {"width": len(self.low), "min": self.low.tolist(), "mean": (self.total / self.count).tolist(), "max": self.high.tolist()}


class _Camera:
    """Sizes, formats and number of blank images of one camera."""

    def __init__(self):
        self.sizes, self.formats, self.checked, self.blank = Counter(), Counter(), 0, 0

    def add(self, episode: Episode, name: str, steps: np.ndarray) -> bool:
        """Checks the images of `steps`; returns whether all of them are blank."""
        blank = 0
        for step in steps:
            self.formats["pixels" if episode.schema.steps[name].is_raw_image else _format(episode.encoded(name, int(step)))] += 1
            frame = episode.frame(name, int(step))
            self.sizes["x".join(map(str, frame.shape[:2]))] += 1
            self.checked += 1
            blank += bool(frame.std() < BLANK_SPREAD)
        self.blank += blank
        return blank == len(steps)

    def report(self) -> dict:
        return {"sizes": dict(self.sizes), "formats": dict(self.formats), "checked": self.checked, "blank": self.blank}


def _format(data: bytes) -> str:
    return "jpeg" if data.startswith(images.JPEG_MAGIC) else "png" if data.startswith(images.PNG_MAGIC) else "unknown"


def summary(report: dict) -> str:
    """The report as text."""
    lines = [f"{report['dataset']} {report['version']}  {report['directory']}"]
    if row := report["robot"]:
        views = ", ".join(f"{role}={key}" for role, key in row["views"].items())
        lines.append(f"robot {row['name']}: views {views or 'none'}; action {row['action'] or 'none'}")
        lines += [f"  missing: {key}" for key in row["missing"]]
        lines += [f"  not for {stage}: {why}" for stage, why in row["unusable"].items()]
    for name, split in report["splits"].items():
        shards = f"{split['shards_present']} of {split['shards']} shard(s) present"
        lines.append(f"split {name}: {shards}, {split['episodes_listed']} episodes listed")
        if split["shards_absent"]:
            lines.append("  absent: " + ", ".join(split["shards_absent"][:3]) + (", ..." if len(split["shards_absent"]) > 3 else ""))
        if "episodes" in split:
            lines += _split_lines(split)
    return "\n".join(lines)


def _split_lines(split: dict) -> list[str]:
    steps = split["steps_per_episode"]
    spread = f" ({steps['min']} to {steps['max']} per episode, mean {steps['mean']:.1f})" if steps else ""
    filtered = f", {split['episodes_filtered']} filtered" if split["episodes_filtered"] else ""
    lines = [f"  {split['episodes']} episodes, {split['steps']} steps{spread}{filtered}"]
    for camera, found in split["cameras"].items():
        lines.append(f"  camera {camera}: {', '.join(found['sizes']) or 'unreadable'} {'/'.join(found['formats'])}")
    for column, found in split["numbers"].items():
        lines.append(f"  {column}: width {found['width']}")
        if 0 < found["width"] <= 32:
            lines += [f"    {row:>4} " + " ".join(f"{value:8.3f}" for value in found[row]) for row in ("min", "mean", "max")]
    for name, found in split["instructions"].items():
        common = "; ".join(f"'{text}' ({count} steps)" for text, count in found["most_common"][:3])
        empty = f", {found['empty_steps']} steps empty" if found["empty_steps"] else ""
        lines.append(f"  {name}: {found['distinct']} distinct{empty}: {common}")
    for warning in split["warnings"]:
        where = f" ({warning['records']} episodes, first {warning['first']})" if warning["records"] else ""
        lines.append(f"  warning: {warning['problem']}{where}")
    lines.append(f"  defects: {split['defects_total']}")
    return lines + [f"    {defect}" for defect in split["defects"][:10]]
