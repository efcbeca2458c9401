"""Trained models are found where they were left, exported whole, read back exactly, and refused when damaged."""

import json
import pickle
import shutil
from dataclasses import asdict, replace

import pytest
import safetensors.torch
import torch
from tokenizers import Tokenizer, models

import lahr
from lahr.errors import ConfigError
from lahr.files import Folder
from lahr.model.generation import Sampling
from lahr.trained import _content_hash, export, find, load
from lahr.training.loop import train
from lahr.training.runtime import Runtime


@pytest.fixture(scope="module")
def run(tiny, tiny_data, tmp_path_factory):
    """A run's folder as `python -m lahr train` leaves it, of the full model."""
    config, folder = tiny("mod+latent+memory"), Folder.at(tmp_path_factory.mktemp("run"))
    list(train(config, tiny_data, Runtime(), folder.child("checkpoints")))
    folder.write_json("config.json", {**asdict(config), "runtime": {"device": "cpu"}})
    folder.write("tokenizer.json", tiny_data.tokenizer_path.read_bytes())
    return folder


@pytest.fixture
def exported(run, tmp_path):
    return export(find(run.uri), str(tmp_path / "out"))


def weights(trained):
    return trained.model.state_dict()


def test_an_export_gives_back_the_model_the_tokenizer_and_what_is_known(run, exported, tiny_data):
    """Caught: the thresholds left out; the model in training mode."""
    there, back = find(run.uri), lahr.load(exported.uri)
    assert weights(there).keys() == weights(back).keys()
    assert any("threshold" in name for name in weights(back))
    assert all(torch.equal(weights(there)[name], weights(back)[name]) for name in weights(back))
    assert back.config == there.config
    assert back.about == there.about
    assert (back.about["step"], back.about["tokens"]) == (24, 3072)
    assert not back.model.training
    assert back.tokenizer.to_str() == there.tokenizer.to_str()
    tokens = tiny_data.first_windows(2).inputs_NT
    assert torch.equal(there.model(tokens), back.model(tokens))


def test_a_model_of_ones_own_is_kept_exported_and_continues_prompts(tiny, tiny_data, tmp_path):
    """Each sequence read from its beginning. Caught: padding that it reads; a tied head missing in an export."""
    config, folder = tiny(), Folder.at(tmp_path / "run")
    options = {"build": "tests.lahr.model.own_models:plain", "options": {"tied": True}}
    config = replace(config, model=replace(config.model, **options))
    list(train(config, tiny_data, Runtime(), folder.child("checkpoints")))
    folder.write_json("config.json", {**asdict(config), "runtime": {"device": "cpu"}})
    folder.write("tokenizer.json", tiny_data.tokenizer_path.read_bytes())
    there = find(folder.uri)
    back = load(export(there, str(tmp_path / "out")).uri)
    assert all(torch.equal(weights(there)[name], weights(back)[name]) for name in weights(back))
    assert not back.model.training
    prompts, greedy = ("The", "Once upon a time there"), Sampling(temperature=0)
    *_, both = back.continuations(prompts, 4, greedy)
    for prompt, text in zip(prompts, both, strict=True):
        *_, alone = back.continuations([prompt], 4, greedy)
        assert alone == [text]
        ids = [back.tokenizer.token_to_id("<|endoftext|>"), *back.tokenizer.encode(prompt).ids]
        made = len(ids)
        with torch.no_grad():
            for _ in range(4):
                ids.append(int(back.model(torch.tensor([ids]))[0, -1].argmax()))
        assert back.tokenizer.decode(ids[made:]).startswith(text)
    elsewhere = replace(config, model=replace(config.model, build="tests.nowhere:plain"))
    folder.write_json("config.json", {**asdict(elsewhere), "runtime": {"device": "cpu"}})
    with pytest.raises(ConfigError, match=r"tests.nowhere cannot be imported .*put it where Python finds it"):
        find(folder.uri)


def test_a_checkpoint_is_found_by_itself_and_by_what_holds_it(run, tiny, tiny_data, tmp_path):
    """Caught: the newest one whatever was named."""
    newest = find(run.uri)
    assert find(run.child("checkpoints").uri).about == newest.about
    assert find(run.child("checkpoints/step-24").uri).about == newest.about
    config, cut = tiny("mod+latent+memory"), Folder.at(tmp_path / "cut")
    for record in train(config, tiny_data, Runtime(), cut.child("checkpoints")):
        if record.step == 18:
            break
    for name in ("config.json", "tokenizer.json"):
        cut.write(name, run.read(name))
    assert [find(cut.child(f"checkpoints/step-{n}").uri).about["step"] for n in (12, 18)] == [12, 18]


def test_a_sweeps_trial_is_found_by_its_folder_and_by_its_checkpoints(run, tmp_path, tiny):
    """Caught: the trial's configuration looked for in the checkpoint's folder."""
    config, results = tiny("mod+latent+memory"), Folder.at(tmp_path)
    shutil.copytree(run.child("checkpoints").uri, tmp_path / "checkpoints" / "full-s0-abc")
    results.write_json("trials/full-s0-abc/config.json", {"trial": "full-s0-abc", "config": asdict(config)})
    results.write("tokenizer.json", run.read("tokenizer.json"))
    for place in ("trials/full-s0-abc", "checkpoints/full-s0-abc", "checkpoints/full-s0-abc/step-24"):
        found = find(results.child(place).uri)
        assert found.config == config
        assert found.about == find(run.uri).about
    results.write_json("trials/other/config.json", {"config": asdict(config)})
    with pytest.raises(ConfigError, match="it has not begun, or was taken over from another sweep"):
        find(results.child("trials/other").uri)


def test_a_prompt_begins_a_document_and_its_text_ends_with_the_document(exported):
    """Caught: no end-of-text token before the prompt; the end-of-text token printed."""
    back = load(exported.uri)
    end = back.tokenizer.token_to_id("<|endoftext|>")
    ids = [end, *back.tokenizer.encode("The").ids]
    with torch.no_grad():
        first = int(back.model(torch.tensor([ids]))[0, -1].argmax())
    *_, (text,) = back.continuations(["The"], 1, Sampling(temperature=0))
    assert text == back.tokenizer.decode([first])
    with torch.no_grad():
        back.model.norm.weight.zero_()  # every logit is 0, so the likeliest token is the first: end-of-text
    assert list(back.continuations(["The"], 9, Sampling(temperature=0))) == [[""]]


def test_a_prompt_longer_than_the_context_is_refused(exported):
    with pytest.raises(ConfigError, match=r"this model takes 32 .max_seq_len.: shorten the prompt"):
        next(load(exported.uri).continuations(["word " * 40], 1))


def damaged_weights(folder):
    data = bytearray(folder.read("model.safetensors"))
    data[-3] ^= 1
    folder.write("model.safetensors", bytes(data))


def changed(**fields):
    def change(folder):
        folder.write_json("config.json", {**folder.read_json("config.json"), **fields})

    return change


def with_hash(name, content):
    """Replaces a file and its hash, as somebody would who made the folder by other means."""

    def change(folder):
        import hashlib

        described = folder.read_json("config.json")
        described["sha256"][name] = hashlib.sha256(content).hexdigest()
        folder.write(name, content)
        folder.write_json("config.json", described)

    return change


def rehashed(**fields):
    """Changes the configuration and its hash, as somebody would who made the folder by other means."""

    def change(folder):
        described = {**folder.read_json("config.json"), **fields}
        described["sha256"]["config.json"] = _content_hash(described)
        folder.write_json("config.json", described)

    return change


def wider(folder):
    config = folder.read_json("config.json")["config"]
    config["model"]["d_model"] = 32
    rehashed(config=config)(folder)


def rope(folder):
    described = folder.read_json("config.json")
    described["config"]["model"]["rope_theta"] = 500.0
    folder.write_json("config.json", described)


def with_weight(value):
    def change(folder):
        weights = safetensors.torch.load(folder.read("model.safetensors"))
        name = "blocks.0.attention.out.weight"
        weights[name] = value(weights[name])
        with_hash("model.safetensors", safetensors.torch.save(weights))(folder)

    return change


lost, whole = with_weight(lambda w: w * torch.nan), with_weight(lambda w: w.to(torch.int8))
NO_END = Tokenizer(models.BPE()).to_str().encode()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damaged_weights, "model.safetensors is damaged .its sha256"),
        (with_hash("model.safetensors", b"nonsense"), "model.safetensors is damaged .*header"),
        (with_hash("model.safetensors", pickle.dumps({"w": 1})), "model.safetensors is damaged"),
        (with_hash("tokenizer.json", b"{}"), "tokenizer.json is damaged"),
        (lambda folder: folder.remove("tokenizer.json"), "has no tokenizer.json; export it again"),
        (lambda folder: folder.remove("config.json"), "no exported folder: it has no config.json"),
        (lambda folder: folder.write("config.json", b"{"), "config.json is damaged"),
        (lambda folder: folder.write("config.json", b"[]"), "config.json is no mapping"),
        (changed(format=2), "is an export of version 2, and this is LAHR with version 1"),
        (changed(format=True), "is an export of version True"),
        (changed(config={"seed": 1}), "config.json is damaged or was changed"),
        (changed(config=None), "config.json is damaged or was changed"),
        (changed(sha256=[]), "config.json is damaged or was changed"),
        (rope, "config.json is damaged or was changed"),
        (rehashed(config={"seed": 1}), "missing model, data, train"),
        (with_hash("tokenizer.json", NO_END), "has no <.endoftext.> token"),
        (with_hash("model.safetensors", safetensors.torch.save({"w": torch.zeros(1)})), "of another shape"),
        (lost, r"not finite \(blocks.0.attention.out.weight\): its run diverged"),
        (whole, "in a type of whole numbers"),
        (wider, r"is of another shape than its configuration .*attention.out.weight \(16, 16\) there, \(32, 32\)"),
    ],
)
def test_an_export_that_cannot_be_used_says_why(exported, damage, said):
    """Caught: each check removed in turn; weights loaded before they are verified."""
    damage(exported)
    with pytest.raises(ConfigError, match=said):
        load(exported.uri)


def test_without_a_gpu_a_model_for_one_is_refused(run, exported, monkeypatch):
    """Caught: torch's own assertion."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for read in (find, load):
        with pytest.raises(ConfigError, match="this machine has no GPU"):
            read(run.uri if read is find else exported.uri, "cuda")


def test_a_prompt_that_is_no_text_is_refused(exported):
    with pytest.raises(ConfigError, match="is no text; give it in UTF-8"):
        next(load(exported.uri).continuations(["\udcff"], 1))


def test_without_a_number_of_tokens_there_are_as_many_as_fit(exported, monkeypatch):
    """Caught: 100 in a context of 32; one too few."""
    asked = []
    monkeypatch.setattr(
        "lahr.trained.generate", lambda model, ids, n, *rest, **options: asked.append((ids, n)) or []
    )
    back = load(exported.uri)
    list(back.continuations(["The", "A dog"]))
    ((ids, tokens),) = asked
    assert tokens == 32 + 1 - max(map(len, ids))


def test_nothing_is_overwritten_by_an_export(run, exported):
    before = exported.read("model.safetensors")
    with pytest.raises(ConfigError, match="is not empty; give a new folder"):
        export(find(run.uri), exported.uri)
    assert exported.read("model.safetensors") == before


def test_a_place_that_holds_no_model_is_said(tmp_path, run):
    with pytest.raises(ConfigError, match="there is nothing at"):
        find(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="is neither a trial, a run, a checkpoint nor an exported folder"):
        find(str(tmp_path))
    cut = tmp_path / "cut"
    shutil.copytree(run.uri, cut)
    for manifest in cut.glob("checkpoints/*/manifest.json"):
        manifest.unlink()
    with pytest.raises(ConfigError, match=r"no checkpoint in .* can be used .checkpoint step-24 .*never finished"):
        find(str(cut))
    other = json.loads((cut / "config.json").read_text())
    shutil.rmtree(cut)
    shutil.copytree(run.uri, cut)
    other["model"]["d_model"] = 32
    (cut / "config.json").write_text(json.dumps(other))
    with pytest.raises(ConfigError, match=r"checkpoint step-24 in .* is of another shape than its configuration"):
        find(str(cut))
