"""Noise schedules against published values and their defining spacing."""

import numpy as np
import pytest

from vpp_jax.diffusion.noise_schedules import NoiseScheduleConfig, get_sigmas, initial_scale


def test_exponential_matches_the_published_validation_noise_schedule():
    sigmas = get_sigmas(NoiseScheduleConfig("exponential", 10, 0.001, 80.0))
    np.testing.assert_allclose(
        sigmas, [80, 22.8193, 6.5090, 1.8566, 0.5296, 0.1511, 0.0431, 0.0123, 0.0035, 0.001, 0], rtol=5e-3, atol=6e-5
    )


def test_exponential_matches_the_published_evaluation_noise_schedule():
    sigmas = get_sigmas(NoiseScheduleConfig("exponential", 10, 1.0, 80.0))
    np.testing.assert_allclose(
        sigmas, [80, 49.1627, 30.2121, 18.5664, 11.4096, 7.0116, 4.3089, 2.6479, 1.6273, 1.0, 0], rtol=1e-5, atol=6e-5
    )


@pytest.mark.parametrize(("steps", "second"), [(10, 352.99), (20, 510.36), (30, 570.03)])
def test_svd_euler_noise_schedule(steps, second):
    config = NoiseScheduleConfig("svd_euler", steps, 0.002, 700.0)
    sigmas = get_sigmas(config)
    assert sigmas.shape == (steps + 1,)
    np.testing.assert_allclose(sigmas[[0, 1, -2, -1]], [700.0, second, 0.002, 0.0], rtol=2e-5)
    # the published feature extraction reads only the first level: a quarter of ln 700, as recorded from a float32 run
    assert abs(np.log(np.float64(sigmas[0])) / 4 - 1.6377700567) < 1e-7
    assert initial_scale(config) == pytest.approx(np.sqrt(700.0**2 + 1))


def test_initial_scale_is_sigma_max_elsewhere():
    assert initial_scale(NoiseScheduleConfig("exponential", 10, 1.0, 80.0)) == 80.0


def test_spacing_is_even_in_the_schedules_own_coordinate():
    def gaps(values):
        return np.diff(values) / np.diff(values).mean()

    for kind, coordinate in (("exponential", np.log), ("linear", lambda s: s), ("karras", lambda s: s ** (1 / 3.0))):
        sigmas = get_sigmas(NoiseScheduleConfig(kind, 12, 0.1, 50.0, rho=3.0)).astype(np.float64)
        np.testing.assert_allclose(gaps(coordinate(sigmas[:-1])), 1.0, rtol=1e-4)


def test_vp_is_even_in_the_time_of_the_variance_preserving_process():
    """Inverse of σ(t) from Karras et al. 2022, table 1; the ends are its defaults, not sigma_min and sigma_max."""
    sigmas = get_sigmas(NoiseScheduleConfig("vp", 11)).astype(np.float64)
    time = (np.sqrt(0.1**2 + 2 * 19.9 * np.log1p(sigmas[:-1] ** 2)) - 0.1) / 19.9
    np.testing.assert_allclose(time, np.linspace(1.0, 0.001, 11), rtol=1e-6)
    assert sigmas[0] == pytest.approx(np.sqrt(np.exp(10.05) - 1), rel=1e-6)
    narrow = get_sigmas(NoiseScheduleConfig("vp", 5, beta_d=4.0, beta_min=0.5, eps_s=0.1))
    np.testing.assert_allclose(narrow[[0, -2]], np.sqrt(np.exp([2.5, 0.07]) - 1), rtol=1e-6)


def test_cosine_is_even_in_the_angle_of_the_signal():
    """Share of signal ᾱ = 1/(1 + σ²) = cos²(angle)."""
    sigmas = get_sigmas(NoiseScheduleConfig("cosine", 9, 0.02, 40.0)).astype(np.float64)[:-1]
    angle = np.arccos(np.sqrt(1 / (1 + sigmas**2)))
    np.testing.assert_allclose(np.diff(angle), np.diff(angle).mean(), rtol=1e-4)
    np.testing.assert_allclose(sigmas[[0, -1]], [40.0, 0.02], rtol=1e-6)


def test_ve_has_a_geometric_variance():
    sigmas = get_sigmas(NoiseScheduleConfig("ve", 10, 0.02, 100.0)).astype(np.float64)[:-1]
    np.testing.assert_allclose(sigmas**2, 100.0**2 * (0.02**2 / 100.0**2) ** (np.arange(10) / 9), rtol=1e-6)


def test_iddpm_picks_levels_of_the_published_recursion():
    """u_M = 0, u_{j−1} = √((u_j² + 1)/max(ᾱ_{j−1}/ᾱ_j, 0.001) − 1); Karras et al. 2022, table 1."""
    table = [0.0]
    for j in range(1000, 0, -1):
        before, here = (np.sin(np.pi / 2 * k / (1000 * 1.008)) ** 2 for k in (j - 1, j))
        table.append(np.sqrt((table[-1] ** 2 + 1) / max(before / here, 0.001) - 1))
    inside = np.array([level for level in table[::-1] if 0.006 <= level <= 81.0])
    assert len(inside) == 992  # the published sampler skips the eight highest of a thousand
    sigmas = get_sigmas(NoiseScheduleConfig("iddpm", 10, 0.006, 81.0))
    np.testing.assert_allclose(sigmas[:-1], inside[np.round(991 / 9 * np.arange(10)).astype(int)], rtol=1e-6)
    np.testing.assert_allclose(sigmas[[0, -2]], [80.2, 0.0064], rtol=5e-3)
    wide = get_sigmas(NoiseScheduleConfig("iddpm", 1000, 1e-5, 1e5))
    np.testing.assert_allclose(wide[:-1], table[:0:-1], rtol=1e-6)
    assert initial_scale(NoiseScheduleConfig("iddpm", 10, 0.006, 81.0)) == sigmas[0]


def test_karras_tends_to_exponential_for_large_rho():
    karras = get_sigmas(NoiseScheduleConfig("karras", 9, 0.01, 10.0, rho=1e5))
    np.testing.assert_allclose(karras, get_sigmas(NoiseScheduleConfig("exponential", 9, 0.01, 10.0)), rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("exponential", 30.0),
        ("karras", 30.0),
        ("linear", 30.0),
        ("svd_euler", 30.0),
        ("ve", 30.0),
        ("cosine", 30.0),
        ("vp", 152.167),
        ("iddpm", 29.155),
    ],
)
def test_every_noise_schedule_descends_to_zero(kind, first):
    config = NoiseScheduleConfig(kind, 7, 0.05, 30.0)
    sigmas = get_sigmas(config)
    assert sigmas.dtype == np.float32
    assert sigmas[0] == pytest.approx(first, rel=1e-7 if first == 30.0 else 1e-4)
    assert sigmas[-1] == 0.0
    assert np.all(np.diff(sigmas) < 0)
    np.testing.assert_array_equal(get_sigmas(NoiseScheduleConfig(kind, 1, 0.05, 30.0)), [sigmas[0], 0.0])
    if kind != "svd_euler":
        assert initial_scale(config) == sigmas[0]


def test_recorded_noise_schedules(reference_data):
    vectors = np.load(reference_data / "parity" / "vectors.npz")
    np.testing.assert_allclose(get_sigmas(NoiseScheduleConfig("svd_euler", 20, 0.002, 700.0)), vectors["sched_sigmas20"], rtol=2e-7)
    for low in ("0.001", "1.0"):
        sigmas = get_sigmas(NoiseScheduleConfig("exponential", 10, float(low), 80.0))
        np.testing.assert_allclose(sigmas, vectors[f"ddim_sigmas_{low}"], rtol=2e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "cosines"}, "cosines.*karras"),
        ({"num_sampling_steps": 0}, "step"),
        ({"sigma_min": 90.0}, "sigma_min"),
        ({"rho": 0.0}, "rho"),
        ({"eps_s": 1.0}, "eps_s"),
        ({"beta_min": 0.0}, "beta_min"),
        (
            {"kind": "iddpm", "num_sampling_steps": 10, "sigma_min": 79.0},
            "iddpm has . levels between 79.0 and 80.0, fewer than the 10 steps",
        ),
        ({"num_sampling_steps": 1000, "sigma_min": 80.0 - 1e-4}, "num_sampling_steps is 1000, too many"),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        NoiseScheduleConfig(**fields)
