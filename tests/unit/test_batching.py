from itertools import chain

import numpy as np
import pytest
import torch

from rlhf_kit.batches import IGNORE
from rlhf_kit.data.batching import ExampleBatches, PreferenceBatches, PromptBatches, TokenBatches
from rlhf_kit.data.examples import PreferenceExample, PromptExample
from rlhf_kit.data.shards import write_shards
from rlhf_kit.data.tokenizer import train_tokenizer
from rlhf_kit.errors import InputError

PAD = 2


def _examples(count, seed=0, longest=60):
    """Examples whose first token names them."""
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(count):
        ids = np.concatenate([[1000 + i], rng.integers(3, 90, rng.integers(1, longest))]).astype(np.int32)
        examples.append((ids, np.where(rng.random(len(ids)) < 0.4, IGNORE, ids).astype(np.int32)))
    return examples


def _pairs(count, margins=False):
    rng = np.random.default_rng(1)
    sides = [[np.append(1000 + i, rng.integers(3, 90, rng.integers(1, 40))).astype(np.int32) for i in range(count)] for _ in "cr"]
    return [PreferenceExample(c, r, 1, 0.25 * i if margins else None) for i, (c, r) in enumerate(zip(*sides))]


def _prompts(count):
    rng = np.random.default_rng(2)
    ids = [np.append(1000 + i, rng.integers(3, 90, rng.integers(1, 12))).astype(np.int32) for i in range(count)]
    return [PromptExample(x, {"number": i}) for i, x in enumerate(ids)]


def _names(batches):
    """The examples in micro-batches, by their first tokens, also when packed."""
    ids = torch.cat([b.input_ids.flatten() for b in batches])
    return sorted(ids[ids >= 1000].tolist())


def _targets(batches):
    return sum(int((b.labels[:, 1:] != IGNORE).sum()) for b in batches)


KINDS = {
    "padded": lambda n, **more: ExampleBatches(_examples(n), 8, 3, 0, PAD, **more),
    "by tokens": lambda n, **more: ExampleBatches(_examples(n), 8, None, 0, PAD, max_tokens_per_micro_batch=90, **more),
    "packed": lambda n, **more: ExampleBatches(_examples(n), 8, 2, 0, PAD, packed_length=64, **more),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 7, 8, 61])
def test_an_epoch_holds_every_example_once(kind, count):
    batches = KINDS[kind](count)
    assert batches.steps_per_epoch == -(-count // 8)
    for epoch in range(2):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        found = list(chain.from_iterable(batches.micro_batches(s, 0, 1) for s in steps))
        assert _names(found) == [1000 + i for i in range(count)]
        assert _targets(found) == sum(int((labels[1:] != IGNORE).sum()) for _, labels in _examples(count))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [2, 3, 5, 11])
def test_a_step_holds_the_same_examples_on_any_number_of_ranks(kind, world):
    batches = KINDS[kind](61)
    for step in range(2 * batches.steps_per_epoch):
        alone = batches.micro_batches(step, 0, 1)
        ranks = [batches.micro_batches(step, rank, world) for rank in range(world)]
        assert len({len(rank) for rank in ranks}) == 1
        assert _names(chain.from_iterable(ranks)) == _names(alone)
        assert _targets(chain.from_iterable(ranks)) == _targets(alone)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_depends_on_nothing_but_its_arguments(kind):
    forwards, backwards = KINDS[kind](61), KINDS[kind](61)
    steps = range(2 * forwards.steps_per_epoch)
    seen = {step: forwards.micro_batches(step, 1, 2) for step in steps}
    for step in reversed(steps):
        for a, b in zip(seen[step], backwards.micro_batches(step, 1, 2), strict=True):
            torch.testing.assert_close(vars(a), vars(b), rtol=0, atol=0)


def test_epochs_and_seeds_have_orders_of_their_own():
    first = ExampleBatches(_examples(64), 8, 8, seed=0)
    other = ExampleBatches(_examples(64), 8, 8, seed=1)
    orders = [[_names(b.micro_batches(e * 8 + s, 0, 1)) for s in range(8)] for b in (first, other) for e in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert sorted(map(tuple, orders[0])) != sorted(map(tuple, orders[1]))  # other companions too, not only another order


def test_a_padded_row_is_its_example_then_padding():
    examples = _examples(30)
    for batch in chain.from_iterable(KINDS["padded"](30).micro_batches(s, 0, 1) for s in range(4)):
        assert batch.position_ids is None
        assert batch.attention_mask.dtype == torch.bool
        assert batch.attention_mask.any(0).all()  # trimmed to the longest
        for ids, labels, mask in zip(batch.input_ids, batch.labels, batch.attention_mask):
            expected, targets = examples[int(ids[0]) - 1000]
            length = len(expected)
            assert mask.tolist() == [True] * length + [False] * (len(ids) - length)
            assert ids[:length].tolist() == expected.tolist()
            assert labels[:length].tolist() == targets.tolist()
            assert set(ids[length:].tolist()) <= {PAD}
            assert set(labels[length:].tolist()) <= {IGNORE}


def test_packed_rows_keep_within_their_length_and_restart_positions():
    batches = KINDS["packed"](61)
    for batch in chain.from_iterable(batches.micro_batches(s, 0, 1) for s in range(batches.steps_per_epoch)):
        assert batch.attention_mask is None
        assert len(batch.input_ids) <= 2
        assert batch.input_ids.shape[1] <= 64
        starts = batch.position_ids == 0
        assert starts[:, 0].all()
        assert starts[batch.input_ids >= 1000].all()
        assert (batch.labels[starts] == IGNORE).all()


def test_micro_batches_stay_within_their_rows_or_tokens():
    rows, tokens = KINDS["padded"](61), KINDS["by tokens"](61)
    for step in range(rows.steps_per_epoch):
        assert max(len(b.input_ids) for rank in range(2) for b in rows.micro_batches(step, rank, 2)) <= 3
        for b in chain.from_iterable(tokens.micro_batches(step, rank, 2) for rank in range(2)):
            assert b.input_ids.numel() <= 90


def test_an_example_longer_than_the_token_limit_stands_alone():
    batches = ExampleBatches(_examples(20), 8, max_tokens_per_micro_batch=5)
    found = list(chain.from_iterable(batches.micro_batches(s, 0, 1) for s in range(3)))
    assert _names(found) == [1000 + i for i in range(20)]
    assert all(len(b.input_ids) == 1 for b in found if b.input_ids.shape[1] > 5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_without_data_gets_a_batch_that_counts_for_nothing(kind):
    batches = KINDS[kind](1)
    ranks = [batches.micro_batches(0, rank, 4) for rank in range(4)]
    idle = [batch for rank in ranks for batch in rank if not (batch.input_ids >= 1000).any()]
    assert len(idle) == 3
    for batch in idle:
        assert batch.input_ids.shape == (1, 2)
        assert (batch.labels == IGNORE).all()
        assert batch.attention_mask is None or batch.attention_mask.all()


def test_length_buckets_halve_the_padding():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.geometric(1 / 90, 2_000), 2, 512)
    examples = [(np.full(n, 5, dtype=np.int32), np.full(n, 5, dtype=np.int32)) for n in lengths]
    batches = ExampleBatches(examples, 16, 16)
    padded = sum(b.input_ids.numel() for s in range(batches.steps_per_epoch) for b in batches.micro_batches(s, 0, 1))
    shuffled = sum(16 * max(lengths[i : i + 16]) for i in range(0, 2_000, 16))
    assert padded < shuffled / 2
    assert padded < 1.25 * lengths.sum()


def test_long_steps_come_at_another_time_in_each_epoch():
    examples = [(np.full(n, 5, dtype=np.int32), np.full(n, 5, dtype=np.int32)) for n in range(1, 129)]
    batches = ExampleBatches(examples, 8, 8)
    widths = [batches.micro_batches(step, 0, 1)[0].input_ids.shape[1] for step in range(32)]
    first, second = np.argsort(widths[:16]), np.argsort(widths[16:])
    assert (first != second).sum() > 8
    assert not (np.diff(widths[:16]) > 0).all()  # nor from short to long


def test_the_last_partial_step_is_dropped_only_on_demand():
    for kind in KINDS.values():
        batches = kind(61, drop_last=True)
        assert batches.steps_per_epoch == 7
        found = list(chain.from_iterable(batches.micro_batches(s, 0, 1) for s in range(7)))
        assert len(set(_names(found))) == 56


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "micro_batch_size is None, expected either it or max_tokens"),
        ({"micro_batch_size": 2, "max_tokens_per_micro_batch": 9}, "micro_batch_size is 2, expected either it or max_tokens"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0, expected 1 or more"),
        ({"max_tokens_per_micro_batch": 9, "packed_length": 99}, "packed_length is 99, expected with micro_batch_size"),
        ({"micro_batch_size": 2, "packed_length": 20}, r"packed_length is 20, expected at least \d+, the longest example"),
        ({"micro_batch_size": 2, "batch_size": 0}, "batch_size is 0, expected 1 or more"),
        ({"micro_batch_size": 2, "drop_last": True, "batch_size": 50}, "examples is 30, expected at least 50"),
        ({"micro_batch_size": 2, "examples": []}, "examples is 0, expected at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ExampleBatches(**{"examples": _examples(30), "batch_size": 8, **options})


def test_a_rank_outside_the_world_is_refused():
    with pytest.raises(ValueError, match="rank is 2, expected 0 to 1"):
        KINDS["padded"](8).micro_batches(0, 2, 2)


# Pretraining


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    texts = [f"{i} " * (5 * i % 37 + 1) for i in range(60)]
    tokenizer = train_tokenizer(["0 1 2 3 4 5 6 7 8 9 the quick brown fox " * 30], 300)
    return write_shards(texts, tokenizer, tmp_path_factory.mktemp("shards"), shard_tokens=900)


@pytest.mark.parametrize("width", [2, 16, 33, 5_000])
def test_every_token_is_a_target_once_an_epoch_except_at_the_start_of_a_document(shards, width):
    assert len(shards.infos) > 2
    batches = TokenBatches(shards, width, 8, 3, seed=0)
    found = list(chain.from_iterable(batches.micro_batches(s, 0, 1) for s in range(batches.steps_per_epoch)))
    targets = np.concatenate([b.labels[:, 1:].flatten().numpy() for b in found])
    expected = np.concatenate([document[1:] for document in shards.documents()])
    np.testing.assert_array_equal(np.bincount(targets[targets != IGNORE]), np.bincount(expected))


def test_without_separation_the_next_document_is_text_like_any(shards):
    batches = TokenBatches(shards, 16, 8, 3, seed=0, separate_documents=False)
    found = list(chain.from_iterable(batches.micro_batches(s, 0, 1) for s in range(batches.steps_per_epoch)))
    assert all(b.position_ids is None for b in found)
    assert _targets(found) == shards.num_tokens - len(shards.infos)


def test_a_row_is_contiguous_text_whose_positions_restart_with_each_document_only(shards):
    expected = {}
    for tokens, starts in zip(shards.tokens, shards.starts):
        for begin in range(0, len(tokens) - 1, 15):
            ids, positions = [], []
            for at in range(begin, begin + 16):
                ids.append(int(tokens[at]) if at < len(tokens) else 0)
                positions.append(0 if at == begin or at in starts.tolist() else positions[-1] + 1)
            expected[tuple(ids)] = positions
    batches = TokenBatches(shards, 16, 8, 3, seed=0)
    without = 0
    for batch in chain.from_iterable(batches.micro_batches(s, 0, 1) for s in range(batches.steps_per_epoch)):
        plain = torch.arange(16).expand_as(batch.input_ids)  # no position_ids: no document begins in this micro-batch
        without += batch.position_ids is None
        found = plain if batch.position_ids is None else batch.position_ids
        assert found.tolist() == [expected[tuple(ids)] for ids in batch.input_ids.tolist()]
        assert ((batch.labels == batch.input_ids) | (batch.labels == IGNORE)).all()
    assert 0 < without < 2 * batches.steps_per_epoch  # both the fast path and the separated one occurred


@pytest.mark.parametrize("world", [2, 3, 16])
def test_a_pretraining_step_holds_the_same_rows_on_any_number_of_ranks(shards, world):
    batches = TokenBatches(shards, 16, 8, 3, seed=0)
    for step in range(batches.steps_per_epoch, 2 * batches.steps_per_epoch):
        rows = []
        for n in (1, world):
            ranks = [batches.micro_batches(step, rank, n) for rank in range(n)]
            assert len({len(rank) for rank in ranks}) == 1
            batch_rows = [row for b in chain.from_iterable(ranks) if b.input_ids.shape[1] == 16 for row in b.labels.tolist()]
            rows.append(sorted(map(tuple, batch_rows)))
        assert rows[0] == rows[1]


def test_a_row_of_one_token_is_refused(shards):
    with pytest.raises(InputError, match="sequence_length is 1, expected 2 or more"):
        TokenBatches(shards, 1, 8, 8, seed=0)


# Preferences and prompts


@pytest.mark.parametrize("world", [1, 2, 3, 11])
def test_every_pair_stands_once_in_an_epoch_beside_its_own_answers(world):
    pairs = _pairs(29)
    batches = PreferenceBatches(pairs, 8, 3, 0, PAD)
    found = []
    for step in range(batches.steps_per_epoch):
        ranks = [batches.micro_batches(step, rank, world) for rank in range(world)]
        assert len({len(rank) for rank in ranks}) == 1
        for b in chain.from_iterable(ranks):
            assert len(b.chosen_ids) <= 3
            for chosen, cm, rejected, rm in zip(b.chosen_ids, b.chosen_mask, b.rejected_ids, b.rejected_mask):
                if not cm.any():
                    assert not rm.any()
                    continue
                pair = pairs[int(chosen[0]) - 1000]
                assert chosen[cm].tolist() == pair.chosen.tolist()
                assert rejected[rm].tolist() == pair.rejected.tolist()
                assert set(chosen[~cm].tolist()) <= {PAD}
                assert cm[: len(pair.chosen)].all()
                found.append(int(chosen[0]))
    assert sorted(found) == [1000 + i for i in range(29)]


def test_margins_stay_with_their_pairs_and_default_to_zero():
    assert PreferenceBatches(_pairs(8), 8, 8, 0, PAD).micro_batches(0, 0, 1)[0].margin is None
    pairs = _pairs(8, margins=True)
    pairs[5].margin = None
    (batch,) = PreferenceBatches(pairs, 8, 8, 0, PAD).micro_batches(0, 0, 1)
    expected = [pairs[int(i) - 1000].margin or 0.0 for i in batch.chosen_ids[:, 0]]
    assert batch.margin.tolist() == expected
    idle = PreferenceBatches(pairs[3:4], 8, 8, 0, PAD).micro_batches(0, 1, 2)[0]
    assert (idle.margin.tolist(), bool(idle.chosen_mask.any()), bool(idle.rejected_mask.any())) == ([0.0], False, False)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_step_of_prompts_is_full_and_the_same_on_any_number_of_ranks(world):
    prompts = _prompts(10)
    batches = PromptBatches(prompts, 8, 0, PAD, group_size=2)
    numbers = []
    for step in range(5):  # 20 prompts: two epochs, whose border falls inside a step
        found = {}
        for rank in range(world):
            batch, rows = batches.batch(step, rank, world)
            assert len(rows) == len(batch.query_ids) == 8 // world
            assert (batch.query_mask[:, -1]).all()
            for ids, mask, group, row in zip(batch.query_ids, batch.query_mask, batch.group_ids.tolist(), rows):
                assert ids[mask].tolist() == prompts[row["number"]].ids.tolist()
                assert set(ids[~mask].tolist()) <= {PAD}
                assert mask.tolist() == sorted(mask.tolist())  # padded on the left
                found.setdefault(group, []).append(row["number"])
        assert sorted(found) == [0, 1, 2, 3]
        assert all(len(group) == 2 and len(set(group)) == 1 for group in found.values())
        numbers += [found[g][0] for g in range(4)]
    assert sorted(numbers[:10]) == sorted(numbers[10:]) == list(range(10))
    assert numbers[:10] != numbers[10:]
    assert batches.steps_per_epoch == 3


def test_ranks_answer_prompts_of_their_own_and_each_step_again_the_same():
    batches = PromptBatches(_prompts(20), 8, 0, PAD)
    first, second = ({row["number"] for row in batches.batch(0, rank, 2)[1]} for rank in range(2))
    assert not first & second
    later = batches.batch(7, 1, 2)
    again = PromptBatches(_prompts(20), 8, 0, PAD).batch(7, 1, 2)
    torch.testing.assert_close(vars(later[0]), vars(again[0]), rtol=0, atol=0)
    assert later[1] == again[1]


@pytest.mark.parametrize(
    ("options", "world", "message"),
    [
        ({"group_size": 3}, 1, "batch_size is 8, expected a multiple of group_size, 3"),
        ({"group_size": 4}, 4, "batch_size is 8, expected prompts for 4 ranks alike"),
        ({"examples": []}, 1, "examples is 0, expected at least 1"),
    ],
)
def test_prompts_that_cannot_be_dealt_alike_are_refused(options, world, message):
    with pytest.raises(InputError, match=message):
        PromptBatches(**{"examples": _prompts(9), "batch_size": 8, "seed": 0, "pad_id": PAD, **options}).batch(0, 0, world)
