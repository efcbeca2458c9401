"""A trained model as a value: found where a run or a sweep left it, exported, and read back.

An exported folder is all that is needed to use the model:

    model.safetensors    weights, under the names of `LAHR.state_dict()`, or of one's own model's as `inner.…`
    config.json          format, the trial's configuration, how far it was trained, sha256 of both and of the other two
    tokenizer.json       the tokenizer, whole

A model of one's own is built by its function (`ModelConfig.build`), which has to be there where it is read.
Nothing is unpickled: weights are safetensors, the rest is JSON, and both are checked before they are used.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from tokenizers import Tokenizer

from lahr.config import TrialConfig
from lahr.data.corpora import END_OF_TEXT
from lahr.errors import ConfigError, check
from lahr.files import Folder
from lahr.model import LAHR, Own, build_model
from lahr.model.generation import Sampling, generate, lay_out
from lahr.plain import canonical_json, from_dict
from lahr.training import checkpoints

FORMAT = 1
"""Version of an exported folder's layout."""
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
DEFAULT_TOKENS = 100


@dataclass(frozen=True, eq=False)
class Trained:
    """A model in evaluation mode, with its tokenizer and what is known of its training."""

    model: LAHR | Own
    tokenizer: Tokenizer
    config: TrialConfig
    about: Mapping[str, Any]
    """`step`, `tokens` and `val_loss` (nats a token, None before an evaluation)."""

    def continuations(
        self, prompts: Sequence[str], new_tokens: int | None = None, sampling: Sampling | None = None
    ) -> Iterator[list[str]]:
        """Yields each prompt's continuation so far, after every token, until all have ended.

        A prompt begins a document. Without a number of new tokens it is 100, or as many as fit. `ConfigError` where a
        prompt is no text, or does not fit into the context with the new tokens.
        """
        end = cast(int, self.tokenizer.token_to_id(END_OF_TEXT))  # `_tokenizer` takes none without it
        for prompt in prompts:
            # What a terminal could not decode reaches Python as half a character.
            check(_is_text(prompt), f"the prompt {prompt!r} is no text; give it in UTF-8")
        ids = [[end, *self.tokenizer.encode(prompt, add_special_tokens=False).ids] for prompt in prompts]
        if new_tokens is None:
            room = self.config.model.max_seq_len + 1 - max(len(each) for each in ids)
            new_tokens = max(1, min(DEFAULT_TOKENS, room))
        made: list[list[int]] = [[] for _ in prompts]
        try:
            for column in generate(self.model, ids, new_tokens, sampling, stop=end):
                for so_far, token in zip(made, column, strict=True):
                    if token is not None and token != end:
                        so_far.append(token)
                yield [self.tokenizer.decode(so_far) for so_far in made]
        except ValueError as error:
            raise ConfigError(str(error)) from error


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """The part of a command line that says what is drawn."""

    tokens: int | None = None
    """New tokens at most, by default 100 or as many as fit; a text that ends is shorter."""
    temperature: float = 0.8
    """0 takes the likeliest token each time."""
    top_k: int | None = None
    """Draw from the k likeliest only."""
    top_p: float = 1.0
    """Draw from the likeliest only that hold this share of the probability together."""

    def __post_init__(self) -> None:
        check(self.tokens is None or self.tokens >= 1, f"--tokens is {self.tokens}; it must be at least 1")

    def sampling(self, seed: int, seed_option: str) -> Sampling:
        """How tokens are drawn; `ConfigError` names the option that cannot be used."""
        check(0 <= seed < 1 << 32, f"--{seed_option} is {seed}; it must be 0 to {(1 << 32) - 1}")
        try:
            return Sampling(self.temperature, self.top_k, self.top_p, seed)
        except ValueError as error:
            raise ConfigError(f"--{str(error).replace('_', '-', 1)}") from error


def find(place: str, device: str = "cpu") -> Trained:
    """The model at `place`: an exported folder, a run's or a trial's folder, or one of their checkpoints.

    Of several checkpoints the newest that holds. `ConfigError` says what is missing or damaged.
    """
    _check_device(device)
    folder = Folder.at(place)
    check(
        folder.exists(),
        f"there is nothing at {folder.uri}; give a trial, a run, a checkpoint or an exported folder",
    )
    if folder.exists(WEIGHTS):
        return load(place, device)
    step = re.fullmatch(r"step-(\d+)", folder.name)
    holder = folder.parent if step else folder
    if holder.name == "checkpoints":  # of a run
        kept, described, base = holder, holder.parent, holder.parent
    elif holder.parent.name == "checkpoints":  # of a sweep's trial
        base = holder.parent.parent
        kept, described = holder, base.child("trials").child(holder.name)
    elif holder.exists("checkpoints"):
        kept, described, base = holder.child("checkpoints"), holder, holder
    else:
        base = holder.parent.parent
        kept, described = base.child("checkpoints").child(holder.name), holder
    check(
        described.exists(CONFIG) and base.exists(TOKENIZER),
        f"{folder.uri} is neither a trial, a run, a checkpoint nor an exported folder (no {CONFIG} or {TOKENIZER} "
        "belongs to it); give one of these",
    )
    config = _config(described)
    checkpoint, problems = checkpoints.newest(kept, None, only=int(step[1]) if step else None)
    if checkpoint is None:
        why = "; ".join(problems) or "there is none: it has not begun, or was taken over from another sweep"
        raise ConfigError(f"no checkpoint in {kept.uri} can be used ({why}); give another trial")
    weights = checkpoint.evaluated()
    records = checkpoint.meta["records"] or [{"tokens": 0, "metrics": {}}]
    losses = [r["metrics"]["val_loss"] for r in records if "val_loss" in r["metrics"]]
    loss = float(losses[-1]) if losses and math.isfinite(float(losses[-1])) else None
    about = {"step": checkpoint.step, "tokens": records[-1]["tokens"], "val_loss": loss}
    return Trained(
        _model(config, weights, f"checkpoint step-{checkpoint.step} in {kept.uri}", device),
        _tokenizer(_read(base, TOKENIZER), f"{base.uri}/{TOKENIZER}"),
        config,
        about,
    )


def export(trained: Trained, place: str) -> Folder:
    """Writes the exported folder, which must be new or empty; `load` reads it back."""
    folder = Folder.at(place)
    check(not folder.names(), f"{folder.uri} is not empty; give a new folder, so that nothing is overwritten")
    weights = {name: value.contiguous() for name, value in trained.model.state_dict().items()}
    files = {
        WEIGHTS: safetensors.torch.save(weights),
        TOKENIZER: trained.tokenizer.to_str().encode(),
    }
    described = {"format": FORMAT, "config": asdict(trained.config), "trained": dict(trained.about)}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    described |= {"sha256": {**hashes, CONFIG: _content_hash(described)}}
    for name, content in files.items():
        folder.write(name, content)
    folder.write_json(CONFIG, described)  # last: its presence means that the rest is there
    return folder


def load(place: str, device: str = "cpu") -> Trained:
    """The model in an exported folder, in evaluation mode on `device`.

    `ConfigError` for a folder of another version, a file that is missing or damaged, weights of another shape.
    """
    _check_device(device)
    folder = Folder.at(place)
    check(
        folder.exists(CONFIG), f"{folder.uri} is no exported folder: it has no {CONFIG}; make one with lahr export"
    )
    described = _json(folder)
    version = described.get("format")
    check(
        version == FORMAT and not isinstance(version, bool),
        f"{folder.uri} is an export of version {version}, and this is LAHR with version {FORMAT}; export it again "
        "with the LAHR that reads it",
    )
    hashes: Any = described.get("sha256")
    whole = isinstance(hashes, dict) and all(isinstance(described.get(k), dict) for k in ("config", "trained"))
    check(
        whole and hashes.get(CONFIG) == _content_hash(described),
        f"{folder.uri}/{CONFIG} is damaged or was changed (its sha256 is not the one in it); export it again",
    )
    files = {}
    for name in (WEIGHTS, TOKENIZER):
        check(folder.exists(name), f"{folder.uri} has no {name}; export it again")
        files[name] = _read(folder, name)
        check(
            hashlib.sha256(files[name]).hexdigest() == hashes.get(name),
            f"{folder.uri}/{name} is damaged (its sha256 is not the one in {CONFIG}); export it again",
        )
    config = from_dict(TrialConfig, described["config"])
    try:
        weights = safetensors.torch.load(files[WEIGHTS])
    except safetensors.SafetensorError as error:
        raise ConfigError(f"{folder.uri}/{WEIGHTS} is damaged ({error}); export it again") from error
    return Trained(
        _model(config, weights, f"{folder.uri}/{WEIGHTS}", device),
        _tokenizer(files[TOKENIZER], f"{folder.uri}/{TOKENIZER}"),
        config,
        described["trained"],
    )


def _check_device(device: str) -> None:
    check(
        device == "cpu" or torch.cuda.is_available(),
        f"--device is {device}, and this machine has no GPU that torch can use; give --device cpu",
    )


def _content_hash(described: Mapping[str, Any]) -> str:
    """Of an export's configuration file, but for the hashes in it."""
    return hashlib.sha256(
        canonical_json({k: v for k, v in described.items() if k != "sha256"}).encode()
    ).hexdigest()


def _read(folder: Folder, name: str) -> bytes:
    try:
        return folder.read(name)
    except OSError as error:
        raise ConfigError(f"{folder.uri}/{name} cannot be read ({error}); restore it") from error


def _json(folder: Folder) -> dict[str, Any]:
    try:
        value = json.loads(_read(folder, CONFIG))
    except ValueError as error:
        raise ConfigError(f"{folder.uri}/{CONFIG} is damaged ({error}); restore it") from error
    check(isinstance(value, dict), f"{folder.uri}/{CONFIG} is no mapping of fields; restore it")
    return value


def _config(folder: Folder) -> TrialConfig:
    """A run's or a trial's configuration, whatever else stands beside it in the file."""
    value = _json(folder)
    value = value.get("config", value)
    check(
        isinstance(value, dict), f"the configuration in {folder.uri}/{CONFIG} is no mapping of fields; restore it"
    )
    return from_dict(TrialConfig, {name: part for name, part in value.items() if name != "runtime"})


def _model(config: TrialConfig, weights: Mapping[str, torch.Tensor], where: str, device: str) -> LAHR | Own:
    model = build_model(config.model, seed=0)
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in weights.items()}
    differing = [
        f"{name} {theirs.get(name, 'missing')} there, {ours.get(name, 'absent')} in the model"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    check(
        not differing,
        f"{where} is of another shape than its configuration ({'; '.join(differing[:3])}"
        f"{f'; and {len(differing) - 3} more' if len(differing) > 3 else ''}); give the configuration it was made with",
    )
    dtype = torch.float64 if config.precision == "fp64" else torch.float32
    whole = {name for name, value in model.state_dict().items() if not value.is_floating_point()}
    bad = [name for name, value in weights.items() if not value.is_floating_point() and name not in whole]
    check(not bad, f"{where} holds {', '.join(bad[:3])} in a type of whole numbers; export it again")
    lost = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    check(
        not lost,
        f"{where} holds numbers that are not finite ({', '.join(lost[:3])}): its run diverged; give another trial",
    )
    model = model.to(device, dtype)
    model.load_state_dict(dict(weights))
    if device == "cpu" and isinstance(model, LAHR):
        lay_out(model)
    return model.eval()


def _tokenizer(content: bytes, where: str) -> Tokenizer:
    try:
        json.loads(content)
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # tokenizers raises a bare one
        raise ConfigError(f"{where} is damaged ({error}); restore it") from error
    check(tokenizer.token_to_id(END_OF_TEXT) is not None, f"{where} has no {END_OF_TEXT} token; restore it")
    return tokenizer
