"""Attacks beside those of other libraries: ``python -m benchmarks.attacks --checkpoint RUN --data-dir DIR``.

FGSM, PGD-20 in L-infinity and in L2, MIM-20 and C&W-30 of adt_fast, torchattacks 3.5.1, foolbox 3.3.4 and a plain loop
in PyTorch, with equal settings, on one trained classifier and real images. First every contestant is compared with the
plain loop in float64; then follow, of each attack:

- strength: the accuracy under it, over all images and several seeds, and which images only one of two breaks. An image
  that is misclassified as it is counts as broken for all. One that an attack leaves outside of the ball, or not finite,
  does not count as broken by it: it is taken as it was.
- speed: on one batch, interleaved, after a warm-up. Ratios are of medians: above 1, adt_fast is faster.
- what it leaves on a model in train mode of which one layer is frozen in eval mode.

Every contestant has a copy of the model, contiguous, as are the images: torchattacks' PGD in L2 takes no other layout.
The plain loop takes part in channels_last, too, which is faster on many CPUs.
To install the peers::

    pip install --no-deps torchattacks==3.5.1  # it asks for torchvision, which the attacks here do without
    pip install foolbox==3.3.4
    pip install scipy requests tqdm            # what is left of torchattacks' dependencies
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib.metadata
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adt_fast._runs.machine import device_name
from adt_fast._runs.trained_model import TrainedModel
from adt_fast.config import TrainedModelConfig
from adt_fast.data import BatchLoader

from . import attack_report, machine
from .arguments import positive
from .attack_contestants import INSTALL, OURS, AttackCall, AttackSpec, Entry, attack_specs, entries, require
from .attack_validation import OTHER_STEPS_SLACK, SLACK, Validator, excess
from .timing import Timing, keep_freed_memory, time_interleaved

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    device: str
    threads: int | None  # None on CUDA
    images: int
    batch_sizes: tuple[int, ...]  # the first is that of the strength, too
    validation_images: int
    repeats: int
    seeds: tuple[int, ...]
    attacks: tuple[AttackSpec, ...]
    peers: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    options = _parser().parse_args(arguments)
    settings = _settings(options)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    trained = TrainedModel(TrainedModelConfig(
        run=options.checkpoint, data_dir=options.data_dir, test_limit=settings.images, epsilon=options.epsilon,
        norm="linf", device=settings.device,
    ))  # fmt: skip
    model = trained.model.to(memory_format=torch.contiguous_format)
    loader = partial(BatchLoader, trained.data, device=trained.device)
    document = {
        "classifier": {
            "name": trained.model_name, "dataset": trained.dataset, "method": trained.trained_with.get("method")
        },
        **measure(model, loader, settings),
    }  # fmt: skip
    print("\n" + attack_report.summary(document))
    if options.output is not None:
        options.output.write_text(json.dumps(document, indent=1) + "\n")


def measure(model: nn.Module, loader: Any, settings: Settings) -> dict[str, Any]:
    """Everything that is measured, as plain values.

    Args:
        model: the classifier, in eval mode, on the device.
        loader: batch size -> batches of the images, in order.
        settings: what to measure.

    Raises:
        ModuleNotFoundError: if a peer is missing; the message says how to install it.
        ValidationError: if a contestant does not do what it is to do; the message names it.
    """
    for name in settings.peers:
        require(name)
    if settings.threads is not None:
        keep_freed_memory()
    known = entries()
    contestants = [known[name] for name in (OURS, *settings.peers)]
    validator = Validator(model, *first(loader(settings.validation_images)), seed=0)
    batches = list(loader(settings.batch_sizes[0]))
    timed = [first(loader(size)) for size in settings.batch_sizes]
    results = []
    for spec in settings.attacks:
        print(f"\n{spec.name}", flush=True)
        agreements = validate(validator, contestants, spec)
        taking_part = [entry for entry in contestants if entry.name in agreements]
        broken = {entry.name: strength(entry, spec, model, batches, settings.seeds) for entry in taking_part}
        results.append({
            "attack": spec.name,
            "settings": dataclasses.asdict(spec) | {"step_size": spec.step_size},
            "agreement": {name: dataclasses.asdict(agreement) for name, agreement in agreements.items()},
            "strength": compare(broken),
            "speed": [speed(taking_part, spec, model, batch, settings.repeats) for batch in timed],
            "traces": {entry.name: traces(entry, spec, model, timed[-1]) for entry in taking_part},
        })  # fmt: skip
    device = timed[0][0].device
    document = {
        "machine": machine.describe(device),
        "device_name": device_name(device),
        "peers": {name: importlib.metadata.version(name) for name in settings.peers if name in INSTALL},
        "settings": dataclasses.asdict(settings) | {"attacks": [spec.name for spec in settings.attacks]},
        "slack": dataclasses.asdict(SLACK),
        "other_steps_slack": dataclasses.asdict(OTHER_STEPS_SLACK),
        "images": sum(len(labels) for _, labels in batches),
        "natural_accuracy": natural_accuracy(model, batches),
        "results": results,
    }
    return document | {"targets": attack_report.check_targets(document)}


def validate(validator: Validator, contestants: Iterable[Entry], spec: AttackSpec) -> dict[str, Any]:
    """How well each contestant agrees that has such an attack."""
    agreements = {}
    for entry in contestants:
        if entry.build(spec, copy.deepcopy(validator.model)) is None:
            print(f"  {entry.name}: has no such attack", flush=True)
            continue
        agreements[entry.name] = validator.check(entry, spec)
        print(f"  {entry.name}: right, {agreements[entry.name]}", flush=True)
    return agreements


# ---- Strength -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Broken:
    """What an attack did to the images."""

    by_seed: Tensor
    """Which are misclassified, bool ``[seeds, N]``; one row where no random numbers are drawn."""
    invalid: int
    """How many it left out of the ball, or not finite, over all seeds."""


def strength(
    entry: Entry, spec: AttackSpec, model: nn.Module, batches: Sequence[Batch], seeds: Sequence[int]
) -> Broken:
    """What the attack does to all images, with each seed."""
    rows, invalid = [], 0
    for seed in seeds if spec.random_start else seeds[:1]:
        torch.manual_seed(seed)
        attack = _build(entry, spec, model)
        row = []
        for images, labels in batches:
            x_adv = attack(images, labels).detach()
            is_valid = excess(x_adv, images, spec) <= SLACK.excess  # False for NaN
            x_adv = torch.where(is_valid.view(-1, 1, 1, 1), x_adv, images)
            invalid += int((~is_valid).sum())
            row.append(_misclassified(model, x_adv, labels))
        rows.append(torch.cat(row))
    return Broken(torch.stack(rows).cpu(), invalid)


def compare(broken: dict[str, Broken]) -> dict[str, Any]:
    """Accuracies, how far ours is above the lowest of the others, and the images that only one of two breaks.

    An image is broken that is misclassified with any of the seeds.
    """
    mean = {name: 1.0 - one.by_seed.double().mean().item() for name, one in broken.items()}
    ever = {name: one.by_seed.any(0) for name, one in broken.items()}
    others = [name for name in broken if name != OURS]
    return {
        "accuracy": {name: [1.0 - row.double().mean().item() for row in one.by_seed] for name, one in broken.items()},
        "mean_accuracy": mean,
        "invalid": {name: one.invalid for name, one in broken.items()},
        "above_lowest_peer": mean[OURS] - min(mean[name] for name in others) if others else None,
        "only_ours": {name: int((ever[OURS] & ~ever[name]).sum()) for name in others},
        "only_peer": {name: int((ever[name] & ~ever[OURS]).sum()) for name in others},
    }


def natural_accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Of the images as they are."""
    wrong = torch.cat([_misclassified(model, images, labels) for images, labels in batches])
    return 1.0 - wrong.double().mean().item()


@torch.no_grad()
def _misclassified(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return model(images).argmax(1) != labels


# ---- Speed ----------------------------------------------------------------------------------------------------------
def speed(
    contestants: Iterable[Entry], spec: AttackSpec, model: nn.Module, batch: Batch, repeats: int
) -> dict[str, Any]:
    """Times of one attack on one batch, taking turns, and their ratios to ours."""
    images = batch[0]
    attacks = {entry.name: [partial(_build(entry, spec, model), *batch)] for entry in contestants}
    warmup = 3 if images.is_cuda else 1
    timings = time_interleaved(attacks, images.device, repeats=repeats, warmup=warmup, cuda_graph=False)
    return {
        "batch": len(images),
        "timings": {name: timing.as_dict() for name, timing in timings.items()},
        "ratios": {name: ratio(timing, timings[OURS]) for name, timing in timings.items() if name != OURS},
    }


def ratio(theirs: Timing, ours: Timing) -> dict[str, float]:
    """Of the medians; and the lowest and highest of one round."""
    rounds = [their / our for their, our in zip(theirs.seconds, ours.seconds)]
    return {"of_medians": theirs.median / ours.median, "lowest": min(rounds), "highest": max(rounds)}


def _build(entry: Entry, spec: AttackSpec, model: nn.Module) -> AttackCall:
    """The attack on a copy of the model, so that nobody finds what another left on it."""
    attack = entry.build(spec, copy.deepcopy(model))
    assert attack is not None, f"{entry.name} has no {spec.name}"
    return attack


# ---- What it leaves on the model ------------------------------------------------------------------------------------
def traces(entry: Entry, spec: AttackSpec, model: nn.Module, batch: Batch) -> dict[str, int]:
    """How many tensors and modules differ after one call on a model in train mode, whose last module is in eval mode.

    ``gradients``: weights that have a gradient and had none; ``modes``: modules in another mode; ``buffers``: such as
    the running statistics of batch norm; ``requires_grad``: weights.
    """
    model = copy.deepcopy(model)
    attack = entry.build(spec, model)
    list(model.train().modules())[-1].eval()
    before = copy.deepcopy(model)
    attack(*batch)
    weights = list(zip(model.parameters(), before.parameters()))
    return {
        "gradients": sum(weight.grad is not None for weight, _ in weights),
        "modes": sum(now.training != then.training for now, then in zip(model.modules(), before.modules())),
        "buffers": sum(not torch.equal(now, then) for now, then in zip(model.buffers(), before.buffers())),
        "requires_grad": sum(now.requires_grad != then.requires_grad for now, then in weights),
    }


# ---- The command line -----------------------------------------------------------------------------------------------
def first(batches: Iterable[Batch]) -> Batch:
    """The first batch."""
    return next(iter(batches))


def _settings(options: argparse.Namespace) -> Settings:
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    specs = attack_specs(options.epsilon, options.epsilon_l2)
    return Settings(
        device=device,
        threads=options.threads if device == "cpu" else None,
        images=options.images,
        batch_sizes=tuple(options.batch_size),
        validation_images=options.validation_images,
        repeats=options.repeats,
        seeds=tuple(options.seeds),
        attacks=tuple(spec for spec in specs if spec.name in options.attacks),
        peers=tuple(options.peers),
    )


def _number(text: str) -> float:
    return float(Fraction(text))


def _parser() -> argparse.ArgumentParser:
    peers = [name for name in entries() if name != OURS]
    attacks = [spec.name for spec in attack_specs(1.0, 1.0)]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attacks",
        description="Compares attacks with those of other libraries: their strength, and their speed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="RUN_OR_CHECKPOINT", help="the classifier: a run folder of "
        "adt-fast train, or its model.safetensors")
    add("--data-dir", type=Path, help="folder with the data set's published files")
    add("--images", type=positive, default=1000, help="test images that are attacked")
    add("--batch-size", type=positive, nargs="+", default=[64, 8], help="images that are attacked at once: each is "
        "timed, and the first is that of the strength")
    add("--validation-images", type=positive, default=16, help="images to compare with float64")
    add("--epsilon", type=_number, default=8 / 255, help="radius of the L-infinity ball; fractions will do")
    add("--epsilon-l2", type=_number, default=0.5, help="radius of the L2 ball")
    add("--attacks", nargs="+", choices=attacks, default=attacks, help="which")
    add("--peers", nargs="*", choices=peers, default=peers, help="with whom to compare")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of random starts, for the strength")
    add("--repeats", type=positive, default=5, help="timed rounds")
    add("--threads", type=positive, default=2, help="CPU threads")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is a GPU")
    add("--output", type=Path, metavar="FILE.json", help="write everything that was measured")
    return parser


if __name__ == "__main__":
    main()
