"""``python -m tools.reference``"""

from . import FOLDER, PAGES

for name, page in PAGES.items():
    (FOLDER / name).write_text(page())
