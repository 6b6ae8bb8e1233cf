"""A tiny random model of every type that transformers calls a causal language model; nothing is downloaded."""

import dataclasses
import functools
import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto import modeling_auto

import dro_temp as dt

VOCABULARY = 99
TYPES = tuple(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

# By field name; what a configuration does not have is left out, and so is what it has switched off (0).
_FIELDS = {
    VOCABULARY: "vocab_size decoder_vocab_size unpadded_vocab_size vocab_size_per_layer_input shape_vocab_size "
    "pronunciation_vocab_size encoder_hash_byte_group_vocab ngram_vocab_size_base",
    64: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim dim_ff dff d_ff ffn_hidden_size d_inner "
    "shared_intermediate_size moe_intermediate_size shared_expert_intermediate_size mamba_d_ssm feed_forward_size "
    "moe_shared_expert_intermediate_size expert_ffn_hidden_size intermediate_size_mlp dense_intermediate_size "
    "shared_experts_intermediate_size max_position_embeddings n_positions n_ctx max_seq_len max_source_positions "
    "max_target_positions context_length model_max_length sliding_window sliding_window_size window_size "
    "attention_window_size local_attention attention_chunk_size original_max_position_embeddings attention_dim "
    "ext_pw_intermediate_size",
    32: "hidden_size hidden_size_global d_model n_embd dim emb_dim embedding_size embedding_dim word_embed_proj_dim "
    "lru_width input_embedding_size output_embedding_size attention_hidden_size backbone_hidden_size "
    "router_hidden_size q_lora_rank kv_lora_rank o_lora_rank out_hidden_size output_channels adapter_in_dim "
    "adapter_out_dim adapter_input_size hc_lowrank attention_head_dim prompt_mid_dim image_size nemo_conv_channels",
    16: "hidden_size_per_layer_input adapter_rank shape_embed_dim pronunciation_embed_dim laurel_rank mamba_d_state "
    "state_size ssm_state_size mamba_dt_rank chunk_size mamba_chunk_size block_size index_topk keep_window_size",
    8: "head_dim d_head d_kv dim_head kv_channels attention_head_size qk_nope_head_dim qk_rope_head_dim v_head_dim "
    "swa_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim index_head_dim rotary_dim mamba_n_heads "
    "mamba_num_heads mamba_d_head mamba_head_dim global_head_dim",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads num_query_groups patch_size "
    "linear_num_heads linear_num_value_heads num_experts n_routed_experts num_local_experts moe_num_experts",
    2: "num_key_value_heads swa_num_key_value_heads num_kv_heads linear_num_key_heads num_experts_per_tok "
    "num_experts_per_token moe_topk moe_k top_k n_group topk_group num_expert_group index_n_heads n_groups "
    "mamba_n_groups mamba_ngroups n_mamba_heads zero_expert_num num_hidden_layers n_layer n_layers num_layers "
    "decoder_layers encoder_layers num_encoder_layers num_decoder_layers depth num_blocks",
}
_SIZES = {name: size for size, names in _FIELDS.items() for name in names.split()}
_OPTIONAL = ("sliding_window", "attention_hidden_size", "mamba_dt_rank", "chunk_size")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

# Where sizes depend on one another in a way that names do not tell.
_MIXED = ["linear_attention", "full_attention"]
_EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {
        "head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 32,
        "swa_kv_lora_rank": 32,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "intermediate_size": 64,
    },
    "gemma4_assistant": {
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": _MIXED},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
}
_EXCEPTIONS["gemma3n"] = _EXCEPTIONS["gemma3n_text"] | {"vision_config": {"architecture": "test_resnet"}}
_EXCEPTIONS |= {kind: _EXCEPTIONS[f"{kind}_text"] for kind in ("dots3_note", "qwen4_exp")}


def config(kind: str, **changes: Any) -> PretrainedConfig:
    """A tiny configuration of a model type.

    Args:
        kind: a model type, one of `TYPES`.
        **changes: fields of the configuration (of its text part, if it has one) that are to have a value of their own.
    """
    cls = CONFIG_MAPPING[kind]
    return _shrunk(cls, _EXCEPTIONS.get(kind, {}) | changes)


def model(kind: str, **changes: Any) -> nn.Module:
    """A tiny model in eval mode, the same weights at every call."""
    made = config(kind, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind.startswith(
            "musicgen"
        ):  # the pair with a text encoder has no causal language model of its own
            cls = getattr(transformers, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])
            return cls(made.decoder).eval()
        return AutoModelForCausalLM.from_config(made).eval()


def tempnet(encoder: nn.Module) -> dt.TempNet:
    """A TempNet in eval mode whose weights are so large that its temperatures differ."""
    made = dt.TempNet(encoder, tau_min=0.1, tau_max=2.0).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.7)
    return made


def _shrunk(cls: type[PretrainedConfig], changes: dict[str, Any]) -> PretrainedConfig:
    fields = {field.name for field in dataclasses.fields(cls)}
    usual = _usual(cls)
    sizes = {k: _SIZES[k] for k in fields & _SIZES.keys() if _wants_a_size(k, usual.get(k))}
    if "qk_rope_head_dim" in fields and "num_key_value_heads" in fields:
        sizes["num_key_value_heads"] = sizes[
            "num_attention_heads"
        ]  # latent attention does not group its heads
    kinds = {k: list(dict.fromkeys(v)) for k, v in usual.items() if k in fields and _names_layers(k, v)}
    layers = max([2, *map(len, kinds.values())])
    sizes |= {k: v + v[-1:] * (layers - len(v)) for k, v in kinds.items()}
    layers = len(changes.get("layer_types", changes.get("layers_block_type", range(layers))))
    sizes |= dict.fromkeys(sizes.keys() & set(_LAYERS), layers)
    if usual.get("is_decoder") is False and not usual.get("is_encoder_decoder"):
        sizes["is_decoder"] = True
    names = [
        k for k, v in usual.items() if k.endswith(("token_id", "token_index")) and isinstance(v, int | list)
    ]
    sizes |= {k: [i] if isinstance(usual[k], list) else i for i, k in enumerate(names)}
    parts = {k: v for k, v in usual.items() if isinstance(v, PretrainedConfig) and k in fields}
    for name, part in parts.items():
        inner = changes.get(name, {})
        if name == "text_config":
            inner = inner | {k: v for k, v in changes.items() if k not in fields}
        sizes[name] = _shrunk(type(part), inner)
    own = {k: v for k, v in changes.items() if k not in parts and (k in fields or "text_config" not in parts)}
    return cls(**(sizes | own))


@functools.cache
def _usual(cls: type[PretrainedConfig]) -> dict[str, Any]:
    try:
        return vars(cls())
    except StrictDataclassError:  # its defaults do not belong together
        parts = {k: v.model_type for k, v in cls.sub_configs_defaults.items()}
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        return fields | {name: CONFIG_MAPPING[part]() for name, part in parts.items()}


def _wants_a_size(name: str, usual: Any) -> bool:
    if usual is None:
        return name not in _OPTIONAL
    return isinstance(usual, int) and not isinstance(usual, bool) and usual != 0


def _names_layers(name: str, usual: Any) -> bool:
    """Whether a field lists what kind each layer is: each kind is built once."""
    named = isinstance(usual, list | tuple) and all(isinstance(kind, str) for kind in usual)
    return bool(named and usual) and ("layer" in name or name == "indexer_types")
