"""What each metric is said not to see, against changes of a Llama's weights that leave its function alone.

The Llama is float64 throughout, and its function is the same to 1e-13. Where a metric draws at random, a rotation or a
permutation of the weights is applied to the draws too: a rotated normal vector has the distribution of the vector, so
that what is compared is the same perturbation of the function, without an error of sampling.
"""

import copy
import importlib.util
import itertools
import sys
from pathlib import Path

import pytest
import torch
from scipy.linalg import hadamard
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from landscape import SHARPNESS_METRICS, compute_sharpness
from landscape.curvature.results import INVARIANCE
from landscape.sharpness.metrics import relative_flatness
from landscape.weights.flat import Layout, RandomStep

_SPEC = importlib.util.spec_from_file_location(
    "llama_symmetries", Path(__file__).parents[2] / "analyses/llama_symmetries.py"
)
llama_symmetries = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = llama_symmetries
_SPEC.loader.exec_module(llama_symmetries)

WIDTH, VOCABULARY, SIZE, GROUPS = 8, 11, 4, 2  # SIZE dimensions of a head, GROUPS key-value heads of two query heads


class Norm(nn.Module):
    """RMSNorm without an epsilon, in the type of its input; that of transformers computes in float32."""

    def __init__(self, seed):
        super().__init__()
        self.weight = nn.Parameter(1 + 0.3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True))


def llama(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=6, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=GROUPS, head_dim=SIZE, max_position_embeddings=16, initializer_range=0.4,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=0, pad_token_id=None, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    (layer,) = model.model.layers
    layer.input_layernorm, layer.post_attention_layernorm = Norm(3 * seed), Norm(3 * seed + 1)
    model.model.norm = Norm(3 * seed + 2)
    return model.double()


def base_of(model):
    """A checkpoint from which the step to the model goes down, so that going on along it has a crossing to find."""
    base, other = copy.deepcopy(model), llama(1)
    batch = data()[0]
    base(**batch).loss.backward()
    with torch.no_grad():
        for parameter, away in zip(base.parameters(), other.parameters(), strict=True):
            parameter.add_(0.1 * parameter.grad + 0.01 * away)
    return base


def data():
    ids = torch.randint(0, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}]


# --- symmetries ---------------------------------------------------------------------------------------------


def _scaled(model, outputs, inputs, factors):
    """Multiply outputs of one projection, and divide the inputs of the one that reads them."""
    (layer,) = model.model.layers
    of = {**dict(layer.self_attn.named_children()), **dict(layer.mlp.named_children())}
    of[outputs].weight.mul_(factors[:, None])
    if inputs == "q_proj":  # its outputs meet those of k_proj
        of[inputs].weight.mul_(1 / factors.view(GROUPS, 1, SIZE).expand(-1, 2, -1).reshape(-1, 1))
    elif inputs == "o_proj":
        of[inputs].weight.mul_(1 / factors.view(GROUPS, 1, SIZE).expand(-1, 2, -1).reshape(-1))
    else:
        of[inputs].weight.mul_(1 / factors)


def _per_head(strength):
    return torch.tensor([2.0**strength, 2.0**-strength]).double().repeat_interleave(SIZE)


def _shift(model, draws):
    model.lm_head.weight.add_(draws.normal(WIDTH))  # the same vector for two checkpoints


def _acts():
    """Every change of the weights as a function of a model."""
    known = {
        symmetry.name: symmetry
        for symmetry in llama_symmetries.symmetries_of(llama(0))
        if symmetry.name != "logit shift"
    }
    acts = {name: lambda model, s=symmetry: s.apply(model, 0, 3) for name, symmetry in known.items()}
    # singular values of one: the mixing is a rotation
    acts["V-O, rotation"] = lambda model: known["V-O, mixing"].apply(model, 0, 0)
    acts["Q-K, per head"] = lambda model: _scaled(model, "k_proj", "q_proj", _per_head(3))
    acts["V-O, per head"] = lambda model: _scaled(model, "v_proj", "o_proj", _per_head(3))
    acts["up-down, one factor"] = lambda model: _scaled(model, "up_proj", "down_proj", torch.full((6,), 8.0).double())
    acts["logit shift"] = lambda model: _shift(model, llama_symmetries.Draws(0, 3))
    return {name: torch.no_grad()(act) for name, act in acts.items()}


ACTS = _acts()
PERMUTATIONS = {"MLP units permuted", "heads permuted in groups", "K-V groups permuted"}
ROTATIONS = PERMUTATIONS | {"V-O, rotation"}
SHIFTS = {"logit shift"}
TENSORS = {"norm gain, one factor", "up-down, one factor", "residual stream, one factor"}  # each rescaled as a whole
ROWS = TENSORS | {"Q-K, per rotary pair", "Q-K, per head"}
UNITS = ROWS | {"V-O, diagonal", "V-O, per head", "up-down, per unit"}
HEADS = TENSORS | {"Q-K, per head", "V-O, per head", "up-down, per unit"}  # what has no heads keeps its units
SINGLE = UNITS | {"norm gain, per channel"}
LINEAR = SINGLE | ROTATIONS | {"V-O, mixing"}
FILTERS = {
    "filter": ROWS | PERMUTATIONS,
    "unit": UNITS | PERMUTATIONS,
    "head": HEADS | ROTATIONS,
    "layer": TENSORS | ROTATIONS,
}
# What acts on the inputs of a layer otherwise than by a rotation and one factor.
INPUTS = {
    "head": {"norm gain, per channel"},
    "model.layers.0.self_attn.v_proj.weight": {"norm gain, per channel"},
    "model.layers.0.self_attn.o_proj.weight": {"V-O, diagonal", "V-O, per head", "V-O, mixing"},
}
OF_FILTERS = "rescaling and permuting whole filters, and rotations within them"
OF_LAYERS = "mixing the outputs of the layer, rotating its inputs and scaling them all alike"
MEANING = {
    "rotations and shifts of the weights": ROTATIONS | SHIFTS,
    "rotations and shifts of both checkpoints": ROTATIONS | SHIFTS,
    "permutations and shifts of the weights": PERMUTATIONS | SHIFTS,
    "permutations of the weights": PERMUTATIONS,
    "rescaling and permuting single weights": SINGLE | PERMUTATIONS,
    "every linear map and shift of the weights that preserves the function": LINEAR | SHIFTS,
    "every linear map and shift of both checkpoints that preserves their functions": LINEAR | SHIFTS,
}


def declared(metric, part, options):
    """The changes that a part of a metric's label says leave the value alone."""
    phrase = parts_of(SHARPNESS_METRICS[metric].invariance)[part]
    if phrase == OF_FILTERS:
        return FILTERS[options["normalize"]]
    if phrase == OF_LAYERS:
        return set(ACTS) - INPUTS[options["layer"]]
    return MEANING[phrase]


def parts_of(label):
    """What a label says for each kind of options; "" where it says the same for all."""
    return dict(part.split(": ") if ": " in part else ("", part) for part in label.split("; "))


# --- the same perturbation before and after -----------------------------------------------------------------


def transport(monkeypatch, act):
    """Let the act on the weights be applied to all that is drawn at random in their space."""
    whole, part = Layout.random, RandomStep._noise
    cache = {}

    def moved(named):
        carrier = llama(0)
        with torch.no_grad():
            for name, parameter in carrier.named_parameters():
                parameter.copy_(named[name] if name in named else torch.zeros_like(parameter))
        act(carrier)
        return {name: parameter.detach() for name, parameter in carrier.named_parameters() if name in named}

    def random(self, seed, stream, rademacher=False):
        return self.flat(moved(self.named(whole(self, seed, stream, rademacher))))

    def noise(self, name):
        if self._stream not in cache:
            cache[self._stream] = moved({each: part(self, each) for each in self})
        return cache[self._stream][name]

    monkeypatch.setattr(Layout, "random", random)
    monkeypatch.setattr(RandomStep, "_noise", noise)


def exact_signs(monkeypatch, inputs):
    """Let the probes of relative flatness be the rows of a Hadamard matrix, over which its mean is exact."""
    rows = torch.tensor(hadamard(inputs**2)).double()

    def drawn(shape, *, seed, stream, name):
        return rows[int(stream.split()[-1])].view(*shape)

    monkeypatch.setattr(relative_flatness, "gaussian_noise", drawn)
    return {"rtol": 1e-12, "max_probes": inputs**2}


TRACE = {"method": "hutchinson", "rtol": 1e9, "max_probes": 4}
DISPLACED = {"direction": "displacement", "base": True}
CASES = [
    ("worst_case", "l2", {"rho": 0.3, "steps": 3, "restarts": 2}),
    ("worst_case", "linf", {"rho": 0.02, "steps": 3, "restarts": 2, "norm": "linf"}),
    ("worst_case", "adaptive", {"rho": 0.3, "steps": 3, "restarts": 2, "adaptive": True}),
    ("worst_case", "adaptive", {"rho": 0.02, "steps": 3, "restarts": 2, "adaptive": True, "norm": "linf"}),
    ("keskar", "", {"epsilon": 0.02, "steps": 3, "restarts": 2}),
    ("average_case", "isotropic", {"samples": 4}),
    ("average_case", "adaptive", {"samples": 4, "adaptive": True}),
    *(("average_case", "normalize", {"samples": 4, "normalize": mode}) for mode in FILTERS),
    ("low_pass", "", {"samples": 4, "sigma": 0.05}),
    ("pac_bayes", "adaptive", {"samples": 4, "tolerance": 1e-2}),
    ("pac_bayes", "isotropic", {"samples": 4, "tolerance": 1e-2, "adaptive": False}),
    ("local_learning_coefficient", "", {"chains": 2, "steps": 4}),
    ("relative_flatness", "", {"layer": "head"}),
    *(("relative_flatness", "", {"layer": layer}) for layer in list(INPUTS)[1:]),
    ("gradient_norm", "plain", {}),
    ("gradient_norm", "adaptive", {"adaptive": True}),
    ("fisher_rao", "", {}),
    ("top_eigenvalue", "", {"rtol": 1e-10, "max_matvecs": 400}),
    ("trace", "", TRACE),
    ("adaptive_trace", "", TRACE),
    *(("filter_trace", "", TRACE | {"normalize": mode}) for mode in FILTERS),
    ("critical", "along the gradient", {"tolerance": 1e-4}),
    ("critical", "along the first step of AdamW", {"tolerance": 1e-4, "direction": "adamw"}),
    ("critical", "along the displacement", {"tolerance": 1e-4} | DISPLACED),
    ("budget_radius", "along the gradient", {"tolerance": 1e-4}),
    ("budget_radius", "along the first step of AdamW", {"tolerance": 1e-4, "direction": "adamw"}),
    ("budget_radius", "along the displacement", {"tolerance": 1e-4} | DISPLACED),
    ("displacement_curvature", "", {"base": True}),
    ("displacement_fisher", "", {"base": True}),
]


def measured(metric, options, act=None):
    model = llama(0)
    base = base_of(model)
    for changed in (model, base):
        if act is not None:
            act(changed)
    options = options | ({"base": base} if options.get("base") else {})
    return compute_sharpness(model, data(), metric=metric, **options).value


def test_the_function_stays_and_the_weights_do_not():
    """What the labels are tested with: log-probabilities to 1e-13, and weights that moved by more than a tenth."""
    model = llama(0)
    before = torch.log_softmax(model(**data()[0]).logits, -1)
    assert before.dtype == torch.float64
    for name, act in ACTS.items():
        changed = copy.deepcopy(model)
        act(changed)
        after = torch.log_softmax(changed(**data()[0]).logits, -1)
        assert float((after - before).abs().max().detach()) < 1e-13, name
        weights = zip(model.parameters(), changed.parameters(), strict=True)
        assert max(float((old - new).detach().abs().max()) for old, new in weights) > 0.1, name


def test_every_part_of_every_label_is_tested():
    said = {(name, part) for name, known in SHARPNESS_METRICS.items() for part in parts_of(known.invariance)}
    assert said == {(metric, part) for metric, part, _ in CASES}
    meant = {*MEANING, OF_FILTERS, OF_LAYERS}
    assert {phrase for known in SHARPNESS_METRICS.values() for phrase in parts_of(known.invariance).values()} == meant
    for one, other in itertools.combinations(
        {frozenset(changes) for changes in (*MEANING.values(), *FILTERS.values())}, 2
    ):
        assert one != other, "no two labels mean the same here, so that one in place of another fails"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "part", "options"), CASES, ids=["-".join(map(str, [c[0], c[1], *c[2].values()])) for c in CASES]
)
def test_a_metric_is_blind_to_what_its_label_says_and_to_nothing_else(metric, part, options, monkeypatch):
    """Values agree to 1e-7 exactly where the label says so; what is not invariant moves by more than 1e-4.

    Sums run in another order, which a float64 Hessian of this Llama turns into some 1e-10; bisection to a tolerance of
    1e-4 or 1e-2 gives the same steps unless rounding turns one over. Rejects each other label, since each of these is
    declared for other changes: a label of rotations in place of rescalings, or one that leaves something out.
    """
    if "_proj" in options.get("layer", ""):
        options = options | exact_signs(monkeypatch, 16 if "o_proj" in options["layer"] else WIDTH)
    start = measured(metric, options)
    said, stayed = declared(metric, part, options), set()
    for name, act in ACTS.items():
        with monkeypatch.context() as patched:
            if name in ROTATIONS:
                transport(patched, act)
            moved = abs(measured(metric, options, act) / start - 1)
        assert not 1e-7 < moved < 1e-4, f"{name}: {moved} is neither rounding nor a change"
        if moved <= 1e-7:
            stayed.add(name)
    assert stayed == said


def test_curvature_says_of_its_traces_what_the_metrics_say():
    rotations, single = (
        f"unchanged by {part}"
        for part in ("rotations and shifts of the weights", "rescaling and permuting single weights")
    )
    assert SHARPNESS_METRICS["trace"].invariance == SHARPNESS_METRICS["top_eigenvalue"].invariance
    for name in ("trace", "eigenvalues"):
        assert INVARIANCE[name] == f"{rotations} only; rescaled units and heads move it"
    assert SHARPNESS_METRICS["adaptive_trace"].invariance in INVARIANCE["adaptive"] == single
    for mode, filters in (("filter", "rows"), ("unit", "units"), ("head", "heads")):
        assert INVARIANCE[mode] == f"unchanged by {OF_FILTERS}".replace("whole filters", filters)
    assert INVARIANCE["layer"] == "unchanged by rescaling tensors, and rotations within them"
