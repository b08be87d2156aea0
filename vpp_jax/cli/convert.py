"""`vpp convert import | export`: import published PyTorch weights, export safetensors with the published names.

    vpp convert import --unet=PIPELINE --text=CLIP [--vae=FOLDER] [--policy=FILE.pt] --out=DIR
    vpp convert export --checkpoint=DIR --out=DIR

An import writes DIR/vae, DIR/video and with --policy DIR/policy: work directories for `vpp predict`, `vpp eval` and --config.init.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.storage import location
from vpp_jax.cli.main import UsageError
from vpp_jax.cli.parser import Parser


def main(argv: Sequence[str]) -> int:
    from vpp_jax.cli.config_flag import split_overrides

    overrides, rest = split_overrides(argv)
    arguments = _parser().parse_args(rest)
    if arguments.action == "import":
        _import(arguments, overrides)
        return 0
    if overrides:
        raise UsageError(f"an export takes no configuration, got --config.{overrides[0][0]}")
    from vpp_jax.interop.exporting import export_published

    step = arguments.step if arguments.step is not None else "latest"
    export_published(arguments.checkpoint, arguments.out, item=arguments.item, step=step, robot=arguments.robot, log=log)
    return 0


def log(line: str) -> None:
    print(line, flush=True)


def _import(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from vpp_jax.cli.config_flag import load_config, override
    from vpp_jax.config import ExperimentConfig
    from vpp_jax.interop.importing import Request, import_published

    base = override(load_config(options.config) if options.config else ExperimentConfig(), overrides)
    base["model"]["position_encode"] |= options.position_encode
    request = Request(
        options.out,
        base,
        options.unet,
        options.vae,
        options.text,
        options.policy,
        options.variant,
        tuple(options.allow_missing),
        tuple(options.allow_unexpected),
    )
    import_published(request, log)
    log(f"wrote {options.out / 'report.json'}")


def _parser() -> Parser:
    from vpp_jax.cli.config_flag import add_config_flag

    parser = Parser(prog="vpp convert", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="import | export")
    load = actions.add_parser(
        "import",
        help="published weights -> work directories",
        description="Sizes come from the files' config.json and tensor shapes; everything else from --config=FILE and --config.NAME=VALUE\n"
        "(default: the published values).",
    )
    add_config_flag(load, required=False)
    load.add_argument("--unet", type=Path, help="diffusers pipeline folder, its unet folder, or a .safetensors file")
    load.add_argument("--vae", type=Path, help="the same for the VAE (default: the pipeline folder of --unet)")
    load.add_argument("--text", type=Path, help="CLIP folder (text model with projection, or a complete CLIP) or a .safetensors file")
    load.add_argument("--policy", type=Path, help="policy file (.pt as dp-calvin, or .safetensors of an export), or a folder with one")
    load.add_output("--out", required=True, metavar="DIR", help="new directory for the work directories vae, video, policy")
    load.add_argument("--variant", default="", help="e.g. fp16: read the files *.fp16.safetensors if there are several variants")
    load.add_argument(
        "--position_encode",
        action="store_true",
        help="the video model was trained with positions on the text states (svd-robot: yes, CALVIN: no); for a policy its file decides",
    )
    load.add_argument(
        "--allow_missing",
        action="append",
        default=[],
        metavar="PATTERN",
        help="fill missing tensors with zeros whose full name matches this regular expression",
    )
    load.add_argument(
        "--allow_unexpected",
        action="append",
        default=[],
        metavar="PATTERN",
        help="ignore unexpected tensors whose full name matches this regular expression",
    )
    save = actions.add_parser("export", help="checkpoint -> safetensors", description="checkpoint -> safetensors")
    save.add_argument(
        "--checkpoint", type=location, required=True, help="work directory or checkpoint, imported or trained; a path or a bucket URL"
    )
    save.add_output(
        "--out", required=True, metavar="DIR", help="new directory for the folders unet, vae, text_encoder, or for policy.safetensors"
    )
    save.add_argument("--item", choices=("ema", "params"), default="ema", help="EMA of the parameters (if stored), or the parameters")
    save.add_argument("--robot", default="", help="policy: the robot that robot.json describes, where it was trained on several")
    save.add_number("--step", int, None, "step of the checkpoint (default: the newest)", at_least=0)
    return parser
