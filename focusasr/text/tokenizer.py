"""Tokenizers of characters or BPE, learned from texts and saved in the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine

from focusasr.config import TextConfig
from focusasr.runtime.errors import InputError, SettingError
from focusasr.text.normalize import apply_policy

SPECIALS = ("<blank>", "<start>", "<end>", "<unknown>")
WORD_BEGIN = "\u2581"  # the space before a word in BPE tokens
MOST_READABLE = 1000  # tokens in an indented file


class Tokenizer:
    """Token ids for text under one policy. `blank` is CTC's; `start` and `end` are the decoder's."""

    def __init__(self, engine: Engine, policy: TextConfig) -> None:
        ids = {name: engine.token_to_id(name) for name in SPECIALS}
        lacking = [name for name, index in ids.items() if index is None]
        if lacking:
            raise InputError(f"tokenizer.json lacks the special token {lacking[0]!r}; use the checkpoint's own")
        engine.encode_special_tokens = True  # "<end>" in a text is plain text
        self.engine = engine
        self.policy = policy
        self.blank, self.start, self.end, self.unknown = (int(index) for index in ids.values() if index is not None)

    @property
    def size(self) -> int:
        """Return the number of tokens, special ones included."""
        return self.engine.get_vocab_size()

    @property
    def separator(self) -> list[int]:
        """Return the tokens that join two encoded texts: a space, or nothing if tokens include it (BPE)."""
        space = self.engine.token_to_id(" ")
        return [] if space is None else [space]

    @property
    def prompt(self) -> list[int]:
        """Return the tokens that the decoder reads before the first one of a text."""
        return [self.start]

    def for_language(self, language: str | None) -> Tokenizer:
        """Return the tokenizer for an utterance in this language; here the same for all languages."""
        return self

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` after the policy, without start and end tokens."""
        return self.engine.encode(apply_policy(text, self.policy), add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens` without special tokens."""
        return " ".join(self.engine.decode(list(tokens), skip_special_tokens=True).split())

    def to_json(self) -> str:
        """Return the text of tokenizer.json; large ones without indentation, which would double the size."""
        return self.engine.to_str(pretty=self.size <= MOST_READABLE)

    @classmethod
    def from_json(cls, text: str, policy: TextConfig) -> Tokenizer:
        """Read the text of tokenizer.json; InputError if it is invalid."""
        try:
            tokenizer = cls(Engine.from_str(text), policy)
            check_ids(tokenizer.engine)
            return tokenizer
        except InputError:
            raise
        except Exception as error:  # the library raises bare Exception
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"tokenizer.json cannot be read ({reason}); copy the checkpoint again") from None


def check_ids(engine: Engine) -> None:
    """Raise InputError unless the ids are 0, 1, 2, ..., the rows of the model's embedding."""
    ids = set(engine.get_vocab().values())
    if ids != set(range(engine.get_vocab_size())):
        raise InputError(
            f"tokenizer.json has {engine.get_vocab_size()} tokens with ids up to {max(ids)}; copy it again"
        )


def train_tokenizer(texts: Iterable[str], policy: TextConfig) -> Tokenizer:
    """Learn a tokenizer from texts; InputError if no character is left after the policy."""
    cleaned = [apply_policy(text, policy) for text in texts]
    characters = sorted(set("".join(cleaned)))
    if not characters:
        raise InputError("no text after the text policy, nothing to learn a tokenizer from; give manifests with texts")
    if policy.tokens == "characters":
        return Tokenizer(_character_engine(sorted({" ", *characters})), policy)  # a space, since texts may be joined
    return Tokenizer(_bpe_engine(cleaned, characters, policy.vocabulary_size), policy)


def _character_engine(characters: list[str]) -> Engine:
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *characters])}
    engine = Engine(models.WordLevel(vocabulary, unk_token="<unknown>"))
    engine.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    engine.decoder = decoders.Fuse()
    engine.add_special_tokens(list(SPECIALS))
    return engine


def _bpe_engine(texts: list[str], characters: list[str], vocabulary_size: int) -> Engine:
    alphabet = sorted({WORD_BEGIN, *characters} - {" "})
    smallest = len(SPECIALS) + len(alphabet)
    if vocabulary_size < smallest:
        raise SettingError("vocabulary_size", vocabulary_size, f"at least {smallest} for these texts")
    engine = Engine(models.BPE(unk_token="<unknown>"))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(WORD_BEGIN)
    engine.decoder = decoders.Metaspace(WORD_BEGIN)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    return engine
