"""What float32 is computed in: the settings inside, those afterwards, and who is judged in which.

The settings are PyTorch's own, which it keeps without a GPU as well.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch

from adt_fast._support.arithmetic import float32_arithmetic
from adt_fast.analysis import distribution, learned_distribution, transfer, transfer_accuracy
from adt_fast.attacks import EXP, PGD, AutoAttack, auto_attack
from adt_fast.evaluation import accuracy, evaluate, evaluate_accuracy, robust
from adt_fast.input_gradient import EngineOptions, engine

NEWER = [(backend, one) for backend in ("cuda", "mkldnn") for one in ("all", "conv", "rnn", "matmul")]


def read(backend, operation):
    return torch._C._get_fp32_precision_getter(backend, operation)


def older():
    """As PyTorch gives it, which may be an error."""
    found = []
    for getter in (torch._C._get_cudnn_allow_tf32, torch._C._get_cublas_allow_tf32, torch.get_float32_matmul_precision):
        try:
            found.append(getter())
        except RuntimeError:
            found.append("inconsistent")
    return found


def everything():
    """The settings, and what they are after the general one has changed: some follow it, others are their own."""
    before = torch.backends.fp32_precision
    found = [before, *older()]
    for general in ("none", "ieee", "tf32"):
        torch.backends.fp32_precision = general
        found += [read(*setting) for setting in NEWER]
    torch.backends.fp32_precision = before
    return found


SETTINGS = {
    "older, on": lambda: setattr(torch.backends.cudnn, "allow_tf32", True),  # the default of convolutions
    "all TF32": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "all IEEE": lambda: setattr(torch.backends, "fp32_precision", "ieee"),
    "older, off": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "older, high": lambda: torch.set_float32_matmul_precision("high"),
    "older, medium": lambda: torch.set_float32_matmul_precision("medium"),
    "newer convolutions": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
    "newer products": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "all of CUDA": lambda: setattr(torch.backends.cudnn, "fp32_precision", "tf32"),
}


@pytest.fixture(params=SETTINGS)
def settings(request):
    """PyTorch's own are restored afterwards by name, as they are in a fresh process."""
    SETTINGS[request.param]()
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for backend, operation in NEWER:
        own = "tf32" if backend == "cuda" and operation in ("conv", "rnn") else "none"
        torch._C._set_fp32_precision_setter(backend, operation, own)


@pytest.mark.parametrize("tf32", [False, True])
def test_settings_inside_and_afterwards(settings, tf32):
    before = everything()
    with pytest.raises(KeyError), float32_arithmetic(torch.device("cuda"), tf32=tf32):
        assert {read("cuda", one) for one in ("conv", "rnn", "matmul")} == {"tf32" if tf32 else "ieee"}
        assert older() == [tf32, tf32, "high" if tf32 else "highest"], "a model may read them, as cudnn.flags() does"
        raise KeyError
    assert everything() == before


def test_a_model_may_turn_cudnn_off_for_a_while():
    """Which reads the older settings, and sets them again."""
    with float32_arithmetic(torch.device("cuda")), torch.backends.cudnn.flags(enabled=False):
        assert read("cuda", "matmul") == "ieee"


def test_one_inside_the_other(settings):
    before = everything()
    with float32_arithmetic(torch.device("cuda")):
        outside = everything()
        with float32_arithmetic(torch.device("cuda"), tf32=True):
            assert read("cuda", "conv") == "tf32"
        assert everything() == outside
    assert everything() == before


class Watched(TinyClassifier):
    """Knows the arithmetic of each pass but those of one image, which count the classes."""

    arithmetic: ClassVar = ["the caller's"]
    seen: ClassVar = []

    def forward(self, images):
        self.seen += self.arithmetic[-1:] if len(images) > 1 else []
        return super().forward(images)

    @classmethod
    @contextmanager
    def inside(cls, device, *, tf32=False):
        cls.arithmetic.append("tf32" if tf32 else "ieee")
        yield
        cls.arithmetic.pop()


@pytest.fixture
def watched(monkeypatch):
    for module in (robust, accuracy, transfer, distribution, auto_attack, engine):
        monkeypatch.setattr(module, "float32_arithmetic", Watched.inside)
    Watched.seen.clear()
    return Watched()


TF32 = EngineOptions(precision="tf32", twin=False, graph=False, chunk=None)
BATCH = tiny_batch(4)
JUDGES = {
    "evaluate": lambda model, pgd: evaluate(model, [BATCH], {"pgd": pgd}, epsilon=0.1, examples=0),
    "evaluate_accuracy": lambda model, pgd: evaluate_accuracy(model, [BATCH], pgd),
    "transfer": lambda model, pgd: transfer_accuracy(
        {"model": model}, {"model": model}, [BATCH], attacks={"pgd": lambda model: pgd}
    ),
    "distribution": lambda model, _: learned_distribution(EXP(model, 0.1, steps=2, engine=TF32), *BATCH, samples=3),
}


@pytest.mark.parametrize("judge", JUDGES)
def test_verdicts_are_in_ieee_float32_whatever_the_attack_is_in(watched, judge):
    JUDGES[judge](watched, PGD(watched, 0.1, steps=2, engine=TF32))
    assert set(watched.seen) == {"tf32", "ieee"}


def test_autoattack_is_in_ieee_float32(watched, monkeypatch):
    class Package:
        def __init__(self, model, **options):
            self.apgd_targeted = self.fab = SimpleNamespace(n_target_classes=9)
            self.run_standard_evaluation = lambda images, labels, bs: images + 0 * model(images).sum()

    monkeypatch.setitem(sys.modules, "autoattack", SimpleNamespace(AutoAttack=Package))
    AutoAttack(watched, 0.1)(*BATCH)
    assert watched.seen == ["ieee"]
