"""What the project claims about speed and cost, as commands that anyone can run: ``python -m benchmarks``.

A benchmark is a module of this folder with two things: ``MINUTES``, about how long it takes on two cores, and
``measure(quick)``, which yields one ``record.Row`` per figure. A ratio is measured in one run, its two sides
taking turns (``timing.compare``). With ``quick`` everything runs at a tiny size, to see that it works; such
figures are never kept. A module with ``ON_REQUEST = True`` runs only when it is named by ``--only``.
"""
