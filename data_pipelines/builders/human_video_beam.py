"""`human_video` as a TFDS builder that converts the videos with Apache Beam: for more videos than one machine can convert.

    python -m data_pipelines.builders.human_video_beam --source=DIR --layout=... --data_dir=DIR [--runner=DataflowRunner ...]

Takes the settings of `vpp data build human_video`; all other flags are passed to Beam (the default runner is local). The episodes equal
those of that command; TFDS decides the number of shards and the shard of each episode. Beam retries failures of the file system or the
runner. Needs a separate environment with requirements/beam.txt, which conflicts with the project's requirements. Workers must see the
videos under the same path.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import apache_beam as beam
import tensorflow_datasets as tfds

from data_pipelines.builders.human_video import HumanVideoRecipe, HumanVideoSettings, read_episode
from data_pipelines.builders.video_files import BadVideoError
from data_pipelines.builders.video_listings import Clip
from data_pipelines.builders.writer import features_json

COUNTERS = "human_video"
log = logging.getLogger(__name__)


class HumanVideo(tfds.core.GeneratorBasedBuilder):
    """The dataset `human_video`. Do not change `plan` between runs into the same directory: TFDS compares only the version."""

    name = HumanVideoRecipe.name
    VERSION = tfds.core.Version(HumanVideoRecipe.version)

    def __init__(self, *, plan: HumanVideoSettings, **options: Any):
        self._recipe = HumanVideoRecipe(plan)
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict.from_json(features_json(self._recipe.schema()))
        metadata = tfds.core.MetadataDict(self._recipe.metadata())
        return tfds.core.DatasetInfo(builder=self, description=self._recipe.description, features=features, metadata=metadata)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, beam.PTransform]:
        return {split: self._generate_examples(clips) for split, clips in self._recipe.jobs().items()}

    def _generate_examples(self, clips: Sequence[Clip]) -> beam.PTransform:
        return beam.Create(clips) | beam.Reshuffle() | beam.FlatMap(examples, self._recipe.plan)


def examples(clip: Clip, plan: HumanVideoSettings) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, episode in TFDS form), or nothing if the video is skipped, which is logged and counted."""
    try:
        columns, metadata = read_episode(plan, clip)
    except BadVideoError as error:
        if plan.on_bad_video == "fail":
            raise
        log.warning("skipped: %s", error)
        beam.metrics.Metrics.counter(COUNTERS, "skipped").inc()
        return
    names = list(columns)
    steps = [nested(dict(zip(names, values, strict=True))) for values in zip(*columns.values(), strict=True)]
    yield clip.name, {"steps": steps, **nested(metadata)}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """`group/name` -> {group: {name: ...}}."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        group, _, rest = name.rpartition("/")
        (tree.setdefault(group, {}) if group else tree)[rest] = value
    return tree


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="human_video_beam", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="TFDS writes DATA_DIR/human_video/VERSION; may be in a bucket")
    for field in fields(HumanVideoSettings):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    values, rest = parser.parse_known_args(argv)
    plan = HumanVideoSettings(**{field.name: getattr(values, field.name) for field in fields(HumanVideoSettings)})
    builder = HumanVideo(plan=plan, data_dir=values.data_dir)
    options = beam.options.pipeline_options.PipelineOptions(rest)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(beam_options=options))
    print(f"{builder.data_dir}: " + ", ".join(f"{split.num_examples} {name}" for name, split in builder.info.splits.items()) + " episodes")
    return 0


if __name__ == "__main__":
    from data_pipelines.builders import human_video_beam  # TFDS and Beam workers must find the builder by its module name

    sys.exit(human_video_beam.main(sys.argv[1:]))
