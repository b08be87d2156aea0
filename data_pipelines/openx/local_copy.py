"""Local copies of many datasets in one directory (or bucket): where each one is, and whether it matches the registry.

Reads descriptions and listings only, no shards.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from data_pipelines import storage
from data_pipelines.errors import DataError, DatasetNotFoundError
from data_pipelines.openx.registry import CLIP_COLUMNS, POLICY_COLUMNS, REGISTRY
from data_pipelines.openx.robot_spec import RobotSpec
from data_pipelines.openx.robots import described_robot
from data_pipelines.openx.table import OPENX
from data_pipelines.rlds.dataset import DatasetInfo
from data_pipelines.rlds.schema import Schema
from data_pipelines.storage import Location

OK, NO_ROW, OTHER_VERSION, MISSING_SHARD, MISSING_KEY, ABSENT = STATUSES = (  # the worst last
    "ok",
    "not in the registry",
    "other version",
    "missing shard",
    "missing key",
    "absent",
)
# Datasets of mixtures that one of our builders writes, under its own row.
BUILT_AS = {"something_something_v2": "human_video"}


@dataclass(frozen=True)
class Finding:
    """The result of checking one dataset.

    Attributes:
      status: the worst finding, one of `STATUSES`.
      problems: all findings.
      splits: name -> (shards present, shards listed, episodes listed).
      unusable: 'video' or 'policy' -> why this stage cannot be trained on it.
    """

    name: str
    status: str
    directory: str = ""
    version: str = ""
    problems: tuple[str, ...] = ()
    splits: Mapping[str, tuple[int, int, int]] | None = None
    unusable: Mapping[str, str] | None = None


def row_of(name: str) -> str | None:
    """The registry row with name, directory or alias `name`."""
    if BUILT_AS.get(name, name) in REGISTRY:
        return BUILT_AS.get(name, name)
    return next((row.name for row in OPENX.values() if name in (row.folder, *row.aliases)), None)


def locate(root: Location, name: str) -> tuple[str, DatasetInfo] | None:
    """Registry row of dataset `name` and its description under `root`; None if there is no row or no such dataset.

    The expected version is used if it exists, else the newest. DataError if the description cannot be read.
    """
    row = row_of(name)
    if row is None:
        return None
    known = OPENX.get(row)
    names = (known.folder, name, row, *known.aliases) if known else (name, row)
    for folder in dict.fromkeys(filter(None, names)):
        directory = storage.join(storage.location(root), folder)
        for version in (*(known.versions if known else ()), ""):
            try:
                return row, DatasetInfo.read(storage.join(directory, version) if version else directory)
            except DatasetNotFoundError:
                continue
    return None


def datasets(root: Location) -> list[str]:
    """Directories directly under `root` that contain a dataset; [] if `root` does not exist."""
    try:
        return [name for name in storage.list_dirs(storage.location(root)) if _is_dataset(root, name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def check(root: Location, names: Iterable[str]) -> list[Finding]:
    """Checks the datasets `names` under `root`: those of a mixture, or `datasets(root)`."""
    return [_check(root, name) for name in names]


def _is_dataset(root: Location, folder: str) -> bool:
    try:
        DatasetInfo.read(storage.join(storage.location(root), folder))
    except DatasetNotFoundError:
        return False
    except DataError:  # exists but is unreadable: to be reported
        return True
    return True


def _check(root: Location, name: str) -> Finding:
    try:
        found = locate(root, name)
        if found is not None:
            row, info = found
            spec = described_robot(info.directory, row) or REGISTRY[row]
            return _compare(name, spec, OPENX[row].versions if row in OPENX else (info.version,), info)
        if row_of(name) is None and _is_dataset(root, name):
            info = DatasetInfo.read(storage.join(storage.location(root), name))
            return _compare(name, described_robot(info.directory), (info.version,), info)
    except DataError as error:
        return Finding(name, MISSING_KEY, problems=(str(error),))
    return Finding(name, ABSENT, problems=() if row_of(name) else ("not in the registry either",))


def _compare(name: str, spec: RobotSpec | None, versions: Sequence[str], info: DatasetInfo) -> Finding:
    found = [] if spec else [(NO_ROW, "views and actions are unknown")]
    if info.version not in versions:
        found.append((OTHER_VERSION, f"version {info.version}, expected {' or '.join(versions)}"))
    for split in info.splits.values():
        if split.absent:
            found.append((MISSING_SHARD, f"split {split.name}: {len(split.absent)} of {len(split.files)} shards absent"))
    found += [(MISSING_KEY, f"no {key}") for key in (missing_keys(spec, Schema.read(info.directory)) if spec else ())]
    splits = {split.name: (len(split.present), len(split.files), sum(split.shard_lengths)) for split in info.splits.values()}
    worst = max((status for status, _ in found), key=STATUSES.index, default=OK)
    return Finding(
        name,
        worst,
        str(info.directory),
        info.version,
        tuple(problem for _, problem in found),
        splits,
        unusable_stages(spec) if spec else {},
    )


def unusable_stages(spec: RobotSpec) -> dict[str, str]:
    """'video' or 'policy' -> why this stage cannot be trained on the dataset."""
    reasons = {stage: spec.why_unusable(columns) for stage, columns in (("video", CLIP_COLUMNS), ("policy", POLICY_COLUMNS))}
    return {stage: why for stage, why in reasons.items() if why}


def missing_keys(spec: RobotSpec, schema: Schema) -> list[str]:
    """What the row reads but features.json lacks, except columns that the row marks as unsupported."""
    missing = [f"camera '{key}'" for key in spec.cameras.values() if key not in schema.cameras]
    if not any(key in schema.steps or key in schema.episode for key in spec.instruction_keys):
        missing.append(f"instruction '{spec.instruction_keys[0]}'")
    for column, key, parts in (("action", spec.action, spec.action_parts), ("proprio", spec.proprio, spec.proprio_parts)):
        if parts is not None:
            missing += parts.problems(schema)
        elif key and column not in spec.unsupported and key not in schema.steps:
            missing.append(f"step field '{key}'")
    return list(dict.fromkeys(missing))


def summary(findings: Sequence[Finding], weights: Mapping[str, float] | None = None) -> str:
    """A text table: one line per dataset, followed by its problems."""
    rows = [("dataset", "status", "version", "for", *(["weight"] if weights else []), "shards and episodes per split")]
    for finding in findings:
        uses = "+".join(stage for stage in ("video", "policy") if finding.splits and stage not in (finding.unusable or {}))
        weight = [f"{weights[finding.name]:.4g}"] if weights else []
        splits = "; ".join(f"{name} {there}/{listed}, {episodes}" for name, (there, listed, episodes) in (finding.splits or {}).items())
        rows.append((finding.name, finding.status, finding.version or "-", uses or "-", *weight, splits))
        rows += [(f"  {problem}",) for problem in finding.problems]
    widths = [max(len(row[column]) for row in rows if len(row) > 1) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    counts = [(status, sum(finding.status == status for finding in findings)) for status in STATUSES]
    return "\n".join([*lines, f"{len(findings)} datasets: " + ", ".join(f"{count} {status}" for status, count in counts if count)])
