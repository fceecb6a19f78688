"""Attacks: ``Attack(model, epsilon=8/255, ...)(images, labels) -> adversarial images``."""

from ._ball import Norm
from .amortized import EXPAM, IMPAM, L2L, AmortizedAttack, AmortizedSample
from .auto_attack import AutoAttack
from .base import Attack
from .exp import EXP, Maximized
from .feature_attack import FeatureAttack
from .feature_scatter import FeatureScatter
from .fgsm import FGSM
from .mim import MIM
from .pgd import CW, PGD
from .recipes import (
    PAPER,
    PUBLISHED,
    ExpAmRecipe,
    ExpRecipe,
    ImpAmRecipe,
    exp_am_recipe,
    exp_recipe,
    imp_am_recipe,
)
from .spsa import SPSA
from .transfer import Transfer

__all__ = [
    "CW",
    "EXP",
    "EXPAM",
    "FGSM",
    "IMPAM",
    "L2L",
    "MIM",
    "PAPER",
    "PGD",
    "PUBLISHED",
    "SPSA",
    "AmortizedAttack",
    "AmortizedSample",
    "Attack",
    "AutoAttack",
    "ExpAmRecipe",
    "ExpRecipe",
    "FeatureAttack",
    "FeatureScatter",
    "ImpAmRecipe",
    "Maximized",
    "Norm",
    "Transfer",
    "exp_am_recipe",
    "exp_recipe",
    "imp_am_recipe",
]
