"""One measurement shared by several processes: all that the other rooms need of torch.distributed.

Every process runs the same program on the same model and data. Each takes its share of the work and hears what the
others found, so all of them hold the same numbers, take the same decisions and meet at the same places. Outside
`shared_work` there is one process, whose share is everything.

torch is imported where there is something to share: rooms without numerics load without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from landscape.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

# A process that died is noticed at once. This is for one that hangs, and longer than any share of work.
_PATIENCE = timedelta(hours=2)


class ProcessLost(RuntimeError):
    """Another process of the run has ended, or no longer answers; this one cannot go on alone."""


class Share(NamedTuple):
    """What one of `size` processes does of a sequence of tasks."""

    rank: int
    size: int

    def of(self, tasks: Iterable[T]) -> Iterator[tuple[int, T]]:
        """Every `size`-th task with its number: which are whose depends on nothing but their order.

        >>> list(Share(1, 3).of("abcdefg"))
        [(1, 'b'), (4, 'e')]
        """
        return islice(enumerate(tasks), self.rank, None, self.size)


@dataclasses.dataclass(frozen=True)
class _Team:
    share: Share
    control: Any  # a gloo group: objects, and tensors of devices that torch.distributed does not know


_team: ContextVar[_Team | None] = ContextVar("team", default=None)
_store: Any = None  # where the processes of a run of ours found each other


def share() -> Share:
    """This process's place among those that share the work; (0, 1) where none do."""
    team = _team.get()
    return team.share if team else Share(0, 1)


@contextlib.contextmanager
def shared_work() -> Iterator[None]:
    """Inside the block, measurements are split over the processes of torch.distributed; all get the same results.

    It has to be asked for: in a training loop the processes hold other data each, or only one of them measures. Every
    process makes the same calls in the same order, with the same weights and data (InputError where they differ); only
    the first writes files, into a folder that all of them see. Points of surfaces are split, each evaluated on all
    data; losses, gradients and Hessian-vector products elsewhere split the batches. Losses are bit for bit those of
    one process, sums of vectors equal to rounding.

    The block uses the process group that there is, or starts the one that torchrun's environment describes (NCCL for
    tensors on GPUs, gloo for the rest) and ends it; without either, and with one process, it changes nothing.

    Bad input that one process meets is an InputError in all. ProcessLost where another has ended.
    """
    import torch
    import torch.distributed as dist

    described = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if _team.get() or not dist.is_available() or not (dist.is_initialized() or described):
        yield
        return
    started = not dist.is_initialized()
    with _among_others():
        if started:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            _start(backend)
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
        team = _Team(Share(dist.get_rank(), dist.get_world_size()), control)
    token = _team.set(team if team.share.size > 1 else None)
    try:
        yield
        meet()
    finally:
        _team.reset(token)
    if started:  # not after an error: those who wait for this process would hear of its end before its reason
        dist.destroy_process_group()


def _start(backend: str) -> None:
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    global _store
    _store, rank, size = next(rendezvous("env://", timeout=timedelta(minutes=10)))
    dist.init_process_group(backend, store=_store, rank=rank, world_size=size, timeout=_PATIENCE)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside the block this process works for itself: what others do meanwhile does not matter to it."""
    token = _team.set(None)
    try:
        yield
    finally:
        _team.reset(token)


def gathered(function: Callable[[Share], T]) -> list[T]:
    """What `function(share)` returned in each process, in order of rank; each runs it `alone`.

    Returns are small: numbers and names. An InputError of any process is raised in all.
    """
    team = _team.get()
    if team is None:
        return [function(Share(0, 1))]
    import torch.distributed as dist

    found, refused = None, None
    with alone():
        try:
            found = function(team.share)
        except InputError as error:
            refused = str(error)
    outcomes: list[Any] = [None] * team.share.size
    with _among_others():
        dist.all_gather_object(outcomes, (found, refused), group=team.control)
    for _, refused in outcomes:
        if refused is not None:
            raise InputError(refused)
    return [found for found, _ in outcomes]


def summed(function: Callable[[Share], tuple[T, list[Tensor]]]) -> tuple[list[T], list[Tensor]]:
    """As `gathered`, for a function that also returns tensors: they are summed over the processes, in place."""
    tensors: list[Tensor] = []

    def keep(mine: Share) -> T:
        found, parts = function(mine)
        tensors.extend(parts)
        return found

    returned = gathered(keep)
    team = _team.get()
    if team is not None:
        with _among_others():
            _add_up(tensors, team.control)
    return returned, tensors


def _add_up(tensors: list[Tensor], control: Any) -> None:
    import torch.distributed as dist

    waiting = []
    for tensor in tensors:
        known = tensor.device.type in ("cpu", "cuda")
        sent = (tensor if known else tensor.cpu()).contiguous()
        group = None if tensor.device.type == "cuda" else control
        waiting.append((tensor, sent, dist.all_reduce(sent, group=group, async_op=True)))
    for tensor, sent, work in waiting:
        work.wait()
        if sent is not tensor:
            tensor.copy_(sent)


def meet() -> None:
    """Wait until every process has come to this place."""
    gathered(lambda _: None)


def by_first(function: Callable[[], T]) -> T:
    """What `function` returns in the first process, which alone calls it, once every process has come to this place.

    What the others saw of files before, and see of them afterwards, is then the same for all.
    """
    meet()
    return gathered(lambda mine: function() if mine.rank == 0 else None)[0]  # type: ignore[return-value]


def require_same(value: Any, what: str) -> None:
    """Raise InputError where the processes hold other values."""
    if len({repr(held) for held in gathered(lambda _: value)}) > 1:
        raise InputError(f"the processes that share this work hold different {what}; give every one the same.")


def claim_gpu(index: int | None) -> None:
    """Make this process's own GPU the one that "cuda" names, where several processes on a machine share work."""
    if _team.get() is None or int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1:
        return
    import torch

    if index is not None:
        raise InputError(f"device 'cuda:{index}' is one GPU for several processes; 'cuda' gives each its own.")
    local = int(os.environ["LOCAL_RANK"])
    gpus = torch.cuda.device_count()
    if local >= gpus:
        raise InputError(
            f"{os.environ['LOCAL_WORLD_SIZE']} processes share {gpus} GPU(s) here; start one for each GPU."
        )
    torch.cuda.set_device(local)


def first_end(code: int) -> tuple[bool, int]:
    """Whether this process, about to end with `code`, is the first of its run to fail; and the code of the first.

    The first one knows the reason. What the others see is often only that it is gone.
    """
    if _store is None:
        return True, code
    mine = f"{os.environ['RANK']} {code}"
    try:
        first = _store.compare_set("landscape ended", "", mine).decode()
    except RuntimeError:  # the store died with the process that kept it
        return True, code
    return first == mine, int(first.split()[1])


@contextlib.contextmanager
def _among_others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of gloo, NCCL and the store, each with classes of its own
        raise ProcessLost(
            "another process of this run has ended or does not answer; what is finished is kept, and the same command "
            "again continues"
        ) from error
