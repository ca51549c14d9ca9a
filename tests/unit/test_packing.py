import itertools

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_kit.batches import IGNORE
from rlhf_kit.data.packing import best_fit_decreasing, pack
from rlhf_kit.errors import InputError


def _examples(lengths, vocab=31, seed=0):
    rng = np.random.default_rng(seed)
    examples = []
    for n in lengths:
        ids = rng.integers(1, vocab, n).astype(np.int32)
        examples.append((ids, np.where(rng.random(n) < 0.3, IGNORE, ids).astype(np.int32)))
    return examples


@pytest.mark.parametrize("seed", range(5))
def test_every_example_is_packed_once_and_no_row_overflows(seed):
    lengths = np.random.default_rng(seed).integers(1, 65, 500)
    rows = best_fit_decreasing(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert max(int(lengths[row].sum()) for row in rows) <= 64


def test_each_example_goes_into_the_fullest_row_that_holds_it():
    # By hand: 7 | 6 | 4 joins the 6 (full), 3 joins the 7 (full), 2 opens a row.
    assert best_fit_decreasing([2, 3, 4, 6, 7], 10) == [[4, 1], [3, 2], [0]]


def test_short_examples_fill_the_rows_to_more_than_97_percent():
    lengths = np.clip(np.random.default_rng(0).geometric(1 / 90, 5_000), 1, 512)
    rows = best_fit_decreasing(lengths, 512)
    assert lengths.sum() / (len(rows) * 512) > 0.97


def test_an_example_longer_than_a_row_is_refused_by_name():
    with pytest.raises(InputError, match=r"length of example 1 is 11, expected 1 to 10 tokens"):
        best_fit_decreasing([3, 11], 10)


def test_packing_loses_no_token_and_trains_no_first_token():
    examples = _examples([5, 9, 3, 12, 1, 7])
    batch = pack(examples, 16, pad_id=0)
    found = []
    for ids, labels, positions in zip(batch.input_ids, batch.labels, batch.position_ids):
        starts = [*(positions == 0).nonzero().flatten().tolist(), 16]
        for begin, end in itertools.pairwise(starts):
            if ids[begin] != 0:
                assert labels[begin] == IGNORE
                found.append((ids[begin:end].tolist(), labels[begin + 1 : end].tolist()))
            else:
                assert (labels[begin:end] == IGNORE).all()
    expected = [(ids.tolist(), labels[1:].tolist()) for ids, labels in examples]
    assert sorted(found) == sorted(expected)


def test_the_loss_of_packed_examples_equals_the_loss_of_each_alone():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=31,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
        )
    )
    model = model.double().eval()
    examples = _examples([5, 9, 3, 12, 2, 7, 16, 1])

    def loss(ids, labels, **positions):
        logits = model(input_ids=ids, use_cache=False, **positions).logits
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
        )

    batch = pack(examples, 16, pad_id=0)
    assert len(batch.input_ids) < len(examples)
    packed = loss(batch.input_ids, batch.labels, position_ids=batch.position_ids)
    alone = sum(loss(*(torch.from_numpy(x).long()[None] for x in example)) for example in examples if len(example[0]) > 1)
    torch.testing.assert_close(packed, alone, rtol=1e-12, atol=0)
