"""Evaluation of robustness."""

from .accuracy import Accuracy, evaluate_accuracy
from .table import accuracy_table

__all__ = ["Accuracy", "accuracy_table", "evaluate_accuracy"]
