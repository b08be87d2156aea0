"""`vpp train --config=configs/NAME.py --workdir=DIR [--config.key=value ...]`: trains the stage that the configuration names.

The same command resumes. Exit codes: 0 trained; 143 or 130 after SIGTERM or Ctrl-C (the state is saved); 75 if another process of the run
was lost (the same commands resume from the newest checkpoint).

Several hosts: run the same command on each. On a TPU the processes find each other; elsewhere set --coordinator, --shard_index and
--num_shards, or VPP_COORDINATOR, VPP_SHARD_INDEX and VPP_NUM_SHARDS in the environment. All processes need the same DIR.
"""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from vpp_jax.cli.main import UsageError, paragraph
from vpp_jax.common.errors import VppError

OPTIONS = {
    "workdir": "directory of the run: config.json, metrics.jsonl, TensorBoard events, checkpoints/STEP, previews",
    "coordinator": "HOST:PORT of process 0, for a run of several processes",
    "shard_index": "number of this process, from 0",
    "num_shards": "number of processes",
    "compilation_cache": "directory of compiled programs, so that a resumed run starts quickly (default: .jax_cache next to the workdir)",
}


def main(argv: Sequence[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print(_help(argv))
        return 0
    from vpp_jax.cli.config_flag import parse
    from vpp_jax.config import check_inputs

    config, options = parse(argv, OPTIONS)
    if not options["workdir"]:
        raise UsageError("--workdir=DIR is missing: the directory for checkpoints and metrics")
    check_inputs(config)
    workdir = Path(options["workdir"])
    workdir.mkdir(parents=True, exist_ok=True)
    use_compilation_cache(Path(options["compilation_cache"] or workdir.resolve().parent / ".jax_cache"))
    return _run(config, workdir, *_processes(options))


def _run(config, workdir: Path, coordinator: str, index: int, count: int) -> int:
    import jax

    from vpp_jax.training.distributed import EX_TEMPFAIL, MissingProcessError, hard_exit, start
    from vpp_jax.training.heartbeat import Heartbeat
    from vpp_jax.training.loop import train
    from vpp_jax.training.stages.registry import make_stage

    if not coordinator:  # a TPU reads its metadata
        start()
        index, count = jax.process_index(), jax.process_count()
    _log_to(workdir / "train.log" if index == 0 else None)

    def end(message: str, code: int) -> None:
        """Ends one of several processes: a regular exit would wait for the others, and they for this one."""
        print(message, file=sys.stderr)
        heartbeat.fail(message)
        hard_exit(code)

    times = config.train.heartbeat_s, config.train.peer_timeout_s
    heartbeat = Heartbeat(workdir / "heartbeats", index, count, *times, give_up=lambda message: end(f"vpp: {message}", EX_TEMPFAIL))
    with heartbeat:
        try:
            start(coordinator, index, count, config.train.peer_timeout_s)
            return train(make_stage(config), workdir, heartbeat=heartbeat).exit_code
        except (Exception, KeyboardInterrupt) as error:
            if count == 1:
                raise
            if isinstance(error, KeyboardInterrupt):
                end("stopped", 128 + signal.SIGINT)
            logging.getLogger(__name__).info("process %d failed", index, exc_info=True)
            # a failed collective raises either, depending on the caller
            gone = heartbeat.gone() if isinstance(error, jax.errors.JaxRuntimeError | ValueError) else []
            if gone:  # the failed computation is one that all processes share
                end(f"vpp: process {index} cannot continue without {'; '.join(map(str, gone))}", EX_TEMPFAIL)
            code = EX_TEMPFAIL if isinstance(error, MissingProcessError) else 1
            end(paragraph(error) if isinstance(error, VppError) else traceback.format_exc(), code)


def _processes(options: dict[str, str]) -> tuple[str, int, int]:
    """(coordinator, index, count) from the flags, else from the environment; ('', 0, 1) if none is set."""
    given = [options[name] or os.environ.get(f"VPP_{name.upper()}", "") for name in ("coordinator", "shard_index", "num_shards")]
    if not any(given):
        return "", 0, 1
    coordinator, index, count = given
    if not (":" in coordinator and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UsageError(f"several processes need --coordinator=HOST:PORT, --num_shards and --shard_index below it; got {given}")
    return coordinator, int(index), int(count)


def use_compilation_cache(directory: Path) -> None:
    """Stores compiled programs in `directory`, unless JAX_COMPILATION_CACHE_DIR is set."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(directory))


def _log_to(path: Path | None) -> None:
    """Logs to a file, and warnings also to the terminal; without a file only warnings."""
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.WARNING)
    root = logging.getLogger()
    root.handlers[:] = [terminal]
    root.setLevel(logging.INFO)
    if path is not None:
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        file.setLevel(logging.INFO)
        root.addHandler(file)


def _help(argv: Sequence[str]) -> str:
    """Usage; with a configuration file, every field and its value there."""
    flags = "\n".join(f"  --{name}=...  {text}" for name, text in OPTIONS.items())
    text = f"{__doc__}\nflags:\n  --config=FILE  Python with get_config(), or a config.json\n{flags}\n"
    files = [argument.removeprefix("--config=") for argument in argv if argument.startswith("--config=")]
    if not files:
        return text + "\n`vpp train --config=FILE --help` lists every field that --config.NAME=VALUE can set."
    from vpp_jax.cli.config_flag import load_config
    from vpp_jax.common.json_values import flatten_dict
    from vpp_jax.config import to_dict

    return (
        text
        + "\nfields:\n"
        + "\n".join(f"  --config.{name}={value}" for name, value in flatten_dict(to_dict(load_config(files[0]))).items())
    )
