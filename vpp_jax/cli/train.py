"""`vpp train --config=configs/NAME.py --workdir=DIR [--config.key=value ...]`: trains the stage that the configuration names.

The same command resumes. Exit codes: 0 trained; 143 or 130 after SIGTERM or Ctrl-C (the state is saved); 75 if another process of the run
was lost, or a bucket or device does not answer (the same commands resume from the newest checkpoint); 1 after an error that a restart
would only repeat.

Several hosts: run the same command on each. On a TPU the processes find each other; elsewhere set --coordinator, --shard_index and
--num_shards, or VPP_COORDINATOR, VPP_SHARD_INDEX and VPP_NUM_SHARDS in the environment. All processes need the same DIR.
"""

import argparse
import logging
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from data_pipelines import storage
from data_pipelines.errors import ReadFailedError
from data_pipelines.storage import Location
from vpp_jax.cli.main import UsageError, paragraph
from vpp_jax.cli.parser import Parser
from vpp_jax.common.errors import VppError
from vpp_jax.common.os_errors import explain
from vpp_jax.training.workdir import Workdir, WorkdirError


def main(argv: Sequence[str]) -> int:
    from vpp_jax.cli.config_flag import parse
    from vpp_jax.config import check_inputs

    config, arguments = parse(_parser(argv), argv)
    check_inputs(config)
    processes = _processes(arguments)
    with closing(open_workdir(arguments.workdir, config)) as workdir:
        use_compilation_cache(arguments.compilation_cache or str(storage.join(workdir.beside, ".jax_cache")))
        return _run(config, workdir, *processes)


def open_workdir(place: Location, config) -> Workdir:
    """The directory of the run; VppError where the run needs a file system, and `place` is in a bucket."""
    if not isinstance(place, Path) and config.stage == "policy" and config.policy_diffusion.feature_draws:
        raise WorkdirError(
            f"--workdir={place} is in a bucket, but policy_diffusion.feature_draws={config.policy_diffusion.feature_draws} stores features "
            "in the work directory, where they are mapped into memory: name a directory of a file system, or set feature_draws=0"
        )
    return Workdir(place)


def _parser(argv: Sequence[str]) -> Parser:
    from vpp_jax.cli.config_flag import add_config_flag

    fields = _fields(argv) if {"-h", "--help"} & set(argv) else ""
    parser = Parser(prog="vpp train", description=__doc__, epilog=fields)
    add_config_flag(parser)
    parser.add_output(
        "--workdir",
        bucket=True,
        required=True,
        metavar="DIR",
        help="directory of the run (a path or gs://BUCKET/RUN): config.json, metrics.jsonl, TensorBoard events, checkpoints/STEP, previews",
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0 where a run has several processes")
    parser.add_argument("--shard_index", help="number of this process, from 0")
    parser.add_argument("--num_shards", help="number of processes")
    parser.add_argument(
        "--compilation_cache",
        metavar="DIR",
        help="compiled programs, so that a resumed run starts at once (default: .jax_cache next to workdir)",
    )
    return parser


def _fields(argv: Sequence[str]) -> str:
    """Every field of the configuration; with the values of the file where the command line names one."""
    from vpp_jax.cli.config_flag import load_config
    from vpp_jax.cli.config_help import field_help
    from vpp_jax.config import ExperimentConfig

    file = re.search(r"--config[= ](\S+)", " ".join(argv))
    config = load_config(file[1]) if file else ExperimentConfig()
    head = f"values of {file[1]}" if file else "defaults, which are the published values; --config=FILE --help: those of a file"
    width = min(shutil.get_terminal_size().columns, 110)
    return f"fields of the configuration ({head}):\n\n{field_help(config, width)}"


def _run(config, workdir: Workdir, coordinator: str, index: int, count: int) -> int:
    import jax

    from vpp_jax.aot.mfu import ideal_step_s
    from vpp_jax.training.distributed import EX_TEMPFAIL, hard_exit, start
    from vpp_jax.training.heartbeat import Heartbeat
    from vpp_jax.training.loop import train
    from vpp_jax.training.stages.registry import make_stage

    if not coordinator:  # a TPU reads its metadata
        start()
        index, count = jax.process_index(), jax.process_count()
    _log_to(workdir.local / "train.log" if index == 0 else None)

    def end(message: str, code: int) -> NoReturn:
        """Ends one of several processes: a regular exit would wait for the others, and they for this one."""
        print(message, file=sys.stderr)
        if index == 0:
            workdir.try_upload()
        heartbeat.fail(message)
        hard_exit(code)

    times = config.train.heartbeat_s, config.train.peer_timeout_s
    heartbeat = Heartbeat(workdir.heartbeats, index, count, *times, give_up=lambda message: end(f"vpp: {message}", EX_TEMPFAIL))
    with heartbeat:
        try:
            start(coordinator, index, count, config.train.peer_timeout_s)
            choose_compile_level()
            ideal = ideal_step_s(config, jax.devices()) if index == 0 else None  # process 0 writes the log
            return train(make_stage(config), workdir, heartbeat=heartbeat, ideal_step_s=ideal).exit_code
        except (Exception, KeyboardInterrupt) as error:
            if count == 1:
                if not restart_helps(error):
                    raise
                print(paragraph(error), file=sys.stderr)
                return EX_TEMPFAIL
            if isinstance(error, KeyboardInterrupt):
                end("stopped", 128 + signal.SIGINT)
            logging.getLogger(__name__).info("process %d failed", index, exc_info=True)
            refused = explain(error)
            # a failed collective raises either, depending on the caller
            gone = heartbeat.gone() if isinstance(error, jax.errors.JaxRuntimeError | ValueError) else []
            if gone:  # the failed computation is one that all processes share
                end(f"vpp: process {index} cannot continue without {'; '.join(map(str, gone))}", EX_TEMPFAIL)
            code = EX_TEMPFAIL if restart_helps(error) else 1
            if refused and not isinstance(error, VppError):
                error = VppError(refused)
            end(paragraph(error) if isinstance(error, VppError) else traceback.format_exc(), code)


def _processes(arguments: argparse.Namespace) -> tuple[str, int, int]:
    """(coordinator, index, count) from the flags, else from the environment; ('', 0, 1) where neither says anything."""
    names = ("coordinator", "shard_index", "num_shards")
    given = [getattr(arguments, name) or os.environ.get(f"VPP_{name.upper()}", "") for name in names]
    if not any(given):
        return "", 0, 1
    coordinator, index, count = given
    numbers = all(re.fullmatch(r"[0-9]{1,9}", number) for number in (index, count))
    if not (":" in coordinator and numbers and int(index) < int(count)):
        raise UsageError(f"several processes need --coordinator=HOST:PORT, --shard_index and --num_shards, below it; got {given}")
    return coordinator, int(index), int(count)


def restart_helps(error: BaseException) -> bool:
    """Whether the same command may succeed later: processes, buckets and devices that did not answer."""
    import jax

    from vpp_jax.training.distributed import MissingProcessError

    if isinstance(error, jax.errors.JaxRuntimeError):
        return str(error).startswith(("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED"))
    return any(isinstance(one, MissingProcessError | ReadFailedError) for one in (error, error.__cause__))


def choose_compile_level() -> None:
    """On a TPU the lowest level, unless JAX_OPTIMIZATION_LEVEL is set: the default does not finish a step of size svd in an hour."""
    import jax

    if jax.devices()[0].platform == "tpu" and "JAX_OPTIMIZATION_LEVEL" not in os.environ:
        jax.config.update("jax_optimization_level", "O0")


def use_compilation_cache(directory: str) -> None:
    """Stores compiled programs in `directory`, unless JAX_COMPILATION_CACHE_DIR is set."""
    import jax

    if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue] - JAX makes its flags at run time
        jax.config.update("jax_compilation_cache_dir", directory)


def _log_to(path: Path | None) -> None:
    """Logs to a file, and warnings also to the terminal; without a file only warnings."""
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.WARNING)
    logging.raiseExceptions = False  # a log that cannot be written, say on a full disk, is no reason to print tracebacks
    root = logging.getLogger()
    root.handlers[:] = [terminal]
    root.setLevel(logging.INFO)
    for library in ("fsspec", "gcsfs"):  # a line per file
        logging.getLogger(library).setLevel(logging.WARNING)
    if path is not None:
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        file.setLevel(logging.INFO)
        root.addHandler(file)
