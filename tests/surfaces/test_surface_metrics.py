"""Surface metrics against their values on functions with closed forms."""

import numpy as np
import pytest

from landscape.errors import InputError
from landscape.surfaces.metrics import compare_metrics, surface_metrics


def parabola(a, b, n=51, m=51, span=1.0):
    x, y = np.linspace(-span, span, n), np.linspace(-span, span, m)
    return (x, y), (a * x[:, None] ** 2 + b * y[None, :] ** 2) / 2


def test_check_values_of_a_parabola():
    axes, f = parabola(2, 4)
    metrics = surface_metrics(axes, f, {})
    # exact: second-order differences are exact on a parabola, also at the border; mean |x| = 26/51 on this grid
    assert metrics.mean_absolute_gradient == pytest.approx((2 + 4) / 2 * 26 / 51, rel=1e-12)
    assert metrics.mean_absolute_gradient == pytest.approx(1.529412, abs=1e-6)
    x, y = np.meshgrid(*axes, indexing="ij")
    assert metrics.average_gradient == pytest.approx(np.hypot(2 * x, 4 * y).mean(), rel=1e-12)
    assert metrics.center_curvature == pytest.approx(3, rel=1e-12)
    assert metrics.center_gaussian_curvature == pytest.approx(8, rel=1e-12)
    assert metrics.mean_absolute_laplacian == pytest.approx(3, rel=1e-12)
    kappa = ((1 + (4 * y) ** 2) * 2 + (1 + (2 * x) ** 2) * 4) / (2 * (1 + (2 * x) ** 2 + (4 * y) ** 2) ** 1.5)
    assert metrics.surface_curvature == pytest.approx(kappa.mean(), rel=1e-12)
    assert metrics.barrier is None


def test_axes_are_not_mixed_up_on_a_grid_that_is_not_square():
    axes, f = parabola(2, 4, n=21, m=51)
    metrics = surface_metrics(axes, f, {})
    expected = (2 * np.abs(axes[0]).mean() + 4 * np.abs(axes[1]).mean()) / 2
    assert metrics.mean_absolute_gradient == pytest.approx(expected, rel=1e-12)


def test_a_mixed_term_enters_the_gaussian_curvature():
    x, y = np.linspace(-1, 1, 11), np.linspace(-1, 1, 15)
    f = x[:, None] ** 2 + 3 * y[None, :] ** 2 + 0.5 * x[:, None] * y[None, :]
    metrics = surface_metrics((x, y), f, {})
    assert metrics.center_gaussian_curvature == pytest.approx(2 * 6 - 0.25, rel=1e-12)


def test_a_line_has_curvature_of_the_curve():
    t = np.linspace(-2, 2, 41)
    metrics = surface_metrics((t,), 1.5 * t**2, {})
    assert metrics.center_curvature == pytest.approx(3, rel=1e-12)
    assert metrics.average_gradient == metrics.mean_absolute_gradient == pytest.approx(3 * np.abs(t).mean(), rel=1e-12)
    assert metrics.surface_curvature == pytest.approx((3 / (1 + (3 * t) ** 2) ** 1.5).mean(), rel=1e-12)


def test_barrier_of_the_double_well():
    t = np.linspace(-0.5, 1.5, 41)
    f = ((2 * t - 1) ** 2 - 1) ** 2  # (x^2 - 1)^2 with x from -1 at t=0 to 1 at t=1
    metrics = surface_metrics((t,), f, {}, (0.0, 0.0))
    assert metrics.barrier == pytest.approx(1, rel=1e-12)
    assert metrics.barrier_to_mean == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("span", [(2, 3), (0, 0.2), (0.5, 1)])
def test_no_barrier_over_a_part_of_the_line(span):
    t = np.linspace(*span, 11)
    metrics = surface_metrics((t,), np.sin(np.pi * t) ** 2, {}, (0.0, 0.0))
    assert metrics.barrier is None
    assert metrics.barrier_to_mean is None


def test_the_two_barriers_differ_on_a_slope():
    t = np.linspace(0, 1, 11)
    metrics = surface_metrics((t,), 3 * t, {}, (0.0, 3.0))
    assert metrics.barrier == pytest.approx(0, abs=1e-12)  # never above the chord
    assert metrics.barrier_to_mean == pytest.approx(1.5, rel=1e-12)


def test_no_centre_value_where_no_point_is_at_the_centre():
    axes, f = parabola(2, 4, n=10, m=11)
    assert surface_metrics(axes, f, {}).center_curvature is None


def test_walls_that_are_not_finite_do_not_look_flat():
    axes, f = parabola(2, 4)
    x, y = np.meshgrid(*axes, indexing="ij")
    walled = np.where(np.abs(x) + np.abs(y) > 1.5, np.inf, f)  # a mean over what is left would be lower
    for hole in (walled, np.where((x == 1) & (y == 1), np.nan, f), np.full_like(f, np.nan)):
        metrics = surface_metrics(axes, hole, {})
        assert metrics.nonfinite == (~np.isfinite(hole)).sum() > 0
        assert np.isnan(metrics.average_gradient)
        assert np.isnan(metrics.surface_curvature)
        assert f"undefined: {metrics.nonfinite} points are not finite" in dict(metrics.rows()).values()
    assert surface_metrics(axes, walled, {}).center_curvature == pytest.approx(3, rel=1e-12)  # its neighbours are whole
    t = np.linspace(0, 1, 11)
    assert surface_metrics((t,), np.where(t == 0.5, np.nan, t), {}, (0.0, 1.0)).barrier == np.inf


def test_numbers_of_different_grids_are_not_compared():
    axes, f = parabola(2, 4)
    one = surface_metrics(axes, f, {"axes": [[-1, 1, 51]] * 2, "normalize": "filter"})
    same = surface_metrics(axes, 2 * f, {"axes": [[-1, 1, 51]] * 2, "normalize": "filter"})
    assert compare_metrics({"a": one, "b": same})["b"]["average_gradient"] > one.average_gradient
    for grid in ({"axes": [[-1, 1, 25]] * 2, "normalize": "filter"}, {"axes": [[-1, 1, 51]] * 2, "normalize": "layer"}):
        with pytest.raises(InputError, match="a and b do not compare"):
            compare_metrics({"a": one, "b": surface_metrics(axes, f, grid)})


def test_two_points_have_no_curvature():
    with pytest.raises(InputError, match="3 points"):
        surface_metrics((np.array([0.0, 1.0]),), np.array([0.0, 1.0]), {})
