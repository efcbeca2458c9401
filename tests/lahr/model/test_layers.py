"""The transformer's parts: attention, positions, norms, and the precision they run in."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lahr.model import LAHR, layers
from lahr.model.layers import Attention, RMSNorm, Rotary, Window, attention_span, causal_attention, rotary_table
from lahr.model_config import ModelConfig


@pytest.mark.parametrize("length", [1, 5, 127, 128, 129, 300, 701, 2100])
def test_sliced_attention_equals_torchs_forward_and_backward(length):
    """Caught: the mask of a later slice without its offset; scores unscaled; heads in another order."""
    q, k, v = (torch.randn(2, 3, length, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    ours, torchs = causal_attention(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert (ours - torchs).abs().max() < 1e-12
    weight = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((torchs * weight).sum(), (q, k, v)),
        strict=True,
    ):
        assert (a - b).abs().max() < 1e-12


@given(length=st.integers(1, 5000))
def test_the_span_is_between_the_causal_half_and_the_whole_square(length):
    """Caught: spans summed over slices and not averaged over queries; slices without their upper bound."""
    span = attention_span(length)
    widest = min(max(length / 4 + 1, layers.LEAST_QUERIES), layers.MOST_QUERIES)
    assert (length + 1) / 2 <= span <= min(length, (length + widest) / 2)


@given(i=st.integers(0, 40), j=st.integers(0, 40), shift=st.integers(0, 20))
def test_a_product_of_rotated_vectors_depends_on_their_distance_alone(i, j, shift):
    """Caught: the sign of one of the two sines; angles that grow with the square of the position."""
    table = Rotary(*(t.double() for t in rotary_table(64, 8, 100.0)))
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def turned(x, position):
        return table.at(torch.tensor([position])).rotate(x)

    one = (turned(q, i) * turned(k, j)).sum()
    other = (turned(q, i + shift) * turned(k, j + shift)).sum()
    assert one == pytest.approx(float(other), abs=1e-5)  # the table is float32
    assert turned(q, i).norm() == pytest.approx(float(q.norm()), abs=1e-6)
    assert torch.equal(turned(q, 0), q)


@torch.no_grad()
def test_normalised_queries_and_keys_are_those_of_the_paper():
    """By hand: norms of each head's own channels, weighted, then turned. Caught: a norm over all heads' channels; after
    the turn; the weights exchanged; values normalised too."""
    T, D, H = 9, 12, 3
    attention, table = Attention(D, H, 1.0, qk_norm=True).double(), Rotary(*rotary_table(T, D // H, 100.0))
    for p in attention.parameters():
        p.copy_(torch.randn(p.shape, dtype=torch.float64))
    x_BTD = torch.randn(2, T, D, dtype=torch.float64)
    q, k, v = attention.qkv(x_BTD).view(2, T, 3, H, D // H).unbind(2)
    q, k = (x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
            for x, norm in ((q, attention.query_norm), (k, attention.key_norm)))  # fmt: skip
    q, k, v = (x.transpose(1, 2) for x in (table.rotate(q), table.rotate(k), v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, T, D)
    assert (attention(x_BTD, Window(table)) - attention.out(y)).abs().max() < 1e-12


def test_scores_of_normalised_queries_and_keys_do_not_grow_with_the_weights():
    """Caught: off whatever was asked for."""
    table, x_BTD = Rotary(*rotary_table(9, 4, 100.0)), torch.randn(2, 9, 12)
    for norm in (True, False):
        attention = Attention(12, 3, 1.0, qk_norm=norm)
        for p in attention.parameters():
            torch.nn.init.ones_(p) if p.ndim < 2 else torch.nn.init.normal_(p)
        before = attention(x_BTD, Window(table))
        with torch.no_grad():
            attention.qkv.weight[:24] *= 10  # queries and keys
        assert torch.allclose(attention(x_BTD, Window(table)), before, atol=1e-4) == norm


def test_queries_and_keys_are_normalised_in_fp32_and_attend_in_bf16():
    """Caught: the norm's products in bf16; keys in fp32 beside values in bf16."""
    config = ModelConfig(61, 32, 2, 4, 24, qk_norm=True)
    model, seen = LAHR(config), []

    class Seen(Window):
        def attend(self, qk_BT2HE, v_BTHE):
            seen.append((qk_BT2HE, v_BTHE.dtype))
            return super().attend(qk_BT2HE, v_BTHE)

    attention, x_BTD = model.blocks[0].attention, torch.randn(2, 24, 32)
    for p in attention.parameters():
        torch.nn.init.ones_(p) if p.ndim < 2 else torch.nn.init.normal_(p)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attention(x_BTD, Seen(Rotary(model.cos, model.sin)))
        qk_BT2HE = attention.qkv(x_BTD).view(2, 24, 3, 4, 8)[:, :, :2].float()
    ((found, values),) = seen
    assert found.dtype == values == torch.bfloat16
    exact = qk_BT2HE * torch.rsqrt(qk_BT2HE.square().mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(found, exact.bfloat16())


@given(value=st.floats(0.1, 100), width=st.integers(1, 50))
def test_the_norm_of_a_constant_is_one(value, width):
    """Caught: the sum of squares for their mean."""
    norm = RMSNorm(width).double()
    torch.nn.init.ones_(norm.weight)
    assert torch.allclose(
        norm(torch.full((width,), value, dtype=torch.float64)), torch.ones(width).double(), atol=1e-4
    )


def test_bf16_autocast_keeps_the_residual_stream_and_the_losses_in_fp32(cell, tokens_BT, targets_BT):
    """Caught: the branch's result in bf16 written to the stream."""
    model = LAHR(cell).train()
    streams = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, args: streams.append(args[0].dtype))
    model.norm.register_forward_pre_hook(lambda module, args: streams.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model(tokens_BT, targets_BT)
    wide = model(tokens_BT, targets_BT)
    assert set(streams) == {torch.float32}
    assert narrow.lm_loss.dtype == narrow.loss.dtype == torch.float32
    assert narrow.lm_loss.item() == pytest.approx(wide.lm_loss.item(), abs=0.02)
    narrow.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_in_bf16_every_parameter_learns_what_it_learns_in_fp32(variant, tokens_BT, targets_BT):
    """Also where the same weights ran without a gradient before: the exit gate's readouts, and passes before the last
    eight. Caught: scores of the router and of the exit in bf16, which tie; weights cast once under `no_grad`."""
    model = LAHR(variant).train()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    passes = 10 if variant.latent_mode == "sampled" else None
    gradients = []
    for narrow in (False, True):
        seen = []
        handles = [
            module.register_forward_hook(lambda module, given, result, seen=seen: seen.append(result))
            for name, module in model.named_modules()
            if name.endswith(("router", "exit"))
        ]
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = model(tokens_BT, targets_BT, passes=passes).loss
        for handle in handles:
            handle.remove()
        for result in seen:
            assert (result if torch.is_tensor(result) else result.scores_BT).dtype == torch.float32
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        gradients.append(dict(zip(names, found, strict=True)))
    for name, wide in gradients[0].items():
        assert gradients[1][name].norm() > 0.1 * wide.norm(), name


def test_branches_start_smaller_the_more_of_them_there_are(cells):
    """Radford et al. 2019: 1/√(2L), so that the stream starts at the same size. Caught: no scale."""
    for n in (2, 8):
        model = LAHR(replace(cells["latent"], n_layers=n, d_model=64, n_heads=4))
        for block in [*model.blocks, *model.latent.core]:
            for weight in (block.attention.out.weight, block.feed_forward.down.weight):
                assert float(weight.std()) * weight.shape[1] ** 0.5 == pytest.approx((2 * n) ** -0.5, rel=0.1)
            assert float(block.attention.qkv.weight.std()) * 8 == pytest.approx(1, rel=0.1)


def test_cross_entropy_is_in_fp32_whatever_the_logits(cells, tokens_BT, targets_BT):
    """Caught: cross-entropy over the logits as they come."""
    model = LAHR(cells["base"]).bfloat16()
    assert model(tokens_BT).dtype == torch.bfloat16
    assert model(tokens_BT, targets_BT).lm_loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("tokens", "targets", "routing", "words"),
    [
        (torch.zeros(1, 25, dtype=torch.int64), None, None, "25 tokens.*1 to 24"),
        (torch.zeros(1, 0, dtype=torch.int64), None, None, "0 tokens"),
        (torch.zeros(1, 4), None, None, "float32.*int64 or int32"),
        (torch.zeros(4, dtype=torch.int64), None, None, r"\(4,\).*\(B, T\)"),
        (torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64), None, "targets.*3.*4"),
        (torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4), None, "targets are torch.float32"),
        (torch.zeros(1, 4, dtype=torch.int64), None, "random", "'random'.*'topk' or 'causal'"),
    ],
)
def test_inputs_that_cannot_be_used_are_refused_with_what_is_allowed(tokens, targets, routing, words, cells):
    """Caught: each of the four checks removed in turn."""
    with pytest.raises(ValueError, match=words):
        LAHR(cells["base"])(tokens, targets, routing)


def test_the_loss_of_a_model_that_knows_nothing_is_the_logarithm_of_the_vocabulary(cells, tokens_BT, targets_BT):
    """Caught: the loss summed over tokens."""
    model = LAHR(cells["base"])
    with torch.no_grad():
        model.embedding.weight.zero_()
    assert model(tokens_BT, targets_BT).lm_loss.item() == pytest.approx(
        torch.log(torch.tensor(61.0)).item(), abs=1e-6
    )
