"""Evaluation against hand constants, exact small cases and simulated data whose truth is known."""

import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from rlhf_kit.batches import IGNORE, LMBatch, PreferenceBatch
from rlhf_kit.errors import InputError
from rlhf_kit.evaluation import generation, intervals, perplexity, reward
from rlhf_kit.evaluation.ngram import NGram, ngram_bits_per_byte


def tiny_lm(vocab: int = 300) -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=vocab, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).train()  # in train mode, dropout on: evaluation has to turn it off


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|endoftext|>": 0, **{c: i for i, c in enumerate(alphabet, 1)}}
    inner = Tokenizer(models.BPE(vocab, [], unk_token=special.get("unk_token")))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


# ---- language models ------------------------------------------------------------------------------------------------


def naive_nats(model: GPT2LMHeadModel, ids: list[int]) -> torch.Tensor:
    """(T-1,) nats of each token after the first, all in one window."""
    model.eval()
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    model.train()
    return -logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def test_the_loss_is_the_mean_over_labels_of_all_batches_not_of_batch_means() -> None:
    model = tiny_lm()
    long, short = torch.randint(1, 300, (1, 20)), torch.randint(1, 300, (1, 5))
    labels = long.clone()
    labels[:, :4] = IGNORE
    result = perplexity.evaluate_language_model(model, [LMBatch(long, labels), LMBatch(short, short)])
    nats = torch.cat([naive_nats(model, long[0].tolist())[3:], naive_nats(model, short[0].tolist())])
    assert result["tokens"] == 16 + 4
    assert result["loss"] == pytest.approx(nats.mean().item(), rel=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(nats.mean()), rel=1e-6)
    assert result["bits_per_token"] == pytest.approx(nats.mean().item() / math.log(2), rel=1e-6)


def test_evaluation_leaves_every_module_in_the_mode_it_was_in() -> None:
    model = tiny_lm()
    model.transformer.h[0].eval()
    before = [m.training for m in model.modules()]
    ids = torch.randint(1, 300, (2, 6))
    perplexity.evaluate_language_model(model, [LMBatch(ids, ids)])
    assert [m.training for m in model.modules()] == before
    assert True in before
    assert False in before


def test_padding_and_packing_do_not_change_the_loss() -> None:
    model = tiny_lm()
    a, b = torch.randint(1, 300, (7,)), torch.randint(1, 300, (4,))
    alone = perplexity.evaluate_language_model(model, [LMBatch(x[None], x[None]) for x in (a, b)])
    ids, labels = torch.zeros(2, 7, dtype=torch.long), torch.full((2, 7), IGNORE)
    ids[0], ids[1, :4], labels[0], labels[1, :4] = a, b, a, b
    padded = perplexity.evaluate_language_model(model, [LMBatch(ids, labels, attention_mask=labels != IGNORE)])
    positions = torch.cat([torch.arange(7), torch.arange(4)])[None]
    both = torch.cat([a, b])[None]  # nothing predicts the first token of the second document
    packed = perplexity.evaluate_language_model(model, [LMBatch(both, both, position_ids=positions)])
    assert padded["tokens"] == packed["tokens"] == alone["tokens"] == 9
    assert padded["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert packed["loss"] == pytest.approx(alone["loss"], rel=1e-6)


def test_batches_without_a_label_are_refused() -> None:
    ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(InputError, match="evaluation tokens is 0"):
        perplexity.evaluate_language_model(tiny_lm(), [LMBatch(ids, torch.full_like(ids, IGNORE))])


@pytest.mark.parametrize(
    ("length", "window", "stride"), [(1, 4, 2), (2, 4, 3), (4, 4, 3), (5, 4, 3), (23, 8, 3), (24, 8, 7), (9, 2, 1)]
)
def test_windows_predict_every_token_but_the_first_exactly_once(length: int, window: int, stride: int) -> None:
    ids = list(range(100, 100 + length))
    predicted = []
    for k, (inputs, labels) in enumerate(perplexity.document_windows(ids, window, stride)):
        assert len(inputs) == len(labels) <= window
        assert labels[0] == IGNORE  # a window's first token has nothing before it
        assert all(label in (IGNORE, token) for token, label in zip(inputs, labels))
        fresh = [label for label in labels if label != IGNORE]
        assert fresh
        if k:
            assert len(fresh) <= stride
            assert len(inputs) - len(fresh) >= window - stride  # the promised context
        predicted += fresh
    assert predicted == ids[1:]


def test_document_bits_per_byte_equal_a_loop_over_windows_and_count_utf8_bytes() -> None:
    model, tokenizer = tiny_lm(), byte_tokenizer(bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    texts = ["Grüße, 世界! " * 3, "", "short", "x"]
    result = perplexity.evaluate_documents(model, tokenizer, texts, sequence_length=16, stride=5, batch_size=3)
    nats = 0.0
    for text in texts:
        ids = [0, *tokenizer(text)["input_ids"]]
        for t in range(1, len(ids)):  # the window that first predicts token t starts at the first multiple of 5 that reaches it
            start = 0 if t < 16 else 5 * math.ceil((t - 15) / 5)
            nats += naive_nats(model, ids[start : t + 1])[-1].item()
    n_bytes = sum(len(text.encode()) for text in texts)
    assert result["bytes"] == result["tokens"] == n_bytes  # one token is one byte here
    assert result["documents"] == 3
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-6)


def test_a_document_in_one_window_has_the_plain_loss() -> None:
    model, tokenizer = tiny_lm(), byte_tokenizer(eos_token="<|endoftext|>")  # no bos: eos opens the document
    result = perplexity.evaluate_documents(model, tokenizer, ["hello there"], sequence_length=32, stride=31)
    assert result["loss"] == pytest.approx(naive_nats(model, [0, *tokenizer("hello there")["input_ids"]]).mean().item(), rel=1e-6)


@pytest.mark.parametrize("stride", [0, 16])
def test_a_stride_that_would_leave_tokens_out_is_refused(stride: int) -> None:
    tokenizer = byte_tokenizer(bos_token="<|endoftext|>")
    with pytest.raises(InputError, match=f"stride is {stride}, expected 1 to sequence_length - 1 = 15"):
        perplexity.evaluate_documents(tiny_lm(), tokenizer, ["text"], sequence_length=16, stride=stride)


def test_a_tokenizer_that_loses_text_cannot_claim_bits_per_byte() -> None:
    inner = Tokenizer(models.WordLevel({"<s>": 0, "[UNK]": 1, "known": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", unk_token="[UNK]")
    assert perplexity.encode_document(tokenizer, "known known") == [0, 2, 2]
    with pytest.raises(InputError, match="unk_token"):
        perplexity.encode_document(tokenizer, "known unheard")
    with pytest.raises(InputError, match="bos_token is None"):
        perplexity.encode_document(PreTrainedTokenizerFast(tokenizer_object=inner), "known")


def test_bits_per_byte_of_one_bit_a_byte_is_one() -> None:
    assert perplexity.bits_per_byte(math.log(2) * 10, 10) == pytest.approx(1.0, rel=1e-12)
    with pytest.raises(InputError, match="n_bytes is 0"):
        perplexity.bits_per_byte(1.0, 0)


def test_xz_sees_repetition_and_what_came_before() -> None:
    rng = np.random.default_rng(0)
    noise = "".join(chr(c) for c in rng.integers(32, 127, 4000))
    assert perplexity.xz_bits_per_byte("ab" * 4000) < 0.3
    assert perplexity.xz_bits_per_byte(noise) > math.log2(95)  # never below the entropy
    assert perplexity.xz_bits_per_byte(noise, prior=noise) < 0.5
    with pytest.raises(InputError, match="text"):
        perplexity.xz_bits_per_byte("")


# ---- n-grams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_ngram_probabilities_of_all_next_symbols_sum_to_one_after_any_context(order: int) -> None:
    rng = np.random.default_rng(1)
    model = NGram(order, symbols=6).fit([rng.integers(1, 5, 400), rng.integers(1, 5, 3), np.array([], dtype=np.int64)])
    for context in ([], [1], [2, 3], [5, 5, 5], [1, 2, 3, 4, 1]):  # symbol 5 was never seen
        nexts = [2 ** model.log2_probabilities(np.array([*context, s]))[-1] for s in range(1, 6)]
        assert math.fsum(nexts) == pytest.approx(1.0, abs=1e-6)  # counts are kept in fp32
        assert min(nexts) > 0


def test_a_bigram_model_equals_the_formula_worked_by_hand() -> None:
    # "abab" with its start: bigrams ^a 1, ab 2, ba 1. Too little text for the estimate, so D(1) = 0.5 and D(2) = 0.75.
    # A unigram counts its different left neighbours: a 2 (^ and b), b 1 (a).
    model = NGram(2, symbols=4).fit([np.array([1, 2, 1, 2])])
    unigram_b = (1 - 0.5 + (0.75 + 0.5) * (1 / 3)) / 3
    assert 2 ** model.log2_probabilities(np.array([1, 2]))[1] == pytest.approx((2 - 0.75 + 0.75 * unigram_b) / 2, rel=1e-7)
    assert 2 ** model.log2_probabilities(np.array([3, 2]))[1] == pytest.approx(unigram_b, rel=1e-7)  # unseen context


def test_a_longer_ngram_predicts_structured_text_better_and_noise_no_better_than_its_entropy() -> None:
    rng = np.random.default_rng(2)
    words = ["the cat sat", "a dog ran", "the dog sat", "a cat ran"]
    train, test = (". ".join(rng.choice(words, 400)) for _ in range(2))
    bits = [ngram_bits_per_byte([train], [test], order) for order in (1, 2, 4)]
    assert bits[0] > bits[1] > bits[2]
    assert bits[2] < 0.6
    noise = ["".join(rng.choice(list("abcd"), 4000)) for _ in range(2)]
    assert 2.0 < ngram_bits_per_byte(noise[:1], noise[1:], 5) < 2.3


def test_ngrams_refuse_what_they_cannot_count() -> None:
    with pytest.raises(InputError, match="order is 8, expected 1 to 7"):
        NGram(8)
    with pytest.raises(InputError, match="documents"):
        NGram(2).fit([])
    with pytest.raises(InputError, match="symbols of the document"):
        ngram_bits_per_byte(["a\0b"], ["a"])


# ---- intervals --------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        low, high = intervals.share_interval(rng.random(120) < 0.7, resamples=300, seed=trial)[1:3]
        hits += low <= 0.7 <= high
    assert 0.91 <= hits / 300 <= 0.98  # 95 % with a binomial standard error of 1.3 %


def test_answers_to_one_prompt_are_resampled_together() -> None:
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(50), 8)
    values = np.repeat(rng.random(50) < 0.5, 8).astype(float)  # all eight answers agree: 50 facts, not 400
    naive, honest = intervals.share_interval(values), intervals.share_interval(values, clusters=prompt)
    assert naive.estimate == honest.estimate == values.mean()
    assert (honest.high - honest.low) / (naive.high - naive.low) == pytest.approx(math.sqrt(8), rel=0.15)


def test_an_interval_is_the_same_for_the_same_seed_and_a_constant_has_no_width() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert intervals.mean_interval(values, seed=3) == intervals.mean_interval(values, seed=3)
    assert intervals.mean_interval(values, seed=3) != intervals.mean_interval(values, seed=4)
    assert intervals.mean_interval([0.0] * 5) == (0, 0, 0, 5)


def test_all_wins_still_leave_doubt() -> None:
    # Clopper-Pearson for 20 of 20: the lower end is 0.025 ** (1 / 20) = 0.8316.
    assert intervals.share_interval([1.0] * 20) == pytest.approx((1.0, 0.8315665, 1.0, 20), abs=1e-6)
    assert intervals.share_interval([0.0] * 20) == pytest.approx((0.0, 0.0, 0.1684335, 20), abs=1e-6)
    low = intervals.share_interval([1.0] * 20, clusters=[0, 1] * 10).low
    assert low == pytest.approx(math.sqrt(0.025), rel=1e-12)


def test_numbers_that_cannot_be_averaged_are_named() -> None:
    with pytest.raises(InputError, match=r"values\[1\] is nan"):
        intervals.mean_interval([1.0, math.nan])
    with pytest.raises(InputError, match="at least one item"):
        intervals.mean_interval([])
    with pytest.raises(InputError, match="expected numbers from 0 to 1"):
        intervals.share_interval([0.0, 2.0])
    with pytest.raises(InputError, match="expected one length"):
        intervals.mean_interval([1.0, 2.0], clusters=[0])


# ---- reward models ----------------------------------------------------------------------------------------------------


def test_accuracy_counts_a_tie_as_half() -> None:
    assert reward.accuracy([2, 1, 0, 5], [1, 1, 3, 0]).estimate == (1 + 0.5 + 0 + 1) / 4


def test_no_scorer_beats_the_bayes_ceiling() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(8_000)
    assert reward.bayes_accuracy([0.9, 0.2, 0.5]) == pytest.approx((0.9 + 0.8 + 0.5) / 3, rel=1e-12)
    label = rng.random(len(p)) < p
    best = np.where(label, p - 0.5, 0.5 - p)  # scores that know p exactly
    assert reward.accuracy(best, -best).estimate == pytest.approx(reward.bayes_accuracy(p), abs=0.015)  # 3 standard errors
    with pytest.raises(InputError, match="probability"):
        reward.bayes_accuracy([1.2])


def test_losses_have_their_known_values() -> None:
    assert reward.log_loss([0, 0], [0, 0]) == pytest.approx(math.log(2), rel=1e-12)
    assert reward.brier_score([0, 0], [0, 0]) == pytest.approx(0.25, rel=1e-12)
    odds = math.log(3)  # sigmoid(ln 3) = 3/4
    assert reward.log_loss([odds, 0], [0, odds]) == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2, rel=1e-12)
    assert reward.brier_score([odds, 0], [0, odds]) == pytest.approx((0.0625 + 0.5625) / 2, rel=1e-12)
    assert reward.log_loss([-1e4], [0]) == pytest.approx(1e4, rel=1e-12)  # no overflow
    assert reward.brier_score([-1e4], [0]) == pytest.approx(1.0, rel=1e-12)


def test_calibration_of_a_hand_made_case() -> None:
    gap = math.log(3)  # confidence 3/4
    found = reward.calibration([gap, gap, gap, 0, 0, 0], [0, 0, 0, gap, 0, 0], bins=2)
    # Lowest three: two ties at 1/2 with outcome 1/2, and one of the four at 3/4, which are right three times in four.
    assert found.predicted == pytest.approx([(0.5 + 0.5 + 0.75) / 3, 0.75], rel=1e-12)
    assert found.observed == pytest.approx([(0.5 + 0.5 + 0.75) / 3, 0.75], rel=1e-12)
    assert found.pairs == [3, 3]
    assert found.ece == pytest.approx(0.0, abs=1e-12)
    overconfident = reward.calibration([gap, 0], [0, gap], bins=1)
    assert overconfident == ([pytest.approx(0.75)], [0.5], [2], pytest.approx(0.25))


def test_scores_in_true_log_odds_are_calibrated_and_doubled_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    gap = rng.normal(size=20_000) * 1.5
    sign = np.where(rng.random(len(gap)) < 1 / (1 + np.exp(-gap)), 1, -1)
    won = gap * sign  # the pair read from the side of the choice
    assert reward.calibration(won, np.zeros_like(won)).ece < 0.012
    assert reward.calibration(2 * won, np.zeros_like(won)).ece > 0.05


def test_calibration_does_not_depend_on_the_order_of_the_pairs() -> None:
    rng = np.random.default_rng(0)
    won, lost = rng.integers(0, 4, 101), rng.integers(0, 4, 101)
    order = rng.permutation(101)
    a, b = reward.calibration(won, lost, bins=7), reward.calibration(won[order], lost[order], bins=7)
    assert a.observed == pytest.approx(b.observed, rel=1e-12)
    assert a.ece == pytest.approx(b.ece, rel=1e-12)


def test_a_model_that_counts_words_is_found_out() -> None:
    chosen, rejected = np.array([9.0, 4, 7, 3]), np.array([5.0, 6, 2, 8])
    found = reward.length_bias(chosen, rejected, chosen, rejected)  # the score is the length
    assert (found["accuracy_longer"], found["accuracy_shorter"]) == (1.0, 0.0)
    assert (found["pairs_longer"], found["pairs_shorter"]) == (2, 2)
    assert found["prefers_longer"] == 1.0
    assert found["people_prefer_longer"] == 0.5
    assert found["correlation"] == pytest.approx(1.0, rel=1e-12)
    assert found["difference_correlation"] == pytest.approx(1.0, rel=1e-12)


def test_length_differences_between_prompts_are_not_length_bias() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=3000) * 10  # a prompt that calls for long answers also scores high
    scores, lengths = rng.normal(size=(2, 3000)), rng.normal(size=(2, 3000))
    found = reward.length_bias(base + scores[0], base + scores[1], base + lengths[0], base + lengths[1])
    assert found["correlation"] > 0.9
    assert abs(found["difference_correlation"]) < 0.05


def test_pairs_of_equal_length_say_nothing_about_length() -> None:
    found = reward.length_bias([1.0], [0.0], [5], [5])
    assert found["accuracy_longer"] is found["accuracy_shorter"] is found["prefers_longer"] is None
    assert found["difference_correlation"] == 0.0


def test_a_reward_model_is_scored_pair_by_pair_in_order() -> None:
    config = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config.num_labels, config.pad_token_id = 1, 0
    model = LlamaForSequenceClassification(config).eval()
    ids = torch.randint(1, 50, (5, 2, 6))
    lengths = torch.tensor([[6, 3], [2, 5], [4, 4], [1, 6], [5, 2]])
    mask = torch.arange(6) < lengths[..., None]
    batches = [PreferenceBatch(ids[s, 0], mask[s, 0], ids[s, 1], mask[s, 1]) for s in (slice(0, 3), slice(3, 5))]
    scores = reward.score_preferences(model, batches)
    assert scores.chosen_lengths.tolist() == [6, 2, 4, 1, 5]
    assert scores.rejected_lengths.tolist() == [3, 5, 4, 6, 2]
    for i in range(5):
        with torch.no_grad():  # each answer alone, with no padding
            alone = [model(ids[i, j, : lengths[i, j]][None]).logits.item() for j in (0, 1)]
        assert [scores.chosen[i], scores.rejected[i]] == pytest.approx(alone, rel=1e-5, abs=1e-6)
    summary = reward.summarize_preferences(scores, bins=2)
    assert summary["accuracy"]["estimate"] == (scores.chosen > scores.rejected).mean()
    assert summary["log_loss"] == reward.log_loss(scores.chosen, scores.rejected)
    none = torch.zeros(2, 6, dtype=torch.bool)  # rows that only keep the ranks in step
    idle = PreferenceBatch(ids[:2, 0], none, ids[:2, 1], none)
    assert reward.score_preferences(model, [batches[0], idle]).chosen.tolist() == scores.chosen[:3].tolist()
    with pytest.raises(InputError, match="preference batches"):
        reward.score_preferences(model, [])


# ---- generations ------------------------------------------------------------------------------------------------------


def test_outcomes_from_scores_know_wins_ties_and_losses() -> None:
    assert generation.outcomes_from_scores([1, 2, 3], [2, 2, 2]).tolist() == [0, 0.5, 1]
    assert generation.outcomes_from_scores([1, 2.1, 3], [2, 2, 2], margin=0.5).tolist() == [0, 0.5, 1]
    found = generation.win_rate([0, 0.5, 1, 1])
    assert (found["estimate"], found["win"], found["tie"], found["loss"]) == (0.625, 0.5, 0.25, 0.25)
    assert found["low"] < 0.625 < found["high"]


def test_a_judge_that_always_takes_the_first_answer_decides_nothing() -> None:
    found = generation.judge_both_orders(lambda prompt, a, b: 1, ["p", "q"], ["x", "y"], ["u", "v"])
    assert found.outcomes.tolist() == [0.5, 0.5]
    assert (found.consistency, found.first_rate) == (0.0, 1.0)


def test_a_fair_judge_is_heard_in_both_orders() -> None:
    def longer(prompt: str, a: str, b: str) -> int:
        return int(np.sign(len(a) - len(b)))

    found = generation.judge_both_orders(longer, ["p"] * 3, ["aaa", "a", "aa"], ["b", "bb", "bb"])
    assert found.outcomes.tolist() == [1, 0, 0.5]
    assert (found.consistency, found.first_rate) == (1.0, 0.5)
    with pytest.raises(InputError, match="judge's verdict is 2"):
        generation.judge_both_orders(lambda prompt, a, b: 2, ["p"], ["a"], ["b"])
    with pytest.raises(InputError, match="prompts"):
        generation.judge_both_orders(longer, [], [], [])


def test_logistic_fit_without_a_slope_is_the_log_odds() -> None:
    targets, weights = np.array([1.0, 0, 1, 1]), np.array([[1.0, 1, 1, 1], [0.0, 2, 1, 1]])
    found = generation.fit_logistic(np.ones((4, 1)), targets, weights, ridge=0.0)
    assert found[:, 0] == pytest.approx([math.log(3), 0.0], abs=1e-9)


def test_logistic_fit_stands_at_the_optimum_of_its_objective() -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(60, 2)), rng.random(60)
    weights = rng.integers(0, 4, (3, 60)).astype(float)
    found = generation.fit_logistic(features, targets, weights, ridge=0.3)
    b = torch.tensor(found, requires_grad=True)
    logits = b @ torch.tensor(features.T)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.tensor(targets).expand_as(logits), weight=torch.tensor(weights), reduction="sum"
    )
    (gradient,) = torch.autograd.grad(entropy + 0.15 * b.square().sum(), b)  # strictly convex: no gradient, the optimum
    assert gradient.abs().max() < 1e-7


def test_logistic_fit_stays_finite_where_length_decides_everything() -> None:
    x = np.linspace(-1, 1, 50)
    found = generation.fit_logistic(np.stack([np.ones(50), x], 1), (x > 0).astype(float), np.ones((1, 50)))
    assert np.isfinite(found).all()
    assert found[0, 0] == pytest.approx(0.0, abs=1e-6)


def test_length_control_removes_a_pure_length_effect() -> None:
    rng = np.random.default_rng(0)
    gap = rng.normal(20, 30, size=1500)  # the policy writes more
    p = 1 / (1 + np.exp(-2 * np.tanh(gap / gap.std())))  # and the judge looks at nothing else
    outcomes = (rng.random(1500) < p).astype(float)
    raw = generation.win_rate(outcomes)
    controlled = generation.length_controlled_win_rate(outcomes, 100 + gap, np.full(1500, 100.0), resamples=200)
    assert raw["low"] > 0.6
    assert controlled.low < 0.5 < controlled.high
    assert controlled.estimate == pytest.approx(0.5, abs=0.04)


def test_length_control_keeps_a_true_advantage() -> None:
    rng = np.random.default_rng(1)
    gap = rng.normal(20, 30, size=1500)
    p = 1 / (1 + np.exp(-(math.log(3) + 2 * np.tanh(gap / gap.std()))))  # 75 % at equal length
    outcomes = (rng.random(1500) < p).astype(float)
    controlled = generation.length_controlled_win_rate(outcomes, gap, np.zeros(1500), resamples=200)
    assert controlled.low < 0.75 < controlled.high
    assert controlled.estimate == pytest.approx(0.75, abs=0.05)


def test_length_control_of_equal_lengths_is_the_win_rate() -> None:
    outcomes = [1.0] * 60 + [0.0] * 40
    found = generation.length_controlled_win_rate(outcomes, [7] * 100, [7] * 100, resamples=50)
    assert found.estimate == pytest.approx(0.6, abs=1e-4)  # the ridge pulls towards 1/2 by ridge/N


def test_distinct_n_counts_over_all_answers_together() -> None:
    assert generation.distinct_n(["a b a b", "a b"], 1) == 2 / 6
    assert generation.distinct_n(["a b a b", "a b"], 2) == 2 / 4
    assert generation.distinct_n([[1, 2, 3], [1]], 2) == 1.0
    assert generation.distinct_n(["a"], 2) == 0.0


def test_answers_are_described() -> None:
    found = generation.describe_answers([[1, 2, 1], [3], []], [True, True, False])
    assert found == {"mean_length": 4 / 3, "eos_rate": 2 / 3, "distinct_1": 3 / 4, "distinct_2": 1.0, "answers": 3}


def test_sequence_kl_sums_valid_tokens_and_ignores_what_stands_on_padding() -> None:
    logprobs, ref = (
        torch.tensor([[-1.0, -2.0, 9.0], [-1.0, math.nan, -math.inf]]),
        torch.tensor([[-1.5, -3.0, 0.0], [-0.5, 0, 0]]),
    )
    mask = torch.tensor([[True, True, False], [True, False, False]])
    found = generation.sequence_kl(logprobs, ref, mask)
    assert found.estimate == pytest.approx((1.5 - 0.5) / 2, rel=1e-12)
    assert generation.sequence_kl(logprobs, logprobs, mask)[:3] == (0, 0, 0)


def test_sequence_kl_estimates_the_kl_of_two_known_distributions() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.2, 0.3, 0.5]).double()
    exact = 3 * (p * (p / q).log()).sum().item()  # three independent tokens an answer
    tokens = torch.multinomial(p, 3 * 3000, replacement=True).reshape(3000, 3)
    found = generation.sequence_kl(p.log()[tokens], q.log()[tokens], torch.ones(3000, 3, dtype=torch.bool), resamples=200)
    assert found.low < exact < found.high
    assert found.estimate == pytest.approx(exact, rel=0.06)
