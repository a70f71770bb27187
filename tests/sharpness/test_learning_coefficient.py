"""The local learning coefficient where its value is known: a regular minimum, a singular one, and no minimum."""

import numpy as np
import pytest
import torch
from conftest import Quadratic, quadratic_loss
from torch import nn

from landscape import InputError, Scope, compute_sharpness
from landscape.sharpness.metrics.learning_coefficient import split_rhat

ANY = [torch.zeros(1)]
SCOPE = Scope(loss_fn=quadratic_loss)


class Product(nn.Module):
    """w_1^2 w_2^2 at w = 0, whose learning coefficient is 1/2 (Watanabe 2009), half that of a regular model."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2).double())

    def forward(self, _):
        return (self.w[0] * self.w[1]) ** 2


class Diagonal(nn.Module):
    """1/2 sum h w^2 at w = 0."""

    def __init__(self, curvature):
        super().__init__()
        self.curvature, self.w = curvature, nn.Parameter(torch.zeros(len(curvature)).double())

    def forward(self, _):
        return self.curvature @ self.w**2 / 2


def measure(model, **options):
    return compute_sharpness(model, ANY, metric="local_learning_coefficient", scope=SCOPE, **options)


def of_product(nbeta, gamma=1.0):
    """The value at a finite temperature: w_2 is normal given w_1, and the integral over log w_1 is taken on a grid.

    It is 0.354 at nbeta = 100 and 0.460 at 1e10, and goes to 1/2 as slowly as 1 / log nbeta.
    """
    x = np.exp(np.linspace(np.log(1e-12), np.log(20), 200_001))
    weight = x * np.exp(-gamma * x**2 / 2) / np.sqrt(nbeta * x**2 + gamma / 2)
    rise = nbeta * x**2 / (2 * (nbeta * x**2 + gamma / 2))
    return float((rise * weight).sum() / weight.sum())


@pytest.mark.slow
def test_a_regular_minimum_has_half_its_dimensions():
    """Against 1/2 sum h / (h + gamma / nbeta), which is 1.99 of 4 / 2, and 0.50 where gamma leaves little room.

    Four standard errors, each some 0.05. Rejects values without the factor 1/2, and chains without gamma.
    """
    curvature = torch.tensor([1.0, 2.0, 3.0, 4.0])
    model = Quadratic(torch.diag(curvature), torch.zeros(4), torch.zeros(4))
    for nbeta, gamma in ((100.0, 1.0), (30.0, 200.0)):
        found = measure(model, nbeta=nbeta, gamma=gamma, steps=250)
        truth = float((curvature / (curvature + gamma / nbeta)).sum() / 2)
        assert found.value == pytest.approx(truth, abs=4 * max(found.stderr, 0.02))
        assert found.stderr < 0.15
        assert found.converged


@pytest.mark.slow
def test_a_singular_minimum_has_less():
    """Against the integral at this temperature, 0.354; rejects d / 2 = 1, the value of a regular minimum."""
    truth = of_product(100.0)
    assert truth == pytest.approx(0.3542, abs=1e-4)
    found = measure(Product(), nbeta=100.0, gamma=1.0, steps=500, chains=6)
    assert found.value == pytest.approx(truth, abs=4 * found.stderr)
    assert found.stderr < 0.06
    low, high = found.confidence_interval
    assert high < 0.7
    assert low < truth < high + found.stderr


def test_what_is_no_minimum_or_not_known_is_marked():
    """Downhill the chains leave w: the mean rise is negative, and no learning coefficient is."""
    slope = Quadratic(torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0])), torch.full((4,), 3.0), torch.zeros(4))
    found = measure(slope, nbeta=50.0, gamma=1.0, steps=20, chains=2)
    assert found.value < 0
    assert found.converged is False
    assert "NOT CONVERGED" in str(found)
    short = measure(Product(), nbeta=1e4, gamma=0.01, steps=4, chains=2)
    assert short.converged is False
    assert short.details["rhat"] > 1.1


@pytest.mark.parametrize("seed", [1, 16])
def test_chains_that_stay_near_their_start_are_not_converged(seed):
    """100 weights against the closed form 49.57, of which these chains reach half: each of 30 seeds gave 20 to 27.

    They start at w together, and R-hat is 1.08 and 1.05. Rejects the threshold 1.1, and the interval [20.5, 24.0].
    """
    curvature = torch.logspace(-2, 3, 100).double()
    truth = float((curvature / (curvature + 1e-3)).sum() / 2)
    found = measure(Diagonal(curvature), nbeta=1000.0, gamma=1.0, seed=seed)
    assert found.value < 0.6 * truth
    assert 1.01 < found.details["rhat"] < 1.1
    assert found.converged is False
    assert found.confidence_interval is None


def test_chains_that_disagree_are_seen():
    """Halves of chains count as chains: a drift that all chains share is seen too. Rejects R-hat of whole chains."""
    noise = np.random.default_rng(0).standard_normal((4, 100))
    assert split_rhat(noise) < 1.05
    assert split_rhat(noise + 3 * np.arange(4)[:, None]) > 2
    assert split_rhat(noise + np.linspace(0, 4, 100)) > 1.2
    assert split_rhat(np.ones((2, 8))) == np.inf


def test_the_temperature_comes_from_the_number_of_terms():
    data = [torch.zeros(60), torch.zeros(40)]
    model = Quadratic(torch.eye(4), torch.zeros(4), torch.zeros(4))
    options = {"metric": "local_learning_coefficient", "chains": 2, "steps": 4, "scope": SCOPE}
    assert compute_sharpness(model, data, **options).details["nbeta"] == pytest.approx(100 / np.log(100))
    with pytest.raises(InputError, match="1 loss terms"):
        measure(model)
    with pytest.raises(InputError, match="chains"):
        measure(model, nbeta=10.0, chains=1)
