"""The pages of docs/ that are made from the code: ``python -m tools.reference`` writes them anew."""

from __future__ import annotations

from pathlib import Path

from .api import api_page
from .options import options_page

FOLDER = Path(__file__).parents[2] / "docs"

PAGES = {"options.md": options_page, "api.md": api_page}
"""What makes each page of the folder."""

__all__ = ["FOLDER", "PAGES", "api_page", "options_page"]
