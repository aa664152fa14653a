"""Experiments that are recorded, and what makes the files that ship with the package; each module is a command.

- ``python -m ganprune.experiments.magnitude``: quality against sparsity, before and after fine-tuning.
- ``python -m ganprune.experiments.initial_masks``: what pruning before training keeps.
- ``python -m ganprune.experiments.pretrained``: the dense GANs that ship with the package.
- ``python -m ganprune.experiments.digit_classifier``: the classifier behind digit-FID.

An experiment is a frozen dataclass: its fields determine it, and ``run(seed)`` gives the rows of one seed as they are
measured. :func:`ganprune.records.run` runs it for several seeds, skips those that are recorded, and adds to each row
what it was measured with.
"""
