"""Per-frame classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.diffusion import edm
from vpp_jax.diffusion.guidance import frame_guidance, guide


@pytest.fixture(scope="module")
def branches():
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (2, 5, 3, 4, 6)) for key in keys]


def test_scales_are_linear_over_frames():
    np.testing.assert_allclose(frame_guidance(16, 1.0, 7.5), 1.0 + 6.5 * np.arange(16) / 15, rtol=1e-6)
    np.testing.assert_array_equal(frame_guidance(1, 1.0, 3.0), [1.0])


def test_each_frame_is_extrapolated_by_its_own_scale(branches):
    unconditional, conditional, _ = branches
    guided = guide(unconditional, conditional, frame_guidance(5, 1.0, 3.0))
    np.testing.assert_allclose(guided[:, 0], conditional[:, 0], atol=1e-6)
    for frame, scale in enumerate((1.0, 1.5, 2.0, 2.5, 3.0)):
        expected = (1 - scale) * unconditional[:, frame] + scale * conditional[:, frame]
        np.testing.assert_allclose(guided[:, frame], expected, atol=1e-5)


def test_guiding_outputs_equals_guiding_denoised_samples(branches):
    unconditional, conditional, noisy = branches
    pre, scales = edm.video_preconditioning(jnp.array([0.3, 20.0])), frame_guidance(5, 1.0, 7.5)
    left = pre.denoised(noisy, guide(unconditional, conditional, scales))
    right = guide(pre.denoised(noisy, unconditional), pre.denoised(noisy, conditional), scales)
    np.testing.assert_allclose(left, right, atol=1e-4)


@pytest.mark.parametrize("arguments", [(0, 1.0, 2.0), (4, 3.0, 2.0), (4, -1.0, 2.0), (4, 1.0, float("nan"))])
def test_bad_scales_are_refused(arguments):
    with pytest.raises(ValueError, match="guidance"):
        frame_guidance(*arguments)
