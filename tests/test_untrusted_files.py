"""Files from elsewhere are data: each kind that is read is tried with a payload that would leave a file behind, and leaves none.

Configuration files in Python are code by design, and so is the class of a simulator that a command line names (docs/reference/security.md).
PyTorch files, safetensors and NumPy's object arrays have tests of their own: interop/test_torch_file.py, interop/test_safetensors_file.py,
common/test_object_array.py.
"""

import io
import json
import pickle
import sys
from pathlib import Path

import av
import msgpack
import numpy as np
import pytest
from malicious import Malicious
from PIL import EpsImagePlugin, Image

from data_pipelines.builders.calvin_recorded import Frames, RecordedSettings, read_scene_ranges, read_windows
from data_pipelines.builders.video_files import BadVideoError, read_frames
from data_pipelines.builders.video_listings import Clip, annotated
from data_pipelines.errors import DataError
from data_pipelines.partial_stats import PartialStats
from data_pipelines.rlds import images
from data_pipelines.rlds import index as record_index
from data_pipelines.rlds.schema import Schema
from eval.report.collect import collect
from eval.report.page import render
from eval.worker.vpp_worker.protocol import ProtocolError, unpack
from vpp_jax.cli.config_flag import load_config, override, split_overrides
from vpp_jax.cli.predict import PredictError, read_image
from vpp_jax.common.errors import FileFormatError, VppError
from vpp_jax.config import ConfigError, ExperimentConfig, to_dict
from vpp_jax.training.checkpoints import CheckpointError, read_metadata


class Payload:
    """Ways to create one file: as an object that pickles to a call, as a Python expression, as a shell command."""

    def __init__(self, canary: Path):
        self.canary = canary
        self.expression = f"__import__('pathlib').Path({str(canary)!r}).touch()"
        self.command = f"touch {canary}"
        self.pickled = Malicious(Path.touch, canary)

    @property
    def ran(self) -> bool:
        return self.canary.exists()


@pytest.fixture
def payload(tmp_path):
    """Fails the test where the payload ran, whatever else it checks."""
    made = Payload(tmp_path / "canary")
    yield made
    assert not made.ran


def test_the_payload_works(tmp_path):
    """Without this the tests below could pass on harmless files."""
    for number, run in enumerate((lambda p: pickle.loads(pickle.dumps(p.pickled)), lambda p: eval(p.expression))):
        made = Payload(tmp_path / str(number))
        run(made)
        assert made.ran


# --- NumPy files --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def calvin(tmp_path):
    """The folder of a recorded CALVIN dataset, without any file."""
    (tmp_path / "calvin" / "training" / "lang_annotations").mkdir(parents=True)
    return tmp_path / "calvin"


@pytest.mark.parametrize("content", ["whole", "instruction", "indx", "emb"])
def test_calvins_annotations(calvin, payload, content):
    tree = {"language": {"ann": ["lift it"], "task": ["lift"], "emb": np.zeros(3)}, "info": {"indx": [(0, 5)], "episodes": []}}
    if content == "indx":
        tree["info"]["indx"] = [payload.pickled]
    elif content == "emb":
        tree["language"]["emb"] = payload.pickled
    elif content == "instruction":
        tree["language"]["ann"] = [payload.pickled]
    path = calvin / "training" / "lang_annotations" / "auto_lang_ann.npy"
    np.save(path, payload.pickled if content == "whole" else tree, allow_pickle=True)
    with pytest.raises(FileFormatError, match=rf"{path} is refused: its pickle calls for .*Nothing of it was run"):
        read_windows(RecordedSettings(source=str(calvin)), "train")


def test_calvins_scenes(calvin, payload):
    np.save(calvin / "training" / "scene_info.npy", {"calvin_scene_A": payload.pickled}, allow_pickle=True)
    with pytest.raises(FileFormatError, match="is refused: its pickle calls for"):
        read_scene_ranges(calvin / "training" / "scene_info.npy")


def test_calvins_frames(calvin, payload):
    columns = dict.fromkeys(("rgb_gripper", "robot_obs", "scene_obs", "rel_actions"), np.zeros(7))
    np.savez(calvin / "training" / "episode_0000001.npz", **columns, rgb_static=np.array(payload.pickled, object))
    with pytest.raises(DataError, match=r"episode_0000001\.npz: not a CALVIN frame"):
        Frames(calvin).read("training", 1)


def test_annotations_that_are_no_annotations(calvin):
    path = calvin / "training" / "lang_annotations" / "auto_lang_ann.npy"
    for content, message in (
        ({"language": {}}, "no CALVIN annotations"),
        ([1, 2], "expected one dict"),
        ({"language": {"ann": [1], "task": ["a"]}, "info": {"indx": [(0, 1)]}}, "a text or a list of texts"),
        ({"language": {"ann": ["a"], "task": ["a"]}, "info": {"indx": [(0, 1, 2)]}}, "no CALVIN annotations"),
    ):
        np.save(path, content, allow_pickle=True)
        with pytest.raises(DataError, match=message):
            read_windows(RecordedSettings(source=str(calvin)), "train")


def stored_shards(path: Path) -> list:
    return record_index._load(path, "")


def archive_with(payload) -> bytes:
    file = io.BytesIO()
    np.savez(file, header=np.array(payload.pickled, object))
    return file.getvalue()


def test_record_indexes_and_partial_statistics(payload, tmp_path):
    """Files of our own that may be stored with somebody else's shards: an index that cannot be used is rebuilt."""
    (tmp_path / "index.npz").write_bytes(archive_with(payload))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        PartialStats.unpack(archive_with(payload))
    assert stored_shards(tmp_path / "index.npz") == []


# --- configurations and checkpoints -------------------------------------------------------------------------------------------------


def test_a_json_configuration_never_runs_code(payload, tmp_path):
    (tmp_path / "evil.py").write_text(f"{payload.expression}\ndef get_config():\n    {payload.expression}\n")
    tree = to_dict(ExperimentConfig())
    (tmp_path / "code.json").write_text((tmp_path / "evil.py").read_text())
    for key, value in (("stage", payload.expression), ("stage", str(tmp_path / "evil.py")), ("__reduce__", "x"), ("config", "evil.py")):
        (tmp_path / f"{key}.json").write_text(json.dumps(tree | {key: value}))
        with pytest.raises(ConfigError, match=str(tmp_path)):
            load_config(str(tmp_path / f"{key}.json"))
    with pytest.raises(ConfigError, match="is not JSON"):
        load_config(str(tmp_path / "code.json"))
    for text in (
        str(tmp_path / "evil.py"),
        payload.expression,
        f"$({payload.command})",
        f"!!python/object/apply:os.system ['{payload.command}']",
    ):
        (tmp_path / "named.json").write_text(json.dumps(tree | {"init": {"vae": text}}))
        assert load_config(str(tmp_path / "named.json")).init.vae == text  # a text like any other


def test_overrides_on_the_command_line_are_literals(payload):
    for value in (payload.expression, f"({payload.expression},)", f"!!python/object/apply:os.system ['{payload.command}']"):
        for name in ("seed", "train.steps", "model.unet.channels", "optimizer.learning_rate"):
            with pytest.raises((VppError, ValueError, TypeError)):
                override(ExperimentConfig(), split_overrides([f"--config.{name}={value}"])[0])


def test_metadata_of_a_checkpoint(payload, tmp_path):
    folder = tmp_path / "checkpoints" / "1"
    (folder / "metadata").mkdir(parents=True)
    (folder / "commit_success.txt").touch()
    for name in ("metadata/metadata", "metadata/checkpoint", "_CHECKPOINT_METADATA", "checkpoint", "_METADATA"):
        (folder / name).write_bytes(pickle.dumps(payload.pickled))
    with pytest.raises(CheckpointError, match=r"checkpoints/1: 'metadata' is damaged"):
        read_metadata(tmp_path)


# --- datasets -----------------------------------------------------------------------------------------------------------------------


def test_features_json_does_not_import_what_it_names(payload, tmp_path, monkeypatch):
    (tmp_path / "evil_features.py").write_text(f"{payload.expression}\nclass FeaturesDict: ...\nclass Tensor: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    leaf = {"pythonClassName": "evil_features.Tensor", "tensor": {"shape": {}, "dtype": "float32", "encoding": "none"}}
    own = {"pythonClassName": "evil_features.Own", "content": "x"}
    inner = {"pythonClassName": "evil_features.FeaturesDict", "featuresDict": {"features": {"action": leaf, "own": own}}}
    steps = {"pythonClassName": "evil_features.Dataset", "sequence": {"feature": inner}}
    tree = {"pythonClassName": "evil_features.FeaturesDict", "featuresDict": {"features": {"steps": steps}}}
    (tmp_path / "features.json").write_text(json.dumps(tree))
    schema = Schema.read(tmp_path)
    assert (schema.steps["action"].kind, schema.steps["own"].kind) == ("tensor", "unsupported")
    assert "evil_features" not in sys.modules


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 moveto\nshowpage\n%%EOF\n"


@pytest.fixture
def ghostscript(tmp_path, monkeypatch, payload):
    """A `gs` on the path that runs the payload: Pillow starts it for PostScript."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\n{payload.command}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return program


@pytest.mark.usefixtures("ghostscript")
def test_images_never_start_ghostscript(payload, tmp_path):
    with pytest.raises(ValueError, match=r"not an image"):
        images.size(EPS)
    with pytest.raises(ValueError, match="of none of the types JPEG, PNG"):
        images.decode(EPS)
    (tmp_path / "scene.png").write_bytes(EPS)
    with pytest.raises(PredictError, match="of none of the types JPEG, PNG"):
        read_image(tmp_path / "scene.png")
    run = tmp_path / "run"
    (run / "video").mkdir(parents=True)
    (run / "video" / "first_batch.png").write_bytes(EPS + b"%" * 2_000_000)
    with pytest.raises(VppError, match=r"first_batch\.png is no PNG image"):
        render(collect(run))
    assert not payload.ran
    with Image.open(io.BytesIO(EPS)) as image, pytest.raises(OSError):
        image.load()  # without a list of formats it is started
    assert payload.ran
    payload.canary.unlink()


def test_videos_that_are_playlists(tmp_path):
    """FFmpeg opens what a playlist names; here it would be a file of this machine."""
    with av.open(str(tmp_path / "secret.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    playlist = tmp_path / "clip.mp4"
    playlist.write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with av.open(str(playlist)) as container:
        assert len(list(container.decode(video=0))) == 4
    with pytest.raises(BadVideoError, match=r"clip\.mp4: cannot be decoded"):
        list(read_frames(playlist))
    assert len(list(read_frames(tmp_path / "secret.mp4"))) == 4


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.mp4", "videos/../../secret.mp4"])
def test_annotations_name_videos_below_their_folder(tmp_path, name):
    (tmp_path / "a.json").write_text(json.dumps({"texts": ["lift"], "videos": [{"video_path": name}]}))
    with pytest.raises(BadVideoError, match="is not below"):
        annotated(tmp_path, Clip("train", "a", "a.json", ""), latents=False)


# --- evaluation ---------------------------------------------------------------------------------------------------------------------


def test_messages_between_processes(payload):
    extensions = [
        msgpack.ExtType(1, msgpack.packb(["|O", [1], pickle.dumps(payload.pickled)])),
        msgpack.ExtType(1, msgpack.packb([payload.expression, [1], b""])),
        msgpack.ExtType(2, pickle.dumps(payload.pickled)),
        msgpack.ExtType(127, payload.expression.encode()),
    ]
    for extension in extensions:
        with pytest.raises(ProtocolError):
            unpack(msgpack.packb({"actions": extension}))


def test_a_report_shows_no_other_files(tmp_path):
    (tmp_path / "secret.mp4").write_bytes(b"the secret")
    directory = tmp_path / "run" / "eval" / "policy"
    directory.mkdir(parents=True)
    task = {"task": "lift", "instruction": "lift it", "success": True, "steps": 1, "chunks": 1}
    record = {"index": 0, "scene": "A", "seed": 0, "solved": 1, "tasks": [task]}
    videos = [str(tmp_path / "secret.mp4"), "../../../secret.mp4"]
    lines = [record | {"index": index, "video": video} for index, video in enumerate(videos)]
    (directory / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "results.json").write_text(json.dumps({"metrics": {}}))
    assert collect(tmp_path / "run").evaluations["policy"].videos == []
