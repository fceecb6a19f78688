"""The measured numbers of README.md and docs/: ``python -m tools.measured`` writes them anew from benchmarks/results/.

A number that was measured stands on a page between two comments, which no reader sees::

    <!-- measured: training.steps -->
    ...                                       (a table, or anything else in Markdown)
    <!-- /measured -->

or, in a sentence, but not at the beginning of a line, where Markdown would take the line for HTML::

    It takes <!-- measured: training.over_at_pgd -->1.49<!-- /measured --> times as long.

What is between them is made from a committed file of results, and a test holds the pages to it. ``training.steps`` is
the block ``steps`` of ``tools/measured/training.py``. Each file of results has such a module of its own::

    FILES = ("training-cpu-zen4-avx512.json",)      # in benchmarks/results/

    def blocks(document):                           # what each file holds, one parameter a file
        return {"steps": markdown(rows), "over_at_pgd": f"{ratio:.2f}", "machine": machine_words(document)}

To add one: write the module, name it in ``MODULES`` below, put its blocks on the pages, and run the command, which
fills in what is between the comments. Every file must say under ``"machine"`` what it was measured on, as
``benchmarks.machine.describe`` has it, and every block must be used.
"""

from __future__ import annotations

from . import attacks, digits, exp_attack, figure6, kernels, precision_study, scaling, study, training
from .pages import ROOT, page_blocks, pages, updated
from .results import RESULTS, load, machine_words

MODULES = (attacks, digits, exp_attack, figure6, kernels, precision_study, scaling, study, training)
"""One for each file of results, or for several that make one table."""


def all_blocks() -> dict[str, str]:
    """The Markdown of every block, by ``module.block``."""
    return {
        f"{module.__name__.rpartition('.')[2]}.{name}": text
        for module in MODULES
        for name, text in module.blocks(*map(load, module.FILES)).items()
    }


def write_pages() -> None:
    """Fills in all blocks of all pages.

    Raises:
        ValueError: if a page has a block that there is not, or a marker where none can be; then no page is changed.
    """
    blocks, texts = all_blocks(), {}
    for path in pages():
        try:
            texts[path] = updated(path.read_text(), blocks)
        except ValueError as error:
            raise ValueError(f"{path.name}, {error}") from None
    for path, text in texts.items():
        path.write_text(text)


__all__ = [
    "MODULES",
    "RESULTS",
    "ROOT",
    "all_blocks",
    "load",
    "machine_words",
    "page_blocks",
    "pages",
    "updated",
    "write_pages",
]
