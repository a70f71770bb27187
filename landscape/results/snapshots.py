"""The state of one long computation, kept beside a journal so that a killed run continues from it."""

from __future__ import annotations

import shutil
import time
import warnings
from typing import TYPE_CHECKING, Any

from landscape.errors import InputError, MeasurementWarning, first_line
from landscape.parallel import distributed
from landscape.results.files import replacing_alone, save_tensors
from landscape.results.journal import Journal

if TYPE_CHECKING:
    from torch import Tensor

SHARE = 10  # The work between two snapshots takes at least this many times as long as writing one.
_ASSUMED_RATE = 1e9  # bytes per second, assumed until one was written
_MARGIN = 2**20  # bytes that a snapshot leaves free, for the next lines of journals


class Snapshots:
    """Snapshots of the state of a computation: tensors in a file beside the journal, the rest in a line of it.

    The newest line of `key` names the safetensors file, which is there completely or not at all; the file before it is
    then removed. Snapshots are taken so often that they cost a small share of the time. Where the disk has no room for
    one, there is a MeasurementWarning, and the computation goes on without.

    Args:
        journal: The journal of the computation; None keeps nothing.
        key: Name of the state in the journal.
    """

    def __init__(self, journal: Journal | None, key: str):
        self._journal, self._key = journal, key
        self._since = time.perf_counter()
        self._rate = _ASSUMED_RATE
        self._warned = False

    def last(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return the newest state and its tensors, on the host; None where there is none.

        Raises:
            InputError: The file of the tensors cannot be read.
        """
        if self._journal is None or self._key not in self._journal.done:
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        journal, tensors = self._journal.path, {}
        record = self._journal.done[self._key]
        path = journal.with_name(record["file"])

        def read(_: distributed.Share) -> None:
            try:
                tensors.update(load_file(path))
            except (OSError, SafetensorError) as error:
                reason = first_line(error).rstrip(".")
                raise InputError(f"{path} cannot be read ({reason}); delete {journal} to start over.") from error

        distributed.gathered(read)
        return record["state"], tensors

    def offer(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Keep the state if enough time has passed since the snapshot before.

        Args:
            state: Whatever can be stored as JSON.
            tensors: Tensors by name, on any device.
        """
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._journal is None or distributed.share().rank > 0:
            return
        if time.perf_counter() - self._since < SHARE * size / self._rate:
            return
        path = self._journal.path
        if shutil.disk_usage(path.parent).free < size + _MARGIN:
            if not self._warned:
                warnings.warn(
                    f"{path.parent} has no room for the {size / 1e9:.2g} GB from which a killed run would continue.",
                    MeasurementWarning,
                    stacklevel=3,
                )
            self._warned = True
            return
        before = self._journal.done.get(self._key)
        number = 1 + before["number"] if before else 1
        file = path.with_name(f"{path.name}.{self._key}-{number}.safetensors")
        started = time.perf_counter()
        with replacing_alone(file) as temporary:
            save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        self._journal.append(self._key, {"file": file.name, "number": number, "state": state})
        if before:
            path.with_name(before["file"]).unlink(missing_ok=True)
        self._since = time.perf_counter()
        self._rate = size / (self._since - started)
