"""Image resizing and action normalisation."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from data_pipelines.transforms import Normalizer, resize


def triangle_resize(image: np.ndarray, size: int, antialias: bool = True) -> np.ndarray:
    """Bilinear resize from its definition: a triangle filter, rows then columns; antialiased, it is as wide as the shrinking factor."""

    def weights(old: int) -> np.ndarray:
        scale = old / size
        support = max(scale, 1.0) if antialias else 1.0
        centers = (np.arange(size) + 0.5) * scale
        distance = np.abs(np.arange(old) + 0.5 - centers[:, None]) / support
        table = np.clip(1 - distance, 0, None)
        return table / table.sum(1, keepdims=True)

    return np.einsum("ih,hwc,jw->ijc", weights(image.shape[0]), image.astype(float), weights(image.shape[1]), optimize=True)


@pytest.mark.parametrize(("shape", "size"), [((200, 200), 64), ((84, 84), 64), ((24, 32), 64), ((48, 64), 40)])
def test_resize_is_the_triangle_filter(shape, size):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    out = resize(image, size)
    assert out.shape == (size, size, 3)
    assert out.dtype == np.uint8
    # rounded to 8 bits after each of the two passes, with fixed-point weights: one step of error
    assert np.abs(out.astype(float) - triangle_resize(image, size)).max() <= 1.01
    pillow = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    assert np.abs(out.astype(int) - pillow.astype(int)).max() <= 1


@pytest.mark.parametrize(("shape", "size"), [((200, 200), 64), ((480, 640), 256), ((24, 32), 64), ((48, 64), 48), ((2, 1), 3)])
def test_resize_without_antialias_interpolates_the_four_nearest_pixels(shape, size):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    out = resize(image, size, antialias=False)
    assert out.shape == (size, size, 3)
    assert out.dtype == np.uint8
    assert np.abs(out - triangle_resize(image, size, antialias=False)).max() <= 0.501  # rounded once, from float32
    if size >= max(shape):  # enlarging has nothing to smooth; two passes of 8 bits differ by one step
        assert np.abs(out.astype(int) - resize(image, size)).max() <= 1


def test_resize_without_antialias_halves_a_fine_pattern_by_hand():
    stripes = np.zeros((6, 6, 3), np.uint8)
    stripes[:, ::3] = 240  # columns 240 0 0 240 0 0: the centres of two pixels are those of columns 1 and 4
    np.testing.assert_array_equal(resize(stripes, 2, antialias=False), 0)
    assert resize(stripes, 2).min() > 50


def test_resize_takes_views_and_many_threads():
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    expected = resize(image[..., ::-1].copy(), 40)
    with ThreadPoolExecutor(8) as pool:
        for made in pool.map(lambda _: resize(image[..., ::-1], 40), range(64)):
            np.testing.assert_array_equal(made, expected)


def test_resize_keeps_what_already_fits_and_what_is_flat():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize(image, 16), image)
    flat = np.full((50, 30, 3), 77, np.uint8)
    np.testing.assert_array_equal(resize(flat, 20), np.full((20, 20, 3), 77))


def test_mean_std_round_trip_and_moments():
    x = np.random.default_rng(0).normal(3, [0.1, 5, 2], (1000, 3))
    normalizer = Normalizer.mean_std(x.mean(0).tolist(), x.std(0).tolist(), (True, True, False))
    y = normalizer.forward(x)
    np.testing.assert_allclose(y[:, :2].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(y[:, :2].std(0), 1, atol=1e-5)
    np.testing.assert_allclose(y[:, 2], x[:, 2], rtol=1e-6)
    np.testing.assert_allclose(normalizer.inverse(y), x, rtol=1e-5, atol=1e-5)


def test_quantile_maps_the_percentiles_to_one_and_clips():
    normalizer = Normalizer.quantile((-2.0, 0.0), (4.0, 0.5), (True, True))
    np.testing.assert_allclose(normalizer.forward(np.array([[-2, 0], [4, 0.5], [1, 0.25], [100, -7]])), [[-1, -1], [1, 1], [0, 0], [1, -1]])
    inside = np.random.default_rng(0).uniform((-2, 0), (4, 0.5), (50, 2))
    np.testing.assert_allclose(normalizer.inverse(normalizer.forward(inside)), inside, atol=1e-6)


def test_constant_dimensions_do_not_explode():
    for normalizer in (Normalizer.mean_std((5.0,), (0.0,)), Normalizer.quantile((5.0,), (5.0,))):
        np.testing.assert_allclose(
            normalizer.forward(
                np.array(
                    [
                        5.0,
                    ]
                )
            ),
            0.0,
        )
        np.testing.assert_allclose(normalizer.inverse(np.array([0.0])), 5.0)


def test_json_round_trip_and_identity():
    normalizer = Normalizer.quantile((-2.0, 0.1), (4.0, 0.5), (True, False))
    assert Normalizer.from_json(normalizer.to_json()) == normalizer
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("f")
    np.testing.assert_array_equal(Normalizer.identity(3).forward(x), x)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="not one of"):
        Normalizer("minmax", (0.0,), (1.0,), (False,))
    with pytest.raises(ValueError, match="positive"):
        Normalizer("mean_std", (0.0,), (0.0,), (False,))


def test_a_joint_that_rests_is_not_blown_up():
    """Its standard deviation is its sensor's noise: an offset of 0.05 was 5,147 deviations."""
    normalizer = Normalizer.mean_std([0.0, 0.0, 1.0], [0.4, 9.7e-6, 0.0])
    assert normalizer.scale == (0.4, pytest.approx(0.004), 1.0)
    np.testing.assert_allclose(normalizer.forward(np.array([0.2, 0.05, 1.0])), [0.5, 10.0, 0.0])  # 12.5 deviations, clipped to 10
    np.testing.assert_allclose(normalizer.forward(np.array([-100.0, 0.004, 1.0])), [-10.0, 1.0, 0.0])
    again = Normalizer.from_json(normalizer.to_json())
    assert again == normalizer
    assert normalizer.to_json()["limit"] == 10.0
    quantile = Normalizer.quantile([-1.0, -1e-5], [1.0, 1e-5])
    assert quantile.scale == (1.0, pytest.approx(0.01))
    old = {key: value for key, value in normalizer.to_json().items() if key != "limit"} | {"clipped": [False] * 3}
    np.testing.assert_allclose(Normalizer.from_json(old).forward(np.array([40.0, 0.0, 1.0])), [100.0, 0.0, 0.0])  # as it was trained
