"""A model's parameters: each distinct tensor once, by its name, with its filters."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from landscape.errors import InputError, as_typed
from landscape.parallel.sharding import check_sharding, own_part, settle
from landscape.weights.filters import Filters, filters_of, head_dimension_of


@dataclasses.dataclass(frozen=True)
class NamedParameter:
    """One distinct tensor of a model.

    Attributes:
        name: Its first name in the model.
        tensor: The parameter.
        owner: The module that holds it.
        aliases: Its other names, where it is tied.
    """

    name: str
    tensor: nn.Parameter
    owner: nn.Module
    aliases: tuple[str, ...] = ()

    def matches(self, globs: Sequence[str]) -> bool:
        """Whether any of its names matches any of the shell globs."""
        return any(fnmatch.fnmatchcase(name, glob) for glob in globs for name in (self.name, *self.aliases))


class Parameters:
    """The distinct trainable tensors of a model, in the order of the model.

    Tied tensors appear once, buffers never. Those of a model that `fully_shard` cut are `DTensor`s, whose shapes and
    `numel` are those of the whole tensors.

    Args:
        model: Any module.
        patterns: Shell globs over names, such as `"model.layers.*.mlp.*"`; None selects all.
        frozen: Whether parameters with `requires_grad=False` are selected too.

    Raises:
        InputError: Nothing is left (the message says why), or weights are not on a device.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, bias=False))
        >>> selected = Parameters(model, "*.weight")
        >>> selected.names, selected.numel
        (('0.weight', '1.weight'), 8)
    """

    def __init__(self, model: nn.Module, patterns: str | Sequence[str] | None = None, *, frozen: bool = False):
        settle(model)
        self.model = model
        globs = [patterns] if isinstance(patterns, str) else patterns
        entries = [entry for entry in distinct_parameters(model) if frozen or entry.tensor.requires_grad]
        if not entries:
            raise InputError("the model has no trainable parameter (requires_grad is False for all of them).")
        if globs is not None:
            entries = [e for e in entries if e.matches(globs)]
            if not entries:
                raise InputError(f"{as_typed('parameters', patterns)} matches no trainable parameter of the model.")
        for entry in entries:
            if entry.tensor.is_meta:
                raise InputError(
                    f"parameter {entry.name} has no data on a device: it is on meta, or offloaded to the host or disk "
                    "by its device_map; spread the model over devices that hold it, or shard it with fully_shard."
                )
        check_sharding([entry.name for entry in entries], [entry.tensor for entry in entries])
        self.entries = tuple(entries)
        self._by_name = {entry.name: entry for entry in entries}

    def __iter__(self) -> Iterator[NamedParameter]:
        return iter(self.entries)

    def __getitem__(self, name: str) -> Tensor:
        return self._by_name[name].tensor

    def named(self, name: str) -> NamedParameter | None:
        """Return the entry that has `name` as its name or alias; None where there is none."""
        return self._by_name.get(name) or next((entry for entry in self.entries if name in entry.aliases), None)

    @property
    def names(self) -> tuple[str, ...]:
        """First names of the tensors."""
        return tuple(self._by_name)

    @property
    def tensors(self) -> tuple[nn.Parameter, ...]:
        """The tensors, in the order of `names`."""
        return tuple(entry.tensor for entry in self.entries)

    @property
    def numel(self) -> int:
        """Number of weights in all tensors."""
        return sum(entry.tensor.numel() for entry in self.entries)

    def values(self) -> dict[str, Tensor]:
        """Return detached views of the current tensors by name, without a copy."""
        return {entry.name: entry.tensor.detach() for entry in self.entries}

    def filters(self, name: str, mode: str) -> Filters:
        """Return the filters of tensor `name` under normalization `mode` (see `filters.filters_of`)."""
        return filters_of(self._by_name[name], mode, head_dimension_of(self.model) if mode == "head" else None)


def distinct_parameters(model: nn.Module) -> list[NamedParameter]:
    """List every parameter of `model` once; tied ones are the same object, or the same memory in the same layout."""
    first: dict[tuple, str] = {}
    distinct: dict[str, tuple[nn.Parameter, nn.Module, list[str]]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        owner = model.get_submodule(name.rpartition(".")[0])
        key: tuple = (id(tensor),)
        part = own_part(tensor)
        if not part.is_meta and part.numel():
            key = (part.device, part.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if key in first:
            distinct[first[key]][2].append(name)
        else:
            first[key] = name
            distinct[name] = (tensor, owner, [])
    return [NamedParameter(name, t, owner, tuple(aliases)) for name, (t, owner, aliases) in distinct.items()]
