"""Who takes part in the benchmark of attacks.

adt_fast, torchattacks, foolbox, and a plain loop in PyTorch, which takes part in channels_last, too. Everybody runs an
attack with the same radius, steps, step size and kind of start, on the same model. What remains:

- torchattacks' start in L2 has its length drawn uniformly, where the others' is a uniform point of the ball; and its
  PGD in L2 adds 1e-10 to the length of the gradient of the batch's mean loss, which shortens the steps of images that
  the model is very sure of.
- torchattacks' PGD has no loss but cross entropy, and its ``CW`` minimises an L2 distance: it has no C&W in a ball.
- foolbox' C&W in a ball is its PGD with another ``get_loss_fn``, which its source leaves users to override.
- foolbox' momentum gathers signs of gradients, where Dong et al. (2018) divide each gradient by its L1 norm.
- foolbox is entered by ``run``, which leaves out the test of success that its ``__call__`` adds to every attack.
- The plain loop asks autograd for the gradient of the images alone, as torchattacks does, and not for the weights' too,
  as ``loss.backward()`` in the published scripts does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adt_fast.attacks import CW, FGSM, MIM, PGD, Norm

AttackCall = Callable[[Tensor, Tensor], Tensor]
"""(images [B, C, H, W], labels [B]) -> adversarial images [B, C, H, W]."""

OURS, TORCHATTACKS, FOOLBOX = "adt_fast", "torchattacks", "foolbox"
PLAIN, CHANNELS_LAST = "pytorch", "pytorch-channels-last"

INSTALL = {
    TORCHATTACKS: "pip install --no-deps torchattacks==3.5.1",
    FOOLBOX: "pip install foolbox==3.3.4",
}

CONFIDENCE = 50.0
"""Of C&W's margin, in logits."""


@dataclass(frozen=True)
class AttackSpec:
    """What everybody is to run."""

    name: str
    kind: Literal["fgsm", "pgd", "mim", "cw"]
    steps: int
    epsilon: float
    norm: Norm = "linf"
    random_start: bool = False

    @property
    def step_size(self) -> float:
        """In the images' units: the paper's epsilon / 4, and FGSM's only step as long as the radius."""
        return self.epsilon if self.kind == "fgsm" else self.epsilon / 4


def attack_specs(epsilon: float, epsilon_l2: float) -> tuple[AttackSpec, ...]:
    """The paper's attacks (Section 5.2), and PGD in L2."""
    return (
        AttackSpec("FGSM", "fgsm", 1, epsilon),
        AttackSpec("PGD-20", "pgd", 20, epsilon, random_start=True),
        AttackSpec("PGD-20 L2", "pgd", 20, epsilon_l2, "l2", random_start=True),
        AttackSpec("MIM-20", "mim", 20, epsilon),
        AttackSpec("C&W-30", "cw", 30, epsilon, random_start=True),
    )


@dataclass(frozen=True)
class Entry:
    """A contestant.

    Args:
        build: an attack on a model, which is in eval mode; None where the contestant has no such attack.
        other_steps: kinds of attack in which its algorithm is another, so that its images need not be equal.
        other_start: norms in which its random start is another.
    """

    name: str
    build: Callable[[AttackSpec, nn.Module], AttackCall | None]
    other_steps: tuple[str, ...] = ()
    other_start: tuple[str, ...] = ()


def entries() -> dict[str, Entry]:
    """All contestants by name, ours first."""
    found = (
        Entry(OURS, build_ours),
        Entry(TORCHATTACKS, build_torchattacks, other_start=("l2",)),
        Entry(FOOLBOX, build_foolbox, other_steps=("mim",)),
        Entry(PLAIN, Plain),
        Entry(CHANNELS_LAST, PlainChannelsLast),
    )
    return {entry.name: entry for entry in found}


def require(name: str) -> ModuleType | None:
    """The package of a contestant; None for those that need none.

    Raises:
        ModuleNotFoundError: with the cure, if it is missing.
    """
    if name not in INSTALL:
        return None
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} cannot be imported ({error}): {INSTALL[name]}; or leave it out of "
                                  "--peers") from error


# ---- adt_fast -------------------------------------------------------------------------------------------------------
def build_ours(spec: AttackSpec, model: nn.Module) -> AttackCall:
    """As a user calls it, noise from torch's default generator."""
    if spec.kind == "fgsm":
        return FGSM(model, spec.epsilon)
    if spec.kind == "mim":
        return MIM(model, spec.epsilon, steps=spec.steps, step_size=spec.step_size)
    options: dict[str, Any] = {"steps": spec.steps, "step_size": spec.step_size, "random_start": spec.random_start}
    if spec.kind == "cw":
        return CW(model, spec.epsilon, norm=spec.norm, confidence=CONFIDENCE, **options)
    return PGD(model, spec.epsilon, norm=spec.norm, **options)


# ---- Others ---------------------------------------------------------------------------------------------------------
def build_torchattacks(spec: AttackSpec, model: nn.Module) -> AttackCall | None:
    """torchattacks 3.5.1; None for C&W in a ball."""
    if spec.kind == "cw":
        return None
    library = require(TORCHATTACKS)
    if spec.kind == "fgsm":
        return library.FGSM(model, eps=spec.epsilon)
    options: dict[str, Any] = {"eps": spec.epsilon, "alpha": spec.step_size, "steps": spec.steps}
    if spec.kind == "mim":
        return library.MIFGSM(model, **options)
    attack = library.PGDL2 if spec.norm == "l2" else library.PGD
    return attack(model, random_start=spec.random_start, **options)


def build_foolbox(spec: AttackSpec, model: nn.Module) -> AttackCall:
    """foolbox 3.3.4."""
    library = require(FOOLBOX)
    device = next(model.parameters()).device
    wrapped = library.PyTorchModel(model, bounds=(0, 1), device=device)
    attack = _foolbox_attack(library.attacks, spec)
    return lambda images, labels: attack.run(
        wrapped, images, library.criteria.Misclassification(labels), epsilon=spec.epsilon
    )


def _foolbox_attack(attacks: ModuleType, spec: AttackSpec) -> Any:
    if spec.kind == "fgsm":
        return attacks.LinfFastGradientAttack()
    options: dict[str, Any] = {
        "abs_stepsize": spec.step_size, "steps": spec.steps, "random_start": spec.random_start
    }  # fmt: skip
    if spec.kind == "mim":
        return attacks.LinfMomentumIterativeFastGradientMethod(**options)
    if spec.norm == "l2":
        return attacks.L2ProjectedGradientDescentAttack(**options)
    base = attacks.LinfProjectedGradientDescentAttack
    return (_foolbox_margin(base) if spec.kind == "cw" else base)(**options)


def _foolbox_margin(base: type) -> type:
    """foolbox' PGD on C&W's margin."""
    import eagerpy

    class MarginPGD(base):
        def get_loss_fn(self, model: Any, labels: Any) -> Callable[[Any], Any]:
            return lambda inputs: eagerpy.astensor(margin(model(inputs).raw, labels.raw).sum())

    return MarginPGD


# ---- A plain loop ---------------------------------------------------------------------------------------------------
class Plain:
    """Any of the attacks as one writes it: a loop, autograd, library defaults, whatever mode the model is in."""

    def __init__(self, spec: AttackSpec, model: nn.Module) -> None:
        self.spec = spec
        self.model = model

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        spec = self.spec
        x_adv = self._start(images) if spec.random_start else images.clone()
        momentum = torch.zeros_like(images)
        for _ in range(spec.steps):
            grad = self._gradient(x_adv, labels)
            if spec.kind == "mim":
                size = grad.abs().sum(dim=(1, 2, 3), keepdim=True)
                grad = momentum = momentum + grad / size.clamp(min=torch.finfo(grad.dtype).tiny)
            x_adv = self._project(x_adv + spec.step_size * self._direction(grad), images)
        return x_adv

    def _gradient(self, x_adv: Tensor, labels: Tensor) -> Tensor:
        x_adv = x_adv.detach().requires_grad_()
        logits = self.model(x_adv)
        if self.spec.kind == "cw":
            loss = margin(logits, labels).sum()
        else:
            loss = F.cross_entropy(logits, labels, reduction="sum")
        return torch.autograd.grad(loss, x_adv)[0]

    def _direction(self, grad: Tensor) -> Tensor:
        return F.normalize(grad.flatten(1), dim=1).view_as(grad) if self.spec.norm == "l2" else grad.sign()

    def _project(self, x_adv: Tensor, images: Tensor) -> Tensor:
        epsilon, delta = self.spec.epsilon, x_adv - images
        if self.spec.norm == "l2":
            length = delta.flatten(1).norm(dim=1)
            delta = delta * (epsilon / length.clamp(min=epsilon)).view(-1, 1, 1, 1)
        else:
            delta = delta.clamp(-epsilon, epsilon)
        return (images + delta).clamp(0.0, 1.0)

    def _start(self, images: Tensor) -> Tensor:
        epsilon = self.spec.epsilon
        if self.spec.norm == "linf":
            return (images + torch.empty_like(images).uniform_(-epsilon, epsilon)).clamp(0.0, 1.0)
        direction = F.normalize(torch.randn_like(images).flatten(1), dim=1)
        radius = epsilon * torch.rand_like(direction[:, :1]) ** (1.0 / direction.shape[1])
        return (images + (radius * direction).view_as(images)).clamp(0.0, 1.0)


class PlainChannelsLast(Plain):
    """The same with model and images in channels_last."""

    def __init__(self, spec: AttackSpec, model: nn.Module) -> None:
        super().__init__(spec, model.to(memory_format=torch.channels_last))

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        return super().__call__(images.contiguous(memory_format=torch.channels_last), labels)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """C&W's loss of each example: the best wrong logit less the right one, at most the confidence."""
    right = F.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(right, -torch.inf).amax(1)
    return (others - logits[right]).clamp(max=CONFIDENCE)
