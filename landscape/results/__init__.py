"""What every result shares: saving and loading, provenance, the journal of a long run, the output folder."""

from landscape.results.files import read_json, replacing, write_json, write_text
from landscape.results.folder import results_folder
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
    "digest_of",
    "from_plain",
    "installed_versions",
    "journaled",
    "read_json",
    "replacing",
    "results_folder",
    "to_plain",
    "write_json",
    "write_text",
]
