import gzip
import json
import lzma

import numpy as np
import pytest
from datasets import Dataset

from rlhf_kit.data.shards import TEXT_DOCUMENT_CHARS, TokenShards, read_texts, write_shards
from rlhf_kit.data.tokenizer import encode_texts, train_tokenizer
from rlhf_kit.errors import InputError

TEXTS = [f"Document {i}: " + "the cat sat on the mat. " * (i % 7 + 1) for i in range(50)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


@pytest.fixture
def folder(tokenizer, tmp_path):
    write_shards(TEXTS, tokenizer, tmp_path / "shards", shard_tokens=400)
    return tmp_path / "shards"


def _write_jsonl(path, rows):
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_every_document_comes_back_between_bos_and_eos_in_order(folder, tokenizer):
    shards = TokenShards(folder, tokenizer=tokenizer)
    assert len(shards.infos) > 3
    assert shards.num_documents == len(TEXTS)
    expected = [[0, *ids, 1] for ids in encode_texts(tokenizer, TEXTS)]
    assert [document.tolist() for document in shards.documents()] == expected
    assert shards.num_tokens == sum(map(len, expected))


def test_a_shard_is_closed_by_the_document_that_fills_it(folder):
    shards = TokenShards(folder)
    for info, starts in zip(shards.infos[:-1], shards.starts):
        assert starts[-1] < 400 <= info.tokens


def test_a_document_that_spells_a_control_token_does_not_hold_one(tokenizer, tmp_path):
    shards = write_shards(["one <|endoftext|> two <|end|>"], tokenizer, tmp_path)
    (document,) = shards.documents()
    assert np.flatnonzero(document < 6).tolist() == [0, len(document) - 1]


@pytest.mark.parametrize(("size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_tokens_take_two_bytes_where_the_vocabulary_allows(tokenizer, tmp_path, monkeypatch, size, dtype):
    monkeypatch.setattr(type(tokenizer), "__len__", lambda self: size)
    shards = write_shards(TEXTS[:3], tokenizer, tmp_path)
    assert shards.dtype == dtype
    assert [d.tolist() for d in shards.documents()] == [[0, *ids, 1] for ids in encode_texts(tokenizer, TEXTS[:3])]


@pytest.mark.parametrize("suffix", ["tokens", "starts"])
def test_a_truncated_file_is_refused_with_both_sizes(folder, suffix):
    path = folder / f"shard-00001.{suffix}"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match=rf"shard-00001\.{suffix}: size is {size - 3}, expected {size} bytes: fetch"):
        TokenShards(folder, verify=False)


def test_a_missing_file_is_refused_by_name(folder):
    (folder / "shard-00000.tokens").unlink()
    with pytest.raises(InputError, match=r"shard-00000\.tokens: size is None"):
        TokenShards(folder)


@pytest.mark.parametrize("suffix", ["tokens", "starts"])
def test_one_flipped_bit_is_refused(folder, suffix):
    path = folder / f"shard-00002.{suffix}"
    data = bytearray(path.read_bytes())
    data[17] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=rf"shard-00002\.{suffix}: sha256 is .* the file is damaged"):
        TokenShards(folder)


@pytest.mark.parametrize("again", [False, True])
def test_an_interrupted_writing_is_not_taken_for_a_corpus(tokenizer, tmp_path, monkeypatch, again):
    monkeypatch.setattr("rlhf_kit.data.shards.BATCH_CHARS", 1_000)
    if again:
        write_shards(TEXTS, tokenizer, tmp_path)

    def documents():
        yield from TEXTS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(documents(), tokenizer, tmp_path, shard_tokens=100, overwrite=again)
    assert len(list(tmp_path.glob("*.tokens"))) > 3
    with pytest.raises(InputError, match="the shards are unfinished"):
        TokenShards(tmp_path)
    write_shards(TEXTS, tokenizer, tmp_path, shard_tokens=10_000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.json", "shard-00000.starts", "shard-00000.tokens"]


def test_finished_shards_are_replaced_only_on_demand(folder, tokenizer):
    with pytest.raises(InputError, match="already holds shards"):
        write_shards(TEXTS[:2], tokenizer, folder)
    assert write_shards(TEXTS[:2], tokenizer, folder, overwrite=True).num_documents == 2


def test_shards_of_another_tokenizer_are_refused(folder):
    with pytest.raises(InputError, match="expected the shards' own"):
        TokenShards(folder, tokenizer=train_tokenizer(["other words make other merges"], 300))


def test_no_document_is_an_error(tokenizer, tmp_path):
    with pytest.raises(InputError, match="the source is empty"):
        write_shards([], tokenizer, tmp_path)


def test_documents_are_read_and_encoded_in_bounded_batches(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_kit.data.shards.BATCH_CHARS", 300)
    taken, most_waiting, encoded = 0, 0, 0

    def documents():
        nonlocal taken
        for text in TEXTS:
            taken += 1
            yield text

    def encode(tokenizer, texts):
        nonlocal encoded, most_waiting
        most_waiting = max(most_waiting, taken - encoded)
        encoded += len(texts)
        return encode_texts(tokenizer, texts)

    monkeypatch.setattr("rlhf_kit.data.shards.encode_texts", encode)
    write_shards(documents(), tokenizer, tmp_path)
    assert encoded == len(TEXTS)
    assert most_waiting <= 9


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.xz"])
def test_texts_are_read_from_json_lines(tmp_path, name):
    path = _write_jsonl(tmp_path / name, [{"text": t, "other": 1} for t in TEXTS])
    assert list(read_texts(path)) == TEXTS


def test_texts_are_read_from_parquet_and_from_a_saved_dataset(tmp_path):
    data = Dataset.from_dict({"body": TEXTS})
    data.to_parquet(str(tmp_path / "a.parquet"))
    data.save_to_disk(str(tmp_path / "saved"))
    assert list(read_texts(tmp_path / "a.parquet", column="body")) == TEXTS
    assert list(read_texts(tmp_path / "saved", column="body")) == TEXTS


def test_texts_are_read_from_a_folder_of_all_kinds_and_the_rest_is_named(tmp_path, caplog):
    _write_jsonl(tmp_path / "b.jsonl.gz", [{"text": "from json"}])
    Dataset.from_dict({"text": ["from parquet"]}).to_parquet(str(tmp_path / "c.parquet"))
    (tmp_path / "a.txt").write_text("from text\n")
    (tmp_path / "README.md").write_text("not a text of the corpus")
    assert list(read_texts(tmp_path)) == ["from text", "from json", "from parquet"]
    assert "README.md not read" in caplog.text
    (tmp_path / "b.jsonl.gz").unlink()
    (tmp_path / "c.parquet").unlink()
    assert list(read_texts(tmp_path)) == ["from text"]


@pytest.mark.parametrize("opener", [open, gzip.open, lzma.open])
def test_a_plain_text_is_split_at_its_separators(tmp_path, opener):
    path = tmp_path / {open: "a.txt", gzip.open: "a.txt.gz", lzma.open: "a.txt.xz"}[opener]
    with opener(path, "wt") as file:
        file.write("one\n\ntwo\n<|endoftext|>\nthree\n<|endoftext|>\n")
    assert list(read_texts(path)) == ["one\n\ntwo", "three"]


def test_a_long_plain_text_is_cut_at_a_blank_line_and_nothing_is_lost(tmp_path):
    paragraph = "word " * 2_000
    count = 3 * TEXT_DOCUMENT_CHARS // len(paragraph)
    (tmp_path / "a.txt").write_text("\n\n".join([paragraph] * count))
    texts = list(read_texts(tmp_path / "a.txt"))
    assert 2 < len(texts) < 5
    assert max(map(len, texts)) < TEXT_DOCUMENT_CHARS + 2 * len(paragraph)
    assert sum(text.count(paragraph) for text in texts) == count


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"body": "x"}', r"a\.jsonl line 2, column 'text' is None, expected a text: the columns are \['body'\]"),
        ('{"text": "  "}', r"a\.jsonl line 2, column 'text' is '  ', expected a text that is not empty"),
        ('{"text": 3}', r"a\.jsonl line 2, column 'text' is 3, expected a text"),
        ('{"text": "Gr\\ud83d"}', r"a\.jsonl line 2, column 'text' is .*, expected no lone surrogate '\\ud83d'"),
        ('{"text": "x"', r"a\.jsonl line 2 is .*, expected JSON \(Expecting ',' delimiter at column 13\)"),
        ("[1, 2]", r"a\.jsonl line 2 is \[1, 2\], expected a JSON object"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        list(read_texts(tmp_path / "a.jsonl"))


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\ntwo\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"a\.txt line 3 is b'\\xe9\\n', expected UTF-8"):
        list(read_texts(tmp_path / "a.txt"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.xz"])
def test_a_truncated_archive_is_refused_by_name(tmp_path, name):
    rng = np.random.default_rng(0)
    rows = [{"text": rng.bytes(50).hex()} for _ in range(2_000)]
    path = _write_jsonl(tmp_path / name, rows)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"{name} after line \d+ is .*, expected a whole file"):
        list(read_texts(path))


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_damaged_archive_is_refused_by_name(tmp_path, at):
    path = _write_jsonl(tmp_path / "a.jsonl.gz", [{"text": np.random.default_rng(i).bytes(50).hex()} for i in range(2_000)])
    data = bytearray(path.read_bytes())
    start = int(at * len(data))
    data[start : start + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.jsonl\.gz"):
        list(read_texts(path))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.xz", "a.parquet"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, name):
    (tmp_path / name).write_text("plain text, not an archive")
    with pytest.raises(InputError, match=rf"{name} after (line|row) 0 is .*, expected a whole"):
        list(read_texts(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "message"), [("./nothing.jsonl", "existing file"), ("a.csv", "expected one of .jsonl"), ("empty", "expected files")]
)
def test_a_source_that_cannot_be_read_is_named(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("a,b\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        list(read_texts(name))


def test_no_source_is_not_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match="data is '', expected a file"):
        list(read_texts(""))


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n")
    assert list(read_texts(tmp_path / "a.txt")) == ["one\n\ufefftwo"]


def test_an_empty_text_file_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("\n \n")
    with pytest.raises(InputError, match=r"a\.txt is .*the file is empty"):
        list(read_texts(tmp_path / "a.txt"))
