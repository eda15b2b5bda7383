"""The command line: programs of the installed package, option parsing, errors in one line, and signals.

Nothing in this package imports PyTorch when it is imported, so that a program answers `--help` and Ctrl-C at once.
"""
