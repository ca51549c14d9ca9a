"""The GPT as `transformers` models: a config and thin shells, known to the Auto classes once `rlhf_kit.models` is imported.

The shells hold no maths of the backbone (see `gpt.py`), only what `transformers` and `peft` need to save, load, tie,
generate and adapt.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.utils import can_return_tuple

from rlhf_kit.errors import InputError
from rlhf_kit.models.gpt import GPT, GPTOptions, initialise


class GPTConfig(PreTrainedConfig, GPTOptions):
    """`GPTOptions` as a `transformers` config, with what the heads and `generate` need.

    Raises:
        InputError: a value that cannot be, named by its field.
    """

    model_type = "rlhf_gpt"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "d_mlp",
        "max_position_embeddings": "max_seq_len",
        "initializer_range": "init_std",
    }

    auto_map: ClassVar[dict[str, str]] = {}  # TRL's GRPO and RLOO trainers read it of any model they load a reference of

    tie_word_embeddings: bool = True
    use_cache: bool = True
    score_bias: float = 0.0  # calibration of a scalar head, added to every score
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.resolve()
        for field in ("tie_word_embeddings", "use_cache"):
            if not isinstance(getattr(self, field), bool):
                raise InputError(field, getattr(self, field), "expected true or false")
        for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
            ids = value if isinstance(value := getattr(self, field), list) else [value]
            if not all(token is None or isinstance(token, int) for token in ids):
                raise InputError(field, value, "expected a token's number, or null")
        super().__post_init__(**kwargs)


class GPTPreTrainedModel(PreTrainedModel):
    """What the shells share."""

    config: GPTConfig
    config_class = GPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPTBlock"]  # noqa: RUF012  # transformers makes it a set of the instance's own
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.get_decoder().gpt.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.get_decoder().gpt.embed_tokens = value

    def _init_weights(self, module: nn.Module) -> None:
        initialise(module, self.config)
        if getattr(module, "is_score_head", False) and isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / math.sqrt(self.config.d_model + 1))


class GPTModel(GPTPreTrainedModel):
    """The backbone: hidden states."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.gpt = GPT(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states (B, T, D) and the cache; arguments as in `GPT.forward` and `transformers`."""
        if output_attentions:
            raise InputError("output_attentions", True, "expected false: attention weights are not kept")
        if use_cache is None:
            use_cache = self.config.use_cache
        if self.training and any(block.gradient_checkpointing for block in self.gpt.layers):
            use_cache = False
            if past_key_values is not None and past_key_values.get_seq_length() == 0:
                past_key_values = None  # an empty one is only a place to write to
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        trace: list[Tensor] | None = [] if output_hidden_states or self.config.output_hidden_states else None
        states = self.gpt(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, trace)
        return BaseModelOutputWithPast(
            last_hidden_state=states,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=None if trace is None else tuple(trace),
        )


class GPTForCausalLM(GPTPreTrainedModel, GenerationMixin):
    """The language model; its head is the embedding's transpose unless `tie_word_embeddings` is false."""

    _tied_weights_keys = {"lm_head.weight": "model.gpt.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.model = GPTModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V), of the last `logits_to_keep` positions only if that is not 0; the loss if `labels` are given."""
        out = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=out.past_key_values, hidden_states=out.hidden_states
        )


class GPTForSequenceClassification(GPTPreTrainedModel):
    """A linear head on the last valid token's hidden state; with one label a reward model or a critic."""

    _keys_to_ignore_on_load_unexpected = ["lm_head.weight"]  # noqa: RUF012

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = GPTModel(config)
        self.score = nn.Linear(config.d_model, config.num_labels or 1, bias=False)
        self.score.is_score_head = True  # type: ignore[assignment]  # read by `_init_weights`
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Scores (B, num_labels), `config.score_bias` added; the last valid token is found by the mask, never by its id.

        Raises:
            InputError: a row with nothing valid, or padding in sight and no mask.
        """
        out = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, **kwargs)
        states = out.last_hidden_state
        last = self._last_valid(states, input_ids, attention_mask)
        logits = self.score(states[torch.arange(len(last), device=last.device), last]) + self.config.score_bias
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return SequenceClassifierOutputWithPast(
            loss=loss, logits=logits, past_key_values=out.past_key_values, hidden_states=out.hidden_states
        )

    def _last_valid(self, states: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """(B,) long: the index of each row's last valid token."""
        B, T, _ = states.shape
        if attention_mask is None:
            pad = self.config.pad_token_id
            if pad is not None and input_ids is not None and bool((input_ids[:, -1] == pad).any()):
                raise InputError("attention_mask", None, f"expected a mask: the batch ends in pad_token_id {pad}")
            return torch.full((B,), T - 1, device=states.device)
        valid = attention_mask[:, -T:].bool()
        if not bool(valid.any(1).all()):
            row = int((~valid.any(1)).nonzero()[0])
            raise InputError("attention_mask row", row, "expected at least one valid token: remove empty texts")
        return (valid * torch.arange(1, T + 1, device=valid.device)).argmax(1)


class GPTForTokenClassification(GPTPreTrainedModel):
    """A linear head on every token's hidden state; with two labels a process reward model."""

    _keys_to_ignore_on_load_unexpected = ["lm_head.weight"]  # noqa: RUF012

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = GPTModel(config)
        self.score = nn.Linear(config.d_model, config.num_labels or 2)
        self.score.is_score_head = True  # type: ignore[assignment]  # read by `_init_weights`
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Logits (B, T, num_labels); the mean cross-entropy over the `labels` (B, T) that are not -100, if they are given."""
        out = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, **kwargs)
        logits = self.score(out.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


def register() -> None:
    """Make the Auto classes know the GPT; harmless when repeated."""
    AutoConfig.register("rlhf_gpt", GPTConfig, exist_ok=True)
    AutoModel.register(GPTConfig, GPTModel, exist_ok=True)
    AutoModelForCausalLM.register(GPTConfig, GPTForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(GPTConfig, GPTForSequenceClassification, exist_ok=True)
    AutoModelForTokenClassification.register(GPTConfig, GPTForTokenClassification, exist_ok=True)
