"""How operators are run: their checks, the native module and its fallback, custom operators."""
