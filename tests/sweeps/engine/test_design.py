"""A design is a value: cells, names, fingerprints and what belongs to its identity."""

import json
import time
from dataclasses import replace

import pytest

from lahr.errors import ConfigError
from sweeps.engine.budget import at_equal_flops, at_equal_time
from sweeps.engine.design import Design, differences
from sweeps.engine.factors import Extra, Factor
from tests.conftest import CELLS, LEVELS

OFF = {"mod_capacity": 1.0, "latent_iterations": 0, "memory_slots": 0}


def test_the_eight_cells_in_order_and_what_is_on(make_design):
    cells = make_design().cells()
    assert tuple(cell.name for cell in cells) == CELLS
    for cell in cells:
        on = set() if cell.name == "base" else set(cell.name.split("+"))
        assert cell.levels == {
            f"model.{field}": level if name in on else OFF[field]
            for name in LEVELS
            for field, level in LEVELS[name].items()
        }
        assert cell.tested


def test_trials_come_block_by_block_with_unique_ids(make_design):
    design = make_design(seeds=3)
    trials = design.trials()
    assert [trial.seed for trial in trials] == [seed for seed in range(3) for _ in range(8)]
    assert len({trial.id for trial in trials}) == 24
    for trial in trials:
        assert trial.id == f"{trial.cell}-s{trial.seed}-{trial.config.fingerprint(design.content_hash)}"
        levels = {k: v for name in trial.cell.split("+") if name != "base" for k, v in LEVELS[name].items()}
        assert all(getattr(trial.config.model, name) == level for name, level in levels.items())
        assert trial.flops > 0


def test_more_seeds_add_blocks_and_change_nothing_else(make_design):
    few, many = make_design(seeds=2), make_design(seeds=4)
    assert many.trials()[:16] == few.trials()
    assert few.digest() == many.digest()


def test_further_levels_are_cells_beside_the_corners(make_design):
    factors = (Factor("mod", "model.mod_capacity", (1.0, 0.25, 0.5), switch=True), *make_design().factors[1:])
    design = make_design(factors=factors)
    assert len(design.cells()) == 12
    assert tuple(cell.name for cell in design.cells() if cell.tested) == CELLS
    beside = {cell.name: cell.levels["model.mod_capacity"] for cell in design.cells() if not cell.tested}
    assert beside == dict.fromkeys(("mod=0.5", "mod=0.5+latent", "mod=0.5+memory", "mod=0.5+latent+memory"), 0.5)
    # The corners' trials are the same ones: another sweep's can be taken over.
    corners = {trial.id for trial in design.trials() if "=" not in trial.cell}
    assert corners == {trial.id for trial in make_design().trials()}


def test_the_fingerprint_sees_every_setting_and_the_data_but_no_path(make_design, tiny):
    config = tiny("mod")
    prints = {
        config.fingerprint("a"),
        config.fingerprint("b"),
        replace(config, seed=1).fingerprint("a"),
        replace(config, precision="bf16").fingerprint("a"),
        replace(config, train=replace(config.train, lr=0.5)).fingerprint("a"),
        tiny("latent").fingerprint("a"),
    }
    assert len(prints) == 6
    elsewhere = replace(config, data=replace(config.data, corpus="other/place.txt"))
    assert elsewhere.fingerprint("a") == config.fingerprint("a")


def test_a_fingerprint_of_a_value_without_identity_raises(tiny):
    config = tiny()
    object.__setattr__(config.train, "lr", object())
    try:
        with pytest.raises(TypeError):
            config.fingerprint("a")
    finally:
        object.__setattr__(config.train, "lr", 3e-3)


def test_a_design_survives_json_and_names_its_differences(make_design):
    design = make_design()
    again = Design.from_dict(json.loads(json.dumps(design.to_dict())))
    assert again == design
    other = replace(design, config=replace(design.config, train=replace(design.config.train, lr=0.5)))
    assert differences(design, other) == ["config.train.lr: 0.003 here, 0.5 there"]
    assert other.digest() != design.digest()


@pytest.mark.parametrize(
    ("on", "said"),
    [
        ((), "takes two at least"),
        ((0.25, 0.25), "has equal levels: 1.0, 0.25, 0.25; give each once"),
        ((1.0,), "equal levels: 1.0, 1.0; .* turns it off"),
        ((1.5,), "at most 1"),
        ((-0.1,), "above 0"),
    ],
)
def test_levels_that_make_no_design_are_refused(make_design, on, said):
    with pytest.raises(ConfigError, match=said):
        make_design(factors=(Factor("mod", "model.mod_capacity", (1.0, *on), switch=True),))


def test_an_extra_cell_is_a_corner_with_options_at_other_values(make_design):
    """Caught: options of the base cell; the corner's own trial changed; a cell counted among the corners."""
    extras = tuple(map(Extra.parse, ("mod:mod_router=random", "mod+latent:latent_core_layers=2,mod_gate=raw")))
    design = make_design(extras=extras)
    assert [cell.name for cell in design.cells()[8:]] == [
        "mod~mod_router=random",
        "mod+latent~latent_core_layers=2~mod_gate=raw",
    ]
    assert not any(cell.tested for cell in design.cells()[8:])
    trials = {trial.cell: trial for trial in design.trials() if trial.seed == 0}
    plain = {trial.cell: trial for trial in make_design().trials() if trial.seed == 0}
    assert all(trials[name] == trial for name, trial in plain.items())
    router = trials["mod~mod_router=random"]
    assert router.config == replace(
        plain["mod"].config, model=replace(plain["mod"].config.model, mod_router="random")
    )
    assert router.id.startswith("mod~mod_router=random-s0-")
    assert trials["mod+latent~latent_core_layers=2~mod_gate=raw"].flops > plain["mod+latent"].flops
    assert design.digest() != make_design().digest()
    assert Design.from_dict(json.loads(json.dumps(design.to_dict()))) == design


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mod", "'mod' is not of the form cell:field=value"),
        ("mod:mod_router", "is not of the form"),
        (":mod_router=random", "is not of the form"),
        ("mod:mod_ruter=random", "unknown field 'mod_ruter' .did you mean 'mod_router'"),
        ("mod:mod_router=rondom", "mod_router is 'rondom'; it must be one of top_k, threshold, random"),
        ("mod:mod_z_loss=much", "mod_z_loss is 'much'; it must be a number"),
        ("modd:mod_gate=raw", "names the cell 'modd' .did you mean 'mod'"),
        ("base:mod_gate=raw", "base~mod_gate=raw changes nothing: in base model.mod_gate decides nothing"),
        ("mod:mod_gate=sigmoid", "changes nothing"),
        ("base:vocab_size=100", "sets model.vocab_size, which would change the data that the cell reads"),
        ("base:max_seq_len=16", "sets model.max_seq_len, which would change the data"),
        ("mod:mod_capacity=1", "cells base and mod~mod_capacity=1.0 are the same configuration"),
        ("mod:train.lrr=1", "unknown field 'lrr' .did you mean 'lr'"),
        ("mod:data.segments=2", "sets data.segments, which would change the data"),
        ("mod:precision.x=2", "fields of an extra cell begin with model or train"),
        ("latent:latent_exit=0.9", "changes nothing"),
        ("memory:memory_layer=1", "changes nothing"),
        ("latent:latent_halting=gate", "latent_halting is 'gate' and latent_mode is 'fixed'"),
        ("memory:memory_kind=knn", "memory_kind is 'knn' and data.segments is 1"),
    ],
)
def test_an_extra_cell_that_makes_no_sense_is_refused(text, said, make_design):
    with pytest.raises(ConfigError, match=said):
        make_design(extras=(Extra.parse(text),))


def test_an_extra_cell_given_twice_is_refused(make_design):
    with pytest.raises(ConfigError, match="an extra cell is given twice"):
        make_design(extras=(Extra.parse("mod:mod_gate=raw"),) * 2)


def test_values_of_every_kind_are_read():
    assert Extra.parse("a:mod_z_loss=1,latent_layer=none,memory_top_k=4,mod_gate=raw").fields == (
        ("model.mod_z_loss", 1.0),
        ("model.latent_layer", None),
        ("model.memory_top_k", 4),
        ("model.mod_gate", "raw"),
    )


LR = Factor("lr", "train.lr", (1e-3, 3e-3, 1e-2))
GATE = Factor("gate", "model.mod_gate", ("sigmoid", "raw"), within="mod")


def test_any_field_may_be_a_factor_with_any_number_of_levels(make_design):
    design = make_design(
        factors=(LR, Factor("decay", "train.weight_decay", (0.1, 0.0)), *make_design().factors[1:2])
    )
    assert [c.name for c in design.cells()][:4] == ["base", "lr=0.003", "lr=0.01", "decay=0"]
    trials = {trial.cell: trial.config for trial in design.trials()}
    assert trials["lr=0.01+latent"].train.lr == 0.01 and trials["base"].train.lr == 1e-3
    assert design.contrasts.terms[:3] == ("lr=0.003", "lr=0.01", "decay=0")


def test_a_nested_factor_makes_no_cells_where_its_parent_is_off(make_design):
    mod, latent, _ = make_design().factors
    design = make_design(factors=(mod, GATE, latent))
    assert [cell.name for cell in design.cells()] == [
        "base", "mod", "latent", "mod+gate=raw", "mod+latent", "mod+gate=raw+latent",
    ]  # fmt: skip
    assert len({trial.fingerprint for trial in design.trials()}) == 12


def test_cells_may_be_left_out_where_the_effects_remain(make_design):
    odd = ("mod+latent", "mod+memory", "latent+memory", "base")
    design = make_design(order=1, without=odd)
    assert [cell.name for cell in design.cells()] == ["mod", "latent", "memory", "mod+latent+memory"]
    assert Design.from_dict(json.loads(json.dumps(design.to_dict()))) == design
    with pytest.raises(ConfigError, match="put back the trials of mod"):
        make_design(without=("mod",))


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ((LR, Factor("rate", "train.lr", (1.0, 2.0))), "the factors lr and rate both set train.lr"),
        ((GATE,), "factor gate is nested in 'mod', which is no factor of this design: it is off everywhere"),
        ((Factor("gate", "model.mod_gate", ("sigmoid", "raw")),), "the cells base and gate=raw are the same conf"),
        ((Factor("x", "model.wdith", (1, 2)),), "unknown field 'model.wdith'.*allowed: vocab_size"),
        ((Factor("x", "modle.d_model", (8, 16)),), "unknown field 'modle'.*did you mean 'model'"),
        ((Factor("x", "train.lr", ("fast", "slow")),), "train.lr is 'fast'; it must be a number"),
        ((), "has no factor"),
        ((LR, Factor("lr", "train.warmup", (0.1, 0.2))), "two factors have one name"),
    ],
)
def test_factors_that_make_no_design_are_refused(make_design, factors, said):
    with pytest.raises(ConfigError, match=said):
        make_design(factors=factors)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("s", "seed", (0, 1)), "decides the data that all cells read"),
        (("v", "model.vocab_size", (300, 400)), "decides the data that all cells read"),
        (("Mod", "train.lr", (1.0, 2.0)), "a factor is named 'Mod'"),
        (("a+b", "train.lr", (1.0, 2.0)), "a factor is named 'a.b'"),
        (("lr", "train.lr", (1.0, 1)), "has equal levels: 1.0, 1; give each once"),
        (("synergy", "train.lr", (1.0, 2.0)), "none of base, trial, cell, seed, status, val_loss, synergy"),
        (("lr", "train.lr", (1.0, float("nan"))), "must be a finite number, text, true, false or none"),
        (("lr", "train.lr", (1.0, [2.0])), "must be a finite number, text, true, false or none"),
        (("lr", "train.lr", (1.0, 2.0), "", False, ("a", "../b")), "calls a level '../b'; use letters"),
        (("lr", "train.lr", (1.0, 2.0), "", False, ("a",)), "2 levels and 1 names for them"),
        (("a", "model.options.a", "gelu"), r"factor a has the levels 'gelu'; give a tuple, such as \('gelu', …\)"),
        (("f", "model.build", ("", "a.b:f", "c.d:f")), "levels of factor f would have one name"),
    ],
)
def test_a_factor_that_makes_no_sense_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        Factor(*given).check()


def test_levels_are_named_shortly():
    assert Factor("n", "x", ("a.b:plain", "a.b:wide")).labels == ("", "n=wide")
    assert Factor("n", "x", (True, False)).labels == ("", "n=false")
    assert Factor("n", "x", (1, True, None)).labels == ("", "n=true", "n=none")
    assert Factor("n", "x", (1.0, 0.125), switch=True).labels == ("", "n")
    # Seen to fail: a million was called 1e-06.
    assert Factor("n", "x", (1, 2_048_000, 1e6, 2.5e-7)).labels == ("", "n=2048000", "n=1e6", "n=2.5e-07")
    assert Factor("n", "x", (1, 2), names=("one", "two")).labels == ("", "n=two")


def test_a_cell_whose_name_no_folder_can_have_is_refused(make_design):
    long = tuple(
        Factor(f"a{'x' * 60}{i}", f"train.{f}", (0.1, 0.2)) for i, f in enumerate(("lr", "warmup", "beta1"))
    )
    with pytest.raises(ConfigError, match="give factors and levels shorter names"):
        make_design(factors=long)


def test_many_factors_make_a_design_at_once(make_design):
    """Seen to fail: five seconds for eight factors, and again each time the design was made."""
    fields = ("lr", "warmup", "final_lr", "weight_decay", "beta1", "beta2", "clip_norm", "decay")
    factors = tuple(Factor(f, f"train.{f}", (0.1, 0.2)) for f in fields)
    began = time.monotonic()
    assert len(make_design(factors=factors, order=2).contrasts.terms) == 8 + 28
    assert time.monotonic() - began < 20


def test_at_equal_flops_every_cell_spends_what_base_spends(make_design):
    """Caught: cells that read more of the data than was asked; steps left out of the identity."""
    plain = make_design()
    design = at_equal_flops(plain)
    flops = {trial.cell: trial.flops for trial in design.one_block()}
    steps = {trial.cell: trial.config.steps for trial in design.one_block()}
    each = {trial.cell: trial.flops / trial.config.steps for trial in plain.one_block()}
    assert steps["base"] == plain.config.steps and steps["mod"] > steps["base"] > steps["latent"]
    assert all(abs(flops[cell] - flops["base"]) <= each[cell] / 2 for cell in flops)
    assert {t.id for t in design.trials() if t.cell == "base"} == {t.id for t in plain.trials() if t.cell == "base"}
    assert design.digest() != plain.digest()
    assert Design.from_dict(json.loads(json.dumps(design.to_dict()))) == design
    with pytest.raises(ConfigError, match="base is left out"):
        at_equal_flops(make_design(order=1, without=("base",)))


def test_at_equal_time_steps_follow_what_was_timed(make_design):
    plain = make_design()
    seconds = {cell.name: 0.5 if cell.name == "mod" else 1.0 for cell in plain.cells()}
    design = at_equal_time(plain, seconds)
    steps = {trial.cell: trial.config.steps for trial in design.one_block()}
    assert steps["mod"] == 2 * plain.config.steps and steps["latent"] == plain.config.steps
