"""One measurement shared by several processes: all that the other rooms need of torch.distributed.

Every process runs the same program on the same model and data. Each does its share of the work and receives the results
of the others, so all of them hold the same numbers, take the same decisions and meet at the same places. Outside
`shared_work` there is one process, whose share is everything.

torch is imported only where there is something to share, so that rooms without numerics load without it.
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

# A process that died is noticed at once. This limit is for one that hangs; it is longer than any share of work.
_TIMEOUT = timedelta(hours=2)


class ProcessLost(RuntimeError):
    """Another process of the run has ended, or no longer answers; this one cannot go on alone."""


class Share(NamedTuple):
    """What one of `size` processes does of a sequence of tasks."""

    rank: int
    size: int

    def of(self, tasks: Iterable[T]) -> Iterator[tuple[int, T]]:
        """Return every `size`-th task with its number. The order of the tasks alone decides which process does which.

        Example:
            >>> list(Share(1, 3).of("abcdefg"))
            [(1, 'b'), (4, 'e')]
        """
        return islice(enumerate(tasks), self.rank, None, self.size)


@dataclasses.dataclass(frozen=True)
class _Team:
    """The processes that share work: this one's place among them, and a group to talk over."""

    share: Share
    control: Any  # A gloo group, for objects and for tensors of devices that torch.distributed does not know.


_team: ContextVar[_Team | None] = ContextVar("team", default=None)
_store: Any = None  # where the processes of a run that we started find each other


def share() -> Share:
    """Return this process's place among those that share the work; (0, 1) where none do."""
    team = _team.get()
    return team.share if team else Share(0, 1)


@contextlib.contextmanager
def shared_work() -> Iterator[None]:
    """Split the measurements inside the block over the processes of torch.distributed; all get the same results.

    You have to ask for it, because in a training loop each process holds other data, or only one of them measures.
    Every process makes the same calls in the same order, with the same weights and data. Only the first one writes
    files, into a folder that all of them see. Surfaces split their points, and each point is evaluated on all data;
    other losses, gradients and Hessian-vector products split the batches. Losses are bit for bit those of one process;
    sums of vectors are equal up to rounding.

    The block uses the process group that exists. Without one, it starts the group that torchrun's environment describes
    (NCCL for tensors on GPUs, gloo for the rest) and ends it afterwards. Without either, and with one process, it
    changes nothing.

    Raises:
        InputError: The processes have different weights or data, or one of them met bad input; it is raised in all.
        ProcessLost: Another process has ended or does not answer.

    Example:
        The same script runs alone or under `torchrun --nproc-per-node 8 script.py`:

        >>> import torch
        >>> from landscape import Run, Scope, hessian_trace, supervised_loss
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.eye(2), torch.zeros(2, 1))]
        >>> scope = Scope(loss_fn=supervised_loss(torch.nn.MSELoss()))
        >>> with shared_work():
        ...     trace = hessian_trace(model, data, scope=scope, run=Run(method="hutchinson"))
        >>> round(trace.value, 4)  # the Hessian of (w_1^2 + w_2^2) / 2 is the identity
        2.0
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
        control = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        team = _Team(Share(dist.get_rank(), dist.get_world_size()), control)
    token = _team.set(team if team.share.size > 1 else None)
    try:
        yield
        meet()
    finally:
        _team.reset(token)
    if started:  # Not after an error: the others would learn of this process's end before they learn its reason.
        dist.destroy_process_group()


def _start(backend: str) -> None:
    """Start the process group that torchrun's environment describes."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    global _store
    _store, rank, size = next(rendezvous("env://", timeout=timedelta(minutes=10)))
    dist.init_process_group(backend, store=_store, rank=rank, world_size=size, timeout=_TIMEOUT)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let this process work for itself inside the block, whatever the others do meanwhile."""
    token = _team.set(None)
    try:
        yield
    finally:
        _team.reset(token)


def gathered(function: Callable[[Share], T]) -> list[T]:
    """Call `function(share)` in each process, `alone`, and return what it returned in all of them.

    Args:
        function: Returns something small, such as numbers and names.

    Returns:
        What each process returned, in the order of their ranks; the same in all of them.

    Raises:
        InputError: One of the processes raised it; it is raised in all.

    Example:
        >>> gathered(lambda share: share.size)  # there is one process here
        [1]
    """
    team = _team.get()
    if team is None:
        return [function(Share(0, 1))]
    import torch.distributed as dist

    returned, message = None, None
    with alone():
        try:
            returned = function(team.share)
        except InputError as error:
            message = str(error)
    outcomes: list[Any] = [None] * team.share.size
    with _among_others():
        dist.all_gather_object(outcomes, (returned, message), group=team.control)
    for _, message in outcomes:
        if message is not None:
            raise InputError(message)
    return [returned for returned, _ in outcomes]


def summed(function: Callable[[Share], tuple[T, list[Tensor]]]) -> tuple[list[T], list[Tensor]]:
    """Do what `gathered` does for a function that also returns tensors, which are summed over the processes in place.

    Args:
        function: Returns something small, and tensors of the same shapes in each process.

    Returns:
        What each process returned, in the order of their ranks; and the sums of the tensors.
    """
    tensors: list[Tensor] = []

    def without_tensors(mine: Share) -> T:
        value, parts = function(mine)
        tensors.extend(parts)
        return value

    returned = gathered(without_tensors)
    team = _team.get()
    if team is not None:
        with _among_others():
            _add_up(tensors, team.control)
    return returned, tensors


def _add_up(tensors: list[Tensor], control: Any) -> None:
    """Sum each tensor over the processes, in place."""
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
    """Call `function` in the first process alone, and return in all processes what it returned.

    It is called when every process has come to this place. What the processes see of files before and after is
    therefore the same for all.
    """
    meet()
    return gathered(lambda mine: function() if mine.rank == 0 else None)[0]  # type: ignore[return-value]


def require_same(value: Any, what: str) -> None:
    """Raise InputError where the processes hold different values; `what` names the value in the message."""
    if len({repr(held) for held in gathered(lambda _: value)}) > 1:
        raise InputError(f"the processes that share this work hold different {what}; give every one the same.")


def claim_gpu(index: int | None) -> None:
    """Make this process's own GPU the one that "cuda" names, where several processes on a machine share work.

    Args:
        index: Number of the GPU that the caller asked for; None where it asked for "cuda".

    Raises:
        InputError: A number was asked for, or there are more processes than GPUs.
    """
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
    """Return whether this process, about to end with `code`, is the first of its run to fail, and the first one's code.

    The first process to fail knows the reason. The others often see only that it is gone.
    """
    if _store is None:
        return True, code
    mine = f"{os.environ['RANK']} {code}"
    try:
        first = _store.compare_set("landscape ended", "", mine).decode()
    except RuntimeError:  # The store died with the process that kept it.
        return True, code
    return first == mine, int(first.split()[1])


@contextlib.contextmanager
def _among_others() -> Iterator[None]:
    """Raise ProcessLost where the other processes do not answer the calls inside the block."""
    try:
        yield
    except RuntimeError as error:  # Gloo, NCCL and the store each raise classes of their own.
        raise ProcessLost(
            "another process of this run has ended or does not answer; what is finished is kept, and the same command "
            "again continues"
        ) from error
