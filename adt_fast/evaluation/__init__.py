"""Evaluation of robustness: one attack's accuracy, and the whole report that a claim needs."""

from .accuracy import Accuracy, evaluate_accuracy
from .named_attacks import PAPER, AttackLike, attack_names, create_attack, split_attack_names
from .report import RobustReport
from .robust import evaluate
from .table import accuracy_table

__all__ = [
    "PAPER",
    "Accuracy",
    "AttackLike",
    "RobustReport",
    "accuracy_table",
    "attack_names",
    "create_attack",
    "evaluate",
    "evaluate_accuracy",
    "split_attack_names",
]
