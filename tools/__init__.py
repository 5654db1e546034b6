"""Commands: each parses its arguments, calls one function of `distill`, prints one result.

Modules that take long to import are imported in functions, after the arguments are parsed, so that `--help` and a
wrong option answer at once. Choices that such a module has a table of are named again beside the parser;
tests/test_cli.py compares them.
"""
