"""A design is a value: cells, names, fingerprints and what belongs to its identity."""

import json
from dataclasses import replace

import pytest

from lahr.errors import ConfigError
from sweeps.engine.design import Design, Extra, Factor, differences
from tests.conftest import CELLS, LEVELS


def test_the_eight_cells_in_order_and_what_is_on(make_design):
    cells = make_design().cells()
    assert tuple(cell.name for cell in cells) == CELLS
    for cell in cells:
        on = set() if cell.name == "base" else set(cell.name.split("+"))
        assert {name for name, is_on in cell.on.items() if is_on} == on
        assert cell.corner
    assert cells[0].levels == {"mod_capacity": 1.0, "latent_iterations": 0, "memory_slots": 0}


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
    factors = (Factor("mod", "mod_capacity", 1.0, (0.25, 0.5)), *make_design().factors[1:])
    design = make_design(factors=factors)
    assert len(design.cells()) == 12
    assert tuple(cell.name for cell in design.cells() if cell.corner) == CELLS
    beside = {cell.name: cell.levels["mod_capacity"] for cell in design.cells() if not cell.corner}
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
        ((), "at least one"),
        ((0.25, 0.25), "given once"),
        ((1.0,), "turns it off"),
        ((1.5,), "at most 1"),
        ((-0.1,), "above 0"),
    ],
)
def test_levels_that_make_no_design_are_refused(make_design, on, said):
    with pytest.raises(ConfigError, match=said):
        make_design(factors=(Factor("mod", "mod_capacity", 1.0, on),))


def test_an_extra_cell_is_a_corner_with_options_at_other_values(make_design):
    """Caught: options of the base cell; the corner's own trial changed; a cell counted among the corners."""
    extras = tuple(map(Extra.parse, ("mod:mod_router=random", "mod+latent:latent_core_layers=2,mod_gate=raw")))
    design = make_design(extras=extras)
    assert [cell.name for cell in design.cells()[8:]] == [
        "mod~mod_router=random",
        "mod+latent~latent_core_layers=2~mod_gate=raw",
    ]
    assert not any(cell.corner for cell in design.cells()[8:])
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
    plain_form = make_design().to_dict()
    del plain_form["extras"]  # as it was written before there were any
    assert Design.from_dict(plain_form) == make_design()
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
        ("base:mod_gate=raw", "base~mod_gate=raw changes nothing: in base mod_gate decides nothing"),
        ("mod:mod_gate=sigmoid", "changes nothing"),
        ("base:vocab_size=100", "sets vocab_size, which would change the data that the cell reads"),
        ("base:max_seq_len=16", "sets max_seq_len, which would change the data"),
        (
            "mod:mod_capacity=1",
            "sets mod_capacity, which is a factor of the study; give its levels with --capacity",
        ),
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
        ("mod_z_loss", 1.0),
        ("latent_layer", None),
        ("memory_top_k", 4),
        ("mod_gate", "raw"),
    )
