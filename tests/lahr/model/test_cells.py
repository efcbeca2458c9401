"""What the eight cells share and what they do not: parameters, starts, gradients (properties 3, 4, 5 and 13)."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from lahr.model import LAHR
from lahr.model.flops import parameter_counts
from lahr.model.layers import Block
from lahr.plain import changed
from lahr.presets import PRESETS
from tests.lahr.model.conftest import KNN, OPTIONS

MECHANISM = {"mod": "router", "latent": "latent", "memory": "memory"}


def has(name, config):
    return {
        "mod": config.mod_capacity < 1,
        "latent": config.latent_iterations > 0,
        "memory": config.memory_slots > 0,
    }[name]


def test_a_cell_holds_parameters_of_its_own_factors_and_of_no_other(cell):
    """Caught: a router built in every second block whatever the capacity; a memory built for no slots."""
    state = LAHR(cell).state_dict()
    for factor, word in MECHANISM.items():
        assert any(word in key for key in state) == has(factor, cell)
    assert {key for key in state if not any(word in key for word in MECHANISM.values())} == set(
        LAHR(replace(cell, mod_capacity=1.0, latent_iterations=0, memory_slots=0)).state_dict()
    )


def test_the_baseline_routes_nothing(cells):
    """The published code built a routed layer 1 in every cell. Caught: every second block routed, whatever c."""
    assert all(type(block) is Block for block in LAHR(cells["base"]).blocks)


def test_each_variant_has_as_many_parameters_as_its_formula(every):
    """Caught: the predictor's bias left out of the formula; a norm left out of `latent`."""
    counts, model = parameter_counts(every), LAHR(every)

    def held(part, without="–"):
        return sum(p.numel() for name, p in model.named_parameters() if part in name and without not in name)

    assert counts["total"] == held("") == sum(v for k, v in counts.items() if k != "total")
    assert counts["embedding"] == held("embedding")
    assert counts["routers"] == held("router")
    assert counts["latent"] == held("latent", without="router")
    assert counts["memory"] == held("memory")


@pytest.mark.parametrize("name", ["smoke", "quick"])
def test_the_presets_have_as_many_parameters_as_the_formula(name):
    """Caught: a hidden layer one wider in the model than in the formula."""
    on = changed(PRESETS[name].model, PRESETS[name].on)
    assert parameter_counts(on)["total"] == sum(p.numel() for p in LAHR(on).parameters())


def run(model, tokens_BT, targets_BT):
    """Logits and gradients by name."""
    model.train()
    logits = model(tokens_BT)
    model(tokens_BT, targets_BT).loss.backward()
    return logits, {name: p.grad for name, p in model.named_parameters()}


def test_a_factor_that_is_off_is_absent(cells, tokens_BT, targets_BT):
    """The settings of a mechanism that is off decide nothing, to the bit. Caught: `mod_gate` read by plain blocks;
    the memory's position shifting the layer numbers."""
    base = LAHR(cells["base"])
    odd = {"mod_gate": "raw", "mod_router": "random", "mod_z_loss": 1.0, "latent_halting": "act", "latent_layer": 1}
    odd |= {
        "latent_core_layers": 3,
        "memory_kind": "slots",
        "memory_heads": 3,
        "memory_key_dim": 4,
        "memory_layer": 1,
    }
    off = LAHR(replace(cells["base"], **odd))
    assert base.state_dict().keys() == off.state_dict().keys()
    assert all(torch.equal(p, q) for p, q in zip(base.parameters(), off.parameters(), strict=True))
    (x, grads), (y, others) = (run(m, tokens_BT, targets_BT) for m in (base, off))
    assert torch.equal(x, y)
    assert all(torch.equal(grads[name], others[name]) for name in grads)


def test_the_baseline_is_a_plain_transformer(cells, awake, tokens_BT):
    """Written out by hand from the weights. Caught: a gate of ½ on block 1; the final norm left out; attention
    scaled by the model's width; a sine of the wrong sign."""
    config = cells["base"]
    model = awake(config)
    w = dict(model.named_parameters())
    B, T, H, E = *tokens_BT.shape, config.n_heads, config.head_dim

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[name]

    def turn(x_BTHE):  # as complex numbers, channel i with channel i + E/2
        z = torch.complex(x_BTHE[..., : E // 2], x_BTHE[..., E // 2 :])
        t = torch.arange(T, dtype=torch.float64)[:, None, None]
        angle = t * 10_000.0 ** (-2 * torch.arange(E // 2, dtype=torch.float64) / E)
        z = z * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((z.real, z.imag), -1)

    x = w["embedding.weight"][tokens_BT]
    for i in range(config.n_layers):
        b = f"blocks.{i}."
        q, k, v = (
            (norm(x, b + "attention_norm.weight") @ w[b + "attention.qkv.weight"].T).view(B, T, 3, H, E).unbind(2)
        )
        scores = torch.einsum("bihe,bjhe->bhij", turn(q), turn(k)) / E**0.5
        scores = scores.masked_fill(torch.arange(T)[:, None] < torch.arange(T), -torch.inf)
        y = torch.einsum("bhij,bjhe->bihe", scores.softmax(-1), v).reshape(B, T, H * E)
        x = x + y @ w[b + "attention.out.weight"].T
        gate, up = (norm(x, b + "feed_forward_norm.weight") @ w[b + "feed_forward.gate_up.weight"].T).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ w[b + "feed_forward.down.weight"].T
    expected = norm(x, "norm.weight") @ w["embedding.weight"].T
    assert (model(tokens_BT) - expected).abs().max() < 1e-5  # the model's rotary table is made in float32


@torch.no_grad()
@pytest.mark.parametrize("segments", [1, 5])
def test_latent_core_and_memory_change_no_logit_at_the_start(every, segments, tokens_BT):
    """Whatever their options. Caught: the readout started like any matrix; the memory's output too; the kNN memory's
    gate through a sigmoid."""
    without = replace(every, latent_iterations=0, memory_slots=0, n_layers=max(every.n_layers, 1))
    if every.n_layers:
        expected = LAHR(without).eval()(tokens_BT)
    else:  # a universal transformer starts as its embedding
        bare = LAHR(without)
        expected = F.linear(bare.norm(bare.embedding(tokens_BT)), bare.embedding.weight)
    assert torch.equal(LAHR(every).eval()(tokens_BT, segments=segments), expected)


def test_shared_parameters_start_bit_equal_in_all_cells_and_options(cells):
    """Caught: starts that depend on how many parameters the cell has; the seed, or the name, not in the hash."""
    variants = cells | {
        name: config
        for name, config in {**OPTIONS, **KNN}.items()
        if config.n_layers and not config.zero_init  # what starts at zero is in the next test
    }
    states = {name: dict(LAHR(config, seed=3).named_parameters()) for name, config in variants.items()}
    for one, other in combinations(states.values(), 2):
        shared = {key for key in one.keys() & other.keys() if one[key].shape == other[key].shape}
        shared -= {"latent.exit.bias"}  # where ACT and the exit gate begin differs
        assert len(shared) > 20
        assert all(torch.equal(one[key], other[key]) for key in shared)
    moved = dict(LAHR(cells["mod+latent+memory"], seed=4).named_parameters())
    drawn = [key for key, p in moved.items() if p.numel() > 1 and p.std() > 0]
    assert len(drawn) > 20
    assert not any(torch.equal(moved[key], states["mod+latent+memory"][key]) for key in drawn)
    firsts = {p.flatten()[0].item() for key, p in moved.items() if key in drawn}
    assert len(firsts) == len(drawn)  # no two parameters share a stream


@pytest.mark.parametrize("name", ["base", "mod+latent+memory"])
def test_a_zero_start_is_that_of_the_branches_ends_and_of_nothing_else(name, cells, tokens_BT, targets_BT):
    """Every block starts as the identity, and still learns. Caught: the core's projections at zero before their norms,
    whose gradient is a thousand times too large; the routed blocks left out."""
    config = cells[name]
    plain, zero = (LAHR(replace(config, zero_init=z), seed=3) for z in (False, True))
    ends = ("blocks.{}.attention.out.weight", "blocks.{}.feed_forward.down.weight")
    expected = {end.format(i) for end in ends for i in range(4)}
    if "latent" in name:
        expected |= {f"latent.core.0.{part}_out_norm.weight" for part in ("attention", "feed_forward")}
    theirs = dict(plain.named_parameters())
    changed = {n for n, p in zero.named_parameters() if not torch.equal(p, theirs[n])}
    assert changed == expected
    assert not any(dict(zero.named_parameters())[n].any() for n in changed)
    assert torch.equal(zero(tokens_BT), F.linear(zero.norm(zero.embedding(tokens_BT)), zero.embedding.weight))
    with torch.no_grad():
        for model in (plain, zero):
            if model.latent is not None:
                model.latent.readout.weight.copy_(0.1 * torch.eye(32))
    _, grads = run(zero, tokens_BT, targets_BT)
    _, usual = run(plain, tokens_BT, targets_BT)
    for n in changed:
        assert 0 < grads[n].norm() < 30 * usual[n].norm(), n


def test_building_a_model_takes_nothing_from_the_random_stream(every):
    """The published seeds did not pair for this reason. Caught: a module of torch's that draws its own start."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    LAHR(every, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_every_parameter_learns_from_the_loss_but_a_random_routers(variant, awake, tokens_BT, targets_BT):
    """Caught: the gate detached; `injection` unused; the memory's temperature left out of the softmax."""
    model = awake(variant).train()
    model(tokens_BT, targets_BT).loss.backward()
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [n for n, _ in model.named_parameters() if n.endswith("router.weight")] * (
        variant.mod_router == "random"
    )
    for name, p in model.named_parameters():
        if name in frozen:
            continue
        assert p.grad is not None, name
        assert p.grad.abs().max() > 1e-12, name


@pytest.mark.parametrize("gate", ["sigmoid", "raw"])
def test_the_router_learns_from_the_language_model_and_the_predictor_only_from_its_own_loss(
    gate, cells, awake, tokens_BT, targets_BT
):
    """Caught: the router's score not multiplying the branch; the predictor reading x undetached; the predictor's
    logits as the gate."""
    model = awake(replace(cells["mod+latent+memory"], mod_gate=gate)).train()
    names, parameters = zip(*model.named_parameters(), strict=True)

    def gradients(of):  # each of a forward pass of its own: the head hands its gradient out once
        found = torch.autograd.grad(of(model(tokens_BT, targets_BT)), parameters, allow_unused=True)
        return dict(zip(names, found, strict=True))

    by_lm = gradients(lambda output: output.lm_loss)
    by_own = gradients(lambda output: output.loss - output.lm_loss)
    for name in names:
        predicts = "predictor" in name
        assert (by_lm[name] is None) == predicts, name
        learns_own = by_own[name] is not None and by_own[name].abs().max() > 0
        assert learns_own == predicts, name
        if name.endswith("router.weight"):
            assert by_lm[name].abs().max() > 1e-8


def test_forward_changes_no_state(every, awake, tokens_BT, targets_BT):
    """Caught: `observe` called inside forward."""
    model = awake(every).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(tokens_BT, targets_BT)
    model.eval()(tokens_BT, targets_BT)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_memory_may_be_read_anywhere_in_the_stack(cells, awake, tokens_BT):
    """Caught: a memory after the last block never read; read before the stack by default."""
    models = [awake(replace(cells["memory"], memory_layer=i)) for i in range(5)]
    with torch.no_grad():
        logits = [model(tokens_BT) for model in models]
        assert torch.equal(awake(cells["memory"])(tokens_BT), logits[2])
        models[4].memory.out.weight.zero_()
        logits.append(models[4](tokens_BT))  # a memory that adds nothing differs from one that is read last
    assert all((x - y).abs().max() > 1e-6 for x, y in combinations(logits, 2))


def test_rotary_tables_are_no_part_of_the_state(cells):
    """They follow from the configuration. Caught: a persistent buffer."""
    assert not any(key in LAHR(cells["base"]).state_dict() for key in ("cos", "sin"))
