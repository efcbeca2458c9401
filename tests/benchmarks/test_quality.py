"""Our plain transformer is a Llama: with its weights, that of `transformers` gives the same logits and the same loss.

The environment that CI builds has no `transformers`, so all but two tests skip there; `pip install -e .[bench]`.
"""

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lahr.config import TrialConfig
from lahr.data import TokenData
from lahr.errors import ConfigError
from lahr.model import LAHR
from lahr.model.layers import rotary_table
from lahr.model_config import ModelConfig

SPEC = importlib.util.spec_from_file_location("quality", Path(__file__).parents[2] / "benchmarks" / "quality.py")
assert SPEC and SPEC.loader
quality = sys.modules.setdefault("quality", importlib.util.module_from_spec(SPEC))
SPEC.loader.exec_module(quality)

# 160 positions are more than one slice of queries.
SHAPE = ModelConfig(vocab_size=67, d_model=32, n_layers=3, n_heads=4, max_seq_len=160, d_ff=56, rope_theta=5_000.0)
TOKENS_BT = torch.randint(67, (3, 160), generator=torch.Generator().manual_seed(0))

Tiny = Callable[..., TrialConfig]


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip(
        "transformers", reason="transformers is in the extra `bench` alone, which CI's environment leaves out"
    )


def pair(dtype: torch.dtype) -> tuple[LAHR, Any]:
    """Both models with the same weights, none of them at one or symmetric, so that a mix-up shows."""
    ours, theirs = LAHR(SHAPE, seed=3).to(dtype).eval(), quality.llama(SHAPE, seed=4).to(dtype).eval()
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=dtype))
    quality.copy_weights(ours, theirs)
    return ours, theirs


def test_logits_are_those_of_a_llama(transformers: Any) -> None:
    ours, theirs = pair(torch.float32)
    assert ours(TOKENS_BT).std() > 0.3
    assert quality.logits_apart(ours, theirs, TOKENS_BT) < 1e-5


def test_logits_are_those_of_a_llama_in_double_precision(
    transformers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms and rotary angles, which transformers computes in fp32 whatever the model's type, by torch and our table;
    the test above has them as they are."""
    llama = transformers.models.llama.modeling_llama

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)

    def angles(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sin = table.sin * torch.where(torch.arange(SHAPE.head_dim) < SHAPE.head_dim // 2, -1, 1)  # ours has signs
        return table.cos[position_ids].to(x.dtype), sin[position_ids].to(x.dtype)

    table = rotary_table(SHAPE.max_seq_len, SHAPE.head_dim, SHAPE.rope_theta)
    monkeypatch.setattr(llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(llama.LlamaRotaryEmbedding, "forward", angles)
    ours, theirs = pair(torch.float64)
    assert quality.logits_apart(ours, theirs, TOKENS_BT) < 1e-12


def test_both_loops_end_at_the_same_loss(transformers: Any, tiny: Tiny, tiny_data: TokenData) -> None:
    config = tiny(seed=1, clip_norm=0.5, weight_decay=1.0, lr=1e-2)
    theirs = quality.llama(config.model, seed=0)
    quality.copy_weights(LAHR(config.model, seed=1), theirs)
    steps = [0, 0]

    def counted(which: int) -> Any:
        def advance(n: int) -> None:
            steps[which] += n

        return advance

    ours = quality.train_ours(config, tiny_data, counted(0))
    assert ours.loss == pytest.approx(quality.train_llama(theirs, config, tiny_data, counted(1)).loss, abs=2e-5)
    assert ours.loss < math.log(config.model.vocab_size) - 0.3
    assert steps == [config.steps, config.steps]


def test_the_weights_that_start_a_llama_are_its_own(transformers: Any) -> None:
    theirs = quality.llama(SHAPE, seed=4)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in LAHR(SHAPE).parameters())
    matrices = torch.cat([p.flatten() for p in theirs.parameters() if p.ndim == 2])
    assert float(matrices.detach().std()) == pytest.approx(0.02, rel=0.02)


def test_a_mechanism_is_refused(transformers: Any) -> None:
    with pytest.raises(ConfigError, match="mod is on"):
        quality.llama(ModelConfig(67, 32, 2, 4, 16, mod_capacity=0.5), seed=0)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install -e \.\[bench\]"):
        quality.llama(SHAPE, seed=0)


def test_the_interval_is_students() -> None:
    mean, low, high = quality.interval([1.0, 2.0, 3.0])
    assert (mean, high - mean) == (pytest.approx(2), pytest.approx(4.302653 / math.sqrt(3)))
    assert mean - low == pytest.approx(high - mean)
