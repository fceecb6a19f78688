"""docs/methods.md lists the methods and the recipes' options that the library has, no fewer and no others."""

import re
from dataclasses import fields
from pathlib import Path

from adt_fast.attacks import PAPER, PUBLISHED, ExpAmRecipe, ExpRecipe, ImpAmRecipe
from adt_fast.methods import method_names

PAGE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()


def rows(header):
    """The cells of the table whose header line starts so."""
    lines = PAGE[PAGE.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_method_has_a_row():
    listed = [name for row in rows("| `--method` |") for name in re.findall(r"`([\w-]+)`", row[0])]
    assert sorted(listed) == sorted(method_names())


def test_every_option_of_a_recipe_has_a_row():
    options = {field.name for recipe in (ExpRecipe, ExpAmRecipe, ImpAmRecipe) for field in fields(recipe)}
    listed = {name for row in rows("| what | option |") for name in re.findall(r"`(\w+)`", row[1])}
    # Where both recipes agree, the table has only what the paper does not say.
    assert options - listed == {"update"} and PAPER.update == PUBLISHED.update
    assert listed - options == {"model_mode", "outer_mode"}
