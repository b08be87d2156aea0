"""The same windows with tf.data as in Octo and dlimp: episodes, windows of encoded images, a shuffle buffer, decoding.

As there: TFDS without decoding, everything parallel and left to autotuning, order not deterministic, a RAM budget. Kinder than there:
a small shuffle buffer, the decoder unrolled over the frames, no resize where the stored size fits, and bilinear (cheaper than Lanczos).
"""

import os
from collections.abc import Iterator

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import tensorflow as tf
import tensorflow_datasets as tfds
from measure import Request


def batches(request: Request) -> Iterator:
    builder = tfds.builder_from_directory(request.directory)
    camera = builder.info.features["steps"]["observation"]["rgb_static"].shape
    stored = tuple(camera[:2])

    def windows(episode: dict) -> tf.data.Dataset:
        steps, observation = episode["steps"], episode["steps"]["observation"]
        length = tf.shape(steps["action"])[0]
        start = tf.range(length)
        ahead = start[:, None] + tf.range(request.action_horizon)
        clip = tf.minimum(start[:, None] + request.stride * tf.range(request.frames), length - 1)
        return tf.data.Dataset.from_tensor_slices(
            {
                "image": observation["rgb_gripper"],
                "video": tf.gather(observation["rgb_static"], clip),
                "proprio": observation["robot_obs"],
                "action": tf.gather(steps["action"], tf.minimum(ahead, length - 1)),
                "action_mask": ahead < length,
                "text": steps["language_instruction"],
            }
        )

    def image(data: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_jpeg(data, channels=3)
        if stored == (request.image_size,) * 2:
            return tf.ensure_shape(image, (*stored, 3))
        image = tf.image.resize(image, (request.image_size,) * 2, method="bilinear", antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    def decode(window: dict) -> dict:
        video = tf.stack([image(window["video"][k]) for k in range(request.frames)])
        return {**window, "image": image(window["image"]), "video": video}

    read = tfds.ReadConfig(
        skip_prefetch=True,
        num_parallel_calls_for_interleave_files=tf.data.AUTOTUNE,
        interleave_cycle_length=4,
        shuffle_seed=0,
        try_autocache=False,
    )
    dataset = builder.as_dataset("train", shuffle_files=True, read_config=read, decoders={"steps": tfds.decode.SkipDecoding()})
    options = tf.data.Options()
    options.deterministic = False
    options.autotune.enabled = True
    options.autotune.ram_budget = 1 << 30
    options.experimental_optimization.apply_default_optimizations = True
    # an episode's steps come as a nested dataset when decoded, as a dict of columns when not
    dataset = dataset.repeat().interleave(windows, cycle_length=4, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.shuffle(request.shuffle_buffer, seed=0).map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(request.batch_size, drop_remainder=True).prefetch(2).with_options(options).as_numpy_iterator()
