"""Whole training steps against plain PyTorch: ``python -m benchmarks.training``.

A step is a minibatch from beginning to end: inner maximisation, training pass, optimizer. First every contestant runs
from the same weights, on the same images, with the same random numbers, and is compared with the published algorithm in
float64; only then they are timed, in one run and interleaved. Ratios are of medians: above 1, adt_fast is faster.

Amortised ADT has a generator in place of the inner loop, and trains it in the same step. Its width is in the paper's
proportion to the classifier.

The weights are trained briefly on images of noise with a pattern for each class, so that gradients are like those of
training; the time of a step does not depend on the images.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adt_fast
from adt_fast._runs.machine import device_name
from adt_fast.input_gradient import PrecisionWarning
from adt_fast.models import create_model

from . import machine, report, training_report
from .arguments import positive
from .model_flops import ModelFlops, count_joint_flops, count_model_flops, forward_flops, matmul_ceiling
from .timing import Call, Timing, keep_freed_memory, time_interleaved
from .training_contestants import (
    ADT_IMP_AM,
    AT_PGD,
    GROUPS,
    HEADLINE,
    OBJECTIVES,
    PRECISIONS,
    Contestant,
    Entry,
    Task,
    amortized_networks,
    choose,
    default_generator_width,
    entries,
)
from .training_validation import Validator

CLASSES = 10

_NO_MEMORY = "on the CPU the contestants share one process, to take turns: a peak would be of all of them"

# Compiled code for every contestant; torch's own limit is for one program with few shapes.
_RECOMPILE_LIMIT = 256


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    device: str
    threads: int | None  # None on CUDA
    model: str
    batch: int
    image: tuple[int, int, int]
    steps: int
    samples: int
    generator_width: int
    objectives: tuple[str, ...]
    contestants: tuple[str, ...]  # groups, or single names
    precisions: tuple[str, ...]
    compiled: bool
    repeats: int
    validation_batch: int
    training_steps: int  # before anything is measured
    seed: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    settings = _settings(parser, options)
    if options.plot is not None:
        report.require_matplotlib()
    document = measure(settings)
    print("\n" + training_report.results_table(document["results"]))
    print("\n" + training_report.summary(document))
    if options.output is not None:
        options.output.write_text(json.dumps(document, indent=1) + "\n")
    if options.plot is not None:
        training_report.plot(document, options.plot)


def measure(settings: Settings) -> dict[str, Any]:
    """Everything that is measured, as plain values.

    Raises:
        RuntimeError: if the native module is not loaded, so that there is nothing to measure.
        ValidationError: if a contestant does not do what the others do; the message names it.
    """
    build = adt_fast.build_info()
    if not build["native"]:
        raise RuntimeError(f"adt_fast's native module is not loaded: {build['native_off_because']}")
    if settings.device == "cuda" and build["cuda_off_because"]:
        raise RuntimeError(f"the GPU kernels are off: {build['cuda_off_because']}")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
        keep_freed_memory()
    torch.manual_seed(settings.seed)
    device = _device(settings)
    model = _trained_model(settings, device)
    flops = count_model_flops(model, settings.image)
    ceilings = {name: matmul_ceiling(name, device) for name in PRECISIONS[device.type]}
    print(f"{device_name(device)}: " + training_report.ceilings_line(ceilings), flush=True)
    results: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    joint_flops: dict[str, int] = {}
    for objective in settings.objectives:
        task = _task(objective, model, settings, device)
        if task.networks:
            joint_flops[objective] = count_joint_flops(model, task.networks, settings.image)
        task_flops = dataclasses.replace(flops, training=joint_flops.get(objective, flops.training))
        results += _measure_objective(task, settings, task_flops, ceilings, left_out)
    document = {
        "machine": machine.describe(device),
        "device_name": device_name(device),
        "settings": dataclasses.asdict(settings) | {"image": list(settings.image)},
        "model_flops_per_image": dataclasses.asdict(flops),
        "joint_training_flops_per_image": joint_flops,
        "matmul_flops_per_s": ceilings,
        "results": results,
        "left_out": left_out,
        "headline": training_report.headline(results),
        "figure_6": training_report.figure_6(results),
    }
    return document | {"targets": training_report.check_targets(document)}


# ---- One objective --------------------------------------------------------------------------------------------------
def _measure_objective(
    task: Task,
    settings: Settings,
    flops: ModelFlops,
    ceilings: dict[str, float],
    left_out: list[dict[str, str]],
) -> list[dict[str, Any]]:
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT
    chosen = choose(
        entries(task.objective, task.device.type), settings.contestants, settings.precisions, settings.compiled
    )
    print(f"\n{task.objective}, {settings.model}, {len(task.images)} images", flush=True)
    ready = _prepare(task, chosen, settings, left_out)
    if not ready:
        return []
    calls = {entry.name: [contestant.step] for entry, contestant, _ in ready}
    warmup = 3 if task.device.type == "cuda" else 1
    timings = time_interleaved(calls, task.device, repeats=settings.repeats, warmup=warmup, cuda_graph=False)
    results = []
    for entry, contestant, measured in ready:
        timing = timings[entry.name]
        result = _result(entry, task, timing, flops, ceilings) | measured
        results.append(result | {"explain": contestant.explain()})
    training_report.add_ratios(results)
    return results


def _prepare(
    task: Task, chosen: Sequence[Entry], settings: Settings, left_out: list[dict[str, str]]
) -> list[tuple[Entry, Contestant, dict[str, Any]]]:
    """Builds, validates and warms up.

    Who does not fit into memory is left out, with the reason, as is adt_fast where it gave 16 bits up for float32.
    """
    validators: dict[str, Validator] = {}
    ready = []
    for entry in chosen:
        objective = _objective_of(entry, task)
        if objective not in validators:
            validated = dataclasses.replace(task.first(settings.validation_batch), objective=objective)
            validators[objective] = Validator(validated, settings.seed)
        try:
            ready.append((entry, *_prepare_one(entry, task, validators[objective])))
        except (torch.OutOfMemoryError, PrecisionWarning) as error:
            left_out.append({"objective": task.objective, "contestant": entry.name, "reason": str(error)})
            print(f"  {entry.name}: left out: {error}", flush=True)
    return ready


def _prepare_one(entry: Entry, task: Task, validator: Validator) -> tuple[Contestant, dict[str, Any]]:
    same = len(validator.task.images) == len(task.images) and validator.task.entropy_weight == task.entropy_weight
    with warnings.catch_warnings():
        warnings.simplefilter("error", PrecisionWarning)
        agreement = None if same else validator.check(entry, entry.build(validator.task))
        before = _start_of_peak(task.device)
        contestant = entry.build(task)
        if agreement is None:
            agreement = validator.check(entry, contestant)
        contestant.step()
    peak = _peak_since(before, task.device)
    print(f"  {entry.name}: right, {agreement}", flush=True)
    return contestant, {
        "agreement": dataclasses.asdict(agreement),
        "peak_memory_bytes": peak,
        "peak_memory_absent_because": _NO_MEMORY if peak is None else None,
        "kernels_outside_model": kernels_outside_model(contestant, task) if entry.group != HEADLINE else None,
    }


def _result(entry: Entry, task: Task, timing: Timing, flops: ModelFlops, ceilings: dict[str, float]) -> dict[str, Any]:
    batch = len(task.images)
    trained = dataclasses.replace(task, objective=_objective_of(entry, task))
    model_flops = flops.of_step(batch, trained.inner_passes)
    per_second = model_flops / timing.median
    ceiling = ceilings.get(entry.precision)
    return {
        "objective": task.objective,
        "contestant": entry.name,
        "group": entry.group,
        "precision": entry.precision,
        "timing": timing.as_dict(),
        "images_per_s": batch / timing.median,
        "epoch_s": timing.median * 50_000 / batch,
        "model_flops": model_flops,
        "flops_per_s": per_second,
        "ceiling_fraction": None if ceiling is None else per_second / ceiling,
    }


def _objective_of(entry: Entry, task: Task) -> str:
    """The headline is told by AT-PGD at library defaults, which takes its turn among the contestants of ADT-EXP."""
    return AT_PGD if entry.group == HEADLINE else task.objective


# ---- What else is measured ------------------------------------------------------------------------------------------
def kernels_outside_model(contestant: Contestant, task: Task) -> float | None:
    """CUDA kernels for each inner step, less those of the classifier's pass; None on the CPU or without inner steps.

    The few kernels before the first step and after the last are shared out among the steps.
    """
    if task.device.type != "cuda" or task.inner_steps == 0:
        return None
    return (_kernels(contestant.maximize) / task.inner_steps) - _kernels(contestant.model_pass)


def _kernels(call: Call) -> int:
    """Kernels that a call launches, in CUDA graphs too; copies and fills by the driver are none."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return sum(
        event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
        for event in profile.events()
    )


def _start_of_peak(device: torch.device) -> int:
    """Starts measuring the peak of memory; returns what is in use."""
    if device.type != "cuda":
        return 0
    gc.collect()  # of whoever was validated
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak_since(before: int, device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


# ---- The minibatch, and weights that are not quite random -----------------------------------------------------------
def _task(objective: str, model: nn.Module, settings: Settings, device: torch.device) -> Task:
    networks = amortized_networks(objective, settings.image, settings.generator_width).to(device)
    images, labels = _minibatch(settings, device)
    weight = 1.0 if objective == ADT_IMP_AM else 0.01
    return Task(objective, model, images, labels, networks, settings.steps, settings.samples, entropy_weight=weight)


def _trained_model(settings: Settings, device: torch.device) -> nn.Module:
    model = _new_model(settings.model, settings.image[0]).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=2e-4)
    for _ in range(settings.training_steps):
        images, labels = _minibatch(settings, device)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def _new_model(name: str, channels: int) -> nn.Module:
    return create_model(name, num_classes=CLASSES, in_channels=channels, mean=[0.5] * channels, std=[0.25] * channels)


def _minibatch(settings: Settings, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images of noise, each with the pattern of its class."""
    generator = torch.Generator().manual_seed(settings.seed)
    patterns = torch.randn(CLASSES, *settings.image, generator=generator)
    labels = torch.randint(CLASSES, (settings.batch,))
    images = 0.5 + 0.05 * patterns[labels] + 0.2 * torch.randn(settings.batch, *settings.image)
    return images.clamp_(0.0, 1.0).to(device), labels.to(device)


# ---- The command line -----------------------------------------------------------------------------------------------
def _device(settings: Settings) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if settings.device == "cuda" else torch.device("cpu")


def _settings(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Settings:
    """Fills in what was not given, which depends on the device."""
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_cuda = options.device == "cuda"
    if on_cuda and options.threads is not None:
        parser.error("--threads is for --device cpu")
    precisions = tuple(options.precisions or PRECISIONS[options.device])
    if foreign := sorted(set(precisions) - set(PRECISIONS[options.device])):
        parser.error(f"--precisions {foreign[0]} is not for --device {options.device}")
    names = {entry.name for objective in options.objectives for entry in entries(objective, options.device)}
    if unknown := sorted(set(options.contestants) - names - set(GROUPS)):
        known = ", ".join((*GROUPS, *map(repr, sorted(names))))
        parser.error(f"--contestants {unknown[0]!r} is unknown; there are {known}")
    batch = options.batch or (512 if on_cuda else 16)
    model, image = options.model or ("wrn-28-10" if on_cuda else "wrn-16-4"), tuple(options.image)
    return Settings(
        device=options.device,
        threads=None if on_cuda else options.threads or 2,
        model=model,
        batch=batch,
        image=image,
        steps=options.steps,
        samples=options.samples,
        generator_width=options.generator_width or _generator_width(model, image),
        objectives=tuple(options.objectives),
        contestants=tuple(options.contestants),
        precisions=precisions,
        compiled=not options.no_compile,
        repeats=options.repeats or (10 if on_cuda else 7),
        validation_batch=min(batch, options.validation_batch or (64 if on_cuda else batch)),
        training_steps=options.training_steps,
        seed=options.seed,
    )


def _generator_width(model: str, image: tuple[int, int, int]) -> int:
    with torch.device("meta"):
        return default_generator_width(forward_flops(_new_model(model, image[0]).eval(), torch.empty(1, *image)), image)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description="Validates, then times whole training steps against plain PyTorch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is a GPU")
    add("--threads", type=positive, help="CPU threads (default: 2)")
    add("--model", help="classifier (default: wrn-16-4 on the CPU, wrn-28-10 on CUDA)")
    add("--batch", type=positive, help="images (default: 16 on the CPU, 512 on CUDA)")
    add("--image", type=positive, nargs=3, default=(3, 32, 32), metavar=("C", "H", "W"), help="shape of an image")
    add("--steps", type=positive, default=7, help="T, inner steps")
    add("--samples", type=positive, default=5, help="k, samples an image")
    add(
        "--generator-width",
        type=positive,
        help="filters of the generators of ADT-EXP-AM and ADT-IMP-AM, as adt_fast counts them (default: a multiple of "
        "8 that keeps the paper's proportion, by which a generator's forward pass costs twice the classifier's: the "
        "paper's 256 for wrn-28-10, 72 for wrn-16-4)",
    )
    add("--objectives", choices=OBJECTIVES, nargs="+", default=OBJECTIVES, help="what to train")
    add("--contestants", nargs="+", default=GROUPS, metavar="NAME", help=f"of {', '.join(GROUPS)}; or single ones")
    add("--precisions", choices=PRECISIONS["cuda"], nargs="+", help="(default: all that the device has)")
    add("--no-compile", action="store_true", help="leave out who needs a minute to compile")
    add("--repeats", type=positive, help="timed rounds (default: 7 on the CPU, 10 on CUDA)")
    add("--validation-batch", type=positive, help="images to compare with float64 (default: all; on CUDA 64)")
    add("--training-steps", type=int, default=20, help="before anything is measured, for weights that are not random")
    add("--seed", type=int, default=0, help="of weights, images and noise")
    add("--output", type=Path, metavar="FILE.json", help="write everything that was measured")
    add("--plot", type=Path, metavar="FILE", help="draw the times (needs matplotlib)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
