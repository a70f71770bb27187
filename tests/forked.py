"""Programs in processes of their own that begin with everything imported: forks of a process that waits for work.

A process that imports torch, transformers and landscape takes seconds before it does anything, and a test that kills
a command ten times starts it eleven times. Here one process imports them once and runs every program in a child: what
a test observes (files, exit codes, signals, what is printed) is that of a process of its own. The waiting process
computes nothing itself, so that no thread of torch is alive where it forks.

What reads its environment while it is imported (HF_HUB_OFFLINE, for one) and torchrun itself need a real start.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMIT = 300  # seconds after which a program is taken to hang


@dataclass
class Ended:
    """How a program ended, with the fields of subprocess.CompletedProcess that tests look at."""

    returncode: int
    stdout: str
    stderr: str


class Running:
    """A program under way in one process or several."""

    def __init__(self, forks: Forks, pids: list[int], printed: list[Path]):
        self.pids, self._forks, self._printed = pids, forks, printed

    @property
    def pid(self) -> int:
        return self.pids[0]

    def alive(self) -> bool:
        """False once the first process has ended, whether or not anybody has waited for it."""
        with contextlib.suppress(FileNotFoundError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        return False

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Wait for the end of all its processes; the exit code is the first that is not 0."""
        code = self._forks.answer()
        return Ended(code, *(path.read_text(encoding="utf-8") for path in self._printed))


class Forks:
    """The waiting process. It runs one program at a time."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path},
        )  # fmt: skip
        self._folder = tempfile.TemporaryDirectory()
        self._unread = b""
        self._count = 0

    def start(
        self,
        *arguments: Any,
        program: str | Path = "landscape",
        cwd: Path | str = ".",
        processes: int = 0,
        environment: dict[str, str] | None = None,
        every_product: bool = False,
    ) -> Running:
        """Start `python -m landscape` with these arguments, or the script `program`.

        Args:
            arguments: What stands on the command line.
            program: "landscape", or a script.
            cwd: The folder to start in.
            processes: 0 for a plain process; else so many, with the environment that torchrun gives to its workers.
            environment: Variables to set.
            every_product: Write snapshots after every product, however long writing them takes.
        """
        self._count += 1
        printed = [Path(self._folder.name) / f"{self._count}.{name}" for name in ("out", "err")]
        task = {
            "arguments": [str(a) for a in arguments], "program": str(program), "cwd": os.path.abspath(cwd),
            "processes": processes, "environment": environment or {}, "every_product": every_product,
            "printed": [str(path) for path in printed],
        }  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task).encode() + b"\n")
        self._process.stdin.flush()
        return Running(self, self.answer(), printed)

    def run(self, *arguments: Any, **options: Any) -> Ended:
        """Start a program and wait for its end."""
        return self.start(*arguments, **options).wait()

    def answer(self) -> Any:
        """The next line that the waiting process writes."""
        assert self._process.stdout is not None
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], LIMIT)
            more = os.read(self._process.stdout.fileno(), 2**16) if ready else b""
            if not more:
                self.close()
                raise RuntimeError(f"a forked program has not ended within {LIMIT} s" if not ready else "no answer")
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """End the waiting process, and with it what it started."""
        self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


# --- in the waiting process ---------------------------------------------------------------------------------


def _child(task: dict[str, Any], rank: int, port: int) -> None:
    """Become the program, and end as it ends."""
    import runpy
    import threading

    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own is shared by all forks, and one that was killed may hold it for ever
    for number, path in zip((1, 2), task["printed"], strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(task["cwd"])
    os.environ.update(task["environment"])
    if task["processes"]:
        many = str(task["processes"])
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=many, LOCAL_WORLD_SIZE=many)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="none")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if task["every_product"]:
        import landscape.results.snapshots

        landscape.results.snapshots.SHARE = 0
    sys.argv = [task["program"], *task["arguments"]]
    code: Any = 0
    try:
        if task["program"] == "landscape":
            runpy.run_module("landscape", run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(task["program"]).parent)
            runpy.run_path(task["program"], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    # To take the interpreter apart would copy every page of what the waiting process has imported: that takes seconds.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _reap(pids: Sequence[int]) -> int:
    """Wait for all; where one fails, the others, which would wait for it, are ended as torchrun ends them."""
    left, code = set(pids), 0
    while left:
        pid, status = os.wait()
        left.discard(pid)
        ended = os.waitstatus_to_exitcode(status)
        if ended and not code:
            code = ended
            for other in left:
                os.kill(other, signal.SIGTERM)
    return code


def _wait_for_work() -> None:
    import importlib
    import pkgutil

    import conftest  # noqa: F401  what test files that are started as programs import
    import transformers.models.llama.modeling_llama  # noqa: F401

    import landscape

    for module in pkgutil.walk_packages(landscape.__path__, "landscape."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    for line in iter(sys.stdin.readline, ""):
        task = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = []
        for rank in range(max(1, task["processes"])):
            pid = os.fork()
            if pid == 0:
                _child(task, rank, port)
            pids.append(pid)
        print(json.dumps(pids), file=answers, flush=True)
        print(json.dumps(_reap(pids)), file=answers, flush=True)


if __name__ == "__main__":
    _wait_for_work()
