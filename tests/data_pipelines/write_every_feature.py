"""Run as a program with TensorFlow: TFDS itself writes an episode with every feature class and type. Arguments: directory.

The values are pickled next to it in the form in which the reader must return them.
"""

import json
import pickle
import sys
from pathlib import Path

import numpy as np

STEPS = 3
DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64")


def values(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Integers over their full range; floats that float32 represents exactly, as records store them."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.startswith("float"):
        return rng.standard_normal(shape).astype("float16" if dtype == "float16" else "float32").astype(dtype)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return rng.integers(low, high, shape, dtype, endpoint=True)


def episode() -> tuple[dict, dict, list[dict], dict]:
    """features of steps, of the episode; the steps; the episode."""
    import tensorflow_datasets as tfds

    f = tfds.features
    words = [["a", "bc"], [], ["def", "", "\u00e9"]]
    of_step, steps = {}, [{} for _ in range(STEPS)]

    def add(name, feature, per_step):
        of_step[name] = feature
        for step, value in zip(steps, per_step, strict=True):
            step[name] = value

    for number, dtype in enumerate(DTYPES):
        for encoding in ("none", "zlib", "bytes"):
            add(
                f"{dtype}_{encoding}",
                f.Tensor(shape=(2, 3), dtype=np.dtype(dtype), encoding=encoding),
                [values(dtype, (2, 3), 10 * number + step) for step in range(STEPS)],
            )
        add(f"scalar/{dtype}", f.Scalar(dtype=np.dtype(dtype)), [values(dtype, (), 7 * number + step)[()] for step in range(STEPS)])
    add("open", f.Tensor(shape=(None, 2), dtype=np.float32), [values("float32", (4, 2), step) for step in range(STEPS)])
    add(
        "open_twice",
        f.Tensor(shape=(None, None), dtype=np.int32, encoding="zlib"),
        [values("int32", (1 + step, 5 - step), step) for step in range(STEPS)],
    )
    add("string", f.Tensor(shape=(), dtype=np.str_), ["x", "", "zz"])
    add("strings", f.Tensor(shape=(2,), dtype=np.str_), [["a", "b"], ["c", ""], ["e", "f"]])
    add("text", f.Text(), ["one", "", "three \u00e9"])
    add("class_label", f.ClassLabel(num_classes=5), [4, 0, 2])
    add("box", f.BBoxFeature(), [f.BBox(0.1, 0.2, 0.5, 0.75)] * STEPS)
    for encoding in ("jpeg", "png"):
        add(encoding, f.Image(shape=(6, 8, 3), encoding_format=encoding), [np.full((6, 8, 3), 40 * s, np.uint8) for s in range(STEPS)])
    add("depth", f.Image(shape=(6, 8, 1), dtype=np.uint16, encoding_format="png"), [values("uint16", (6, 8, 1), s) for s in range(STEPS)])
    add("numbers", f.Sequence(np.int64), [[1, 2, 3], [], [4]])
    add("fixed", f.Sequence(np.float32, length=2), [[0.5, 1], [2, 3], [4, 5]])
    add("words", f.Sequence(f.Text()), words)
    add("pairs", f.Sequence(f.Tensor(shape=(2,), dtype=np.float32)), [np.ones((2, 2), "f"), np.zeros((0, 2), "f"), np.full((1, 2), 3, "f")])
    add("deep", f.Sequence(f.Sequence(np.int32)), [[[1], [2, 3]], [], [[], [4]]])
    add(
        "objects",
        f.Sequence({"name": f.Text(), "place": f.Tensor(shape=(3,), dtype=np.float32)}),
        [[{"name": word, "place": np.full(3, len(word), "f")} for word in row] for row in words],
    )
    add("clip", f.Video(shape=(None, 6, 8, 3)), [np.full((count, 6, 8, 3), 9 * count, np.uint8) for count in (2, 1, 3)])
    add("nested", f.FeaturesDict({"inner": {"x": np.float32}, "empty": {}}), [{"inner": {"x": 0.5 * s}, "empty": {}} for s in range(STEPS)])
    of_episode = {
        "path": f.Text(),
        "ids": f.Sequence(np.int64),
        "names": f.Sequence(f.Text()),
        "rows": f.Sequence(f.Sequence(np.int64)),
        "success": np.bool_,
        "matrix": f.Tensor(shape=(2, 2), dtype=np.float64),
        "nothing": {},
    }
    of_whole = {
        "path": "a/b",
        "ids": [5, 6],
        "names": ["u", "v", ""],
        "rows": [[1, 2], [], [3]],
        "success": True,
        "matrix": np.array([[1, 2], [3, 4.5]]),
        "nothing": {},
    }
    return of_step, of_episode, steps, of_whole


def main(directory: Path) -> None:
    import tensorflow as tf
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import example_serializer

    of_step, of_episode, steps, of_whole = episode()
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(of_step), "meta": of_episode})
    directory.mkdir(parents=True)
    features.save_config(str(directory))
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    record = serializer.serialize_example(features.encode_example({"steps": steps, "meta": of_whole}))
    with tf.io.TFRecordWriter(str(directory / "every-train.tfrecord-00000-of-00001")) as file:
        file.write(record)
    info = {"name": "every", "version": "1.0.0", "fileFormat": "tfrecord", "splits": [{"name": "train", "shardLengths": ["1"]}]}
    (directory / "dataset_info.json").write_text(json.dumps(info))
    (directory / "expected.pickle").write_bytes(pickle.dumps((steps, of_whole)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
