"""The command line: arguments in, calls of the Python API, tables and files out. One module for each command."""

# ruff: noqa: F401 - importing a command's module registers it, in the order of the help
# isort: off
from landscape.cli import plot
from landscape.cli import sharpness
from landscape.cli import hessian
from landscape.cli import finetune
from landscape.cli import merge
from landscape.cli import forgetting
from landscape.cli import measure
from landscape.cli import correlate
from landscape.cli import design
from landscape.cli import demo
from landscape.cli.common import app, main

__all__ = ["app", "main"]
