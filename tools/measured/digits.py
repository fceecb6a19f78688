"""Analyses of networks that were trained on the digits: python -m benchmarks.digits."""

from __future__ import annotations

from benchmarks.digits import convergence_table, entropy_table, largest_after, loss_table

from .results import Document, machine_words

FILES = ("digits-cpu-zen4-avx512.json",)


def blocks(document: Document) -> dict[str, str]:
    """The tables that the script prints, and what they are of."""
    settings, found = document["settings"], document["convergence"]
    middle = document["entropy_sweep"]["points"][2]["robust"]
    return {
        "settings": f"{settings['model']}, {settings['epochs']} epochs, seed {settings['seed']}, "
        f"{document['test_images']} test images, epsilon {settings['epsilon']:g}, on {machine_words(document)}",
        "entropy": entropy_table(document),
        "standard_error": f"{100 * (middle * (1 - middle) / document['test_images']) ** 0.5:.1f}",
        "convergence": convergence_table(document),
        "after_15": f"{largest_after(document, 15):.1%}",
        "samples": f"k = {found['samples']}, step size {found['step_size']:g}",
        "losses": loss_table(document),
    }
