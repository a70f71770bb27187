"""What every result shares: its provenance, and how it is saved, continued and put into a folder.

`result` is the base of all results; `plain` turns values into JSON and back; `files` writes files that are there
completely or not at all; `journal` and `snapshots` keep the finished part of a long run; `folder` gives an output
folder to one set of settings and one run at a time.
"""

from landscape.results.files import read_json, replacing, save_tensors, write_csv, write_json, write_text
from landscape.results.folder import check_folder, results_folder
from landscape.results.journal import Journal, journaled
from landscape.results.plain import FORMAT_VERSION, digest_of, from_plain, to_plain
from landscape.results.result import Provenance, Result, installed_versions
from landscape.results.snapshots import Snapshots

__all__ = [
    "FORMAT_VERSION",
    "Journal",
    "Provenance",
    "Result",
    "Snapshots",
    "check_folder",
    "digest_of",
    "from_plain",
    "installed_versions",
    "journaled",
    "read_json",
    "replacing",
    "results_folder",
    "save_tensors",
    "to_plain",
    "write_csv",
    "write_json",
    "write_text",
]
