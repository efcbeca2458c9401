"""Models of one's own: what is refused, common starts in a seed block, counted costs, tied weights."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lahr.errors import ConfigError
from lahr.model import LAHR, Own, build_model
from lahr.model.draws import shared_draws
from lahr.model.flops import fields_read, flops_per_token, parameter_counts, training_flops_per_token
from lahr.model.generation import Sampling, generate
from lahr.model.own import cost
from lahr.model_config import ModelConfig
from tests.lahr.model.conftest import BASE

HERE = "tests.lahr.model.own_models"


def own(name: str, **options: object) -> ModelConfig:
    return replace(BASE, build=f"{HERE}:{name}", options=options)


def parameters(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    return dict(build_model(config, seed).named_parameters())


@pytest.mark.parametrize("name", ["plain", "llama"])
def test_it_is_called_as_lahr_is(name, tokens_BT, targets_BT):
    """Caught: a loss in bf16; targets shifted once more, as transformers' own loss does; a sum for the mean."""
    model = build_model(own(name), 0).eval()
    assert isinstance(model, Own)
    logits_BTV = model(tokens_BT)
    assert isinstance(logits_BTV, torch.Tensor) and logits_BTV.shape == (*tokens_BT.shape, BASE.vocab_size)
    output = model(tokens_BT, targets_BT, routing="causal", passes=3, segments=5)
    log_p = logits_BTV.double().log_softmax(-1).gather(-1, targets_BT[..., None])
    assert float(output.loss.detach()) == pytest.approx(-float(log_p.detach().mean()), rel=1e-6)
    assert output.loss is output.lm_loss and output.metrics == {} and output.passes == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(tokens_BT, targets_BT).loss.dtype == torch.float32
    assert model.bfloat16()(tokens_BT, targets_BT).loss.dtype == torch.float32
    assert model.double()(tokens_BT, targets_BT).loss.dtype == torch.float64
    assert type(build_model(BASE, 0)) is LAHR


def test_the_function_is_given_the_configuration():
    assert "inner.extra.0.weight" in parameters(own("plain", extra=7))
    assert parameters(replace(own("plain"), n_layers=1)).keys() < parameters(own("plain")).keys()


@pytest.mark.parametrize("how", ["[]", "get", "in", "for", "items", "**", "replace", "json"])
def test_what_a_function_reads_of_its_configuration_is_known(how):
    """However it reads; a factor on what it never reads would make two names for one model."""
    read = fields_read(own("reads", how=how, width=3, unused=4))
    assert read is not None and {"d_model", "vocab_size", "options.how", "options.width"} <= read
    assert ("options.unused" in read) is (how not in ("[]", "get", "in"))
    assert ("mod_capacity" in read) is (how == "replace")  # a copy of all of it is as if it read all of it
    assert fields_read(BASE) is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            own("wrong", how="shape"),
            r"gives torch.float32 of shape \(1, 61\); it must give logits .* \(1, 24, 61\)",
        ),
        (own("wrong", how="type"), r"gives torch.int64 of shape \(1, 24, 61\); it must .* of a floating type"),
        (own("wrong", how="nothing"), r"gives no tensor and nothing that has .logits; it must give logits"),
        (own("raises"), r"own_models:raises: the function raised KeyError: 'depth' \(own_models.py, line \d+\)"),
        (own("returns_a_number"), "the function returned a int; it must be an nn.Module"),
        (own("frozen"), "the module has no parameter to train"),
        (own("shares"), r"inner.places and inner.part share memory .*tie whole parameters"),
        (own("fails"), "a forward and backward pass over 24 tokens raised RuntimeError: mat1"),
        (own("costs_nothing"), "torch's counter sees no matrix product in a forward pass"),
        (own("NOT_A_FUNCTION"), "has no function NOT_A_FUNCTION"),
        (own("absent"), "own_models has no function absent"),
        (
            replace(BASE, build="tests.nowhere:f"),
            r"tests.nowhere cannot be imported \(ModuleNotFoundError: No module",
        ),
    ],
)
def test_what_cannot_be_used_is_said_when_its_cost_is_counted(config, said):
    """In one line, before anything starts. Seen to fail: parameters that share memory only failed at a checkpoint."""
    for count in (training_flops_per_token, parameter_counts, flops_per_token):
        with pytest.raises(ConfigError, match=said) as raised:
            count(config)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("build", ["plain", "a.b", "a:b:c", "a.b:", ":f", "a/b:f", "a..b:f", "a:b.c"])
def test_a_build_of_another_form_is_refused(build):
    with pytest.raises(
        ConfigError, match=f"model.build is {build!r}; it must be of the form package.module:function"
    ):
        replace(BASE, build=build)


def test_what_two_variants_share_starts_bit_equal_in_one_seed_and_differs_in_another():
    """One layer more, of another shape, before all others. Seen to fail without the keyed draws: all after it moved."""
    without, with_layer = parameters(own("plain")), parameters(own("plain", extra=7))
    assert len(with_layer) == len(without) + 3
    assert all(torch.equal(p, with_layer[name]) for name, p in without.items())
    other = parameters(own("plain"), seed=1)
    drawn = [name for name, p in without.items() if p.std() > 0 and not (p == p.flatten()[0]).all()]
    assert len(drawn) > 10
    assert not any(torch.equal(without[name], other[name]) for name in drawn)
    assert all(torch.equal(p, q) for p, q in zip(without.values(), parameters(own("plain")).values(), strict=True))


def test_equal_shapes_do_not_start_equal():
    """Caught: a stream for each shape that begins anew with each draw."""
    p = parameters(own("plain"))
    layers = [p[f"inner.layers.{i}.0.bias"] for i in range(4)]
    assert not any(torch.equal(layers[0], other) for other in layers[1:])
    llama = parameters(own("llama"))
    q, k = (llama[f"inner.model.layers.0.self_attn.{n}_proj.weight"] for n in "qk")
    assert q.shape == k.shape and not torch.equal(q, k)


@pytest.mark.parametrize("name", ["plain", "llama"])
def test_building_and_counting_take_nothing_from_the_random_state(name):
    """Nor do they depend on it. Seen to fail without `fork_rng`."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = parameters(own(name), seed=3)
    cost(own(name, dropout=0.25))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(9)
    assert all(torch.equal(p, q) for p, q in zip(first.values(), parameters(own(name), 3).values(), strict=True))


INITS = [getattr(nn.init, f"{name}_") for name in (
    "uniform", "normal", "trunc_normal", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal",
    "orthogonal",
)]  # fmt: skip
DRAWS: dict[str, Callable[[], torch.Tensor]] = {
    **{f"init.{init.__name__}": lambda init=init: init(torch.empty(6, 5)) for init in INITS},
    **{
        name: lambda name=name: getattr(torch.empty(6, 5), name)()
        for name in ("normal_", "uniform_", "exponential_", "cauchy_", "log_normal_", "random_", "bernoulli_")
    },
    "geometric_": lambda: torch.empty(6, 5).geometric_(0.1),
    "randint_like": lambda: torch.randint_like(torch.empty(6, 5), 1000),
    "rand": lambda: torch.rand(6, 5),
    "randn": lambda: torch.randn((6, 5)),
    "randint": lambda: torch.randint(1000, (6, 5)),
    "randperm": lambda: torch.randperm(30),
    "normal": lambda: torch.normal(0.0, 1.0, (6, 5)),
    "normal of tensors": lambda: torch.normal(torch.zeros(6, 5), torch.ones(6, 5)),
    "normal of a number and a tensor": lambda: torch.normal(0.0, torch.ones(6, 5)),
    "rand into": lambda: torch.rand(6, 5, out=torch.empty(6, 5)),
    "poisson": lambda: torch.poisson(torch.full((6, 5), 9.0)),
    "bernoulli": lambda: torch.bernoulli(torch.full((6, 5), 0.5)),
    "multinomial": lambda: torch.multinomial(torch.ones(6, 5), 3),
    "rand_like": lambda: torch.rand_like(torch.empty(6, 5)),
    "randn_like": lambda: torch.randn_like(torch.empty(6, 5)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_every_way_to_draw_is_shifted_by_none_of_another_shape(name):
    """Seen to fail for each name that was taken out of the lists of `draws`."""
    draw = DRAWS[name]
    with shared_draws(1):
        alone = draw()
    with shared_draws(1):
        torch.randn(4)
        nn.Linear(3, 2)
        after, again = draw(), draw()
    with shared_draws(2):
        other = draw()
    assert torch.equal(alone, after)
    assert not torch.equal(after, again) and not torch.equal(alone, other)


def test_a_generator_of_ones_own_is_left_alone():
    with shared_draws(1):
        torch.rand(3)
        keyed = torch.rand(3)
    with shared_draws(1):
        torch.rand(3, generator=torch.Generator().manual_seed(0))
        torch.rand(3)
        assert torch.equal(torch.rand(3), keyed)


@pytest.mark.parametrize("name", ["plain", "llama", "asks"])
def test_the_cost_is_what_torchs_counter_says_on_a_cpu(name):
    """Also where it is counted without values. Caught: the forward pass alone; a pass in evaluation mode; FLOPs of the
    window for those of a token. `asks` looks at values, and is counted on the CPU."""
    config = own(name)
    model, tokens = build_model(config, 5).train(), torch.zeros(1, 24, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = model(tokens)
        forward = counter.get_total_flops()
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    assert forward > 0
    assert flops_per_token(config) == {"own": forward / 24}
    assert training_flops_per_token(config, passes=3.0, segments=2) == counter.get_total_flops() / 24
    assert counter.get_total_flops() > 2.5 * forward


def test_parameters_are_counted_and_tied_embeddings_once():
    """Caught: a tied head counted twice; positions, which no `nn.Embedding` holds, taken for an embedding."""
    for config in (own("llama"), own("plain"), own("plain", tied=True)):
        held = dict(build_model(config, 0).named_parameters())
        counts = parameter_counts(config)
        assert counts["total"] == sum(p.numel() for p in held.values()) == counts["embedding"] + counts["rest"]
        assert counts["embedding"] == BASE.vocab_size * BASE.d_model
    untied, tied = parameter_counts(own("plain")), parameter_counts(own("plain", tied=True))
    assert untied["total"] - tied["total"] == BASE.vocab_size * BASE.d_model


def test_a_cost_is_counted_once_for_each_configuration(monkeypatch):
    """`True` is not 1. Seen to fail: by the configuration itself as the key."""
    calls = []
    count = cost.__globals__["_count"]
    monkeypatch.setitem(cost.__globals__, "_count", lambda *given: calls.append(given) or count(*given))
    monkeypatch.setitem(cost.__globals__, "_COUNTED", {})
    for config in (own("plain", x=1), own("plain", x=True), own("plain", x=1)):
        cost(config)
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["plain", "llama"])
def test_a_tied_weight_is_in_the_state_once_and_stays_tied(name, tokens_BT):
    """Seen to fail without the hooks: safetensors refuses tensors that share memory, or the second name is missing."""
    import safetensors.torch

    config = own(name, tied=True)
    model, other = build_model(config, 0).double(), build_model(config, 1).double()
    assert len(model.second_names()) == 1
    state = safetensors.torch.load(safetensors.torch.save(dict(model.state_dict())))
    assert set(state) == {name for name, _ in model.named_parameters()}
    other.load_state_dict(state)
    assert len(other.second_names()) == 1
    assert torch.equal(model.eval()(tokens_BT), other.eval()(tokens_BT))
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({k: v for k, v in state.items() if "norm" not in k})


@pytest.mark.parametrize("name", ["plain", "llama"])
def test_a_batch_of_unequal_prompts_continues_as_each_alone(name):
    """Seen to fail: padding read as if it were text; only the last token read."""
    model = build_model(own(name), 0).eval()
    with torch.no_grad():  # far from its start, so that every token decides
        for p in model.parameters():
            p.mul_(5 if p.ndim > 1 else 1)
    prompts, greedy = [[5], [9, 2, 7, 30], [60, 60, 1]], Sampling(temperature=0)
    made = list(zip(*generate(model, prompts, 8, greedy), strict=True))
    for prompt, tokens in zip(prompts, made, strict=True):
        assert tokens == tuple(token for (token,) in generate(model, [prompt], 8, greedy))
        read = list(prompt)
        with torch.no_grad():
            for token in tokens:
                assert token == int(model(torch.tensor([read]))[0, -1].argmax())
                read.append(token)
    assert len({token for tokens in made for token in tokens}) > 2
    stopped = [row[0] for row in generate(model, prompts, 8, greedy, stop=made[0][2])]
    end = made[0].index(made[0][2]) + 1
    assert stopped == [*made[0][:end], *[None] * (len(stopped) - end)]
