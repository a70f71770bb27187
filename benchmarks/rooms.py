"""Which rooms of `landscape` a call passes through, and how often it crosses from one into another.

A call is made twice over small data, and traced the second time, with everything imported. A crossing is a pair of
functions in two modules of the package, the first of which calls the second, directly or through another library; each
pair counts once. A crossing climbs where the called module imports the caller's, that is, where it is a callback. A
room is a folder of `landscape/`, or a module that lies in none.

    python benchmarks/rooms.py plot CKPT CKPT
    python benchmarks/rooms.py worst_case CKPT        # any sharpness metric

Put another tree on PYTHONPATH to trace that one.
"""

from __future__ import annotations

import ast
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import landscape

ROOT = Path(landscape.__file__).parent
Place = tuple[str, str]  # module, function


def module_of(code: CodeType) -> str | None:
    """The module of the package that a code object belongs to."""
    path = Path(code.co_filename)
    return ".".join(path.relative_to(ROOT).with_suffix("").parts) if path.is_relative_to(ROOT) else None


def imports() -> dict[str, set[str]]:
    """For each module, all modules of the package that it imports, also through others."""
    direct: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "landscape":
                module = node.module.removeprefix("landscape").removeprefix(".")  # type: ignore[union-attr]
                names |= {module, f"{module}.__init__"}
                names |= {f"{module}.{alias.name}".removeprefix(".") for alias in node.names}
        direct[".".join(path.relative_to(ROOT).with_suffix("").parts)] = names
    reached = {module: names & direct.keys() for module, names in direct.items()}
    while True:
        wider = {m: names.union(*(reached[n] for n in names)) for m, names in reached.items()}
        if wider == reached:
            return reached
        reached = wider


def crossings(call: Callable[[], Any]) -> set[tuple[Place, Place]]:
    """Pairs of functions in two modules, the first of which calls the second while `call` runs."""
    stack: list[Place | None] = []
    crossed: set[tuple[Place, Place]] = set()

    def trace(frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and stack:
            stack.pop()
        if event != "call":
            return
        module = module_of(frame.f_code)
        here = None if module is None or frame.f_code.co_name == "<module>" else (module, frame.f_code.co_qualname)
        caller = next((place for place in reversed(stack) if place), None)
        if here and caller and caller[0] != here[0]:
            crossed.add((caller, here))
        stack.append(here)

    sys.setprofile(trace)
    try:
        call()
    finally:
        sys.setprofile(None)
    return crossed


def plotting(checkpoints: list[str], folder: Path) -> Callable[[], None]:
    """`landscape plot` into another folder at every call."""
    from landscape.cli import main

    def call() -> None:
        output = tempfile.mkdtemp(dir=folder)
        options = ["--data", "builtin:docs", "--limit", "2", "--max-length", "16", "--points", "3", "-q", "-o", output]
        sys.argv = ["landscape", "plot", *checkpoints, *options]
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with quiet[0], quiet[1], contextlib.suppress(SystemExit):
            main()

    return call


def main() -> None:
    """Trace what the command line names."""
    what, *checkpoints = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        if what == "plot":
            call: Callable[[], Any] = plotting(checkpoints, Path(folder))
        else:
            checkpoint = landscape.load_checkpoint(checkpoints[0])
            data = landscape.load_data("builtin:docs", checkpoint.tokenizer, limit=2, max_length=16)
            options = {"steps": 1} if what == "worst_case" else {}

            def call() -> Any:
                return landscape.compute_sharpness(checkpoint, data, metric=what, **options)

        call()  # everything is imported after this
        crossed = crossings(call)
    reached = imports()

    def climbs(caller: str, called: str) -> bool:
        return caller in reached[called] and called not in reached[caller]

    modules = {place[0] for pair in crossed for place in pair}
    between = {(a[0], b[0]) for a, b in crossed if a[0].split(".")[0] != b[0].split(".")[0]}
    pairs = {(a.split(".")[0], b.split(".")[0]) for a, b in between}
    up = sorted({f"{a.split('.')[0]} calls {b.split('.')[0]}" for a, b in between if climbs(a, b)})
    print(f"{what}: {len({m.split('.')[0] for m in modules})} rooms, {len(modules)} modules")
    print(f"pairs of rooms, the first of which calls the second: {len(pairs)}")
    print(f"of them callbacks: {len(up)} ({', '.join(up)})")
    print(f"pairs of functions in two modules: {len(crossed)}")


if __name__ == "__main__":
    main()
