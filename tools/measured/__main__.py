"""``python -m tools.measured``"""

import sys

from . import all_blocks, pages, updated

blocks, texts = all_blocks(), {}
for path in pages():
    try:
        texts[path] = updated(path.read_text(), blocks)
    except ValueError as error:
        sys.exit(f"{path.name}, {error}")
for path, text in texts.items():  # only where all are right
    path.write_text(text)
