"""`vpp convert import | export`: published PyTorch weights in, safetensors with the published names out.

    vpp convert import --unet=PIPELINE --text=CLIP [--vae=FOLDER] [--policy=FILE.pt] --out=DIR
    vpp convert export --checkpoint=DIR --out=DIR

An import gives DIR/vae, DIR/video and with --policy DIR/policy: work directories for `vpp predict`, `vpp eval` and --config.init.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vpp_jax.cli.main import UsageError


def main(argv: Sequence[str]) -> int:
    options, rest = _parser().parse_known_args(argv)
    say = lambda line: print(line, flush=True)  # noqa: E731
    if options.action == "import":
        _import(options, rest, say)
    else:
        if rest:
            raise UsageError(f"unexpected argument '{rest[0]}'")
        from vpp_jax.interop.exporting import export_published

        step = options.step if options.step is not None else "latest"
        export_published(options.checkpoint, options.out, item=options.item, step=step, say=say)
    return 0


def _import(options: argparse.Namespace, rest: list[str], say) -> None:
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
    import_published(request, say)
    say(f"wrote {options.out / 'report.json'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vpp convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True, metavar="import | export")
    load = actions.add_parser(
        "import",
        help="published weights -> work directories",
        allow_abbrev=False,
        epilog="Sizes come from the files' config.json and shapes; what they do not say from --config=FILE and --config.model.NAME=VALUE "
        "(default: the published values).",
    )
    load.add_argument("--unet", type=Path, help="diffusers pipeline folder, its unet folder, or a .safetensors file")
    load.add_argument("--vae", type=Path, help="the same for the VAE; default: the pipeline folder of --unet")
    load.add_argument("--text", type=Path, help="CLIP folder (text model with projection, or the whole CLIP) or a .safetensors file")
    load.add_argument("--policy", type=Path, help="policy file (.pt as dp-calvin, or .safetensors of an export), or a folder with one")
    load.add_argument("--out", type=Path, required=True, help="new directory of the work directories vae, video, policy")
    load.add_argument("--variant", default="", help="e.g. fp16: take files *.fp16.safetensors where others are there too")
    load.add_argument(
        "--position-encode",
        action="store_true",
        help="the video model was trained with positions on the text states "
        "(svd-robot: yes, CALVIN: no); a policy's own args decide for the policy",
    )
    load.add_argument("--allow-missing", action="append", default=[], metavar="PATTERN", help="fill tensors of these names with zeros")
    load.add_argument("--allow-unexpected", action="append", default=[], metavar="PATTERN", help="leave tensors of these names out")
    save = actions.add_parser("export", help="checkpoint -> safetensors", allow_abbrev=False)
    save.add_argument("--checkpoint", type=Path, required=True, help="work directory or checkpoint, imported or trained")
    save.add_argument("--out", type=Path, required=True, help="directory of the folders unet, vae, text_encoder, or of policy.safetensors")
    save.add_argument("--item", choices=("ema", "params"), default="ema", help="averaged parameters (where kept) or the last ones")
    save.add_argument("--step", type=int, help="default: the newest checkpoint")
    return parser
