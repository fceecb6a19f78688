"""Attacks: ``Attack(model, epsilon=8/255, ...)(images, labels) -> adversarial images``."""

from .base import Attack
from .exp import EXP, Maximized
from .pgd import PGD
from .recipes import PAPER, PUBLISHED, ExpRecipe, exp_recipe

__all__ = ["EXP", "PAPER", "PGD", "PUBLISHED", "Attack", "ExpRecipe", "Maximized", "exp_recipe"]
