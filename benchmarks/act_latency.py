"""Latency of act(), in total and per part: p50, p90, p99 after `block_until_ready`.

    python benchmarks/act_latency.py [--config configs/tiny_calvin_policy.py] [--batch 1] [--calls 50] [--json FILE]

Parameters are random: latency does not depend on their values. Each part is a separate jitted function here; `act, one program` is
what the evaluator runs, and may be faster than the sum since XLA optimises across the parts.
"""

import json
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.transforms import resize
from vpp_jax.cli.config_flag import load_config
from vpp_jax.cli.parser import Parser
from vpp_jax.common.files import write_atomically
from vpp_jax.common.host_memory import restart_with_huge_pages
from vpp_jax.common.provenance import device_name, library_versions
from vpp_jax.models.tokenizer import CLIPTokenizer
from vpp_jax.parallel.mesh import compiler_options
from vpp_jax.training.stages.policy import PolicyStage


def percentiles(function, calls: int) -> dict[str, float]:
    """Milliseconds of `calls` calls after one that compiles and one that warms up."""
    for _ in range(2):
        jax.block_until_ready(function())
    milliseconds = []
    for _ in range(calls):
        start = time.perf_counter()
        jax.block_until_ready(function())
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return {f"p{level}": round(float(np.percentile(milliseconds, level)), 2) for level in (50, 90, 99)}


def measure(config, batch: int, calls: int) -> dict[str, dict[str, float]]:
    """Stage name -> percentiles, for `batch` observations of all views."""
    stage, model = PolicyStage(config), config.model
    policy, predictor = stage.policy, stage.policy.predictor
    abstract = stage.abstract_trainable() | stage.abstract_frozen()
    params = {name: 0.02 * jax.random.normal(jax.random.key(i), spec.shape) for i, (name, spec) in enumerate(abstract.items())}
    params["latents/scaling_factor"] = jnp.float32(1.0)
    rng = np.random.default_rng(0)
    cameras = {view: rng.integers(0, 255, (batch, 200, 200, 3), np.uint8) for view in model.views}
    images = {view: np.stack([resize(frame, model.image_size) for frame in frames]) for view, frames in cameras.items()}
    ids, mask = CLIPTokenizer(model.goal_length)(["push the sliding door to the left side"] * batch)
    proprio = np.zeros((batch, model.action.proprio_dim), np.float32)
    keys = jax.random.split(jax.random.key(0), batch)
    stacked = jnp.concatenate(list(images.values()))
    views = len(model.views)

    jit = partial(jax.jit, compiler_options=compiler_options())
    read = jit(policy.encode_instruction)
    encode_images = jit(predictor.encode_images)
    instruction = jax.device_get(read(params, ids, mask))
    tiled = jnp.tile(instruction.states, (views, 1, 1))
    features_of = jit(predictor.predictive_features)
    features = jit(policy.features)(params, images, instruction.states, keys)
    context_of, sample = jit(policy.context), jit(policy.sample_actions)
    context = context_of(params, features, instruction.goal, proprio)
    act = jit(policy.act)
    return {
        "resize on the host": percentiles(lambda: [resize(frame, model.image_size) for f in cameras.values() for frame in f], calls),
        "transfer to the device": percentiles(lambda: jax.device_put(images), calls),
        "text encoders, once per instruction": percentiles(lambda: read(params, ids, mask), calls),
        "VAE encoder": percentiles(lambda: encode_images(params, stacked), calls),
        "VAE encoder and U-Net": percentiles(lambda: features_of(params, stacked, tiled, keys[0]), calls),
        "Video Former and policy encoder": percentiles(lambda: context_of(params, features, instruction.goal, proprio), calls),
        "denoising": percentiles(lambda: sample(params, context, keys), calls),
        "act, one program": percentiles(lambda: act(params, images, instruction, proprio, keys), calls),
    }


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--config", default="configs/tiny_calvin_policy.py", help="configuration of a stage policy")
    parser.add_number("--batch", int, 1, "observations per call", at_least=1, at_most=65_536)
    parser.add_number("--calls", int, 50, "timed calls per part", at_least=1, at_most=1_000_000)
    parser.add_output("--json", metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    restart_with_huge_pages()  # as `vpp eval` and `vpp train` do
    stages = measure(load_config(options.config), options.batch, options.calls)
    about = {"config": options.config, "batch": options.batch, "calls": options.calls}
    about |= {"device": device_name(), "versions": library_versions()}
    print(f"act() latency in ms, {options.config}, batch {options.batch}, {about['device']}")
    print(" ".join(f"{name} {version}" for name, version in about["versions"].items()))
    for name, row in stages.items():
        print(f"{name:34s} " + "  ".join(f"{level} {value:8.2f}" for level, value in row.items()))
    if options.json:
        write_atomically(options.json, json.dumps(about | {"milliseconds": stages}, indent=1))


if __name__ == "__main__":
    main()
