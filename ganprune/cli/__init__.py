"""The command line: one module per command; ``ganprune.__main__`` is its entrance."""
