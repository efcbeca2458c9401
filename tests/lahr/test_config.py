"""Configurations as values: what is refused and how it is said, fingerprints, plain forms, the presets."""

import json
from dataclasses import asdict, fields, replace
from fractions import Fraction

import pytest

from lahr.config import DataConfig, TrainConfig, TrialConfig
from lahr.errors import ConfigError
from lahr.model_config import ModelConfig
from lahr.plain import canonical_json, changed, from_dict, read_field
from lahr.presets import PRESETS, preset
from lahr.probe_presets import PROBES

MODEL = ModelConfig(vocab_size=61, d_model=32, n_layers=4, n_heads=4, max_seq_len=24)
TRIAL = TrialConfig(MODEL, DataConfig(), TrainConfig(tokens=9_600, batch_size=4))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 0}, "model.vocab_size is 0; it must be at least 1"),
        ({"n_heads": 3}, r"model.n_heads is 3, which does not divide model.d_model 32; choose one of \[1, 2, 4"),
        ({"n_heads": 32}, "a head is 1 wide; rotary positions need an even width"),
        ({"d_ff": 0}, "model.d_ff is 0"),
        ({"mod_capacity": 0.0}, "mod_capacity is 0.0; it must be above 0 and at most 1"),
        ({"mod_capacity": 1.01}, "mod_capacity is 1.01; it must be above 0 and at most 1"),
        ({"mod_capacity": float("nan")}, "mod_capacity is nan"),
        ({"mod_capacity": 0.5, "n_layers": 1}, "routes every second block; model.n_layers is 1"),
        (
            {"mod_capacity": 0.01},
            "mod_capacity is 0.01, which is less than one token of 24 .*; give at least 0.042",
        ),
        ({"mod_z_loss": -1.0}, "mod_z_loss is -1.0; it must be 0"),
        ({"n_layers": 0}, "model.n_layers is 0; it must be at least 1, or 0 with a latent core"),
        ({"latent_iterations": -1}, "latent_iterations is -1; it must be 0"),
        ({"latent_iterations": 2, "latent_core_layers": 5}, "latent_core_layers is 5; it must be 1 to 4"),
        ({"latent_iterations": 2, "latent_layer": 5}, "latent_layer is 5; it must be 0 to 4"),
        ({"latent_iterations": 1, "latent_capacity": 0.5}, "beyond the first, and latent_iterations is 1"),
        ({"latent_iterations": 2, "latent_capacity": 0.0}, "latent_capacity is 0.0; it must be above 0"),
        (
            {"latent_iterations": 2, "latent_capacity": 0.02},
            "latent_capacity is 0.02, which is less than one token",
        ),
        ({"latent_iterations": 2, "latent_halting": "act", "latent_capacity": 0.5}, "both decide which"),
        ({"latent_iterations": 2, "latent_halting": "gate"}, "latent_mode is 'fixed'.*give latent_mode sampled"),
        (
            {"latent_iterations": 2, "latent_halting": "gate", "latent_mode": "sampled", "latent_layer": 2},
            "latent_layer is 2.*leave latent_layer out",
        ),
        ({"latent_iterations": 2, "latent_halting": "act", "latent_mode": "sampled"}, "give latent_mode fixed"),
        ({"latent_iterations": 1, "latent_halting": "act"}, "latent_halting is 'act' and latent_iterations is 1"),
        ({"latent_iterations": 1, "latent_mode": "sampled"}, "latent_mode is 'sampled' and latent_iterations is 1"),
        ({"latent_iterations": 2, "latent_exit": 0.0}, "latent_exit is 0.0; it is a probability"),
        ({"latent_iterations": 2, "latent_ponder": -1.0}, "latent_ponder is -1.0"),
        ({"memory_slots": 128, "memory_kind": "slots", "memory_top_k": 129}, "memory_top_k is 129; .*1 to 128"),
        (
            {"memory_slots": 64, "memory_kind": "knn", "memory_layer": 1},
            "memory_layer is 1, which Mixture-of-Depths",
        ),
        ({"memory_slots": 64, "memory_kind": "knn", "memory_layer": 4}, "memory_layer is 4; it must be 0 to 3"),
        ({"memory_slots": -4}, "memory_slots is -4"),
        ({"memory_slots": 128}, "memory_slots is 128; product keys need a square number, such as 121 or 144"),
        ({"memory_slots": 16}, "memory_top_k is 8; with 16 slots it must be 1 to 4"),
        ({"memory_slots": 256, "memory_key_dim": 5}, "memory_key_dim is 5; it must be even"),
        ({"memory_slots": 256, "memory_heads": 0}, "memory_heads is 0"),
        ({"memory_slots": 256, "memory_layer": 5}, "memory_layer is 5; it must be 0 to 4"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        replace(MODEL, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens": 0}, "train.tokens is 0"),
        ({"batch_size": 0}, "train.batch_size is 0"),
        ({"lr": 0.0}, "train.lr is 0.0; it must be above 0"),
        ({"lr": float("inf")}, "train.lr is inf"),
        ({"warmup": 1.5}, "train.warmup is 1.5; it is a share of the steps"),
        ({"final_lr": -0.1}, "train.final_lr is -0.1"),
        ({"weight_decay": -1.0}, "train.weight_decay is -1.0"),
        ({"beta2": 1.0}, "train.beta2 is 1.0"),
        ({"ema": 1.0}, "train.ema is 1.0; it is a decay, 0"),
        ({"clip_norm": 0.0}, "train.clip_norm is 0.0"),
        ({"evaluations": 0}, "train.evaluations is 0"),
        ({"decay": 0.0}, "train.decay is 0.0"),
        ({"schedule": "wsd", "warmup": 0.5, "decay": 0.6}, "more than the whole run"),
        ({"decayed_points": 2}, "train.decayed_points branches decays off a constant rate"),
    ],
)
def test_a_training_that_cannot_be_run_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        replace(TRIAL.train, **changes)


def test_a_trial_needs_at_least_one_batch_and_drops_the_rest():
    with pytest.raises(ConfigError, match="fewer than one batch of 4 x 24 = 96 tokens"):
        replace(TRIAL, train=replace(TRIAL.train, tokens=95))
    assert replace(TRIAL, train=replace(TRIAL.train, tokens=96 * 3 - 1)).steps == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": DataConfig(segments=8)}, "train.batch_size is 4, which is no whole number of rows of 8"),
        (
            {"model": replace(MODEL, memory_slots=64, memory_kind="knn")},
            "memory_kind is 'knn' and data.segments is 1.*give data.segments of 2 or more",
        ),
    ],
)
def test_a_trial_whose_parts_do_not_fit_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        replace(TRIAL, **changes)


def wsd(steps: int, **given: object) -> TrialConfig:
    """A trial of so many steps that decays in half of them, its warm-up two."""
    train = TrainConfig(steps * TRIAL.tokens_per_step, TRIAL.train.batch_size, schedule="wsd")
    return replace(TRIAL, train=replace(train, **{"decay": 0.5, "warmup": 2 / steps, **given}))


def test_the_decayed_points_are_evenly_spaced_and_leave_the_constant_rate_in_time():
    """Caught: horizons at j/n, the last of which is the run's own end, and starts by the whole run's decay."""
    assert wsd(40).branches == {}
    assert wsd(40, decayed_points=1).branches == {10: 20}
    assert wsd(40, decayed_points=3).branches == {5: 10, 10: 20, 15: 30}
    assert wsd(40, decayed_points=3, decay=0.1).branches == {9: 10, 18: 20, 27: 30}
    assert wsd(10, decayed_points=2, decay=0.01).branches == {2: 3, 6: 7}  # a decay has one step at least


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"decayed_points": 9}, r"train.decayed_points is 9: .* at steps \[2, 4, 6\].*not before step 5"),
        ({"decayed_points": 3, "decay": 0.8}, r"train.decayed_points is 3: .*at steps \[2, 4, 6\]"),
        ({"decayed_points": 39, "decay": 0.1, "warmup": 0.0}, r"each needs a start of its own, not before step 1"),
        ({"decayed_points": 9, "decay": 0.8, "warmup": 0.0}, r"is 9: .*at steps \[1, 2, 3\], .*raise train.tokens"),
        ({"decayed_points": 100, "warmup": 0.0}, "train.decayed_points is 100"),
    ],
)
def test_a_point_that_would_decay_within_the_warm_up_is_refused(given, said):
    """Also two that would start at the same step, and one before the first. Caught: each without the check."""
    warmup = {"warmup": 5 / 40, **given}
    with pytest.raises(ConfigError, match=said):
        wsd(40, **warmup)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"segments": 0}, "data.segments is 0"),
        ({"segments": 3}, "data.validation_blocks is 128, which is no whole number of rows of 3"),
        ({"validation_blocks": 0}, "data.validation_blocks is 0"),
        ({"corpus": " "}, "data.corpus is empty"),
    ],
)
def test_data_that_cannot_be_read_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        DataConfig(**given)


def test_defaults_are_those_of_the_paper_of_each_part():
    assert MODEL.hidden_dim == 8 * 32 // 3
    assert MODEL.routed_layers == ()
    assert replace(MODEL, mod_capacity=0.5).routed_layers == (1, 3)
    assert MODEL.memory_position == 2
    assert replace(MODEL, memory_layer=0).memory_position == 0
    assert replace(MODEL, memory_kind="slots").memory_position == 0
    assert [replace(MODEL, memory_kind="knn", n_layers=n).memory_position for n in (1, 2, 4, 6, 10)] == [
        0,
        0,
        2,
        2,
        4,
    ]
    assert (MODEL.memory_reads, replace(MODEL, memory_kind="knn").memory_reads) == (8, 32)
    assert (MODEL.latent_position, replace(MODEL, latent_layer=2).latent_position) == (4, 2)


def test_a_configuration_survives_json_and_a_wrong_one_is_named():
    plain = json.loads(json.dumps(asdict(TRIAL)))
    assert from_dict(TrialConfig, plain) == TRIAL
    for change, said in (
        (lambda p: p["model"].update(d_modell=3), r"unknown field 'model.d_modell' \(did you mean 'd_model'\?\)"),
        (lambda p: p["model"].update(d_model="3"), "model.d_model is '3'; it must be a whole number"),
        (lambda p: p["model"].update(d_model=True), "model.d_model is True; it must be a whole number"),
        (lambda p: p["train"].update(lr=None), "train.lr is None; it must be a number"),
        (lambda p: p["model"].update(mod_gate="x"), "model.mod_gate is 'x'; it must be one of sigmoid, raw"),
        (lambda p: p.update(data=3), "data is 3; it must be a mapping"),
        (lambda p: p["train"].pop("tokens"), "missing train.tokens"),
    ):
        wrong = json.loads(json.dumps(plain))
        change(wrong)
        with pytest.raises(ConfigError, match=said):
            from_dict(TrialConfig, wrong)


def test_the_fingerprint_names_the_configuration_and_the_content_and_never_the_path():
    own = TRIAL.fingerprint("content")
    assert len(own) == 12
    elsewhere = replace(TRIAL.data, corpus="elsewhere.txt", text_column="t", tokenizer="there/tokenizer.json")
    assert replace(TRIAL, data=elsewhere).fingerprint("content") == own
    on = replace(MODEL, mod_capacity=0.5, latent_iterations=2, latent_capacity=0.5, memory_slots=256)
    full = replace(TRIAL, model=on)
    others = {
        TRIAL.fingerprint("other"),
        replace(TRIAL, seed=1).fingerprint("content"),
        replace(TRIAL, precision="bf16").fingerprint("content"),
        replace(TRIAL, train=replace(TRIAL.train, lr=2e-3)).fingerprint("content"),
        full.fingerprint("content"),
        *(
            replace(full, model=replace(on, **{f.name: _other(on, f.name)})).fingerprint("content")
            for f in fields(on)
            if f.name
            not in ("latent_halting", "latent_exit", "latent_ponder", "options")  # the others need the first
            and f.name not in ("thoughts", "thought_token")  # which no other mechanism goes with
        ),
        *(
            replace(TRIAL, model=replace(MODEL, thoughts=arm, thought_token=token)).fingerprint("content")
            for arm, token in (("pause", 1), ("sequential", 1), ("recycled", 1), ("recycled", 2), ("blank", 1))
        ),
        replace(full, model=replace(on, build="a.b:c", options={"x": 1})).fingerprint("content"),
        replace(full, model=replace(on, build="a.b:c", options={"x": True})).fingerprint("content"),
    }
    assert len(others) == 5 + len(fields(on)) - 6 + 5 + 2
    assert own not in others


def test_the_settings_of_a_mechanism_that_is_off_do_not_enter_the_fingerprint():
    """So that a baseline is one trial, whatever the cells beside it are. Seen to fail without `settled`."""
    odd = {"mod_router": "random", "latent_halting": "act", "latent_core_layers": 2, "memory_heads": 2}
    assert replace(TRIAL, model=replace(MODEL, **odd)).fingerprint("c") == TRIAL.fingerprint("c")
    routed = replace(MODEL, latent_iterations=2, latent_capacity=0.5, mod_router="random")
    assert routed.settled() == routed  # the core's router has these settings too
    assert replace(MODEL, memory_slots=256, memory_heads=2).settled().memory_heads == 2
    assert replace(MODEL, thought_token=1).settled() == MODEL.settled()


def test_keys_enter_the_seed_of_all_draws_and_nothing_else():
    """Seen to fail: keys hashed without the seed, so that blocks were alike; and keys left out of the fingerprint."""
    assert replace(TRIAL, seed=5).drawn_seed == 5
    keyed = replace(TRIAL, keys={"b": 1, "c": "on"})
    assert keyed.drawn_seed == replace(TRIAL, keys={"c": "on", "b": 1}).drawn_seed
    others = [TRIAL, keyed, replace(keyed, seed=1), replace(keyed, keys={"b": 1}), replace(keyed, keys={"b": "1"})]
    assert len({other.drawn_seed for other in others}) == len({o.fingerprint("c") for o in others}) == len(others)
    assert all(0 <= other.drawn_seed < 2**63 for other in others)
    assert from_dict(TrialConfig, json.loads(json.dumps(asdict(keyed)))) == keyed
    assert hash(keyed) == hash(replace(keyed))


def test_keys_are_a_copy():
    given = {"b": 1}
    keyed = replace(TRIAL, keys=given)
    given["b"] = 2
    assert keyed.keys == {"b": 1}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"b": float("nan")}, "keys.b is nan; it must be a finite number"),
        ({"b": [1]}, r"keys.b is \[1\]; it must be a finite number, text"),
        ({"b c": 1}, "keys has the name 'b c'"),
    ],
)
def test_a_key_without_a_stable_identity_is_refused(keys, said):
    with pytest.raises(ConfigError, match=said):
        replace(TRIAL, keys=keys)


def test_a_mapping_that_is_none_is_named():
    for value in ([1], 3, {"b": [1]}):
        with pytest.raises(
            ConfigError, match=r"keys is .*; it must be a mapping of names, each to a whole number or"
        ):
            from_dict(TrialConfig, {**asdict(TRIAL), "keys": value})


def test_settings_that_decide_nothing_do_not_make_another_model():
    """Caught: the exit gate's threshold without a gate; a place that is the default one; a kNN memory's key width."""
    core, memory = replace(MODEL, latent_iterations=2), replace(MODEL, memory_slots=256)
    knn = replace(memory, memory_kind="knn")
    gate = replace(core, latent_mode="sampled", latent_halting="gate")
    for model, idle, telling in (
        (core, {"latent_exit": 0.9, "latent_ponder": 1.0, "latent_layer": 4}, {"latent_layer": 3}),
        (gate, {"latent_ponder": 1.0}, {"latent_exit": 0.9}),
        (memory, {"memory_layer": 2, "memory_top_k": 8}, {"memory_layer": 1}),
        (knn, {"memory_heads": 2, "memory_key_dim": 7, "memory_top_k": 32}, {"memory_top_k": 8}),
        (MODEL, {"d_ff": 85}, {"d_ff": 86}),
    ):
        for name, value in idle.items():
            assert replace(model, **{name: value}).settled() == model.settled(), name
        for name, value in telling.items():
            assert replace(model, **{name: value}).settled() != model.settled(), name


def test_a_model_of_ones_own_keeps_every_setting_and_lahr_none_of_its_options():
    """Nobody knows what its function reads. Seen to fail: settled like LAHR's."""
    odd = replace(MODEL, mod_router="random", d_ff=85, memory_layer=2, options={"width": 3})
    own = replace(odd, build="a.b:c")
    assert own.settled() == own
    assert odd.settled() == MODEL.settled()
    assert hash(own) == hash(replace(own))
    assert from_dict(ModelConfig, json.loads(json.dumps(asdict(own)))) == own
    assert replace(own, options={"width": 4}) != own


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"x": float("inf")}, "model.options.x is inf; it must be a finite number"),
        ({"x": (1,)}, r"model.options.x is \(1,\); it must be"),
        ({"x.y": 1}, "model.options has the name 'x.y'"),
    ],
)
def test_an_option_without_a_stable_identity_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        replace(MODEL, build="a.b:c", options=options)


def test_levels_and_words_reach_single_options():
    """So that a study has factors of them. Caught: the other options lost."""
    own = replace(MODEL, build="a.b:c", options={"width": 3, "deep": False})
    other = changed(own, {"options.deep": True, "options.depth": 2, "d_model": 64})
    assert other == replace(own, d_model=64, options={"width": 3, "deep": True, "depth": 2})
    words = {"3": 3, "0.5": 0.5, "true": True, "none": None, "relu": "relu"}
    found = {text: read_field(ModelConfig, "options.x", text) for text in words}
    assert repr(found) == repr(words)
    with pytest.raises(ConfigError, match=r"unknown field 'opts\.x'"):
        read_field(ModelConfig, "opts.x", "3")


def _other(config: ModelConfig, name: str) -> object:
    """A valid value of a model's field that is not `config`'s."""
    special = {
        "mod_capacity": 0.25,
        "mod_router": "random",
        "mod_gate": "raw",
        "mod_balance_loss": 0.1,
        "mod_z_loss": 0.1,
        "latent_mode": "sampled",
        "latent_layer": 1,
        "latent_exit": 0.25,
        "latent_capacity": 0.25,
        "memory_slots": 289,
        "memory_kind": "slots",
        "memory_top_k": 3,
        "d_ff": 7,
        "memory_layer": 1,
        "build": "a.b:c",
    }
    value = getattr(config, name)
    return special[name] if name in special else value + 1.0 if isinstance(value, float) else (value or 1) * 2


def test_a_value_without_a_stable_identity_raises():
    for value in (Fraction(1, 3), {1, 2}, float("nan"), object()):
        with pytest.raises((TypeError, ValueError)):
            canonical_json({"x": value})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_model_in_every_cell(name):
    chosen = preset(name)
    full = changed(chosen.model, chosen.on)
    assert full.mod_capacity < 1 and full.latent_iterations > 0 and full.memory_slots > 0
    trial = TrialConfig(full, chosen.data, chosen.train)
    assert trial.steps >= 50
    assert chosen.train.evaluations <= trial.steps


def test_the_presets_have_the_shapes_of_the_readme():
    shapes = {
        name: (p.model.d_model, p.model.n_layers, p.model.n_heads, p.model.max_seq_len, p.model.vocab_size)
        for name, p in PRESETS.items()
        if name not in PROBES
    }
    assert shapes == {
        "smoke": (64, 2, 2, 128, 512),
        "quick": (128, 4, 4, 256, 1024),
        "small": (384, 10, 6, 512, 4096),
        "paper": (256, 8, 8, 512, 50257),
        "base": (768, 12, 12, 1024, 50257),
    }


def test_an_unknown_preset_or_level_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown preset 'smal' \(did you mean 'small'\?\)"):
        preset("smal")
    with pytest.raises(ConfigError, match=r"unknown field 'memory_slot' \(did you mean 'memory_slots'\?\)"):
        changed(MODEL, {"memory_slot": 4})
