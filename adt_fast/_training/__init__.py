"""What the training loop of :mod:`adt_fast.trainer` is made of: a step, its progress, its state."""
