"""`vpp data build | latents | index | stats | inspect`: make datasets, and look at them before anything trains."""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines.builders import sharded
from data_pipelines.builders.calvin_mujoco import CalvinMujocoRecipe, Settings
from data_pipelines.builders.calvin_play import CalvinPlayRecipe
from data_pipelines.builders.calvin_recorded import CalvinRecordedRecipe, RecordedSettings
from data_pipelines.builders.human_video import HumanVideoRecipe, HumanVideoSettings
from data_pipelines.errors import DataError, DatasetNotFoundError
from data_pipelines.storage import Location, location
from vpp_jax.common.files import write_atomically


def _calvin_mujoco(settings: Settings) -> CalvinMujocoRecipe | CalvinPlayRecipe:
    return CalvinPlayRecipe(settings) if settings.hours else CalvinMujocoRecipe(settings)


# name -> (settings -> recipe, settings, what it records)
RECIPES = {
    "calvin_mujoco": (_calvin_mujoco, Settings, CalvinMujocoRecipe.description.splitlines()[0]),
    "calvin": (CalvinRecordedRecipe, RecordedSettings, CalvinRecordedRecipe.description.splitlines()[0]),
    "human_video": (HumanVideoRecipe, HumanVideoSettings, HumanVideoRecipe.description.splitlines()[0]),
}
HELP = {
    "scenes": "comma-separated scenes",
    "tasks": "comma-separated tasks",
    "episodes": "episodes per scene and task",
    "val_episodes": "the same for the val split",
    "seed": "decides initial states, noise and sentences",
    "action_noise": "standard deviation of the noise on the executed xyz action (1 = 2 cm per step)",
    "noise_memory": "share of the noise kept from one step to the next",
    "hold_steps": "steps recorded after success, holding still",
    "max_attempts": "tries per episode before it is left out",
    "max_steps": "steps per try",
    "static_size": "pixels of the static camera",
    "gripper_size": "pixels of the gripper camera",
    "jpeg_quality": "1 to 100",
    "quality": "rendering preset of the environment",
    "episodes_per_shard": "episodes per file",
    "blocks": "the table has its blocks (play always has)",
    "hours": "more than 0: so many simulated hours of play over all scenes, instead of single episodes",
    "source": "folder of the recorded dataset",
    "language": "folder of the annotations in training and validation",
    "scene": "scene of training frames that scene_info.npy does not place",
    "limit": "episodes per split at most; 0: all",
    "layout": "something_something (webm files and label files), folder (videos with captions), vpp (annotation/SPLIT/ID.json)",
    "captions": "folder: table below the source (default: captions.json, .jsonl or .csv, else NAME.txt beside NAME.mp4); "
    "something_something: folder of the label files",
    "annotations": "vpp: folder of the annotations",
    "content": "video, or latents: the recorded ones of layout vpp",
    "vae": "latents: identity of the VAE that made them, as `vpp data latents --identity` prints it",
    "size": "pixels of a side; 0: as in the video",
    "resize_mode": "square (squeezed, as training sees it) or short_side (proportions are kept)",
    "fps": "more than 0: pictures at this rate at most",
    "num_frames": "more than 0: so many frames, spread over the video",
    "max_video_frames": "more than 0: leave out videos of more frames (the published mixture: 100)",
    "val_fraction": "folder: share of the videos that become split val, where the table does not say",
    "on_bad_video": "fail, or skip: leave it out, count and list it",
}


def main(argv: list[str]) -> int:
    """Runs one sub-command; errors of the data side are raised as DataError."""
    if argv[:1] == ["latents"]:  # has a configuration, like `vpp train`
        from vpp_jax.cli import data_latents

        return data_latents.main(argv[1:])
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vpp data", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    build = verbs.add_parser("build", help="write an RLDS dataset; the same command continues an interrupted build")
    names = build.add_subparsers(required=True, metavar="NAME", dest="name")
    for name, (_, settings, text) in RECIPES.items():
        one = names.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        one.add_argument("--out", type=Path, required=True, help="directory to write")
        one.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="worker processes (do not change the result)")
        for field in fields(settings):
            assert field.default is not MISSING
            many = isinstance(field.default, tuple)
            if isinstance(field.default, bool):
                one.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, help=HELP[field.name], default=field.default)
                continue
            one.add_argument(
                f"--{field.name}",
                type=_words if many else type(field.default),
                help=HELP[field.name],
                default=",".join(field.default) if many else field.default,
            )
        one.set_defaults(run=_build)

    verbs.add_parser("latents", help="encode a dataset's pictures with the VAE of stage video, once (`vpp data latents --help`)")

    def reader(verb: str, run: Callable, text: str, **options) -> argparse.ArgumentParser:
        one = verbs.add_parser(verb, help=text)
        text = "TFDS/RLDS directory, or its parent with version folders; a path or a bucket's URL"
        one.add_argument("directory", type=location, metavar="DIR", help=text, **options)
        one.add_argument("--index_dir", type=location, help="where record indexes and statistics are kept (default: beside the shards)")
        one.set_defaults(run=run)
        return one

    index = reader("index", _index, "build the record index of every split that is there; the same command continues an interrupted one")
    index.add_argument("--workers", type=int, default=8, help="shards read at once (default: 8)")
    index.add_argument(
        "--share",
        type=_share,
        default=(0, 1),
        metavar="K/N",
        help="read only every N-th shard from number K (0 to N-1) "
        "on: for N hosts; afterwards the command without --share joins what they found",
    )
    index.add_argument("--headers_only", action="store_true", help="where the records lie, without reading them (no steps, no checksums)")
    stats = reader("stats", _stats, "action and state statistics of the training split", nargs="+")
    stats.add_argument("--name", help="registry row (default: the dataset's own name)")
    stats.add_argument("--split", default="train", help="training split (default: train)")
    stats.add_argument("--on_bad_record", choices=("fail", "skip"), default="fail")
    stats.add_argument(
        "--share",
        type=_share,
        metavar="K/N",
        help="only the K-th part (0 to N-1) of the episodes: for N hosts; afterwards the command without --share joins what they found",
    )
    inspect = reader("inspect", _inspect, "what a dataset, or each dataset of a local copy, holds and what is wrong with it")
    inspect.add_argument("--mixture", metavar="NAME", help="DIR is a local copy: check the datasets of this mixture")
    inspect.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    inspect.add_argument("--png", type=Path, metavar="FILE", help="draw windows with sentences and actions")
    inspect.add_argument("--images", type=int, default=1, help="pictures decoded per camera and episode (default: 1)")
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _share(text: str) -> tuple[int, int]:
    number, _, hosts = text.partition("/")
    if not (number.isdigit() and hosts.isdigit() and int(number) < int(hosts)):
        raise argparse.ArgumentTypeError(f"'{text}' is not K/N with K from 0 to N-1")
    return int(number), int(hosts)


def _build(arguments: argparse.Namespace) -> int:
    recipe, settings, _ = RECIPES[arguments.name]
    started = time.monotonic()
    with ProgressLine("episodes") as progress:
        values = {field.name: getattr(arguments, field.name) for field in fields(settings)}
        report = sharded.build(recipe(settings(**values)), arguments.out, arguments.workers, progress)
    print(f"{'group':<32} kept  tried  share")
    for group, share in report["kept_fraction"].items():
        print(f"{group:<32} {report['kept'][group]:>4}  {report['attempts'][group]:>5}  {share:5.0%}")
    for problem in report["skipped"][:10]:
        print(f"left out: {problem}")
    if len(report["skipped"]) > 10:
        print(f"left out: {len(report['skipped']) - 10} more, all in {sharded.REPORT_FILE}")
    size = sum(report["bytes"].values()) / 1e6
    episodes = ", ".join(f"{count} {split}" for split, count in report["episodes"].items())
    print(f"{arguments.out}: {episodes} episodes, {size:.1f} MB, in {time.monotonic() - started:.0f} s; details in {sharded.REPORT_FILE}")
    return 0


def _index(arguments: argparse.Namespace) -> int:
    from data_pipelines.rlds.dataset import DatasetInfo, build_index, find_defects
    from data_pipelines.rlds.schema import Schema

    info, bad = DatasetInfo.read(arguments.directory), 0
    schema = Schema.read(info.directory)
    for name, split in info.splits.items():
        if not split.present:
            print(f"{name}: none of {len(split.files)} shard(s) present")
            continue
        started = time.monotonic()
        with ProgressLine("shards") as progress:
            shards = build_index(
                info,
                schema,
                name,
                index_dir=arguments.index_dir,
                counted=not arguments.headers_only,
                workers=arguments.workers,
                share=arguments.share,
                progress=lambda done, total, progress=progress: progress(done, total, ""),
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
    from data_pipelines.openx.registry import dataset_spec
    from data_pipelines.rlds.dataset import RLDSDataset

    for directory in arguments.directory:
        dataset = RLDSDataset(directory, arguments.split, index_dir=arguments.index_dir, on_bad_record=arguments.on_bad_record)
        spec = dataset_spec(arguments.name or dataset.name)
        with ProgressLine("episodes") as line:
            options = {
                "index_dir": arguments.index_dir,
                "on_bad_record": arguments.on_bad_record,
                "progress": lambda done, total, line=line: line(done, total, ""),
            }
            if arguments.share:
                part = statistics.save_partial(dataset, spec, arguments.share, **options)
                print(f"{dataset.directory} split {dataset.split}: part {'/'.join(map(str, arguments.share))}, {part.episodes} episodes")
                continue
            made = statistics.load_or_compute(dataset, spec, **options)
        print(f"{dataset.directory} split {dataset.split}: {made.episodes} episodes, {made.steps} steps, sha256 {made.hash[:16]}")
        for name, column in made.columns.items():
            print(f"  {name} ({column.key}), {column.count} steps")
            for row in ("mean", "std", "min", "q01", "q99", "max"):
                print(f"    {row:>4} " + " ".join(f"{value:8.3f}" for value in getattr(column, row)))
        for record in made.skipped:
            print(f"  left out: {record}")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from data_pipelines import inspection
    from data_pipelines.openx.mixtures import mixture
    from data_pipelines.openx.registry import REGISTRY
    from data_pipelines.rlds.dataset import RLDSDataset

    if arguments.mixture:
        table = mixture(arguments.mixture)
        print(f"mixture {arguments.mixture} ({table.source}); weights {'per step of the dataset' if table.per_step else 'as shares'}")
        return _inspect_local_copy(arguments, table.weights, table.weights)
    if names := _datasets_below(arguments.directory):
        return _inspect_local_copy(arguments, names)
    report = inspection.inspect_dataset(arguments.directory, arguments.index_dir, arguments.images)
    print(inspection.summary(report))
    if arguments.json:
        write_atomically(arguments.json, json.dumps(report, indent=1).encode())
        print(f"wrote {arguments.json}")
    if arguments.png:
        from data_pipelines import contact_sheet

        split = next((name for name, entry in report["splits"].items() if entry.get("episodes")), None)
        if split is None:
            raise DataError(f"{arguments.directory}: no split has an episode to draw")
        arguments.png.parent.mkdir(parents=True, exist_ok=True)
        dataset = RLDSDataset(arguments.directory, split, index_dir=arguments.index_dir, on_bad_record="skip")
        contact_sheet.draw(dataset, arguments.png, spec=REGISTRY.get(dataset.name))
        print(f"wrote {arguments.png}")
    return 1 if any(entry.get("defects_total") for entry in report["splits"].values()) else 0


def _datasets_below(directory: Location) -> list[str]:
    """The datasets of a local copy; none where `directory` is a dataset itself."""
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
        write_atomically(arguments.json, json.dumps([asdict(finding) for finding in findings], indent=1).encode())
        print(f"wrote {arguments.json}")
    return 1 if any(finding.status != local_copy.OK for finding in findings) else 0


class ProgressLine:
    """A bar on a terminal; a plain line every few seconds and at the end elsewhere."""

    def __init__(self, unit: str, every_s: float = 5.0):
        self._unit, self._every, self._last, self._start, self._bar = unit, every_s, 0.0, time.monotonic(), None

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(total=total, unit=f" {self._unit}", file=sys.stderr)
            self._bar.update(done - self._bar.n)
        elif done == total or now - self._last >= self._every:
            self._last = now
            print(f"{done}/{total} {self._unit}, {now - self._start:.0f} s {note}".rstrip(), file=sys.stderr, flush=True)
