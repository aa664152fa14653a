"""The command line: one module per command, with its options and what it does; ``ganprune.__main__`` is the entrance."""
