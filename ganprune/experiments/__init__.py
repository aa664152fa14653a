"""Experiments that are recorded, the claims that they test, and what makes the files that ship with the package.

An experiment is a frozen dataclass: its fields determine it, and ``run(seed)`` yields the rows of one seed. The kinds
are ``images`` (spoilt on purpose), ``training`` (from scratch), ``recovery`` (prune and train on), ``initial_masks``,
``tickets``, ``ring_games`` and ``speed``. ``studies`` says which arms are compared, and how large they are; ``claims``
what is claimed about them; ``verdicts`` by which rules records decide; ``runner`` does what is missing. ``ganprune
experiment`` is the command for all of it.

Three modules are commands of their own: ``python -m ganprune.experiments.pretrained`` makes the dense GANs that ship
with the package, ``python -m ganprune.experiments.digit_classifier`` the classifier behind digit-FID, and
``python -m ganprune.experiments.page_files`` the pruned generators that the book draws with in the reader's browser.
"""
