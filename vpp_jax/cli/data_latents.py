"""`vpp data latents --config=FILE --config.init.vae=WORKDIR --dataset=DIR --out=DIR`: encode a dataset's images as VAE latents, once.

Takes the configuration of the stage `video` that will train on the latents, and uses its `model.vae`, `model.image_size` and `init.vae`.
Re-run the command to resume. Several processes, each on its own host or devices, can encode one dataset: --shard_index and --num_shards.
`vpp data latents --identity --config=FILE --config.init.vae=WORKDIR` prints the identity of the VAE and exits.
"""

import argparse
from collections.abc import Sequence

from vpp_jax.cli.main import UsageError
from vpp_jax.cli.parser import Parser, words


def main(argv: Sequence[str]) -> int:
    from vpp_jax.cli.config_flag import parse

    config, arguments = parse(_parser(), argv, reads_data=False)
    if not config.init.vae:
        raise UsageError("--config.init.vae=WORKDIR is missing: the work directory of stage vae")
    if arguments.identity:
        from vpp_jax.training.latents import load_identity

        print(load_identity(config))
        return 0
    for name in ("dataset", "out"):
        if not getattr(arguments, name):
            raise UsageError(f"--{name}=DIR is missing")
    if not 0 <= arguments.shard_index < arguments.num_shards:
        raise UsageError(f"--shard_index={arguments.shard_index} must be at least 0 and below --num_shards={arguments.num_shards}")
    return _encode(config, arguments)


def _parser() -> Parser:
    from data_pipelines.storage import location
    from vpp_jax.cli.config_flag import add_config_flag

    parser = Parser(prog="vpp data latents", description=__doc__)
    add_config_flag(parser)
    parser.add_argument("--dataset", type=location, metavar="DIR", help="RLDS directory to encode; a path or a bucket URL")
    parser.add_output("--out", bucket=True, metavar="DIR", help="RLDS directory to write; a path or a bucket URL")
    parser.add_argument("--identity", action="store_true", help="print the identity of the VAE and exit")
    parser.add_robot()
    parser.add_argument("--views", type=words, default=(), help="views to encode, comma-separated (default: clip_views of the robot)")
    parser.add_argument("--splits", type=words, default=(), help="splits to encode, comma-separated (default: every complete split)")
    parser.add_number("--batch", int, 64, "frames per encoder call, over all devices of the process", at_least=1, at_most=65_536)
    parser.add_number("--shard_index", int, 0, "number of this process", at_least=0)
    parser.add_number("--num_shards", int, 1, "number of processes", at_least=1)
    return parser


def _encode(config, arguments: argparse.Namespace) -> int:
    from data_pipelines.builders.latents import LatentsBuild, LatentsSettings
    from vpp_jax.common.progress import ProgressBar
    from vpp_jax.training.latents import DatasetEncoder

    encoder = DatasetEncoder(config, arguments.batch)
    build = LatentsBuild(
        LatentsSettings(
            arguments.dataset,
            arguments.robot,
            arguments.views,
            arguments.splits,
            config.model.image_size,
            encoder.latent_shape,
            encoder.identity,
            arguments.batch,
            config.data.on_bad_record,
            config.data.jpeg_dct_scaling,
            config.data.antialias,
            config.data.index_dir or None,
            max(config.data.threads, 1),
        )
    )
    out = arguments.out
    with ProgressBar("frames") as progress:
        report = build.run(out, encoder, arguments.shard_index, arguments.num_shards, progress.update)
    if report is None:
        print(f"{out}: the shards of process {arguments.shard_index} are done; the last process to finish writes the dataset's metadata")
        return 0
    for problem in report["skipped"][:10]:
        print(f"skipped: {problem}")
    episodes = ", ".join(f"{number} {split}" for split, number in report["episodes"].items())
    size = sum(report["bytes"].values()) / 1e6
    print(f"{out}: {episodes} episodes, {len(report['skipped'])} skipped, {size:.1f} MB, VAE {encoder.identity}")
    return 0
