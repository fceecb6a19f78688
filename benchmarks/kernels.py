"""The operators against plain PyTorch: ``python -m benchmarks.kernels``.

Validates every operator and every contestant against the float64 reference, then times, in one run and interleaved:
ours; plain PyTorch in eager mode; ``torch.compile`` of the whole; and eager noise with the rest compiled. Ratios are of
medians: above 1, ours is faster. Bandwidth counts each input and output once, and is compared with that of a plain
copy, bytes read plus bytes written, that takes its turn with the others: on CUDA of a large tensor, since the inputs
there take turns too and are never in the cache; on the CPU, where they may be, of as many bytes as the operator moves.

On the CPU every number of threads has a process of its own, for compiled code holds the number it was compiled for.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import adt_fast
from adt_fast._runs.machine import device_name

from . import machine, report
from .arguments import positive
from .operator_cases import CASES, CONTESTANTS, COPY, OURS, OperatorCase, Workload, forget_compiled
from .targets import check_targets
from .timing import Call, Timing, keep_freed_memory, time_interleaved
from .validation import validate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = ("contiguous", "channels_last")

_LARGE_COPY_BYTES = 2**31  # read plus written

# Shrinks the ascent steps while timing, so that (mu, rho) stay where they are over thousands of calls.
_STEP_SIZE_SCALE = 1e-6


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    device: str
    threads: tuple[int, ...]  # empty on CUDA
    samples: int
    batch: int
    image: tuple[int, int, int]
    dtypes: tuple[str, ...]
    layouts: tuple[str, ...]
    operators: tuple[str, ...]
    contestants: tuple[str, ...]
    repeats: int
    cuda_graph: bool


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    settings = _settings(parser, options)
    if options.plot is not None:
        report.require_matplotlib()
    document = measure(settings)
    print("\n" + report.results_table(document["results"]))
    if document["targets"]:
        print("\n" + report.targets_table(document["targets"]))
    if options.output is not None:
        options.output.write_text(json.dumps(document, indent=1) + "\n")
    if options.plot is not None:
        report.plot(document["results"], options.plot)


def measure(settings: Settings) -> dict[str, Any]:
    """Everything that is measured, as plain values: machine, results, targets.

    Raises:
        RuntimeError: if the native module is not loaded, so that there is nothing to measure.
        ValidationError: if a result is wrong.
    """
    build = adt_fast.build_info()
    if not build["native"]:
        raise RuntimeError(
            f"adt_fast's native module is not loaded ({build['native_off_because']}), so there is nothing to measure. "
            "From a checkout, install it in place: pip install -e ."
        )
    if settings.device == "cuda" and build["cuda_off_because"]:
        raise RuntimeError(f"the GPU kernels are off: {build['cuda_off_because']}")
    results: list[dict[str, Any]] = []
    if settings.device == "cuda":
        results += measure_here(settings, threads=None)
    for threads in settings.threads:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            results += process.submit(measure_here, settings, threads).result()
    return {
        "machine": machine.describe(torch.device(settings.device)),
        "results": results,
        "targets": list(check_targets(results)),
    }


def measure_here(settings: Settings, threads: int | None) -> list[dict[str, Any]]:
    """The results of one process: every dtype, layout and operator."""
    device = torch.device(settings.device, torch.cuda.current_device()) if threads is None else torch.device("cpu")
    if threads is not None:
        torch.set_num_threads(threads)
        keep_freed_memory()
    print(f"\n{device_name(device)}" + (f", threads: {threads}" if threads is not None else ""), flush=True)
    results = []
    for dtype in settings.dtypes:
        for layout in settings.layouts:
            workload = Workload(device, settings.samples, settings.batch, settings.image, DTYPES[dtype], layout)
            forget_compiled()
            with torch.no_grad():
                results += [_measure_operator(CASES[name], workload, settings) for name in settings.operators]
    return [result | {"threads": threads} for result in results]


def _measure_operator(case_class: type[OperatorCase], workload: Workload, settings: Settings) -> dict[str, Any]:
    errors = validate(case_class, workload)
    print(f"{case_class.name}, {workload.dtype}, {workload.layout}: right, with errors of", flush=True)
    for error in errors:
        print(f"  {error.output}: ours {error.ours:.2e}, plain PyTorch {error.plain:.2e} (at most {error.tolerance:g})")
    bytes_moved = case_class(workload).bytes_moved()
    bytes_copied = bytes_moved if workload.device.type == "cpu" else _LARGE_COPY_BYTES
    timings = _time(case_class, workload, settings, machine.copy_call(workload.device, bytes_copied))
    for name, timing in timings.items():
        low, high = timing.percentile(10), timing.percentile(90)
        print(f"  {name}: {timing.median * 1e3:.4g} ms ({low * 1e3:.4g}-{high * 1e3:.4g})", flush=True)
    ours, bandwidth = timings[OURS].median, bytes_copied / timings[COPY].median
    return {
        "operator": case_class.name,
        "device": workload.device.type,
        "device_name": device_name(workload.device),
        "launch": "graph" if workload.device.type == "cuda" and settings.cuda_graph else "call",
        "samples": workload.samples,
        "batch": workload.batch,
        "image": list(workload.image),
        "dtype": str(workload.dtype).removeprefix("torch."),
        "layout": workload.layout,
        "errors": {
            error.output: {"ours": error.ours, "plain": error.plain, "tolerance": error.tolerance} for error in errors
        },
        "timings": {name: timing.as_dict() for name, timing in timings.items()},
        "bytes_moved": bytes_moved,
        "gb_per_s": bytes_moved / ours / 1e9,
        "copy_gb_per_s": bandwidth / 1e9,
        "copy_fraction": bytes_moved / ours / bandwidth,
        "ratios": {name: timings[name].median / ours for name in CONTESTANTS if name in timings},
    }


def _time(case_class: type[OperatorCase], workload: Workload, settings: Settings, copy: Call) -> dict[str, Timing]:
    sets = 1
    if workload.device.type == "cuda":
        # Enough inputs that none is still in the cache when its turn comes again.
        sets = 1 + 2 * machine.cache_bytes(workload.device) // case_class(workload).bytes_moved()
    cases = [case_class(workload, input_set, _STEP_SIZE_SCALE) for input_set in range(sets)]
    plain = [case.contestants() for case in cases]
    calls: dict[str, list[Call]] = {OURS: [case.ours for case in cases], COPY: [copy]}
    calls |= {name: [forms[name] for forms in plain] for name in settings.contestants if name in plain[0]}
    return time_interleaved(calls, workload.device, repeats=settings.repeats, cuda_graph=settings.cuda_graph)


def _settings(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Settings:
    """Fills in what was not given, which depends on the device."""
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_cuda = options.device == "cuda"
    if on_cuda and options.threads is not None:
        parser.error("--threads is for --device cpu")
    if not on_cuda and options.launch is not None:
        parser.error("--launch is for --device cuda")
    return Settings(
        device=options.device,
        threads=() if on_cuda else tuple(options.threads or (1, 2)),
        samples=options.samples,
        batch=options.batch or (512 if on_cuda else 64),
        image=tuple(options.image),
        dtypes=tuple(options.dtype or (("float32", "bfloat16") if on_cuda else ("float32",))),
        layouts=tuple(options.layout or (LAYOUTS if on_cuda else ("contiguous",))),
        operators=tuple(options.operators),
        contestants=tuple(options.contestants),
        repeats=options.repeats,
        cuda_graph=options.launch != "call",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description="Validates the operators, then times them against plain PyTorch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is a GPU")
    add("--threads", type=positive, nargs="+", help="CPU threads, each number in its own process (default: 1 2)")
    add("--samples", type=positive, default=5, help="k, samples an image")
    add("--batch", type=positive, help="images (default: 64 on the CPU, 512 on CUDA)")
    add("--image", type=positive, nargs=3, default=(3, 32, 32), metavar=("C", "H", "W"), help="shape of an image")
    add("--dtype", choices=DTYPES, nargs="+", help="of x_adv (default: float32, on CUDA bfloat16 too)")
    add("--layout", choices=LAYOUTS, nargs="+", help="of images (default: contiguous, on CUDA both)")
    add("--operators", choices=CASES, nargs="+", default=tuple(CASES), help="which to measure")
    add("--contestants", choices=CONTESTANTS, nargs="*", default=CONTESTANTS, help="whom to time them against")
    add("--repeats", type=positive, default=80, help="timed rounds")
    add("--launch", choices=("graph", "call"), help="CUDA: time replays of a graph, or calls (default: graph)")
    add("--output", type=Path, metavar="FILE.json", help="write everything that was measured")
    add("--plot", type=Path, metavar="FILE", help="draw the ratios (needs matplotlib)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
