"""No attack is timed before it is right: contestants against a plain loop in float64."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attack_contestants import AttackSpec, Entry, Plain, margin
from .validation import ValidationError

EQUAL = 0.01
"""Elements of x_adv agree that differ by no more than this part of epsilon; in L2, of what an element has on the sphere
on average."""


@dataclass(frozen=True)
class Agreement:
    """One contestant beside the plain loop in float64; as a tolerance, the worst that is let pass.

    Both start at the image: from a random start everybody goes another way. An element is all but a sum of signs: where
    a gradient is no larger than its rounding it goes the other way, so equal elements are counted. The random start is
    compared by itself, on average, as what the attack returns after no steps.
    """

    share: float | None
    """Of the elements of x_adv that are equal; None for another algorithm."""
    loss_error: float
    """Of the mean margin at x_adv, in logits with its sign, relative to how far the attack moves it."""
    size_error: float
    """Of the mean of |x_adv - x|, relative."""
    start_error: float | None
    """Of the mean of |x_adv - x| after no steps, relative; None without a random start, or for another one."""
    excess: float
    """How far x_adv is out of the ball or the bounds of the data, as a part of epsilon, from either start."""

    def is_within(self, worst: Agreement) -> bool:
        """False for NaN too."""
        for name, value in dataclasses.asdict(self).items():
            bound = getattr(worst, name)
            if value is not None and not (value >= bound if name == "share" else value <= bound):
                return False
        return True

    def __str__(self) -> str:
        share = "" if self.share is None else f"{self.share:.1%} of x_adv equal, "
        start = "" if self.start_error is None else f", the start's within {self.start_error:.1e}"
        return (
            f"{share}margin within {self.loss_error:.1e}, |x_adv - x| within {self.size_error:.1e}{start}, out of "
            f"bounds by {self.excess:.1g} epsilon"
        )


SLACK = Agreement(share=0.03, loss_error=0.01, size_error=0.01, start_error=0.1, excess=1e-3)
"""How much worse than the plain loop in float32 a contestant may agree; starts and excesses are let pass up to this.

In float32 the gradient of a confidently classified image is all rounding: of 64 digits, 1.4% of FGSM's elements differ
from float64, the same ones for everybody. Measured with WRN-10-1 on 16 images of CIFAR-10, and with small-cnn on 16
digits: contestants are within 0.4% of the elements of each other, 2e-3 of the margin and 2e-3 of the size, and starts
within 8e-2. Of PGD and C&W, one step fewer costs 5 to 25% of the elements, half the steps or steps half as long 5 to
53%, another loss 20%, and a radius 3% smaller 38%.
"""
OTHER_STEPS_SLACK = dataclasses.replace(SLACK, loss_error=0.03, size_error=0.03)
"""Of another algorithm: foolbox' MIM has margins within 1e-2, and sizes within 1.3e-2."""


class Validator:
    """Compares contestants with the plain loop in float64, which runs once for each attack."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> None:
        self.model, self._images, self._labels, self._seed = model, images, labels, seed
        self._exact_model = copy.deepcopy(model).double().eval()
        self._exact_images = images.double()
        self._found: dict[AttackSpec, Tensor] = {}
        self._plain: dict[AttackSpec, Agreement] = {}
        self._natural = self._margin(self._exact_images)

    def check(self, entry: Entry, spec: AttackSpec) -> Agreement:
        """How well it agrees.

        Raises:
            ValidationError: if that is not enough.
        """
        agreement = self.agreement(entry, spec)
        worst = self.tolerance(entry, spec)
        if not agreement.is_within(worst):
            raise ValidationError(
                f"{entry.name} is not timed, for what it does is not {spec.name} as a plain loop does it in float64: "
                f"{agreement}; the worst that passes is: {worst}"
            )
        return agreement

    def tolerance(self, entry: Entry, spec: AttackSpec) -> Agreement:
        """The worst that is let pass."""
        slack = OTHER_STEPS_SLACK if spec.kind in entry.other_steps else SLACK
        if spec not in self._plain:
            self._plain[spec] = self.agreement(Entry("the plain loop in float32", Plain), spec)
        plain = self._plain[spec]
        return dataclasses.replace(
            slack,
            share=plain.share - slack.share,
            loss_error=plain.loss_error + slack.loss_error,
            size_error=plain.size_error + slack.size_error,
        )

    def agreement(self, entry: Entry, spec: AttackSpec) -> Agreement:
        """The comparison."""
        fixed = dataclasses.replace(spec, random_start=False)
        found, exact = self._run(entry, fixed), self._exact(fixed)
        out = [excess(found, self._images, spec)]
        start_error = None
        if spec.random_start:
            out.append(excess(self._run(entry, spec), self._images, spec))
            if spec.norm not in entry.other_start:
                start = dataclasses.replace(spec, steps=0)
                start_error = self._size_error(self._run(entry, start), self._exact(start))
        return Agreement(
            share=None if spec.kind in entry.other_steps else self._share(found, exact, spec),
            loss_error=self._loss_error(found, exact),
            size_error=self._size_error(found, exact),
            start_error=start_error,
            excess=torch.cat(out).max().item(),
        )

    def _run(self, entry: Entry, spec: AttackSpec) -> Tensor:
        torch.manual_seed(self._seed)
        attack = entry.build(spec, copy.deepcopy(self.model))
        return attack(self._images, self._labels).detach()

    def _exact(self, spec: AttackSpec) -> Tensor:
        if spec not in self._found:
            torch.manual_seed(self._seed + 1)
            self._found[spec] = Plain(spec, self._exact_model)(self._exact_images, self._labels)
        return self._found[spec]

    def _share(self, found: Tensor, exact: Tensor, spec: AttackSpec) -> float:
        scale = spec.epsilon / found[0].numel() ** 0.5 if spec.norm == "l2" else spec.epsilon
        return ((found.double() - exact).abs() <= EQUAL * scale).double().mean().item()

    def _loss_error(self, found: Tensor, exact: Tensor) -> float:
        reached = self._margin(exact)
        return abs(self._margin(found.double()) - reached) / abs(reached - self._natural)

    def _size_error(self, found: Tensor, exact: Tensor) -> float:
        size, wanted = ((x_adv - self._exact_images).abs().mean().item() for x_adv in (found.double(), exact))
        return abs(size / wanted - 1.0)

    @torch.no_grad()
    def _margin(self, images: Tensor) -> float:
        return margin(self._exact_model(images), self._labels).mean().item()


def excess(x_adv: Tensor, images: Tensor, spec: AttackSpec) -> Tensor:
    """How far each image is out of the ball or the bounds of the data, as a part of epsilon, ``[B]``; NaN stays NaN."""
    delta = (x_adv.double() - images.double()).flatten(1)
    length = delta.norm(dim=1) if spec.norm == "l2" else delta.abs().amax(1)
    flat = x_adv.double().flatten(1)
    out = torch.stack([length - spec.epsilon, -flat.amin(1), flat.amax(1) - 1.0, torch.zeros_like(length)])
    return out.amax(0) / spec.epsilon
