"""``python -m tools.measured``"""

import sys

from . import write_pages

try:
    write_pages()
except ValueError as error:
    sys.exit(str(error))
