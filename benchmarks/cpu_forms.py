"""CPU kernels compared with the default form: convolutions, attention and feed-forwards of the published U-Net.

    python benchmarks/cpu_forms.py [--views 2] [--repeats 3] [--json FILE]

Each row is one layer at the shapes of a control call (16 frames, float32), in its plain form and in the one that `vpp_jax.ops` takes
on CPU; both are compiled alone and run alternately. ratio: plain over ours, of medians.
"""

import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
from jax import lax

from vpp_jax import ops
from vpp_jax.cli.parser import Parser
from vpp_jax.common.files import write_atomically
from vpp_jax.common.provenance import device_name, library_versions
from vpp_jax.ops import dot_product_attention, gated_feed_forward
from vpp_jax.ops.winograd import winograd_convolution, winograd_upsample_convolution

FRAMES, TEXT_TOKENS, TEXT_DIM, HEAD_DIM = 16, 20, 1024, 64
LEVELS = ((32, 320), (16, 640), (8, 1280))  # side of the latents, channels


def seconds(functions: dict[str, Callable], arguments: tuple, repeats: int) -> dict[str, float]:
    """Median time of each function, run alternately after one call that compiles."""
    compiled = {name: jax.jit(function) for name, function in functions.items()}
    times = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(math.prod(shape)), shape)


def affine(inputs: int, outputs: int) -> ops.Affine:
    return ops.Affine(normal(inputs, outputs) / math.sqrt(inputs), normal(outputs))


def direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
    spatial = "DHW"[-(x.ndim - 2) :]
    padding = [((size - 1) // 2,) * 2 for size in kernel.shape[:-2]]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return lax.conv_general_dilated(x, kernel, (1,) * len(padding), padding, dimension_numbers=numbers)


def as_if(module: object, name: str, value: object, function: Callable) -> Callable:
    """`function`, traced while `module.name` is `value`."""

    def traced(*arguments):
        before = getattr(module, name)
        setattr(module, name, value)
        try:
            return function(*arguments)
        finally:
            setattr(module, name, before)

    return traced


def cases(views: int):
    """(label, {plain, ours}, arguments) of every row."""
    for side, channels in LEVELS:
        rows, where = views * FRAMES, f"{side}x{side}, {channels} channels"
        image, video = normal(rows, side, side, channels), normal(views, FRAMES, side, side, channels)
        kernel = normal(3, 3, channels, channels) / (3 * math.sqrt(channels))
        yield f"3x3 convolution, {where}", {"plain": direct, "ours": winograd_convolution}, (image, kernel)
        small = image[:, ::2, ::2]
        doubled = {"plain": lambda x, k: winograd_convolution(x.repeat(2, 1).repeat(2, 2), k), "ours": winograd_upsample_convolution}
        yield f"doubling and 3x3 convolution, to {where}", doubled, (small, kernel)
        kernel = normal(3, 1, 1, channels, channels) / math.sqrt(3 * channels)
        yield f"3x1x1 convolution, {where}", {"plain": direct, "ours": winograd_convolution}, (video, kernel)

        heads, tokens = channels // HEAD_DIM, normal(rows, side * side, channels)
        itself = partial(ops.attention, heads=heads)
        default = as_if(dot_product_attention, "MAPPED_MIN_SCORES", math.inf, itself)
        yield f"self-attention, {where}", {"plain": default, "ours": itself}, (tokens,) * 3

        widths = ((channels, channels), (TEXT_DIM, channels), (TEXT_DIM, channels), (channels, channels))
        weights = ops.Projections(*(affine(*width) for width in widths))
        cross = partial(ops.multi_head_attention, heads=heads)

        def projected(x, text, weights, heads=heads):
            q, k, v = ops.linear(x, weights.query), ops.linear(text, weights.key), ops.linear(text, weights.value)
            return ops.linear(ops.attention(q, k, v, heads=heads), weights.output)

        queries, text = tokens.reshape(views, -1, channels), normal(views, TEXT_TOKENS, TEXT_DIM)
        yield f"cross-attention, {where}", {"plain": projected, "ours": cross}, (queries, text, weights)

        default = as_if(gated_feed_forward, "BLOCKWISE_MIN_SIZE", math.inf, ops.feed_forward)
        arguments = tokens, affine(channels, 8 * channels), affine(4 * channels, channels)
        yield f"feed-forward, {where}", {"plain": default, "ours": ops.feed_forward}, arguments


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_number("--views", int, 2, "views of an observation", at_least=1, at_most=64)
    parser.add_number("--repeats", int, 3, "measurements of each form", at_least=1, at_most=1_000_000)
    parser.add_output("--json", metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    about = {"device": device_name(), "versions": library_versions(), "views": options.views, "repeats": options.repeats}
    print(f"{about['device']}, jax {jax.__version__}, {options.views} views of {FRAMES} frames, float32")
    rows = {}
    for label, functions, arguments in cases(options.views):
        rows[label] = seconds(functions, arguments, options.repeats)
        plain, ours = rows[label]["plain"], rows[label]["ours"]
        print(f"{label:44} plain {1e3 * plain:7.1f} ms  ours {1e3 * ours:7.1f} ms  ratio {plain / ours:5.2f}", flush=True)
    if options.json:
        write_atomically(options.json, json.dumps(about | {"seconds": rows}, indent=1))


if __name__ == "__main__":
    main()
