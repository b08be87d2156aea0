"""Videos to RLDS: the three layouts, the content of the images, and invalid videos and captions."""

import csv
import json
import shutil
import struct
import zipfile
from fractions import Fraction
from pathlib import Path
from unittest.mock import Mock

import av
import fsspec
import numpy as np
import pytest
from fake_bucket import FakeBucket

from data_pipelines import statistics
from data_pipelines.builders import sharded
from data_pipelines.builders.human_video import CAMERA, HumanVideoRecipe, HumanVideoSettings, list_clips
from data_pipelines.builders.video_files import BadVideoError, read_frames
from data_pipelines.config import DataConfig, DatasetConfig
from data_pipelines.configured_sources import clip_source, policy_source
from data_pipelines.errors import DataError
from data_pipelines.openx.registry import dataset_spec
from data_pipelines.rlds.dataset import RLDSDataset
from data_pipelines.rlds.latents import mean_of

CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9"}


def write_video(path: Path, frames: int = 12, rate: int = 12, height: int = 48, width: int = 64, first: int = 10) -> Path:
    """Frame k is grey of brightness first + 10 k, its left half twice as bright as its right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix], rate=rate, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            image = np.full((height, width, 3), first + 10 * number, np.uint8)
            image[:, width // 2 :] //= 2
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def brightness(frame: np.ndarray) -> float:
    """Mean brightness of the left half."""
    return float(frame[:, : frame.shape[1] // 2].mean())


@pytest.fixture(scope="module")
def something(tmp_path_factory) -> Path:
    """A small Something-Something-v2: 7 labelled videos, one missing, one truncated, one without caption; 1 of split test, 1 unlisted."""
    root = tmp_path_factory.mktemp("ssv2")
    videos = root / "20bn-something-something-v2"
    good = write_video(videos / "1.webm")
    for name in ("2", "3", "5", "6", "7", "8"):
        shutil.copy(good, videos / f"{name}.webm")
    (videos / "3.webm").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    entries = {
        str(k): {"id": str(k), "label": f"pushing thing {k}", "template": "Pushing [something]", "placeholders": [f"thing {k}"]}
        for k in range(1, 7)
    }
    entries["5"] |= {"label": "", "template": "Moving [something] and [something]", "placeholders": ["a cup", "a pen"]}
    entries["6"] |= {"label": " ", "template": "", "placeholders": []}
    labels = root / "labels"
    labels.mkdir()
    (labels / "train.json").write_text(json.dumps([entries[k] for k in ("1", "3", "4", "5", "6")]))
    (labels / "validation.json").write_text(json.dumps([entries["2"]]))
    (labels / "test.json").write_text(json.dumps([{"id": "7"}]))
    return root


def build(out: Path, workers: int = 0, **settings) -> dict:
    return sharded.build(HumanVideoRecipe(HumanVideoSettings(**settings)), out, workers)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# --- layouts --------------------------------------------------------------------------------------------------------------------------


def test_something_something(something, tmp_path):
    report = build(tmp_path / "out", source=str(something), size=32, on_bad_video="skip")
    assert report["episodes"] == {"train": 2, "val": 1}
    assert report["kept"] == {"train": 2, "val": 1}
    assert report["attempts"] == {"train": 6, "val": 1}
    problems = {line.split(": ")[0].rsplit("/", 1)[-1]: line for line in report["skipped"]}
    assert set(problems) == {"3.webm", "4", "6.webm", "8.webm"}  # 7 is of the test split, which has no labels
    assert "has no frames" in problems["3.webm"]
    assert "no such video" in problems["4"]
    assert "empty caption" in problems["6.webm"]
    assert "no entry in the label files" in problems["8.webm"]
    first, second = RLDSDataset(tmp_path / "out")
    assert (first.metadata("episode_metadata/name"), first.text("language_instruction")) == ("1", "pushing thing 1")
    assert second.text("language_instruction") == "Moving a cup and a pen"
    assert second.metadata("episode_metadata/template") == "Moving [something] and [something]"
    assert first.metadata("episode_metadata/fps") == pytest.approx(12, rel=0.01)
    assert len(first) == 12
    shown = [first.frame(CAMERA, step) for step in range(12)]
    assert shown[0].shape == (32, 32, 3)
    np.testing.assert_allclose([brightness(frame) for frame in shown], 10 + 10 * np.arange(12), atol=4)
    assert np.flatnonzero(first.column("is_first")).tolist() == [0]
    assert np.flatnonzero(first.column("is_last")).tolist() == [11]


def test_bad_videos_fail_where_they_should(something, tmp_path):
    message = r"3 of 7 videos cannot be used \(.*4: no such video; .*6\.webm: empty caption.*--on_bad_video=skip"
    with pytest.raises(BadVideoError, match=message):
        build(tmp_path / "out", source=str(something))
    assert not (tmp_path / "out" / "dataset_info.json").exists()
    captions = {"a.mp4": "one", "b.mp4": "two"}
    source = folder_of(tmp_path / "videos", captions)
    data = (source / "b.mp4").read_bytes()
    (source / "b.mp4").write_bytes(data[:200])
    with pytest.raises(BadVideoError, match=r"b\.mp4: cannot be decoded .*--on_bad_video=skip"):
        build(tmp_path / "two", source=str(source), layout="folder")
    assert build(tmp_path / "three", source=str(source), layout="folder", on_bad_video="skip")["episodes"] == {"train": 1}
    (source / "a.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"split train is empty, all of its episodes were skipped.*a\.mp4"):
        build(tmp_path / "four", source=str(source), layout="folder", on_bad_video="skip")


def folder_of(root: Path, captions: dict[str, str]) -> Path:
    """Videos, each brighter than the one before, and captions.json."""
    for number, name in enumerate(captions):
        write_video(root / name, frames=4, first=20 + 20 * number)
    (root / "captions.json").write_text(json.dumps(captions))
    return root


def test_every_form_of_captions_gives_the_same_clips(tmp_path):
    captions = {"b.mp4": "open the box", "deep/a.webm": "fold the cloth"}
    source = folder_of(tmp_path, captions)

    def clips() -> dict:
        found = list_clips(HumanVideoSettings(source=str(source), layout="folder"))
        return {clip.file: (" | ".join(clip.captions), clip.split, clip.problem) for clip in found}

    expected = {"b.mp4": ("open the box", "train", ""), "deep/a.webm": ("fold the cloth", "train", "")}
    assert clips() == expected
    rows = [{"video": name, "caption": text} for name, text in captions.items()]
    (source / "captions.json").write_text(json.dumps(rows))
    assert clips() == expected
    (source / "captions.json").unlink()
    (source / "captions.jsonl").write_text("\n".join(json.dumps({**row, "video": row["video"].rsplit(".")[0]}) for row in rows) + "\n")
    assert clips() == expected
    (source / "captions.jsonl").unlink()
    with open(source / "captions.csv", "w", newline="") as file:
        table = csv.DictWriter(file, ("video", "caption", "split"))
        table.writeheader()
        table.writerows([rows[0] | {"split": "validation"}, {"video": "c.mp4", "caption": "gone"}])
    assert clips() == {
        "b.mp4": ("open the box", "val", ""),
        "deep/a.webm": ("", "train", "no caption"),
        "c.mp4": ("gone", "train", "no such video"),
    }
    (source / "captions.csv").unlink()
    (source / "b.txt").write_text("open\nthe box\n")
    assert clips() == {"b.mp4": ("open the box", "train", ""), "deep/a.webm": ("", "train", "no caption")}


def test_videos_go_to_val_by_name_alone(tmp_path):
    for number in range(400):
        (tmp_path / f"{number}.mp4").touch()
    settings = {"source": str(tmp_path), "layout": "folder", "val_fraction": 0.25}
    before = {clip.name: clip.split for clip in list_clips(HumanVideoSettings(**settings))}
    share = sum(split == "val" for split in before.values()) / 400
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)
    (tmp_path / "new.mp4").touch()
    after = {clip.name: clip.split for clip in list_clips(HumanVideoSettings(**settings))}
    assert {name: after[name] for name in before} == before


@pytest.fixture
def published(tmp_path) -> Path:
    """Two episodes in the published code's format; the second without a caption. Latents as torch.save writes them."""
    for name, text in (("2", "put the cheese on the cloth"), ("10", "")):
        write_video(tmp_path / f"videos/val/{name}/rgb.mp4", frames=5)
        tree = {
            "texts": [text],
            "videos": [{"video_path": f"videos/val/{name}/rgb.mp4"}],
            "state": [[0.0] * 7] * 5,
            "latent_videos": [{"latent_video_path": f"latent_videos/val/{name}/0.pt"}],
        }
        path = tmp_path / f"annotation/val/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(tree))
        latents = tmp_path / f"latent_videos_svd/val/{name}/0.pt"  # where the published loader looks second
        latents.parent.mkdir(parents=True)
        torch_save(latents, recorded_latents())
    return tmp_path


def recorded_latents() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 4, 4, 4)).astype(np.float32)


def torch_save(path: Path, values: np.ndarray) -> None:
    """The archive that PyTorch writes for one float32 tensor."""

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def numbers(values) -> bytes:
        return b"(" + b"".join(map(integer, values)) + b"t"

    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + integer(values.size) + b"tQ"
    strides = [stride // 4 for stride in values.strides]
    arguments = storage + integer(0) + numbers(values.shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)R"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR.")
        archive.writestr("archive/data/0", values.tobytes())


def test_published_format_with_videos(published, tmp_path):
    report = build(tmp_path / "out", source=str(published), layout="vpp", size=0, on_bad_video="skip")
    assert report["episodes"] == {"val": 1}
    assert "val/10.json: empty caption" in report["skipped"][0]
    (episode,) = RLDSDataset(tmp_path / "out", "val")
    assert episode.text("language_instruction") == "put the cheese on the cloth"
    assert episode.frame(CAMERA, 4).shape == (48, 64, 3)
    assert brightness(episode.frame(CAMERA, 4)) == pytest.approx(50, abs=4)
    with pytest.raises(DataError, match=r"split val is empty, all of its episodes were skipped.*more than --max_video_frames=4"):
        build(tmp_path / "short", source=str(published), layout="vpp", max_video_frames=4, on_bad_video="skip")


def test_published_format_with_latents(published, tmp_path):
    settings = {"source": str(published), "layout": "vpp", "content": "latents", "size": 32, "on_bad_video": "skip"}
    build(tmp_path / "out", **settings, vae="abc")
    dataset = RLDSDataset(tmp_path / "out", "val")
    assert dataset.metadata == {"latents": {"vae": "abc", "image_size": 32, "cameras": ["observation/image"]}}
    latents = dataset[0].column(mean_of(CAMERA))
    assert latents.dtype == np.float16
    np.testing.assert_allclose(latents * 0.18215, np.moveaxis(recorded_latents(), 1, -1), rtol=2e-3, atol=1e-4)
    with pytest.raises(DataError, match=r"0\.pt: float32 \[5, 4, 4, 4\], expected floats \[frames, 4, 8, 8\] for --size=64"):
        build(tmp_path / "other", **{**settings, "size": 64})
    (published / "latent_videos_svd/val/2/0.pt").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataError, match=r"0\.pt: not a file of recorded latents \(.*is not a zip archive"):
        build(tmp_path / "third", **settings)


def test_annotations_may_not_lead_out_of_the_source(published, tmp_path):
    tree = json.loads((published / "annotation/val/2.json").read_text())
    for path in ("../secret.mp4", "/etc/passwd"):
        (published / "annotation/val/2.json").write_text(json.dumps(tree | {"videos": [{"video_path": path}]}))
        with pytest.raises(BadVideoError, match="which is not below"):
            build(tmp_path / "out", source=str(published), layout="vpp")


def test_real_videos_and_latents(reference_data, tmp_path):
    source = reference_data / "videos" / "bridge"
    build(tmp_path / "pixels", source=str(source), layout="vpp", size=64)
    build(tmp_path / "latents", source=str(source), layout="vpp", content="latents")
    pixels, latents = RLDSDataset(tmp_path / "pixels", "val"), RLDSDataset(tmp_path / "latents", "val")
    instructions = [episode.text("language_instruction") for episode in pixels]
    assert instructions == ["Put the cheese onto the cloth.", "put the broccoli next to the bowl"]
    assert pixels.lengths.tolist() == latents.lengths.tolist() == [40, 43]
    assert latents[0].column(mean_of(CAMERA)).shape == (40, 32, 32, 4)
    # where the image is bright and where the latent's strongest channel is high go together: same frame, same orientation
    grey = pixels[0].frame(CAMERA, 0).mean(-1).reshape(32, 2, 32, 2).mean((1, 3)).ravel()
    channels = latents[0].column(mean_of(CAMERA))[0].reshape(-1, 4).astype(float)
    assert max(abs(np.corrcoef(grey, channel)[0, 1]) for channel in channels.T) > 0.7


# --- images -------------------------------------------------------------------------------------------------------------------------


def test_size_rate_and_number_of_frames(tmp_path):
    write_video(tmp_path / "videos" / "a.mp4", frames=24, rate=24, first=10, height=48, width=96)
    (tmp_path / "videos" / "a.txt").write_text("a thing")
    common = {"source": str(tmp_path / "videos"), "layout": "folder"}
    build(tmp_path / "rate", **common, fps=8, size=24, resize_mode="short_side")
    (episode,) = RLDSDataset(tmp_path / "rate")
    assert episode.frame(CAMERA, 0).shape == (24, 48, 3)
    np.testing.assert_allclose([brightness(episode.frame(CAMERA, k)) for k in range(len(episode))], 10 + 30 * np.arange(8), atol=4)
    assert episode.metadata("episode_metadata/fps") == pytest.approx(8, rel=0.01)
    build(tmp_path / "most", **common, num_frames=5, size=16)
    (episode,) = RLDSDataset(tmp_path / "most")
    spread = np.trunc(np.linspace(0, 23, 5))
    np.testing.assert_allclose([brightness(episode.frame(CAMERA, k)) for k in range(5)], 10 + 10 * spread, atol=4)


def test_rates_that_do_not_divide(tmp_path):
    """30 frames per second at a clock of 12: the first frame at or after each tick."""
    path = write_video(tmp_path / "a.mp4", frames=15, rate=30)
    times = [round(seconds * 30) for seconds, _ in read_frames(path, 12)]
    assert times == [0, 3, 5, 8, 10, 13]
    assert len(list(read_frames(path, 60))) == 15


def test_rotated_videos_are_upright(tmp_path):
    """A phone video: stored in landscape, with a 90 degree rotation in its track header."""
    path = write_video(tmp_path / "a.mp4", frames=2, first=200)
    data = path.read_bytes()
    identity = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    turned = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    place = data.index(identity, data.index(b"tkhd"))
    path.write_bytes(data[:place] + turned + data[place + 36 :])
    _, frame = next(read_frames(path))
    assert frame.shape == (64, 48, 3)
    assert frame[:32].mean() == pytest.approx(200, abs=6)  # what was left is now above
    assert frame[32:].mean() == pytest.approx(100, abs=6)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.8])
def test_truncated_files_are_always_detected(tmp_path, suffix, share):
    path = write_video(tmp_path / f"a{suffix}", frames=20)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(BadVideoError, match=rf"a\{suffix}"):
        list(read_frames(path))


def write_held(path: Path, seconds: int = 5) -> bytes:
    """Ten frames, 0.1 s apart; the last one is shown for `seconds`."""
    milliseconds = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS.get(path.suffix, "mpeg4"), rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 48, "yuv420p", milliseconds
        stream.codec_context.time_base = milliseconds
        packets = []
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 100 * number, milliseconds
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet in packets:
            packet.duration = 1000 * seconds if packet.pts == 900 else 100
            container.mux(packet)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm", ".mkv", ".avi"])
def test_a_held_last_frame_is_no_truncation(tmp_path, suffix):
    """Screen recorders and phones write variable frame rates: the file is seconds longer than its last frame's time."""
    data = write_held(tmp_path / f"a{suffix}")
    assert [round(seconds, 3) for seconds, _ in read_frames(tmp_path / f"a{suffix}")] == [k / 10 for k in range(10)]
    assert len(list(read_frames(tmp_path / f"a{suffix}", fps=5))) == 5
    (tmp_path / f"b{suffix}").write_bytes(data[: int(0.6 * len(data))])
    with pytest.raises(BadVideoError, match=rf"b\{suffix}"):
        list(read_frames(tmp_path / f"b{suffix}"))


def test_a_held_last_frame_whose_block_has_no_duration(tmp_path):
    """Only the header says so, as some programs write it; a cut or an unfilled file is refused all the same."""
    path = write_video(tmp_path / "a.webm", frames=10, rate=10)
    data = path.read_bytes()
    place = data.index(b"\x44\x89\x88") + 3  # Duration, a double
    (milliseconds,) = struct.unpack_from(">d", data, place)
    held = data[:place] + struct.pack(">d", milliseconds + 5000) + data[place + 8 :]
    path.write_bytes(held)
    assert len(list(read_frames(path))) == 10
    for broken in (held[:-20], held[:-100] + bytes(100), held[: len(held) // 2]):
        path.write_bytes(broken)
        with pytest.raises(BadVideoError, match=r"a\.webm"):
            list(read_frames(path))


def test_files_that_are_no_videos(tmp_path):
    (tmp_path / "a.mp4").write_text("hello")
    with pytest.raises(BadVideoError, match=r"a\.mp4: cannot be decoded"):
        list(read_frames(tmp_path / "a.mp4"))
    path = write_video(tmp_path / "b.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(BadVideoError, match=r"b\.mp4: is in a format that FFmpeg does not support"):
        list(read_frames(path))


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_damaged_files_give_images_or_the_one_error(tmp_path, suffix):
    """20 random bytes. Containers have no checksums, so damage that still decodes is not detected."""
    rng, path = np.random.default_rng(0), write_video(tmp_path / f"a{suffix}", frames=20)
    data, refused = path.read_bytes(), 0
    for _ in range(60):
        damaged = np.frombuffer(data, np.uint8).copy()
        place = rng.integers(len(data))
        damaged[place : place + 20] = rng.integers(0, 256, len(damaged[place : place + 20]))
        path.write_bytes(damaged.tobytes())
        try:
            frames = list(read_frames(path))
            assert 16 <= len(frames) <= 20
        except BadVideoError as error:
            refused += str(path) in str(error)
    assert refused > 10


# --- the build ------------------------------------------------------------------------------------------------------------------------


def test_neither_workers_nor_an_interruption_change_a_byte(something, tmp_path, monkeypatch):
    settings = {"source": str(something), "size": 16, "on_bad_video": "skip", "episodes_per_shard": 2}
    build(tmp_path / "one", **settings)
    build(tmp_path / "two", workers=2, **settings)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")

    class Stop(Exception):
        pass

    def progress(done, total, note):
        if done >= 2:
            raise Stop

    recipe = HumanVideoRecipe(HumanVideoSettings(**settings))
    with pytest.raises(Stop):
        sharded.build(recipe, tmp_path / "three", 0, progress)
    assert not (tmp_path / "three" / "dataset_info.json").exists()
    build(tmp_path / "three", **settings)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_a_bucket_gets_the_same_files_and_an_interrupted_build_resumes(something, tmp_path, monkeypatch):
    fsspec.register_implementation("fake", FakeBucket, clobber=True)
    FakeBucket.clear()
    settings = {"source": str(something), "size": 16, "on_bad_video": "skip", "episodes_per_shard": 2}
    build(tmp_path / "one", **settings)
    recipe = HumanVideoRecipe(HumanVideoSettings(**settings))
    stop = Mock(side_effect=[None, None, KeyboardInterrupt])
    with pytest.raises(KeyboardInterrupt):
        sharded.build(recipe, "fake://b/out", 0, stop)
    assert "b/out/dataset_info.json" not in FakeBucket.objects
    written = dict(FakeBucket.versions)
    sharded.build(recipe, "fake://b/out", 0)
    assert {name.removeprefix("b/out/"): data for name, data in FakeBucket.objects.items()} == contents(tmp_path / "one")
    kept = [name for name in written if ".tfrecord" in name and name.endswith("json") is False]
    assert kept
    assert all(FakeBucket.versions[name] == 1 for name in kept)  # not written again
    with pytest.raises(DataError, match="contains a build with other settings"):
        sharded.build(HumanVideoRecipe(HumanVideoSettings(**settings | {"size": 8})), "fake://b/out", 0)
    with pytest.raises(DataError, match="is not empty"):
        sharded.build(recipe, "fake://b", 0)


def test_other_captions_are_another_build(tmp_path):
    source = folder_of(tmp_path / "videos", {"a.mp4": "one"})
    build(tmp_path / "out", source=str(source), layout="folder")
    (source / "captions.json").write_text(json.dumps({"a.mp4": "two"}))
    with pytest.raises(DataError, match=r"contains a build with other settings .*clips"):
        build(tmp_path / "out", source=str(source), layout="folder")


def test_settings_that_contradict(tmp_path):
    wrongs = (
        ({"layout": "ssv2"}, "layout is 'ssv2', expected one of something_something, folder, vpp"),
        ({"content": "latents"}, "needs --layout=vpp"),
        ({"size": -1}, "size is -1"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0, expected at least 0 and less than 1"),
    )
    for wrong, message in wrongs:
        with pytest.raises(ValueError, match=message):
            HumanVideoSettings(source=str(tmp_path), **wrong)
    with pytest.raises(DataError, match="expected the directory of the videos"):
        HumanVideoSettings(source=str(tmp_path / "absent"))
    with pytest.raises(DataError, match="name the directory of the label files with --captions"):
        HumanVideoRecipe(HumanVideoSettings(source=str(tmp_path))).jobs()


def test_tfds_reads_it(something, published, tmp_path):
    """TFDS without TensorFlow decodes the same images and latents as our reader."""
    import tensorflow_datasets as tfds

    build(tmp_path / "pixels", source=str(something), size=0, on_bad_video="skip")
    build(tmp_path / "latents", source=str(published), layout="vpp", content="latents", size=32, on_bad_video="skip")
    for name, split, key in (("pixels", "train", CAMERA), ("latents", "val", mean_of(CAMERA))):
        builder, dataset = tfds.builder_from_directory(str(tmp_path / name)), RLDSDataset(tmp_path / name, split)
        assert builder.info.splits[split].num_examples == len(dataset)
        assert dict(builder.info.metadata or {}) == dataset.metadata
        record = next((tmp_path / name).glob(f"*-{split}.tfrecord-00000*")).read_bytes()
        decoded = builder.info.features.deserialize_example_np(record[12 : 12 + int.from_bytes(record[:8], "little")])
        steps = list(decoded["steps"])
        assert len(steps) == len(dataset[0])
        ours = dataset[0].frame(key, 1) if name == "pixels" else dataset[0].column(key)[1]
        np.testing.assert_allclose(steps[1]["observation"][key.removeprefix("observation/")].astype(int), ours.astype(int), atol=2)
        assert steps[1]["language_instruction"] == dataset[0].text("language_instruction").encode()


def test_the_result_can_be_trained_on(something, tmp_path, tokenizer):
    build(tmp_path / "out", source=str(something), size=0, on_bad_video="skip")
    spec = dataset_spec("human_video")
    config = DataConfig(datasets=(DatasetConfig(str(tmp_path / "out"), spec.name),), clip_frames=4)
    source = clip_source(config, 16, tokenizer, 6)
    assert len(source) == 2  # one clip per video: the clip spans it
    example = source[0]
    assert example["video"].shape == (4, 16, 16, 3)
    steps = np.trunc(np.linspace(0, 11, 4))
    np.testing.assert_allclose([brightness(frame) for frame in example["video"]], 10 + 10 * steps, atol=5)
    assert example["text_ids"].tolist() == [7, 5, 1, 0, 0, 0]
    with pytest.raises(DataError, match="action: videos have no actions"):
        policy_source(config, 16, tokenizer, 6)
    with pytest.raises(DataError, match="the description of 'human_video' has no actions, so it has no statistics"):
        statistics.load_or_compute(RLDSDataset(tmp_path / "out"), spec)
