"""The command line: arguments in, calls of the Python API, tables and files out.

One module for each command. The folder `options` declares the options of all of them, by subject; `checks` refuses
what is wrong before torch is imported; `tables` prints; and `app` puts the commands together and turns errors into exit
codes.
"""

from landscape.cli.app import main

__all__ = ["main"]
