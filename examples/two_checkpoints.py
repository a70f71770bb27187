"""Loss surfaces of two checkpoints from a script: the same objects the command line uses.

python examples/two_checkpoints.py runs/adamw runs/sam tasks.jsonl
"""

import sys

import landscape


def main(folder_a: str, folder_b: str, source: str, points: int = 15) -> None:
    surfaces = []
    for folder in (folder_a, folder_b):
        checkpoint = landscape.load_checkpoint(folder, device="auto")
        data = landscape.load_data(source, checkpoint.tokenizer, limit=64, max_length=128)
        # The same seed gives both the same draw of directions, each normalized to its own weights.
        surface = landscape.compute_surface(checkpoint, data, points=points, span=1.0, seed=0)
        surface.save(f"{checkpoint.name}.json")
        surfaces.append(surface)
        print(surface, end="\n\n")
    for name, values in landscape.compare_metrics({s.name: s.metrics() for s in surfaces}).items():
        print(f"{name}: surface curvature {values['surface_curvature']:.4g} (reconstruction, this grid only)")
    landscape.plot_surfaces(surfaces).savefig("surfaces.pdf")


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
