"""`vpp train --config=configs/NAME.py --workdir=DIR [--config.key=value ...]`: trains the stage that the configuration names.

The same command resumes. Exit codes: 0 trained; 143 or 130 where SIGTERM or Ctrl-C stopped it (saved, the same command goes on).
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from vpp_jax.cli.main import UsageError

OPTIONS = {
    "workdir": "directory of the run: config.json, metrics.jsonl, TensorBoard events, checkpoints/STEP, previews",
    "compilation_cache": "directory of compiled programs, so that a resumed run starts at once; default: .jax_cache beside the workdir",
}


def main(argv: Sequence[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print(_help(argv))
        return 0
    from vpp_jax.cli.config_flag import parse
    from vpp_jax.config import check_inputs

    config, options = parse(argv, OPTIONS)
    if not options["workdir"]:
        raise UsageError("--workdir=DIR is missing: where checkpoints and metrics go")
    check_inputs(config)
    workdir = Path(options["workdir"])
    workdir.mkdir(parents=True, exist_ok=True)
    _log_to(workdir / "train.log")
    use_compilation_cache(Path(options["compilation_cache"] or workdir.resolve().parent / ".jax_cache"))

    from vpp_jax.training.loop import train
    from vpp_jax.training.stages.base import make_stage

    return train(make_stage(config), workdir).exit_code


def use_compilation_cache(directory: Path) -> None:
    """Keeps compiled programs between processes; the environment variable JAX_COMPILATION_CACHE_DIR wins."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(directory))


def _log_to(path: Path) -> None:
    """Everything into a file, warnings also to the terminal."""
    file, terminal = logging.FileHandler(path), logging.StreamHandler()
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    file.setLevel(logging.INFO)
    terminal.setLevel(logging.WARNING)
    root = logging.getLogger()
    root.handlers[:] = [file, terminal]
    root.setLevel(logging.INFO)


def _help(argv: Sequence[str]) -> str:
    """Usage; with a configuration file, every field and its value there."""
    flags = "\n".join(f"  --{name}=...  {text}" for name, text in OPTIONS.items())
    text = f"{__doc__}\nflags:\n  --config=FILE  Python with get_config(), or a config.json\n{flags}\n"
    files = [argument.removeprefix("--config=") for argument in argv if argument.startswith("--config=")]
    if not files:
        return text + "\n`vpp train --config=FILE --help` lists every field that --config.NAME=VALUE can set."
    from vpp_jax.cli.config_flag import load_config
    from vpp_jax.config import leaves, to_dict

    return text + "\nfields:\n" + "\n".join(f"  --config.{name}={value}" for name, value in leaves(to_dict(load_config(files[0]))).items())
