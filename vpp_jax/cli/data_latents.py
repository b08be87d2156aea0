"""`vpp data latents --config=FILE --config.init.vae=WORKDIR --dataset=DIR --out=DIR`: encode a dataset's images as VAE latents, once.

Takes the configuration of the stage `video` that will train on the latents, and uses its `model.vae`, `model.image_size` and `init.vae`.
Re-run the command to resume. Several processes, each on its own host or devices, can encode one dataset: --shard_index and --num_shards.
`vpp data latents --identity --config=FILE --config.init.vae=WORKDIR` prints the identity of the VAE and exits.
"""

from collections.abc import Sequence
from pathlib import Path

from vpp_jax.cli.main import UsageError

OPTIONS = {
    "dataset": "RLDS directory to encode",
    "out": "RLDS directory to write",
    "name": "registry row (default: the dataset's own name)",
    "views": "views to encode, comma-separated (default: the registry row's clip_views)",
    "splits": "splits to encode, comma-separated (default: every complete split)",
    "batch": "frames per encoder call, over all devices of the process (default: 64)",
    "shard_index": "number of this process, from 0",
    "num_shards": "number of processes",
}


def main(argv: Sequence[str]) -> int:
    if "--help" in argv or "-h" in argv:
        flags = "\n".join(f"  --{name}=...  {text}" for name, text in OPTIONS.items())
        print(f"{__doc__}\nflags:\n  --config=FILE  Python with get_config(), or a config.json\n{flags}")
        return 0
    from vpp_jax.cli.config_flag import parse

    identity_alone = "--identity" in argv
    config, options = parse([argument for argument in argv if argument != "--identity"], OPTIONS)
    if not config.init.vae:
        raise UsageError("--config.init.vae=WORKDIR is missing: the work directory of stage vae")
    if identity_alone:
        from vpp_jax.training.latents import load_identity

        print(load_identity(config))
        return 0
    for name in ("dataset", "out"):
        if not options[name]:
            raise UsageError(f"--{name}=DIR is missing: {OPTIONS[name]}")
    return _encode(config, options)


def _encode(config, options: dict[str, str]) -> int:
    from data_pipelines.builders.latents import LatentsBuild, LatentsSettings
    from data_pipelines.storage import location
    from vpp_jax.common.progress import ProgressBar
    from vpp_jax.training.latents import DatasetEncoder

    batch, index, count = (_number(options, *default) for default in (("batch", 64), ("shard_index", 0), ("num_shards", 1)))
    if not index < count:
        raise UsageError(f"--shard_index={index} must be below --num_shards={count}")
    encoder = DatasetEncoder(config, batch)
    build = LatentsBuild(
        LatentsSettings(
            location(options["dataset"]),
            options["name"],
            _words(options["views"]),
            _words(options["splits"]),
            config.model.image_size,
            encoder.latent_shape,
            encoder.identity,
            batch,
            config.data.on_bad_record,
            config.data.jpeg_dct_scaling,
            config.data.index_dir or None,
            max(config.data.threads, 1),
        )
    )
    out = Path(options["out"])
    with ProgressBar("frames") as progress:
        report = build.run(out, encoder, index, count, progress.update)
    if report is None:
        print(f"{out}: the shards of process {index} are done; the last process to finish writes the dataset's metadata")
        return 0
    for problem in report["skipped"][:10]:
        print(f"skipped: {problem}")
    episodes = ", ".join(f"{number} {split}" for split, number in report["episodes"].items())
    size = sum(report["bytes"].values()) / 1e6
    print(f"{out}: {episodes} episodes, {len(report['skipped'])} skipped, {size:.1f} MB, VAE {encoder.identity}")
    return 0


def _number(options: dict[str, str], name: str, default: int) -> int:
    text = options[name] or str(default)
    if not text.isdigit():
        raise UsageError(f"--{name}={text} is not a whole number")
    return int(text)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)
