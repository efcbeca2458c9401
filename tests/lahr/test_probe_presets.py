"""Presets of probes: each prepares, trains with and without its mechanism, and is small."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer

from lahr.config import TrialConfig
from lahr.data import preparation, prepare
from lahr.data.prosqa import THOUGHT, settings
from lahr.model.flops import parameter_counts
from lahr.plain import changed
from lahr.presets import preset
from lahr.probe_presets import PROBES
from lahr.training.loop import train
from lahr.training.runtime import Runtime

MECHANISM = {
    "facts": "memory_slots",
    "segments": "memory_slots",
    "swaps": "latent_iterations",
    "hops": "latent_iterations",
    "trees": "latent_iterations",
    "selective": "mod_capacity",
}
"""Probe → the field of the mechanism that it is for."""
ARMS = ("pause", "sequential", "blank", "recycled")


@pytest.fixture(autouse=True)
def few_validation_tokens(monkeypatch):
    monkeypatch.setattr(preparation, "LEAST_VALIDATION_TOKENS", 1 << 12)


def test_every_probe_has_a_mechanism_or_arms():
    assert set(PROBES) == {*MECHANISM, "prosqa"}


@pytest.mark.parametrize("name", PROBES)
def test_a_step_of_each_cell(name, tmp_path):
    """On the corpus that the preset names. Caught: a vocabulary that is one word short; rows shorter than a document;
    a batch that is no whole number of rows."""
    found = preset(name)
    data = replace(found.data, train_tokens=30_000, validation_blocks=8)
    if name == "prosqa":
        data = replace(data, corpus="prosqa:questions=20")
    if name in MECHANISM:
        field = MECHANISM[name]
        models = [found.model, changed(found.model, {field: found.on[field]})]
    else:
        models = [changed(found.model, {"thoughts": arm}) for arm in ARMS]
    assert all(parameter_counts(model)["total"] < 1_000_000 for model in models)
    tokens = prepare(data, found.model.vocab_size, found.model.max_seq_len, tmp_path)
    losses, flops = [], []
    for model in models:
        config = TrialConfig(model, found.data, found.train)
        assert config.steps >= 100
        one_step = replace(
            config,
            data=data,
            # Without the warm-up of the capacity, in whose first step nothing is routed.
            train=replace(found.train, tokens=config.tokens_per_step, evaluations=1, capacity_warmup=0.0),
        )
        (record,) = train(one_step, tokens, Runtime())
        assert record.status == "finished" and "accuracy" in record.metrics
        losses.append(record.metrics["train_loss"])
        flops.append(record.flops)
    if name == "prosqa":
        assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len({round(x, 6) for x in losses[1:]}) == 3
    else:  # some mechanisms start as nothing, but none is for nothing
        assert flops[0] != flops[1]


def test_the_token_of_thoughts_is_theirs(tmp_path):
    found = preset("prosqa")
    data = replace(found.data, corpus="prosqa:questions=4", validation_blocks=8)
    tokens = prepare(data, found.model.vocab_size, found.model.max_seq_len, tmp_path)
    tokenizer = Tokenizer.from_file(str(tokens.tokenizer_path))
    assert tokenizer.token_to_id(THOUGHT) == found.model.thought_token
    # All stages of the preset's own questions fit into the tokens that it prepares.
    questions, n = settings(found.data.corpus).questions, len(tokens.train) // tokens.stages
    assert n == 4
    longest = tokens.train.split.longest_question
    assert tokens.stages * questions * longest < 1.1 * found.data.train_tokens
