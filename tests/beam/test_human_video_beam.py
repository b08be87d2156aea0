"""The conversion on Apache Beam's local runner against `vpp data build`, in a separate environment: `make beam`."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("apache_beam", reason="Apache Beam is not installed: `make beam` runs this in a separate environment")

import av

from data_pipelines.builders import sharded
from data_pipelines.builders.human_video import HumanVideoRecipe, HumanVideoSettings
from data_pipelines.builders.human_video_beam import main
from data_pipelines.rlds.dataset import RLDSDataset


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Six videos with captions in two splits, and a seventh that is truncated."""
    root, rows = tmp_path_factory.mktemp("videos"), []
    for number in range(7):
        path = root / f"{number}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for step in range(3 + number):
                image = np.full((32, 48, 3), 20 * number + 10 * step, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        rows.append({"video": path.name, "caption": f"thing {number}", "split": "val" if number == 2 else "train"})
    (root / "6.mp4").write_bytes((root / "6.mp4").read_bytes()[:300])
    (root / "captions.json").write_text(json.dumps(rows))
    return root


def test_beam_gives_the_same_episodes(videos, tmp_path):
    plan = HumanVideoSettings(source=str(videos), layout="folder", size=16, on_bad_video="skip")
    sharded.build(HumanVideoRecipe(plan), tmp_path / "ours", workers=0)
    flags = [f"--source={videos}", "--layout=folder", "--size=16", "--on_bad_video=skip", f"--data_dir={tmp_path / 'beam'}"]
    assert main([*flags, "--direct_running_mode=in_memory"]) == 0
    directory = tmp_path / "beam" / "human_video" / "1.0.0"
    ours, theirs = (json.loads((path / "features.json").read_text()) for path in (tmp_path / "ours", directory))
    assert ours == theirs
    for split, count in (("train", 5), ("val", 1)):
        pairs = [
            sorted(RLDSDataset(path, split), key=lambda episode: episode.metadata("episode_metadata/name"))
            for path in (tmp_path / "ours", directory)
        ]
        assert [len(episodes) for episodes in pairs] == [count, count]
        for mine, other in zip(*pairs, strict=True):
            for name in RLDSDataset(directory, split).schema.steps:
                np.testing.assert_array_equal(mine.column(name), other.column(name))
            for name in RLDSDataset(directory, split).schema.episode:
                assert mine.metadata(name) == other.metadata(name)
