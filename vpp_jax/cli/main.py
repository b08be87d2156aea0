"""The `vpp` command: one module per verb, imported on demand.

Exit codes: 0 success; 1 failure; 2 invalid command line; 130 / 143 stopped by Ctrl-C / SIGTERM after saving. Errors that the user can fix
(`VppError`), and what the machine refuses (files that cannot be opened or written, memory), are printed as one paragraph; any other
exception is a bug and shows its traceback.
"""

import importlib
import io
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence

from vpp_jax.common.errors import VppError, nearest
from vpp_jax.common.host_memory import restart_with_huge_pages
from vpp_jax.common.os_errors import explain

VERBS = {
    "train": "train a stage: vae, video or policy; the same command resumes",
    "data": "build, index and inspect datasets, compute their statistics",
    "eval": "evaluate a policy in closed loop",
    "predict": "sample a text-conditioned video from one image",
    "report": "write the HTML report of a work directory",
    "sim": "install a simulator of others in an environment of its own",
    "convert": "import published weights, export safetensors",
    "compile": "ahead-of-time compile for a TPU topology: memory fit, communication, roofline",
    "bench": "measure speed and memory: data, index, model, act, eval, pytorch, sim",
    "demo": "end to end at a small size: demonstrations, three training stages, closed loop, report",
}
RUN_MODELS = ("train", "eval", "predict")
# Modules of optional dependencies -> the extra of pyproject.toml that installs them
EXTRAS = {"mujoco": "sim", "OpenGL": "sim", "dm_env": "sim", "dm_control": "sim", "apache_beam": "beam", "tensorflow_datasets": "beam"}


class UsageError(VppError):
    """An invalid command line."""


def main(argv: Sequence[str]) -> int:
    """Runs `vpp ARGV...` and returns its exit code."""
    arguments = list(argv)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    try:
        return _dispatch(arguments)
    except SystemExit as done:  # raised by argparse, after --help or an invalid command line
        if not isinstance(done.code, int):
            raise
        return done.code
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `vpp ... | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        if debug or error.name not in EXTRAS:
            raise
        extra = EXTRAS[error.name]
        print(
            paragraph(VppError(f"this needs the package {error.name}; install the extra `{extra}`: pip install 'vpp_jax[{extra}]'")),
            file=sys.stderr,
        )
        return 1
    except Exception as error:
        message = error if isinstance(error, VppError) else explain(error)
        if not message:
            raise
        if debug:
            traceback.print_exc()
        print(paragraph(message), file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def run() -> None:
    """Entry point of the console script."""
    if next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "") in RUN_MODELS:
        restart_with_huge_pages()
    for stream in (sys.stdout, sys.stderr):  # names of files that are not UTF-8, and terminals that are not
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = main(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError as error:  # standard output is a file on a full disk, or a closed pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(paragraph(f"standard output: {explain(error)}"), file=sys.stderr)
        code = code or 1
    sys.exit(code)


def paragraph(error: BaseException | str) -> str:
    """The message of a user error, wrapped."""
    return textwrap.fill(f"vpp: {error}", width=110, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {text}" for name, text in VERBS.items())
    return f"usage: vpp VERB ...\n\n{verbs}\n\n`vpp VERB --help` explains a verb; `--debug` prints the traceback of an error."


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from vpp_jax import __version__

        print(__version__)
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        raise UsageError(f"there is no verb '{verb}'{nearest(verb, VERBS) or '.'} Verbs: {', '.join(VERBS)}")
    return importlib.import_module(f"vpp_jax.cli.{verb}").main(rest)
