"""Sigma ladders against published values and their defining spacing."""

import numpy as np
import pytest

from vpp_jax.diffusion.ladders import LadderConfig, initial_scale, sigma_ladder


def test_exponential_matches_the_published_validation_ladder():
    ladder = sigma_ladder(LadderConfig("exponential", 10, 0.001, 80.0))
    np.testing.assert_allclose(
        ladder, [80, 22.8193, 6.5090, 1.8566, 0.5296, 0.1511, 0.0431, 0.0123, 0.0035, 0.001, 0], rtol=5e-3, atol=6e-5
    )


def test_exponential_matches_the_published_evaluation_ladder():
    ladder = sigma_ladder(LadderConfig("exponential", 10, 1.0, 80.0))
    np.testing.assert_allclose(
        ladder, [80, 49.1627, 30.2121, 18.5664, 11.4096, 7.0116, 4.3089, 2.6479, 1.6273, 1.0, 0], rtol=1e-5, atol=6e-5
    )


@pytest.mark.parametrize(("steps", "second"), [(10, 352.99), (20, 510.36), (30, 570.03)])
def test_svd_euler_ladder(steps, second):
    config = LadderConfig("svd_euler", steps, 0.002, 700.0)
    ladder = sigma_ladder(config)
    assert ladder.shape == (steps + 1,)
    np.testing.assert_allclose(ladder[[0, 1, -2, -1]], [700.0, second, 0.002, 0.0], rtol=2e-5)
    # the published feature extraction reads only the first level: a quarter of ln 700, as recorded from a float32 run
    assert abs(np.log(np.float64(ladder[0])) / 4 - 1.6377700567) < 1e-7
    assert initial_scale(config) == pytest.approx(np.sqrt(700.0**2 + 1))


def test_initial_scale_is_sigma_max_elsewhere():
    assert initial_scale(LadderConfig("exponential", 10, 1.0, 80.0)) == 80.0


def test_spacing_is_even_in_the_ladders_own_coordinate():
    def gaps(values):
        return np.diff(values) / np.diff(values).mean()

    for kind, coordinate in (("exponential", np.log), ("linear", lambda s: s), ("karras", lambda s: s ** (1 / 3.0))):
        ladder = sigma_ladder(LadderConfig(kind, 12, 0.1, 50.0, rho=3.0)).astype(np.float64)
        np.testing.assert_allclose(gaps(coordinate(ladder[:-1])), 1.0, rtol=1e-4)


def test_karras_tends_to_exponential_for_large_rho():
    karras = sigma_ladder(LadderConfig("karras", 9, 0.01, 10.0, rho=1e5))
    np.testing.assert_allclose(karras, sigma_ladder(LadderConfig("exponential", 9, 0.01, 10.0)), rtol=1e-3)


@pytest.mark.parametrize("kind", ["exponential", "karras", "linear", "svd_euler"])
def test_every_ladder_descends_to_zero(kind):
    ladder = sigma_ladder(LadderConfig(kind, 7, 0.05, 30.0))
    assert ladder.dtype == np.float32
    assert ladder[0] == np.float32(30.0)
    assert ladder[-1] == 0.0
    assert np.all(np.diff(ladder) < 0)
    np.testing.assert_array_equal(sigma_ladder(LadderConfig(kind, 1, 0.05, 30.0)), np.float32([30.0, 0.0]))


def test_recorded_ladders(shared_data):
    vectors = np.load(shared_data / "parity" / "vectors.npz")
    np.testing.assert_allclose(sigma_ladder(LadderConfig("svd_euler", 20, 0.002, 700.0)), vectors["sched_sigmas20"], rtol=2e-7)
    for low in ("0.001", "1.0"):
        ladder = sigma_ladder(LadderConfig("exponential", 10, float(low), 80.0))
        np.testing.assert_allclose(ladder, vectors[f"ddim_sigmas_{low}"], rtol=2e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"kind": "cosine"}, "cosine.*karras"), ({"steps": 0}, "step"), ({"sigma_min": 90.0}, "sigma_min"), ({"rho": 0.0}, "rho")],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LadderConfig(**fields)
