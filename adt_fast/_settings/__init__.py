"""How settings are declared, written and read, and what their defaults are; :mod:`adt_fast.config` has them all."""
