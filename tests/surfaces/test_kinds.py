"""Kinds of surface: a new one is one class, its options and settings are its fields, and its weights are read once."""

import dataclasses
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from conftest import Quadratic, quadratic_loss

import landscape.weights.vectors
from landscape import Checkpoint, InputError, MeasurementWarning, Run, Scope, measure_surface
from landscape.plotting import caption_for
from landscape.surfaces.kind import SURFACE_KINDS, SurfaceKind, register
from landscape.surfaces.kinds.eigen import EigenSurface
from landscape.surfaces.kinds.random import RandomSurface
from landscape.surfaces.points.geometry import Geometry
from landscape.surfaces.points.grid import grid_axis
from landscape.surfaces.result import Surface

DATA = [torch.zeros(2), torch.zeros(3)]
SCOPE = Scope(loss_fn=quadratic_loss)


def models_of(quadratic, count):
    """The quadratic at its start and at other places."""
    start = torch.cat([quadratic.first.flatten(), quadratic.second.flatten()]).detach()
    moves = torch.tensor([[0.0, 0, 0, 0], [1, -0.5, 0, 2], [0, 1, 0.5, -1]])[:count]
    return [Quadratic(quadratic.matrix, quadratic.center, start + move) for move in moves]


# --- what is said rather than measured without a word -------------------------------------------------------


@pytest.mark.parametrize("span", [1e-30, 2e-8])
def test_a_span_that_rounding_swallows_is_refused(quadratic, span):
    """Half a unit in the last place of 1 is 6e-8 above and 3e-8 below: at 2e-8 no coordinate moves by its step."""
    model = quadratic.float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.ones_like(parameter))
    tiny = RandomSurface(dim=1, points=3, span=span, normalize="none")
    with pytest.raises(InputError, match=r"holds \d+% of even the farthest step.*; widen the span"):
        measure_surface(tiny, [model], DATA, scope=SCOPE, run=Run())
    assert all((parameter == 1).all() for parameter in model.parameters())  # nothing is left behind
    wide = RandomSurface(dim=1, points=3, span=1e-4, normalize="none")
    assert measure_surface(wide, [model], DATA, scope=SCOPE, run=Run()).fidelity.faithful


def test_the_line_between_equal_weights_is_said_to_be_one_point(quadratic):
    models = [models_of(quadratic, 1)[0] for _ in range(2)]
    with pytest.warns(MeasurementWarning, match="have the same weights: every point of the line"):
        measure_surface(SURFACE_KINDS["interpolate"](points=3), models, DATA, scope=SCOPE, run=Run())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure_surface(SURFACE_KINDS["interpolate"](points=3), models_of(quadratic, 2), DATA, scope=SCOPE, run=Run())


# --- a new kind ---------------------------------------------------------------------------------------------


@pytest.fixture
def ray():
    """A kind that nothing else knows: the weights scaled by a factor, from 0 (all zero) past 1 (the model)."""

    @register
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class RaySurface(SurfaceKind):
        name = "ray"
        help = "The surface is the line from zero weights through the model."
        dims = (1,)
        center_name = "model"

        dim: int = 1
        span: tuple[float, float] = (0.0, 2.0)

        @classmethod
        def region(cls, dim):
            return "along the weights themselves"

        def settings(self):
            return super().settings() | {"span": list(self.span)}

        def geometry(self, members, data, scope, run):
            low, high = self.span
            return Geometry(
                kind=self.name,
                name=members[0].name,
                title=self.name,
                place=lambda x: (1.0 + x[0], []),  # the origin of the axis is the model
                axes=(grid_axis(low - 1, high - 1, *self.counts),),
                axis_labels=("weights",),
            )

    yield RaySurface
    del SURFACE_KINDS["ray"]


def test_a_new_kind_is_measured_saved_captioned_and_offered(ray, quadratic, tmp_path):
    kind = SURFACE_KINDS["ray"].from_options(points="5", span="0,2")
    surface = measure_surface(kind, [quadratic], DATA, scope=SCOPE, run=Run(journal=tmp_path / "journal"))
    start = torch.cat([quadratic.first.flatten(), quadratic.second.flatten()]).detach()
    offsets = [(1 + x) * start - quadratic.center for x in surface.axes[0]]
    expected = [float(0.5 * offset @ quadratic.matrix @ offset) for offset in offsets]
    assert surface.loss == pytest.approx(expected, rel=1e-13)  # float64 throughout
    assert surface.center == surface.loss[2]
    assert surface.provenance.settings == {
        "kind": "ray", "points": [5], "span": [0.0, 2.0],
        "loss": surface.provenance.settings["loss"], "autocast": None,
    }  # fmt: skip
    again = Surface.load(surface.save(tmp_path / "surface.json"))
    assert again.kind_type is ray
    assert "along the weights themselves (5 points, " in caption_for([again])
    with pytest.raises(InputError, match="--kind ray is 1-dimensional"):
        ray.from_options(dim=2)
    with pytest.raises(InputError, match=r"a surface of kind ray has no use for Run\(offload_base=True\)"):
        measure_surface(kind, [quadratic], DATA, scope=SCOPE, run=Run(offload_base=True))


def test_a_saved_surface_of_a_kind_that_is_not_there_is_one_along_given_directions(ray, quadratic):
    surface = measure_surface(ray(points=3), [quadratic], DATA, scope=SCOPE, run=Run())
    unknown = dataclasses.replace(surface, kind="of another version")
    assert "along one given direction" in caption_for([unknown])


# --- the table ----------------------------------------------------------------------------------------------


def test_every_file_of_the_folder_is_found():
    assert set(SURFACE_KINDS) >= {"random", "interpolate", "plane", "eigen", "trajectory", "worst_case"}
    for name, kind in SURFACE_KINDS.items():
        assert kind.name == name
        assert kind.help.endswith(".")


def test_the_table_does_not_wait_for_torch():
    """`landscape plot --help` lists the kinds."""
    script = (
        "import sys; from landscape.surfaces.kinds import SURFACE_KINDS; print({'torch', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("random", {"dim": 2, "points": [25, 25], "span": 1.0, "normalize": "filter"}),
        ("interpolate", {"dim": 1, "points": [25], "span": (-0.5, 1.5), "normalize": None}),
        ("plane", {"dim": 2, "points": [25, 25], "span": 0.25, "normalize": None}),
        ("eigen", {"dim": 2, "points": [25, 25], "span": "auto", "normalize": None}),
        ("trajectory", {"dim": 2, "points": [25, 25], "span": 0.25, "normalize": None}),
    ],
)
def test_folders_agree_on_the_settings_they_always_had(name, defaults):
    assert SURFACE_KINDS[name].from_options().folder_settings() == {"kind": name, **defaults}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("random", {"margin": 0.5}, "--margin goes with --kind plane and trajectory; use --span with --kind random"),
        ("plane", {"span": "1"}, "--kind plane has no --span: .* use --margin"),
        ("plane", {"margin": float("inf")}, "--margin inf must be at least 0 and finite"),
        ("plane", {"dim": 1}, "--kind plane is 2-dimensional; --dim 1"),
        ("trajectory", {"normalize": "layer"}, "--normalize scales random directions; .* --kind trajectory"),
        ("interpolate", {"span": "auto"}, "--span auto looks along directions"),
        ("interpolate", {"span": "1"}, "--span 1 is not LOW,HIGH for --kind interpolate"),
        ("eigen", {"span": "1,0"}, "--span 1,0 is not S or LOW,HIGH for --kind eigen"),
        ("random", {"points": "2"}, "--points 2 is not N or N,M with at least 3"),
        ("interpolate", {"points": "3,3"}, "--points 3,3 is not a number with at least 3"),
    ],
)
def test_options_that_do_not_go_with_a_kind_are_refused_in_words(name, options, words):
    with pytest.raises(InputError, match=words):
        SURFACE_KINDS[name].from_options(**options)


@pytest.mark.parametrize(("name", "count"), [("interpolate", 3), ("plane", 2), ("trajectory", 2)])
def test_a_kind_says_how_many_checkpoints_it_takes(name, count, quadratic):
    for attempt in (
        lambda: SURFACE_KINDS[name].check_count(count),
        lambda: measure_surface(SURFACE_KINDS[name](), models_of(quadratic, count), DATA, scope=SCOPE),
    ):
        with pytest.raises(InputError, match=rf"kind='{name}' takes .*\d checkpoints.*, got {count}\."):
            attempt()
    with pytest.raises(InputError, match="one surface of kind random is of one model, got 2"):
        measure_surface(RandomSurface(), models_of(quadratic, 2), DATA, scope=SCOPE)


def test_a_kind_finds_its_own_directions(quadratic):
    """The eigenvalues of the Hessian are those of the quadratic's matrix; the losses along them are parabolas."""
    surface = measure_surface(EigenSurface(points=3, span=0.5), [quadratic], DATA, scope=SCOPE, run=Run())
    values = np.linalg.eigvalsh(quadratic.matrix.numpy())
    for axis, value in ((0, values[-1]), (1, values[0])):
        line = surface.loss[:, 1] if axis == 0 else surface.loss[1, :]
        assert (line[0] + line[2] - 2 * line[1]) / 0.5**2 == pytest.approx(value, rel=1e-6)
    assert surface.kind == "eigen"
    assert set(surface.provenance.settings) >= {"directions", "tensors"}


# --- one hash of the weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize(("name", "count"), [("random", 1), ("interpolate", 2), ("plane", 3), ("trajectory", 3)])
def test_the_weights_of_a_model_are_hashed_once_at_most(name, count, loaded, quadratic, monkeypatch, tmp_path):
    """A model from memory is named by its digest in the result and in the journal; a checkpoint in the journal only."""
    modules = models_of(quadratic, count)
    files = [
        types.SimpleNamespace(source=f"folder {i}", digest=str(i), base=None, quantization=None) for i in range(count)
    ]
    checkpoints = [Checkpoint(m, f, "c", None, "float64", "cpu") for m, f in zip(modules, files, strict=True)]
    models = checkpoints if loaded else modules
    read, bytes_of = [], landscape.weights.vectors.tensor_bytes

    def counted(tensor):
        read.append(tensor.data_ptr())
        return bytes_of(tensor)

    monkeypatch.setattr(landscape.weights.vectors, "tensor_bytes", counted)
    for journal in (None, tmp_path / "journal"):
        read.clear()
        measure_surface(SURFACE_KINDS[name](points=3), models, DATA, scope=SCOPE, run=Run(journal=journal))
        times = [read.count(module.first.data_ptr()) for module in modules]
        if not loaded:
            assert times == [1] * count
        elif journal is None:
            assert times == [0] * count
        else:
            assert max(times) == 1
