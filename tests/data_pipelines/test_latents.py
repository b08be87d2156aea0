"""Datasets with latents instead of images: what is stored, what is copied, interruption, several processes."""

import json

import numpy as np
import pytest

from data_pipelines.builders.latents import LatentsBuild, LatentsSettings, edit_features, encoded
from data_pipelines.builders.writer import features_json
from data_pipelines.config import DataConfig, DatasetConfig
from data_pipelines.configured_sources import clip_source, policy_source
from data_pipelines.errors import BadRecordError, DataError
from data_pipelines.rlds.dataset import RLDSDataset
from data_pipelines.rlds.examples import Example
from data_pipelines.rlds.latents import logvar_of, mean_of
from data_pipelines.rlds.schema import Feature, Schema
from data_pipelines.transforms import resize

SHAPE = (2, 2, 3)


class Encoder:
    """Not a VAE, but a function of each frame alone: means over quarters of the image, and their negatives. Counts its calls."""

    def __init__(self):
        self.calls, self.shapes = 0, set()

    def __call__(self, images: np.ndarray):
        self.calls += 1
        self.shapes.add(images.shape)
        means = images.reshape(len(images), 2, images.shape[1] // 2, 2, images.shape[2] // 2, 3).mean((2, 4), dtype=np.float64)
        return (means / 100).astype(np.float16), (-means / 50).astype(np.float16)


def settings(dataset, **changes) -> LatentsSettings:
    values = {
        "robot": "",
        "views": (),
        "splits": (),
        "image_size": 8,
        "latent_shape": SHAPE,
        "vae": "abc",
        "batch": 5,
        "threads": 2,
        "jpeg_dct_scaling": False,
    }
    return LatentsSettings(dataset, **{**values, **changes})


def files(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith("record_index")}


@pytest.fixture(scope="module")
def latents(built, tmp_path_factory):
    """The encoded dataset of the fake simulator."""
    directory = tmp_path_factory.mktemp("latents") / "out"
    encoder = Encoder()
    report = LatentsBuild(settings(built)).run(directory, encoder)
    frames = 2 * sum(RLDSDataset(built, split).num_steps for split in ("train", "val"))
    assert encoder.shapes == {(5, 8, 8, 3)}  # one shape, one compilation
    assert frames / 5 <= encoder.calls <= frames / 5 + len(report["shards"])
    return directory


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_frame_is_encoded_and_all_else_is_copied(built, latents, split):
    before, after = RLDSDataset(built, split), RLDSDataset(latents, split)
    assert [len(part) for part in before.parts] == [len(part) for part in after.parts]
    cameras = before.schema.cameras
    assert set(before.schema.steps) - set(after.schema.steps) == set(cameras)
    for old, new in zip(before, after, strict=True):
        for camera in cameras:
            expected = Encoder()(np.stack([resize(old.frame(camera, step), 8) for step in range(len(old))]))
            for name, values in zip((mean_of(camera), logvar_of(camera)), expected, strict=True):
                np.testing.assert_array_equal(new.column(name), values)
                np.testing.assert_array_equal(new.rows(name, [0, len(new) - 1]), values[[0, -1]])
        for name in set(before.schema.steps) - set(cameras):
            np.testing.assert_array_equal(old.column(name), new.column(name))
        for name in before.schema.episode:
            assert old.metadata(name) == new.metadata(name)
    assert after.metadata["latents"] == {"vae": "abc", "image_size": 8, "cameras": list(cameras)}


def test_an_interruption_and_several_processes_change_nothing(built, latents, tmp_path):
    class Stop(Exception):
        pass

    class Stopping(Encoder):
        def __call__(self, images):
            if self.calls == 40:
                raise Stop
            return super().__call__(images)

    with pytest.raises(Stop):
        LatentsBuild(settings(built)).run(tmp_path / "resumed", Stopping())
    done = sorted(path.name for path in (tmp_path / "resumed").glob("*.tfrecord*"))
    assert done
    assert not (tmp_path / "resumed" / "dataset_info.json").exists()
    kept = {name: (tmp_path / "resumed" / name).stat().st_mtime_ns for name in done}
    LatentsBuild(settings(built)).run(tmp_path / "resumed", Encoder())
    assert files(tmp_path / "resumed") == files(latents)
    assert {name: (tmp_path / "resumed" / name).stat().st_mtime_ns for name in done} == kept

    assert LatentsBuild(settings(built)).run(tmp_path / "shared", Encoder(), 1, 2) is None
    assert LatentsBuild(settings(built)).run(tmp_path / "shared", Encoder(), 0, 2) is not None
    assert files(tmp_path / "shared") == files(latents)


def test_another_vae_is_another_build(built, latents):
    with pytest.raises(DataError, match=r"contains a build with other settings \(vae: abc, now other\)"):
        LatentsBuild(settings(built, vae="other")).run(latents, Encoder())


def test_clips_are_the_same_windows(built, latents, tokenizer):
    def source(directory, **dataset):
        entry = DatasetConfig(str(directory), "calvin_mujoco", **dataset)
        config = DataConfig(datasets=(entry,), clip_frames=4, clip_stride=2, jpeg_dct_scaling=False)
        return clip_source(config, 8, tokenizer, 6, accept_latents=True)

    images, packed = source(built), source(latents, latents=True)
    assert len(images) == len(packed)
    for index in range(0, len(images), 7):
        clip, example = images[index], packed[index]
        mean, logvar = Encoder()(clip.pop("video"))
        np.testing.assert_array_equal(example.pop("latent_mean"), mean)
        np.testing.assert_array_equal(example.pop("latent_logvar"), logvar)
        assert clip.keys() == example.keys()
        for name in clip:
            np.testing.assert_array_equal(clip[name], example[name])
    assert packed.metadata()["datasets"][0]["latents"]["vae"] == "abc"


def test_without_antialias_whole_images_are_interpolated(built, tokenizer, tmp_path):
    """In training as in the builder, although `jpeg_dct_scaling` is on."""
    LatentsBuild(settings(built, antialias=False, jpeg_dct_scaling=True)).run(tmp_path, Encoder())
    old, new, camera = RLDSDataset(built)[0], RLDSDataset(tmp_path)[0], "observation/rgb_static"
    frames = np.stack([resize(old.frame(camera, step), 8, antialias=False) for step in range(len(old))])
    assert (frames != np.stack([resize(old.frame(camera, step), 8) for step in range(len(old))])).any()
    np.testing.assert_array_equal(new.rows(mean_of(camera), range(len(new))), Encoder()(frames)[0])

    entry = DatasetConfig(str(built), "calvin_mujoco", views=("primary",))
    clips = clip_source(DataConfig(datasets=(entry,), clip_frames=len(old), clip_stride=1, antialias=False), 8, tokenizer, 6)
    np.testing.assert_array_equal(clips[0]["video"], frames)


def test_who_may_read_latents(built, latents, tokenizer):
    entry = DatasetConfig(str(latents), "calvin_mujoco", latents=True)
    with pytest.raises(DataError, match="only stage video trains on latents"):
        clip_source(DataConfig(datasets=(entry,)), 8, tokenizer, 6)
    with pytest.raises(DataError, match="a policy needs images"):
        policy_source(DataConfig(datasets=(entry,)), 8, tokenizer, 6)
    with pytest.raises(DataError, match="a batch cannot contain both"):
        clip_source(DataConfig(datasets=(entry, DatasetConfig(str(built)))), 8, tokenizer, 6, accept_latents=True)
    with pytest.raises(DataError, match=r"latents of frames of 8 pixels, but model.image_size is 16"):
        clip_source(DataConfig(datasets=(entry,)), 16, tokenizer, 6, accept_latents=True)
    with pytest.raises(DataError, match=r"metadata.json does not describe latents"):
        clip_source(DataConfig(datasets=(DatasetConfig(str(built), latents=True),)), 8, tokenizer, 6, accept_latents=True)
    with pytest.raises(DataError, match=r"camera 'observation/rgb_static' is not in features\.json"):
        clip_source(DataConfig(datasets=(DatasetConfig(str(latents)),)), 8, tokenizer, 6)


def test_bad_images_fail_or_are_skipped(write_dataset, tmp_path):
    def spoil(episode, steps):
        if episode == 1:
            steps["observation/rgb_static"][2] = steps["observation/rgb_static"][2][:40]

    directory = write_dataset([4, 4, 3], spoil)
    with pytest.raises(BadRecordError, match=r"record 1, field 'observation/rgb_static'"):
        LatentsBuild(settings(directory)).run(tmp_path / "fails", Encoder())
    report = LatentsBuild(settings(directory, on_bad_record="skip")).run(tmp_path / "out", Encoder())
    assert report["episodes"] == {"train": 2}
    assert "record 1" in report["skipped"][0]
    assert [episode.text("language_instruction") for episode in RLDSDataset(tmp_path / "out")] == ["episode 0", "episode 2"]


def test_encoded_tensors_next_to_the_images_are_copied(latents, tmp_path):
    """Columns that are read from the file on access, like images: here the latents of an earlier encoding."""
    first = RLDSDataset(latents)[0]
    copied = Example(first.replaced([mean_of("observation/rgb_static")], {"extra": [b"x"]}))
    for name in (logvar_of("observation/rgb_static"), mean_of("observation/rgb_gripper"), "action"):
        feature = RLDSDataset(latents).schema.steps[name]
        np.testing.assert_array_equal(copied.column(f"steps/{name}", feature, len(first)), first.column(name))
    assert list(copied.blobs("steps/extra")) == [b"x"]
    assert f"steps/{mean_of('observation/rgb_static')}" not in copied


def test_latents_that_float16_cannot_hold_are_refused(write_dataset, tmp_path):
    def encode(images):
        return np.full((len(images), *SHAPE), np.inf, np.float16), np.zeros((len(images), *SHAPE), np.float16)

    with pytest.raises(DataError, match="NaN, infinite, or out of range for float16"):
        LatentsBuild(settings(write_dataset([3]))).run(tmp_path / "out", encode)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 13])
def test_blocks_preserve_the_order(count):
    frames = [np.full((4, 4, 3), number, np.uint8) for number in range(count)]
    rows = list(encoded(iter(frames), 5, lambda images: (images[:, 0, 0, :1], images[:, 0, 0, 1:])))
    assert [int(mean[0]) for mean, _ in rows] == list(range(count))


def test_features_are_edited_in_their_groups():
    """Keys that contain '/', where a joined name must not be split."""
    image, number = Feature("image", "uint8", (4, 4, 3), "jpeg"), Feature("tensor", "float32", (2,))
    tree = features_json(Schema(steps={"observation/left": image, "observation/state": number, "is_first": Feature("tensor", "bool")}))
    observation = tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]["observation"]
    observation["featuresDict"]["features"]["cams/left"] = observation["featuresDict"]["features"].pop("left")
    before = json.dumps(tree)
    added = {mean_of("observation/cams/left"): Feature("tensor", "float16", SHAPE, "bytes")}
    edited = edit_features(tree, ["observation/cams/left"], added)
    assert json.dumps(tree) == before
    found = Schema.from_json(edited).steps
    assert set(found) == {"observation/state", "is_first", "observation/cams/left_latent_mean"}
    assert found["observation/cams/left_latent_mean"].shape == SHAPE


def test_tfds_reads_it(latents):
    """TFDS's own decoder, without TensorFlow."""
    import tensorflow_datasets as tfds

    builder, dataset = tfds.builder_from_directory(str(latents)), RLDSDataset(latents)
    assert builder.info.metadata["latents"]["vae"] == "abc"
    record = next(latents.glob("*-train.tfrecord-00000*")).read_bytes()
    steps = list(builder.info.features.deserialize_example_np(record[12 : 12 + int.from_bytes(record[:8], "little")])["steps"])
    name = mean_of("rgb_static")
    np.testing.assert_array_equal(np.stack([step["observation"][name] for step in steps]), dataset[0].column(f"observation/{name}"))
    np.testing.assert_array_equal(np.stack([step["action"] for step in steps]), dataset[0].column("action"))
