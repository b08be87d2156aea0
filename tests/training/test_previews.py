"""What an evaluation shows: the first examples of a batch, predicted one at a time."""

import jax
import numpy as np
import pytest

from vpp_jax.training.previews import PREVIEW_EXAMPLES
from vpp_jax.training.stages.registry import make_stage
from vpp_jax.training.stages.specs import example_spec

pytestmark = pytest.mark.slow  # compiles a sampler


@pytest.mark.parametrize(("name", "predicted"), [("vae", "reconstructed"), ("video", "predicted"), ("policy", "sampled")])
def test_a_preview_is_of_the_first_examples_whatever_the_batch(micro_config, tmp_path, name, predicted):
    config = micro_config(name)
    stage, rng = make_stage(config), np.random.default_rng(0)
    trainable, frozen = (
        {path: rng.normal(0, 0.1, spec.shape).astype(spec.dtype) for path, spec in abstract.items()}
        for abstract in (stage.abstract_trainable(), stage.abstract_frozen())
    )
    trainable, frozen = jax.tree.map(jax.numpy.asarray, (trainable, frozen))
    batch = {
        path: jax.numpy.asarray(rng.integers(0, 2, (PREVIEW_EXAMPLES + 3, *spec.shape)).astype(spec.dtype))
        for path, spec in example_spec(config).items()
    }
    run = jax.jit(stage.preview)
    key = jax.random.key(1)
    shown = run(trainable, frozen, batch, key)
    assert {len(value) for value in shown.values()} == {PREVIEW_EXAMPLES}
    fewer = run(trainable, frozen, {path: value[:PREVIEW_EXAMPLES] for path, value in batch.items()}, key)
    np.testing.assert_array_equal(shown[predicted], fewer[predicted])
    assert np.asarray(shown[predicted], np.float32).std() > 0
    stage.plot_predictions(trainable, frozen, batch, key, tmp_path / "preview.png")
    assert (tmp_path / "preview.png").stat().st_size > 200
