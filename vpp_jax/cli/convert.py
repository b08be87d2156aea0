"""`vpp convert import | export`: import published PyTorch weights, export safetensors with the published names.

    vpp convert import --unet=PIPELINE --text=CLIP [--vae=FOLDER] [--policy=FILE.pt] --out=DIR
    vpp convert export --checkpoint=DIR --out=DIR

An import writes DIR/vae, DIR/video and with --policy DIR/policy: work directories for `vpp predict`, `vpp eval` and --config.init.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vpp_jax.cli.main import UsageError


def main(argv: Sequence[str]) -> int:
    options, rest = _parser().parse_known_args(argv)
    if options.action == "import":
        _import(options, rest)
    else:
        if rest:
            raise UsageError(f"unexpected argument '{rest[0]}'")
        from vpp_jax.interop.exporting import export_published

        step = options.step if options.step is not None else "latest"
        export_published(options.checkpoint, options.out, item=options.item, step=step, log=log)
    return 0


def log(line: str) -> None:
    print(line, flush=True)


def _import(options: argparse.Namespace, rest: list[str]) -> None:
    from vpp_jax.cli.config_flag import parse_tree
    from vpp_jax.config import ExperimentConfig
    from vpp_jax.interop.importing import Request, import_published

    tree, _ = parse_tree(rest, {}, ExperimentConfig())
    base = tree.to_dict()
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vpp convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True, metavar="import | export")
    load = actions.add_parser(
        "import",
        help="published weights -> work directories",
        allow_abbrev=False,
        epilog="Sizes come from the files' config.json and tensor shapes; everything else from --config=FILE and --config.model.NAME=VALUE "
        "(default: the published values).",
    )
    load.add_argument("--unet", type=Path, help="diffusers pipeline folder, its unet folder, or a .safetensors file")
    load.add_argument("--vae", type=Path, help="the same for the VAE (default: the pipeline folder of --unet)")
    load.add_argument("--text", type=Path, help="CLIP folder (text model with projection, or a complete CLIP) or a .safetensors file")
    load.add_argument("--policy", type=Path, help="policy file (.pt as dp-calvin, or .safetensors of an export), or a folder with one")
    load.add_argument("--out", type=Path, required=True, help="new directory for the work directories vae, video, policy")
    load.add_argument("--variant", default="", help="e.g. fp16: read the files *.fp16.safetensors if there are several variants")
    load.add_argument(
        "--position_encode",
        action="store_true",
        help="the video model was trained with positions on the text states (svd-robot: yes, CALVIN: no); a policy uses its own args",
    )
    load.add_argument(
        "--allow_missing", action="append", default=[], metavar="PATTERN", help="fill missing tensors of these names with zeros"
    )
    load.add_argument("--allow_unexpected", action="append", default=[], metavar="PATTERN", help="ignore unexpected tensors of these names")
    save = actions.add_parser("export", help="checkpoint -> safetensors", allow_abbrev=False)
    save.add_argument("--checkpoint", type=Path, required=True, help="work directory or checkpoint, imported or trained")
    save.add_argument(
        "--out", type=Path, required=True, help="new directory for the folders unet, vae, text_encoder, or for policy.safetensors"
    )
    save.add_argument("--item", choices=("ema", "params"), default="ema", help="EMA of the parameters (if stored), or the parameters")
    save.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")
    return parser
