"""The tokenizer: byte-level BPE (Sennrich et al. 2016 over bytes, as in GPT-2), trained here or taken by name."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from lahr.data.corpora import END_OF_TEXT
from lahr.data.hub import one_line, unreachable
from lahr.errors import ConfigError, check

TRAINING_BYTES = 20_000_000
"""A BPE is trained on at most this much of the training split, its beginning."""
SMALLEST_VOCABULARY = 257
"""All bytes and the end-of-text token."""


def train_bpe(texts: Iterable[str], vocab_size: int, words: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` entries; id 0 is `<|endoftext|>`. It can encode any text.

    Each of `words` is one token wherever it stands. The result has fewer entries where the text runs out of pairs to
    merge. `ConfigError` where not even all bytes and the words have room.
    """
    least = SMALLEST_VOCABULARY + len(words)
    check(
        vocab_size >= least,
        f"model.vocab_size is {vocab_size}; a byte-level tokenizer needs at least {least}"
        + (f" with the {len(words)} words of this corpus" if words else ""),
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(words),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _with_words(tokenizer, words)


def words_alone(words: Sequence[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of nothing but `<|endoftext|>`, which is 0, and those words. `ConfigError` if they are too many."""
    check(
        len(words) < vocab_size,
        f"model.vocab_size is {vocab_size}, and this corpus has {len(words)} words and an end of text; give "
        f"--model.vocab-size {len(words) + 1} or more",
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()  # or there would be spaces between the words
    tokenizer.add_special_tokens([END_OF_TEXT])
    return _with_words(tokenizer, words)


def _with_words(tokenizer: Tokenizer, words: Sequence[str]) -> Tokenizer:
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return tokenizer


def load_tokenizer(name: str, vocab_size: int, words: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer of a local `tokenizer.json`, or of that name on the Hub, with those words as tokens too.

    `ConfigError` where it cannot be had, has no `<|endoftext|>`, or has more entries than the model.
    """
    instead = "use --data.tokenizer bpe, which is trained here, or the path of a tokenizer.json"
    local = Path(name).is_file()
    reason = None if local else unreachable(name, "model")
    check(reason is None, f"the tokenizer {name!r} cannot be loaded ({reason}); {instead}")
    try:
        tokenizer = Tokenizer.from_file(name) if local else Tokenizer.from_pretrained(name)
    except Exception as error:  # a bare one for all of: no network, no such name, a bad file
        raise ConfigError(f"the tokenizer {name!r} cannot be loaded ({one_line(error)}); {instead}") from error
    check(
        tokenizer.token_to_id(END_OF_TEXT) is not None,
        f"the tokenizer {name!r} has no {END_OF_TEXT} token, which must close every document; "
        "use --data.tokenizer bpe or gpt2",
    )
    size = _with_words(tokenizer, words).get_vocab_size()
    check(
        size <= vocab_size,
        f"the tokenizer {name!r} has {size} entries and model.vocab_size is {vocab_size}; "
        f"give --model.vocab-size {size} or --data.tokenizer bpe",
    )
    return tokenizer
