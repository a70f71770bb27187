"""A model's parameters as one vector: names, ties, filters, inner products, seeded noise; a model left as it was."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from landscape.errors import InputError
from landscape.parallel.sharding import check_sharding, own_part, settle
from landscape.weights.filters import Filters, filters_of, head_dimension_of


@dataclasses.dataclass(frozen=True)
class NamedParameter:
    """One distinct tensor of the model, under its first name; tied names are `aliases`."""

    name: str
    tensor: nn.Parameter
    owner: nn.Module
    aliases: tuple[str, ...] = ()

    def matches(self, globs: Sequence[str]) -> bool:
        """Whether any of its names matches any of the shell globs."""
        return any(fnmatch.fnmatchcase(name, glob) for glob in globs for name in (self.name, *self.aliases))


class Parameters:
    """The distinct trainable tensors of a model, as one vector.

    `patterns` are shell globs over names (`"model.layers.*.mlp.*"`). Tied tensors appear once; buffers never;
    parameters with `requires_grad=False` only with `frozen=True`. Those of a model that `fully_shard` cut are
    `DTensor`s: shapes and `numel` are those of the whole tensors.

    Raises InputError where nothing is left, naming the reason, and for weights that are not on a device.
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
                raise InputError(f"parameters={patterns!r} matches no trainable parameter of the model.")
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
        """The entry that has `name`, or to which it is tied; None where there is none."""
        return self._by_name.get(name) or next((entry for entry in self.entries if name in entry.aliases), None)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    @property
    def tensors(self) -> tuple[nn.Parameter, ...]:
        return tuple(entry.tensor for entry in self.entries)

    @property
    def numel(self) -> int:
        return sum(entry.tensor.numel() for entry in self.entries)

    def values(self) -> dict[str, Tensor]:
        """Detached views of the current tensors by name (no copy)."""
        return {entry.name: entry.tensor.detach() for entry in self.entries}

    def filters(self, name: str, mode: str) -> Filters:
        """The filters of tensor `name` under normalization `mode` (SCIENCE 2.2; Li et al. 2018, sec. 4)."""
        return filters_of(self._by_name[name], mode, head_dimension_of(self.model) if mode == "head" else None)


def distinct_parameters(model: nn.Module) -> list[NamedParameter]:
    """Every parameter of `model` once, ties merged: the same object, or the same memory in the same layout."""
    first: dict[tuple, str] = {}
    found: dict[str, tuple[nn.Parameter, nn.Module, list[str]]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        owner = model.get_submodule(name.rpartition(".")[0])
        key: tuple = (id(tensor),)
        part = own_part(tensor)
        if not part.is_meta and part.numel():
            key = (part.device, part.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if key in first:
            found[first[key]][2].append(name)
        else:
            first[key] = name
            found[name] = (tensor, owner, [])
    return [NamedParameter(name, t, owner, tuple(aliases)) for name, (t, owner, aliases) in found.items()]


# --- linear algebra and noise -------------------------------------------------------------------------------
