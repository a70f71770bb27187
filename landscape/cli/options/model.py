"""Options that say how models are loaded and which of their parameters count."""

from __future__ import annotations

from typing import Annotated, Literal

from landscape.cli.options.declaring import MODEL, choice, flag, value
from landscape.errors import InputError, nearest

DtypeName = Literal["float32", "bfloat16", "float16", "float64", "auto"]
AdapterMode = Literal["merge", "keep"]
DeviceMapName = Literal["auto", "balanced", "balanced_low_0", "sequential"]
AutocastName = Literal["bfloat16"]

Dtype = Annotated[
    DtypeName,
    choice(MODEL, "--dtype", DtypeName, "Number format of the weights in memory. auto is the format on disk."),
]
# The first part of the names of torch's devices, so that another name can be refused before torch is there to ask.
_DEVICES = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia", "ipu", "xla", "maia", "hip", "vulkan", "meta")


def _check_device(device: str | None) -> str | None:
    """Raise InputError for a name that no device of torch has."""
    if device is not None and device.partition(":")[0] not in _DEVICES:
        raise InputError(f"--device {device} is none of auto, cpu, cuda, cuda:1, mps.{nearest(device, _DEVICES[:4])}")
    return device


Device = Annotated[
    str,
    value(
        MODEL,
        "--device",
        "DEVICE",
        "Device to compute on: auto, cpu, cuda, cuda:1 or mps. auto takes a GPU.",
        callback=_check_device,
    ),
]
DeviceMap = Annotated[
    DeviceMapName | None,
    choice(
        MODEL,
        "--device-map",
        DeviceMapName,
        "Spread one model over all GPUs with accelerate, for models larger than one GPU. Takes the place of --device.",
    ),
]
OffloadBase = Annotated[
    bool,
    flag(
        MODEL,
        "--offload-base",
        "Keep the exact copy of the weights in the memory of the host. The device then holds the weights only once.",
    ),
]
BasisDevice = Annotated[
    str | None,
    value(
        MODEL,
        "--basis-device",
        "DEVICE",
        "Device that stores the basis vectors of the Lanczos method; cpu saves GPU memory. Default: the device of the "
        "model.",
    ),
]
Autocast = Annotated[
    AutocastName | None,
    choice(
        MODEL,
        "--autocast",
        AutocastName,
        "Compute forward passes in this number format. The change that this makes to the loss is measured and "
        "reported. Default: the format of the weights.",
    ),
]
Adapter = Annotated[
    AdapterMode,
    choice(
        MODEL,
        "--adapter",
        AdapterMode,
        "How to treat adapters. merge adds them to the weights of their base and measures the whole model; keep "
        "measures the adapter's own weights alone.",
    ),
]
Parameters = Annotated[
    list[str] | None,
    value(
        MODEL,
        "--parameters",
        "PATTERN",
        "Measure only the parameters whose names match, such as `'model.layers.*.mlp.*'`. Repeat the option for more "
        "patterns.",
    ),
]
Trust = Annotated[
    bool,
    flag(
        MODEL, "--trust-remote-code", "Allow a checkpoint to run Python code of its own. Use it only if you trust it."
    ),
]
