"""`landscape merge`: weights between a base and a tuned checkpoint."""

from __future__ import annotations

from landscape.cli.checks import check_inputs, check_new_checkpoint
from landscape.cli.options.checkpoints import MergeBase, MergeTuned
from landscape.cli.options.model import Trust
from landscape.cli.options.output import Json, OutputCheckpoint
from landscape.cli.options.training import Alpha
from landscape.cli.tables import print_json, print_written, quiet_libraries


def merge(
    base: MergeBase,
    tuned: MergeTuned,
    output: OutputCheckpoint,
    alpha: Alpha = 0.5,
    json_output: Json = False,
    trust_remote_code: Trust = False,
) -> None:
    """Mix the weights of two checkpoints: (1 - alpha) BASE + alpha CKPT.

    This is weight-space ensembling (WiSE-FT, Wortsman et al. 2022). The result is a checkpoint folder with
    landscape.json, which records alpha and both checkpoints.

        landscape merge base runs/sam --alpha 0.5 -o runs/half
    """
    check_new_checkpoint(output)
    check_inputs([base, tuned], output=output)
    quiet_libraries()
    from landscape.checkpoints.merging import merge_checkpoints
    from landscape.results import read_json

    folder = merge_checkpoints(base, tuned, alpha, output, trust_remote_code=trust_remote_code)
    if json_output:
        print_json({"output": str(folder), **read_json(folder / "landscape.json")})
    print_written(folder)
