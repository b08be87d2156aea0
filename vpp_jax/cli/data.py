"""`vpp data build | latents | index | stats | inspect`: build datasets, and check them before training."""

import argparse
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np

from data_pipelines.builders import sharded
from data_pipelines.builders.calvin_mujoco import CalvinMujocoRecipe, Settings, check_tasks
from data_pipelines.builders.calvin_play import CalvinPlayRecipe
from data_pipelines.builders.calvin_recorded import CalvinRecordedRecipe, RecordedSettings
from data_pipelines.builders.human_video import HumanVideoRecipe, HumanVideoSettings
from data_pipelines.errors import DataError, DatasetNotFoundError
from data_pipelines.storage import Location, location
from vpp_jax.cli.main import UsageError
from vpp_jax.cli.parser import Parser
from vpp_jax.common.files import require_writable, write_atomically
from vpp_jax.common.progress import ProgressBar


def _calvin_mujoco(settings: Settings) -> CalvinMujocoRecipe | CalvinPlayRecipe:
    check_tasks(settings)
    return CalvinPlayRecipe(settings) if settings.hours else CalvinMujocoRecipe(settings)


# name -> (settings -> recipe, settings, what it records)
RECIPES = {
    "calvin_mujoco": (_calvin_mujoco, Settings, CalvinMujocoRecipe.description.splitlines()[0]),
    "calvin": (CalvinRecordedRecipe, RecordedSettings, CalvinRecordedRecipe.description.splitlines()[0]),
    "human_video": (HumanVideoRecipe, HumanVideoSettings, HumanVideoRecipe.description.splitlines()[0]),
}


def main(argv: list[str]) -> int:
    """Runs one subcommand; errors in data or arguments are raised as DataError."""
    if argv[:1] == ["latents"]:  # takes a configuration, like `vpp train`
        from vpp_jax.cli import data_latents

        return data_latents.main(argv[1:])
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> Parser:
    parser = Parser(prog="vpp data", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    build = verbs.add_parser("build", help="write an RLDS dataset; re-run the command to resume an interrupted build")
    names = build.add_subparsers(required=True, metavar="NAME", dest="name")
    for name, (_, settings, text) in RECIPES.items():
        one = names.add_parser(name, help=text, description=text)
        one.add_output("--out", bucket=True, required=True, metavar="DIR", help="output directory; a path or a bucket URL")
        one.add_number(
            "--workers",
            int,
            os.cpu_count() or 1,
            "worker processes; 0: this one; the result does not depend on them",
            at_least=0,
            at_most=1024,
        )
        one.add_settings(settings)
        one.set_defaults(run=_build)

    verbs.add_parser("latents", help="encode a dataset's images with the VAE of stage video, once (`vpp data latents --help`)")

    def reader(verb: str, run: Callable[[argparse.Namespace], int], text: str, **options: Any) -> Parser:
        one = verbs.add_parser(verb, help=text, description=text)
        text = "TFDS/RLDS directory, or its parent with version directories; a path or a bucket URL"
        one.add_argument("directory", type=location, metavar="DIR", help=text, **options)
        one.add_robot()
        one.add_argument("--index_dir", type=location, help="directory of record indexes and statistics (default: next to the shards)")
        one.set_defaults(run=run)
        return one

    index = reader("index", _index, "build the record index of every split; re-run the command to resume an interrupted build")
    index.add_number("--workers", int, 8, "threads, each reading one file", at_least=1, at_most=1024)
    _add_shard_flags(index, "index only every N-th file, from number K on")
    index.add_argument("--headers_only", action="store_true", help="read record headers only: offsets without step counts and checksums")
    stats = reader("stats", _stats, "compute action and proprio statistics of the training split", nargs="+")
    stats.add_argument("--split", default="train", help="training split")
    stats.add_argument("--on_bad_record", choices=("fail", "skip"), default="fail", help="skip: skip damaged records, count and list them")
    text = "the two quantiles to store (default: those of the robot)"
    stats.add_number("--quantiles", float, None, text, at_least=0, at_most=1, nargs=2, metavar=("LOW", "HIGH"))
    _add_shard_flags(stats, "read only part K of N equal parts of the episodes")
    inspect = reader("inspect", _inspect, "report contents and defects of a dataset, or of each dataset in a directory")
    inspect.add_argument("--mixture", metavar="NAME", help="DIR holds many datasets: check those of this mixture")
    inspect.add_output("--json", metavar="FILE", help="write the report as JSON")
    inspect.add_output("--png", metavar="FILE", help="draw episodes with their instructions and actions")
    inspect.add_number("--images", int, 1, "images decoded per camera and episode", at_least=0)
    return parser


def _add_shard_flags(parser: Parser, text: str) -> None:
    parser.add_number("--shard_index", int, 0, f"{text}, 0 to N-1", at_least=0, metavar="K")
    text = "number of hosts that share the work; afterwards, run once without these two flags to merge the parts"
    parser.add_number("--num_shards", int, 1, text, at_least=1, metavar="N")


def _shard_of(arguments: argparse.Namespace) -> tuple[int, int]:
    index, count = arguments.shard_index, arguments.num_shards
    if not 0 <= index < count:
        raise UsageError(f"--shard_index={index} must be at least 0 and below --num_shards={count}")
    return index, count


def _build(arguments: argparse.Namespace) -> int:
    recipe, settings, _ = RECIPES[arguments.name]
    started = time.monotonic()
    with ProgressBar("episodes") as progress:
        values = {field.name: getattr(arguments, field.name) for field in fields(settings)}
        report = sharded.build(recipe(settings(**values)), arguments.out, arguments.workers, progress.update)
    print(f"{'group':<32} episodes  attempts  success")
    for group, fraction in report["kept_fraction"].items():
        print(f"{group:<32} {report['kept'][group]:>8}  {report['attempts'][group]:>8}  {fraction:7.0%}")
    for problem in report["skipped"][:10]:
        print(f"skipped: {problem}")
    if len(report["skipped"]) > 10:
        print(f"skipped: {len(report['skipped']) - 10} more, all in {sharded.REPORT_FILE}")
    size = sum(report["bytes"].values()) / 1e6
    episodes = ", ".join(f"{count} {split}" for split, count in report["episodes"].items())
    print(f"{arguments.out}: {episodes} episodes, {size:.1f} MB, in {time.monotonic() - started:.0f} s; details in {sharded.REPORT_FILE}")
    return 0


def _index(arguments: argparse.Namespace) -> int:
    from data_pipelines.openx.robots import known_robot
    from data_pipelines.rlds.dataset import DatasetInfo, build_index, find_defects
    from data_pipelines.rlds.schema import Schema

    info, bad = DatasetInfo.read(arguments.directory), 0
    shard_index, num_shards = _shard_of(arguments)
    spec = known_robot(info, arguments.robot)
    schema = Schema.read(info.directory)
    for name, split in info.splits.items():
        if not split.present:
            print(f"{name}: none of {len(split.files)} shard(s) present")
            continue
        started = time.monotonic()
        with ProgressBar("files") as progress:
            shards = build_index(
                info,
                schema,
                name,
                index_dir=arguments.index_dir,
                episode_filter=spec.episode_filter if spec else None,
                counted=not arguments.headers_only,
                workers=arguments.workers,
                shard_index=shard_index,
                num_shards=num_shards,
                progress=progress.update,
            )
        whole = len(shards) == len(split.present)
        defects = find_defects(split, shards) if whole else [defect for shard in shards for defect in shard.defects]
        counts = np.concatenate([np.zeros(0, int), *(shard.counts for shard in shards)])
        found = f"{len(counts)} records" if arguments.headers_only else f"{(counts > 0).sum()} episodes, {counts[counts > 0].sum()} steps"
        seconds = time.monotonic() - started
        print(f"{name}: {len(shards)} of {len(split.present)} shard(s), {found}, {len(defects)} defect(s), {seconds:.2f} s")
        for defect in defects[:10]:
            print(f"  {defect.where}: {defect.problem}")
        bad += len(defects)
    return 1 if bad else 0


def _stats(arguments: argparse.Namespace) -> int:
    from data_pipelines import statistics
    from data_pipelines.openx.robots import find_robot
    from data_pipelines.rlds.dataset import RLDSDataset

    shard_index, num_shards = _shard_of(arguments)
    options: dict[str, Any] = {"index_dir": arguments.index_dir, "on_bad_record": arguments.on_bad_record}
    for directory in arguments.directory:
        spec = find_robot(directory, robot=arguments.robot)
        spec = replace(spec, quantiles=tuple(arguments.quantiles or spec.quantiles))
        dataset = RLDSDataset(directory, arguments.split, episode_filter=spec.episode_filter, **options)
        with ProgressBar("episodes") as progress:
            if num_shards > 1:
                part = statistics.save_partial(dataset, spec, shard_index, num_shards, **options, progress=progress.update)
                print(f"{dataset.directory} split {dataset.split}: part {shard_index} of {num_shards}, {part.episodes} episodes")
                continue
            made = statistics.load_or_compute(dataset, spec, **options, progress=progress.update)
        print(f"{dataset.directory} split {dataset.split}: {made.episodes} episodes, {made.steps} steps, sha256 {made.hash[:16]}")
        for name, column in made.columns.items():
            print(f"  {name} ({column.key}), {column.count} steps")
            quantiles = {f"q{100 * level:g}": row for level, row in zip(made.quantile_levels, column.quantiles, strict=True)}
            for row, values in ({"mean": column.mean, "std": column.std, "min": column.min} | quantiles | {"max": column.max}).items():
                print(f"    {row:>4} " + " ".join(f"{value:8.3f}" for value in values))
        for record in made.skipped:
            print(f"  skipped: {record}")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from data_pipelines import inspection
    from data_pipelines.openx.mixtures import mixture
    from data_pipelines.openx.robots import known_robot
    from data_pipelines.rlds.dataset import DatasetInfo, RLDSDataset

    for path in filter(None, (arguments.json, arguments.png)):
        require_writable(path)
    if arguments.mixture:
        table = mixture(arguments.mixture)
        print(f"mixture {arguments.mixture} ({table.source}); weights {'per step of the dataset' if table.per_step else 'per dataset'}")
        return _inspect_local_copy(arguments, table.weights, table.weights)
    if names := _datasets_below(arguments.directory):
        return _inspect_local_copy(arguments, names)
    report = inspection.inspect_dataset(arguments.directory, arguments.index_dir, arguments.images, arguments.robot)
    print(inspection.summary(report))
    if arguments.json:
        write_atomically(arguments.json, json.dumps(report, indent=1))
        print(f"wrote {arguments.json}")
    if arguments.png:
        from data_pipelines import contact_sheet

        split = next((name for name, entry in report["splits"].items() if entry.get("episodes")), None)
        if split is None:
            raise DataError(f"{arguments.directory}: no split has an episode to draw")
        spec = known_robot(DatasetInfo.read(arguments.directory), arguments.robot)
        episode_filter = spec.episode_filter if spec else None
        dataset = RLDSDataset(
            arguments.directory, split, index_dir=arguments.index_dir, on_bad_record="skip", episode_filter=episode_filter
        )
        contact_sheet.draw(dataset, arguments.png, spec=spec)
        print(f"wrote {arguments.png}")
    return 1 if any(entry.get("defects_total") for entry in report["splits"].values()) else 0


def _datasets_below(directory: Location) -> list[str]:
    """Names of the datasets below `directory`; none where it is a dataset itself."""
    from data_pipelines.openx import local_copy
    from data_pipelines.rlds.dataset import resolve

    try:
        resolve(directory)
    except DatasetNotFoundError:
        return local_copy.datasets(directory)
    return []


def _inspect_local_copy(arguments: argparse.Namespace, names: Iterable[str], weights: Mapping[str, float] | None = None) -> int:
    from data_pipelines.openx import local_copy

    findings = local_copy.check(arguments.directory, names)
    print(local_copy.summary(findings, weights))
    if arguments.json:
        write_atomically(arguments.json, json.dumps([asdict(finding) for finding in findings], indent=1))
        print(f"wrote {arguments.json}")
    return 1 if any(finding.status != local_copy.OK for finding in findings) else 0
