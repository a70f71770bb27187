"""The command line: arguments in, calls of the Python API, tables and files out.

One module for each command; `options` declares the options of all of them, `tables` prints, and `app` puts the
commands together and turns errors into exit codes.
"""

from landscape.cli.app import main

__all__ = ["main"]
