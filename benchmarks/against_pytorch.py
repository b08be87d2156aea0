"""Speed compared with PyTorch: the same computation on the same threads, alternating.

    make benchmark-pytorch BENCHMARK_ARGS="--size svd --only unet,act"
    .venv-3.11-parity/bin/python benchmarks/against_pytorch.py [--size tiny|base|svd] [--only unet,vae,former,act,train] [--json FILE]

Ours against diffusers (U-Net, VAE), transformers (CLIP) and plain PyTorch modules (Video Former, policy: `benchmarks/pytorch/`), float32,
eager, `inference_mode` where nothing is trained. Two processes have one case each and are pinned to the same cores; the parent runs
them alternately, never both. Weights and inputs are equal, and the first outputs are compared: a difference is an error.

act, as published: per call both text encoders, VAE, U-Net up to the last tap, Video Former, ten denoising calls that run the policy's
encoder each time. act, tuned: PyTorch also encodes the instruction before the call and runs the encoder once, as ours does.
train: AdamW steps on features (stage policy, published dropout) and on latents (stage video, batch of one clip; size svd takes base's
U-Net). Peak memory is that of the side's process, including the creation of its weights; ours includes the compiler's.
"""

import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import time
from multiprocessing.connection import Connection

import numpy as np

from vpp_jax.cli.parser import Parser
from vpp_jax.common.files import write_atomically
from vpp_jax.common.host_memory import with_huge_pages

CASES = {"unet": ("unet",), "vae": ("vae",), "former": ("former",), "act": ("act",), "train": ("train_policy", "train_video")}
LABELS = {
    "unet": "U-Net to the last tap, one view",
    "vae": "VAE encoder, two views",
    "former": "Video Former",
    "act": "act()",
    "train_policy": "training step, stage policy",
    "train_video": "training step, stage video",
}
TURN_S, TURN_CALLS = 0.5, 20  # a turn ends after this time or as many calls, but has one call at least
PAUSE_S = 0.5  # between turns: idle threads of the other side stop spinning
TOLERANCE = 1e-3  # of the largest magnitude; rounding accumulates over the published depth


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--size", choices=("tiny", "base", "svd"), default="tiny", help="size of the models")
    parser.add_argument("--only", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    parser.add_number("--repeats", int, 5, "measurements per side", at_least=1, at_most=1_000_000)
    parser.add_number("--threads", int, 2, "threads of each side", at_least=1, at_most=1024)
    parser.add_output("--json", metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    unknown = set(options.only.split(",")) - CASES.keys()
    if unknown:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; cases: {', '.join(CASES)}")
    if any(importlib.util.find_spec(name) is None for name in ("torch", "diffusers", "transformers")):
        sys.exit(
            "against_pytorch: torch, diffusers and transformers are not installed here. Run `make benchmark-pytorch`, which "
            "has an environment of its own"
        )
    processors = pin(options.threads)

    about = {"size": options.size, "repeats": options.repeats, "threads": options.threads, "dtype": "float32", **machine()}
    print(f"size {options.size}, float32, {options.threads} threads on cores {processors}, {about['device']}")
    print(" ".join(f"{name} {version}" for name, version in about["versions"].items()))
    titles = ("ours s", 9), ("torch s", 9), ("torch/ours", 10), ("compile s", 9), ("ours GB", 8), ("torch GB", 8)
    print(f"{'quantity':44s} " + " ".join(f"{title:>{width}s}" for title, width in titles) + "  difference")
    rows = []
    for name in options.only.split(","):
        for case in CASES[name]:
            for row in compare(case, options.size, options.repeats):
                rows.append(row)
                print(
                    f"{row['quantity']:44s} {row['ours_s']:9.3f} {row['torch_s']:9.3f} {row['ratio']:10.2f} {row['compile_s']:9.1f} "
                    f"{row['ours_peak_gb']:8.2f} {row['torch_peak_gb']:8.2f}  {row['difference']:.1e}",
                    flush=True,
                )
    if options.json:
        write_atomically(options.json, json.dumps(about | {"rows": rows}, indent=1) + "\n")
        print(f"written to {options.json}")


def compare(case: str, size: str, repeats: int) -> list[dict]:
    """A row per variant of PyTorch's side."""
    ours = Side("jax_side", case, size, {})
    theirs = Side("torch_side", case, size, ours.shared)
    difference = largest_difference(ours.outputs, theirs.outputs)
    if not difference <= TOLERANCE:
        sys.exit(f"against_pytorch: {case} differs by {difference:.1e} of the largest magnitude: the two sides compute different things")
    seconds: dict[str, list[float]] = {variant: [] for variant in theirs.variants}
    ours_seconds: list[float] = []
    for _ in range(repeats):
        ours_seconds += ours.turn("")
        for variant, times in seconds.items():
            times += theirs.turn(variant)
    peaks = ours.close(), theirs.close()
    middle, sized = statistics.median(ours_seconds), " (size base)" if (case, size) == ("train_video", "svd") else ""
    rows = []
    for variant, times in seconds.items():
        torch_s = statistics.median(times)
        rows.append(
            {
                "quantity": LABELS[case] + sized + (f", {variant}" if variant else ""),
                "ours_s": middle,
                "torch_s": torch_s,
                "ratio": torch_s / middle,
                "ours_peak_gb": peaks[0],
                "torch_peak_gb": peaks[1],
                "difference": difference,
                "ours_all_s": ours_seconds,
                "torch_all_s": times,
                **ours.notes,
            }
        )
    return rows


def largest_difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Over all arrays, of the largest magnitude of each; gradients that are nothing but rounding are measured against the largest one."""
    if ours.keys() != theirs.keys():
        sys.exit(f"against_pytorch: the sides give different arrays, {sorted(ours.keys() ^ theirs.keys())[:5]}")
    floor = 1e-4 * max(float(np.abs(value).max()) for name, value in theirs.items())
    return max(float(np.abs(ours[name] - value).max() / max(np.abs(value).max(), floor)) for name, value in theirs.items())


def pin(threads: int) -> list[int]:
    """Pins this process and its children to the first `threads` cores, and their libraries to as many threads."""
    processors = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, processors)
    os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # compile times are reported
    return processors


def machine() -> dict:
    """Device and versions. JAX runs in a separate process, so that this one has no threads."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_machine)


def _machine() -> dict:
    from vpp_jax.common.provenance import device_name, library_versions

    more = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")}
    return {"device": device_name(), "versions": library_versions() | more}


class Side:
    """A process with one case of one side."""

    def __init__(self, module: str, case: str, size: str, shared: dict[str, np.ndarray]):
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, module, case, size, shared), daemon=True)
        environment = dict(os.environ)
        if module == "jax_side":
            os.environ |= with_huge_pages(
                environment
            )  # as `vpp train` and `vpp eval` do; PyTorch gains nothing from them (docs/measurements/speed_pytorch.md)
        self._process.start()
        os.environ.clear()
        os.environ |= environment
        other.close()
        self.variants, self.outputs, self.shared, self.notes = self._receive()

    def turn(self, variant: str) -> list[float]:
        """Seconds of each call of one turn."""
        time.sleep(PAUSE_S)
        self._connection.send(variant)
        return self._receive()

    def close(self) -> float:
        """Ends the process; its peak memory in GB."""
        self._connection.send(None)
        peak = self._receive()
        self._process.join()
        return peak

    def _receive(self):
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            sys.exit(f"against_pytorch: a side ended with exit code {self._process.exitcode}; its message stands above")


def serve(connection: Connection, module: str, case: str, size: str, shared: dict[str, np.ndarray]) -> None:
    """The process: prepares a case, then answers each variant's name with the seconds of a turn and None with the peak memory.

    A turn's first call is not counted: while the other side has its turn, caches lose this one's arrays, and a virtual machine takes back
    memory that was freed, which then costs more to get (seen: 11 s instead of 2 in the kernel, for one call at size svd).
    """
    import resource

    if module == "torch_side":
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        torch.manual_seed(0)
        from pytorch.torch_side import CASES as cases

        prepared = cases[case](size, shared)
    else:
        from pytorch.jax_side import CASES as cases

        prepared = cases[case](size)
    connection.send((list(prepared.variants), prepared.outputs, prepared.shared, prepared.notes))
    prepared.outputs.clear()
    while (variant := connection.recv()) is not None:
        call, seconds = prepared.variants[variant], []
        call()
        while not seconds or (sum(seconds) < TURN_S and len(seconds) < TURN_CALLS):
            begin = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begin)
        connection.send(seconds)
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


if __name__ == "__main__":
    main()
