"""Two processes on a CPU against one: ``python -m benchmarks.scaling``; and ``--plan`` for what images of 224x224 need.

First a step of two processes is compared with that of one. Then it is timed beside their share of the work without any
exchange, and beside the whole minibatch in one process with one and with two threads, all in turn. The exchange alone,
an all-reduce of gradients, is timed for networks of several sizes.

The plan is computed from counts and rates, see :mod:`benchmarks.scaling_plan`; nothing is measured for it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from adt_fast import ADTExpTrainer
from adt_fast.input_gradient import FLOAT32
from adt_fast.models import convert_sync_batchnorm, create_model

from . import machine, report, scaling_plan
from .arguments import positive
from .timing import Timing, keep_freed_memory
from .validation import ValidationError

SIZE = 2
ALL_REDUCED = ("wrn-10-2", "wrn-16-4", "wrn-28-10")
TOGETHER = "2 processes, 1 thread each"
APART = "their shares, no exchange"
ONE_THREAD = "1 process, 1 thread"
TWO_THREADS = "1 process, 2 threads"
_TOLERANCE = 1e-9  # in float64: in float32 the signs of tiny gradients, which the attack follows, depend on rounding


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark, or prints the plan, from the command line."""
    options = _parser().parse_args(arguments)
    if options.plan:
        for title, rows in scaling_plan.tables(options.plan_batch, options.epochs, scaling_plan.Rates()).items():
            print(f"\n{title}\n\n{report.markdown(rows)}")
        return
    settings = {name: getattr(options, name) for name in ("model", "batch", "steps", "samples", "repeats")}
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_measure, (folder, settings), nprocs=SIZE)
        measured = json.loads((Path(folder) / "measured.json").read_text())
    document = {"machine": machine.describe(torch.device("cpu")), "settings": settings, **measured}
    print(report.aligned(_rows(measured)))
    if options.output is not None:
        options.output.write_text(json.dumps(document, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="wrn-10-2")
    parser.add_argument("--batch", type=positive, default=32, help="images of the whole minibatch")
    parser.add_argument("--steps", type=positive, default=7)
    parser.add_argument("--samples", type=positive, default=5)
    parser.add_argument("--repeats", type=positive, default=9)
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    parser.add_argument("--plan", action="store_true", help="print the plan for ImageNet, and measure nothing")
    parser.add_argument("--plan-batch", type=positive, default=64, help="images on each GPU, in the plan")
    parser.add_argument("--epochs", type=positive, default=90, help="of ImageNet, in the plan")
    return parser


def _measure(rank: int, folder: str, settings: dict[str, Any]) -> None:
    """In each process; the first one writes what was found."""
    keep_freed_memory()
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE, timeout=timedelta(minutes=10)
    )
    images, labels = _batch(settings["batch"])
    share = slice(rank * len(images) // SIZE, (rank + 1) * len(images) // SIZE)
    error = _validate(settings, images, labels, share)
    together, apart = _trainer(settings, distributed=True), _trainer(settings, distributed=False)
    alone = _trainer(settings, distributed=False)
    contestants = {
        TOGETHER: (lambda: together.step(images[share], labels[share]), 1, True),
        APART: (lambda: apart.step(images[share], labels[share]), 1, True),
        ONE_THREAD: (lambda: alone.step(images, labels), 1, False),
        TWO_THREADS: (lambda: alone.step(images, labels), 2, False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(-1, settings["repeats"]):  # the first is to warm up
        for name, (step, threads, in_both) in contestants.items():
            dist.barrier()
            torch.set_num_threads(threads)
            start = time.perf_counter()
            if in_both or rank == 0:
                step()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
            torch.set_num_threads(1)
    measured = {
        "relative_error": error,
        "steps": {name: Timing(tuple(values)).as_dict() for name, values in seconds.items()},
        "all_reduce": [_all_reduce(name, settings["repeats"]) for name in ALL_REDUCED],
    }
    if rank == 0:
        measured |= _ratios(measured["steps"])
        (Path(folder) / "measured.json").write_text(json.dumps(measured))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # for a thread of gloo may abort a process while Python clears up


def _batch(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 32, 32, generator=generator), torch.randint(10, (count,), generator=generator)


def _trainer(settings: dict[str, Any], *, distributed: bool, dtype: torch.dtype = torch.float32) -> ADTExpTrainer:
    torch.manual_seed(0)
    model = create_model(settings["model"]).to(dtype, memory_format=torch.channels_last)
    if distributed:
        model = DistributedDataParallel(convert_sync_batchnorm(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return ADTExpTrainer(
        model, optimizer, steps=settings["steps"], samples=settings["samples"], engine=FLOAT32, outer_precision="fp32"
    )


def _validate(settings: dict[str, Any], images: Tensor, labels: Tensor, share: slice) -> float:
    """The change of the weights in a step, against that in one process: the norm of the difference over the norm.

    Raises ValidationError where it is too large.
    """
    changes = []
    for distributed, own in ((True, share), (False, slice(None))):
        trainer = _trainer(settings, distributed=distributed, dtype=torch.float64)
        start = _weights(trainer)
        trainer.step(images[own].double(), labels[own])
        changes.append(_weights(trainer) - start)
    error = float((changes[0] - changes[1]).norm() / changes[1].norm())
    if not error <= _TOLERANCE:
        raise ValidationError(f"a step in {SIZE} processes differs from one in one by {error:.2g}, more than "
                              f"{_TOLERANCE:g}")
    return error


def _weights(trainer: ADTExpTrainer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.trained_model.parameters()])


def _all_reduce(name: str, repeats: int) -> dict[str, Any]:
    """The exchange of a network's float32 gradients, by itself."""
    count = sum(parameter.numel() for parameter in create_model(name).parameters())
    gradient, seconds = torch.ones(count), []
    for _ in range(1 + repeats):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(gradient)
        seconds.append(time.perf_counter() - start)
    return {"model": name, "bytes": 4 * count, **Timing(tuple(seconds[1:])).as_dict()}


def _ratios(steps: dict[str, Any]) -> dict[str, float]:
    """Of medians: the share of a step that is exchange, and how much faster two processes are than one."""
    median = {name: timing["median_ms"] for name, timing in steps.items()}
    return {
        "exchange_share": 1 - median[APART] / median[TOGETHER],
        "speedup": median[ONE_THREAD] / median[TOGETHER],
        "efficiency": median[ONE_THREAD] / median[TOGETHER] / SIZE,
        "speedup_of_threads": median[ONE_THREAD] / median[TWO_THREADS],
    }


def _rows(measured: dict[str, Any]) -> list[list[str]]:
    rows = [["what", "ms", "10-90%"]]
    timings = measured["steps"] | {
        f"all-reduce of {one['bytes'] / 1e6:.1f} MB ({one['model']})": one for one in measured["all_reduce"]
    }
    for name, one in timings.items():
        rows.append([name, f"{one['median_ms']:.1f}", f"{one['p10_ms']:.1f} to {one['p90_ms']:.1f}"])
    ratios = ("exchange_share", "speedup", "efficiency", "speedup_of_threads", "relative_error")
    return rows + [[name.replace("_", " "), f"{measured[name]:.3g}", ""] for name in ratios]


if __name__ == "__main__":
    main()
