"""The paper's experiments, from one command: ``python -m studies cifar10-cpu --data-dir DIR``.

A plan in ``studies/plans/`` says what is trained and what is measured of it. Everything is kept in a folder under the
hash of its settings, so a study that was stopped goes on where it was, in the middle of an epoch if need be, and a plan
that is changed costs no more than what is new in it. The numbers go to ``benchmarks/results/study-PLAN.json``, with the
machine and the versions, the figures to ``docs/images/``, and the tables into the pages (``tools/measured``).
"""
