"""Compiled training is the same mathematics: gradients, curves, resumes; where it cannot be had, that is said first."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from lahr.errors import ConfigError
from lahr.files import Folder
from lahr.model import LAHR, build_model
from lahr.training import compilation
from lahr.training.compilation import compile_parts, decide, unable
from lahr.training.loop import _Run, train
from lahr.training.runtime import Runtime, require
from lahr.training.watch import Watch

FULL = "mod+latent+memory"
COMPILED = Runtime(compile="on")


@pytest.fixture(scope="module")
def compiler():
    why = unable("cpu")
    if why:
        pytest.skip(f"nothing can be compiled on this machine: {why}")


def gradients(config, compiled):
    """Of a loss in float64, with projections that start at zero randomised, so that every parameter has one."""
    model = LAHR(config.model, seed=3).double()
    noise = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data = torch.randn(parameter.shape, generator=noise, dtype=torch.float64) * 0.1
    if compiled:
        compile_parts(model)
    tokens_BT = torch.randint(config.model.vocab_size, (4, 32), generator=noise)
    output = model(tokens_BT, tokens_BT.roll(-1, 1))
    output.loss.backward()
    return output.loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compiled_parts(model, **how):
    """Names of the parts whose forward pass is not their class's own."""
    compile_parts(model, **how)
    return {name for name, part in model.named_modules() if "forward" in part.__dict__}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("changes", [{"latent_capacity": 0.25}, {"mod_router": "threshold"}], ids=str)
def test_loss_and_gradients_are_those_of_the_code_as_written(compiler, tiny, changes):
    """In float64, to its rounding. Caught: a part that is compiled wrongly, or with another token's positions."""
    config = tiny(FULL)
    config = replace(config, model=replace(config.model, **changes))
    loss, plain = gradients(config, compiled=False)
    compiled_loss, compiled = gradients(config, compiled=True)
    assert float(compiled_loss) == pytest.approx(float(loss), abs=1e-12)
    assert plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, atol=1e-10, rtol=1e-8, msg=name)


def test_parts_whose_tokens_vary_in_number_stay_as_written(tiny):
    """Caught: a part that compiles anew in every step, or loses what it keeps beside its result."""
    full = tiny(FULL).model
    every = {"blocks.0", "blocks.1", "memory", "latent.core.0"}
    assert compiled_parts(LAHR(full)) == every
    assert compiled_parts(LAHR(replace(full, mod_router="threshold"))) == every - {"blocks.1"}
    assert compiled_parts(LAHR(full), capacity_varies=True) == every - {"blocks.1"}
    few = replace(full, latent_capacity=0.5)
    assert compiled_parts(LAHR(few)) == every
    assert compiled_parts(LAHR(replace(few, mod_router="threshold"))) == {"blocks.0", "memory"}
    assert compiled_parts(LAHR(replace(full, latent_halting="act"))) == every - {"latent.core.0"}
    knn = replace(full, memory_kind="knn", memory_slots=64)
    assert compiled_parts(LAHR(knn)) == {"blocks.1", "latent.core.0"}


@pytest.mark.timeout(600)
def test_a_model_of_ones_own_is_compiled_as_a_whole(compiler, tiny, tiny_data):
    """Caught: left as written; its logits looked at inside, where a wrong shape is no sentence."""
    config = tiny()
    config = replace(config, model=replace(config.model, build="tests.lahr.model.own_models:plain"))
    assert compiled_parts(build_model(config.model, 0)) == {"inner"}
    plain, compiled = (list(train(config, tiny_data, runtime)) for runtime in (Runtime(), COMPILED))
    for ours, theirs in zip(compiled, plain, strict=True):
        assert ours.metrics["train_loss"] == pytest.approx(theirs.metrics["train_loss"], abs=1e-3)


@pytest.mark.timeout(600)
def test_a_compiled_run_resumes_bit_for_bit_and_is_near_the_plain_one(compiler, tiny, tiny_data, tmp_path):
    """Caught: a warm-up that moves weights, thresholds or random states; evaluation that runs compiled code."""
    config = tiny(FULL)
    plain = list(train(config, tiny_data, Runtime()))
    whole = list(train(config, tiny_data, COMPILED, Folder.at(tmp_path / "whole")))
    interrupted = train(config, tiny_data, COMPILED, Folder.at(tmp_path / "cut"))
    while next(interrupted).step < 13:
        pass
    interrupted.close()
    resumed = list(train(config, tiny_data, COMPILED, Folder.at(tmp_path / "cut")))

    def curve(records):
        return [(r.step, r.pairing, r.metrics["train_loss"], r.metrics.get("val_loss")) for r in records]

    assert curve(resumed) == curve(whole)
    for ours, theirs in zip(whole, plain, strict=True):
        assert ours.pairing == theirs.pairing
        assert ours.metrics["train_loss"] == pytest.approx(theirs.metrics["train_loss"], abs=1e-3)


def test_evaluation_compiles_nothing(compiler, tiny, tiny_data):
    """Caught: every width of a causally routed batch compiled."""
    run = _Run(tiny(FULL), tiny_data, COMPILED, Watch())
    torch._dynamo.reset()
    counters.clear()
    run._evaluate(final=True)
    assert not counters["frames"]
    run._gradient(None, None)
    assert counters["frames"]["total"] > 0


def test_the_time_it_takes_to_compile_is_no_steps_own(compiler, tiny, tiny_data):
    """Caught: a first record whose rate is a hundredth of the next one's."""
    first, *_, last = train(tiny(), tiny_data, COMPILED)
    assert first.metrics["tokens_per_second"] > last.metrics["tokens_per_second"] / 10


def test_only_long_trials_are_compiled_unless_it_is_asked_for(compiler, tiny):
    """Caught: half a minute of compiling for a trial of a few."""
    short, long = tiny(), tiny(tokens=10**11)
    assert decide("auto", short, "cpu") == ("off", "")
    assert decide("auto", long, "cpu") == ("on", "")
    assert decide("on", short, "cpu") == ("on", "")
    assert decide("off", long, "cpu") == ("off", "")


def test_where_nothing_can_be_compiled_that_is_said_or_refused(tiny, monkeypatch):
    """Caught: a compiler that is missing found in the first step of a trial."""
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/nowhere/g++"))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    monkeypatch.setattr(compilation, "_tried", lambda x: x.cos() * 3 + 2)  # nothing that was compiled already
    decided, said = decide("auto", tiny(tokens=10**11), "cpu")
    assert decided == "off"
    assert "not compiled: " in said and "No working C++ compiler" in said
    assert "\n" not in said
    with pytest.raises(ConfigError, match=r"--compile on: .*No working C\+\+ compiler.*Debian: g\+\+"):
        decide("on", tiny(), "cpu")
    with pytest.raises(ConfigError, match=r"this worker cannot: .*; install a compiler .* --compile off"):
        require(tiny(), COMPILED)


def test_a_gpu_compiles_only_when_asked(tiny, monkeypatch):
    """A head without one included: its workers see for themselves. Caught: a cluster of GPUs refused at its start for
    what nobody asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert decide("auto", tiny(tokens=10**13), "cuda") == ("off", "")
    assert decide("on", tiny(), "cuda") == ("on", "")
