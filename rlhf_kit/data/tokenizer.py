"""Byte-level BPE of our own, and one way to turn a chat into token ids for ANY `transformers` tokenizer.

The tokenizer is trained with `tokenizers` and saved as an ordinary `transformers` directory with a chat template,
so nothing downstream knows where it came from. Text never becomes a control token: documents are encoded with the
control tokens switched off, and a chat message that spells one is refused.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhf_kit.data.records import ROLES, Message
from rlhf_kit.errors import InputError

logger = logging.getLogger(__name__)

BOS, EOS, PAD = "<|endoftext|>", "<|end|>", "<|pad|>"
SPECIAL_TOKENS = [BOS, EOS, PAD, *(f"<|{role}|>" for role in ROLES)]
MIN_VOCAB, MAX_VOCAB = 300, 50_257

CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] + eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2), with the control tokens and chat template of the kit.

    Words are split as in GPT-2, except that every digit stands alone, so that numbers are spelt the same everywhere
    and no vocabulary is spent on years. The control tokens take the first ids.

    Args:
        texts: the documents to learn merges from; read once, as a stream.
        vocab_size: 300 to 50,257, control tokens and the 256 bytes included. A text too small for so many merges
            gives fewer, with a warning: size the model by `len(tokenizer)`.
    Raises:
        InputError: `vocab_size` out of range, no text to learn from.
    """
    if not MIN_VOCAB <= vocab_size <= MAX_VOCAB:
        raise InputError("vocab_size", vocab_size, f"expected {MIN_VOCAB} to {MAX_VOCAB}: 8,192 suits a small model")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() == len(SPECIAL_TOKENS) + 256:
        raise InputError("texts", 0, "expected at least one with a pair of letters to merge: check that --data is not empty")
    if backend.get_vocab_size() < vocab_size:
        logger.warning("vocab_size is %d, the text yields %d: the vocabulary is smaller", vocab_size, backend.get_vocab_size())
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[f"<|{role}|>" for role in ROLES],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(path_or_name: str | Path, field: str = "tokenizer") -> PreTrainedTokenizerBase:
    """Any `transformers` tokenizer; one without a pad token pads with its eos (masks, not ids, say what is valid).

    Args:
        path_or_name: a folder or a hub name.
        field: what the user calls it, for the error.
    Raises:
        InputError: nothing loadable there, or no eos token to stop at.
    """
    path_or_name = str(path_or_name)
    if path_or_name.startswith((".", "/", "~")) and not Path(path_or_name).is_dir():
        raise InputError(field, path_or_name, "expected a folder: it does not exist")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path_or_name)
        tokenizer("a")  # some wrong settings are read only when they are first used
    except Exception as error:  # a wrong value in one of its files fails wherever it is first used, `tokenizers` raises bare ones
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(field, path_or_name, f"whose tokenizer cannot be loaded ({reason}): pass a tokenizer folder") from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"tokenizer {path_or_name}: eos_token", None, "expected a stop token: set one and save it again")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what decides the ids: vocabulary, merges and splitting; not padding or truncation settings."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state: Any = sorted(tokenizer.get_vocab().items())
    else:
        state = json.loads(backend.to_str())
        state.pop("truncation", None)
        state.pop("padding", None)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of plain texts: no bos or eos added, and a text that spells a control token stays text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]
    with _as_text(backend):
        return [e.ids for e in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


@contextmanager
def _as_text(backend: Any) -> Iterator[None]:
    """While open, `backend` encodes all of a text and nothing but the text; a tokenizer.json may hold other settings."""
    special, truncation, padding = backend.encode_special_tokens, backend.truncation, backend.padding
    backend.encode_special_tokens = True  # despite its name: encode them as text, not as themselves
    backend.no_truncation()
    backend.no_padding()
    try:
        yield
    finally:
        backend.encode_special_tokens = special
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a chat that the assistant is to continue, generation prompt included.

    Without a chat template the prompt is plain text (see `encode_chat`).

    Raises:
        InputError: a message spells a control token or is no text, or the template refuses the chat.
    """
    _check_messages(tokenizer, messages)
    if not tokenizer.chat_template:
        return _plain(tokenizer, messages)[0]
    return _tokenize(tokenizer, _render(tokenizer, messages, generation_prompt=True))


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """Token ids of a whole chat, and which of them the assistant writes: its words and its stop token.

    A template with `{% generation %}` marks the assistant's part itself. For any other template the part is found by
    difference: the chat up to an answer, with the generation prompt, must be a prefix of the chat with the answer, in
    tokens; what follows up to the last eos is the answer. Without a template the messages are joined as plain text:
    `bos`, each message of the others followed by a newline unless it ends in white space, each answer by `eos`.
    A chat that ends with an answer ends with its stop token: what a template adds behind (a newline) is cut, so that
    reward models read their score where generation stops.

    Returns:
        ids and mask, of equal length.
    Raises:
        InputError: a message spells a control token or is no text, the template refuses the chat, or it rewrites earlier turns so
            that the answers cannot be told apart exactly.
    """
    _check_messages(tokenizer, messages)
    if not tokenizer.chat_template:
        return _plain(tokenizer, messages)
    marked = _marks_generation(str(tokenizer.chat_template)) and tokenizer.is_fast
    ids, mask = (_by_marker if marked else _by_difference)(tokenizer, messages)
    last = len(mask) - 1 - mask[::-1].index(True) if True in mask else -1
    if messages[-1]["role"] == "assistant" and last >= 0 and ids[last] == tokenizer.eos_token_id:
        return ids[: last + 1], mask[: last + 1]
    return ids, mask


def _by_marker(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    encoded: Any = _apply_template(tokenizer, messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = list(encoded["input_ids"]), [bool(m) for m in encoded["assistant_masks"]]
    for t in range(1, len(ids)):  # a template may leave the stop token outside its marker
        if mask[t - 1] and not mask[t] and ids[t] == tokenizer.eos_token_id and ids[t - 1] != tokenizer.eos_token_id:
            mask[t] = True
    return ids, mask


def _by_difference(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    ids = _tokenize(tokenizer, _render(tokenizer, messages))
    mask = [False] * len(ids)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _tokenize(tokenizer, _render(tokenizer, messages[:i], generation_prompt=True))
        after = _tokenize(tokenizer, _render(tokenizer, messages[: i + 1])) if i + 1 < len(messages) else ids
        start, stop = len(before), len(after)
        if start >= stop or after[:start] != before or ids[:stop] != after:
            raise InputError(
                f"chat_template: turn {i + 1} of {len(messages)}",
                message["content"],
                "which it does not append to the turns before: use a template with {% generation %} markers, or single turns",
            )
        ends = [t for t in range(start, stop) if ids[t] == tokenizer.eos_token_id]
        for t in range(start, ends[-1] + 1 if ends else stop):
            mask[t] = True
    return ids, mask


def _plain(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    texts = []
    for message in messages:
        content = message["content"]
        ended = message["role"] == "assistant" or content[-1:].isspace()
        texts.append(content if ended else content + "\n")
    ids: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    mask = [False] * len(ids)
    for message, part in zip(messages, encode_texts(tokenizer, texts), strict=True):
        answer = message["role"] == "assistant"
        part = [*part, tokenizer.eos_token_id] if answer else part
        ids += part
        mask += [answer] * len(part)
    return ids, mask


def _apply_template(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(list(messages), **options)
    except Exception as error:  # jinja's TemplateError and whatever the template's own code raises
        roles = [m.get("role") for m in messages]
        raise InputError("chat with the roles", roles, f"which the chat template refuses ({error}): mend the roles") from error


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], generation_prompt: bool = False) -> str:
    return str(_apply_template(tokenizer, messages, tokenize=False, add_generation_prompt=generation_prompt))


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@functools.lru_cache(maxsize=16)
def _marks_generation(template: str) -> bool:
    return "{% generation" in template or "{%- generation" in template


def _check_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> None:
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    specials = dict.fromkeys([*tokenizer.all_special_tokens, *added])  # a chat template's own tokens often have no role's name
    for message in messages:
        try:
            message["content"].encode()
        except UnicodeEncodeError as error:  # a terminal's broken bytes, say; what is read from files has been refused there
            raise InputError(f"{message['role']} message", message["content"], f"expected text ({error.reason})") from error
        for token in specials:
            if token in message["content"]:
                raise ControlTokenError(f"{message['role']} message", message["content"], f"which spells {token}: remove it")


class ControlTokenError(InputError):
    """A chat message that contains the text of a control token, such as an end of turn that nobody meant."""
