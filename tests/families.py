"""Small encoders of every family that can be read at its layers."""

from transformers import AutoConfig, PreTrainedConfig

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {"num_key_value_heads": 2}
OWN = {
    "camembert": {"pad_token_id": 1},
    "deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "conv_kernel_size": 3,
        "type_vocab_size": 0,
    },
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4},
    "gpt2": {"n_positions": 64, "n_inner": 48, "pad_token_id": None},  # as the released one
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 4},
    "modernbert": {"local_attention": 6, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "phi3": GROUPED,
    "roberta": {"pad_token_id": 1},
    "smollm3": GROUPED,
    "xlm-roberta": {"pad_token_id": 1},
}


def config_of(family: str) -> PreTrainedConfig:
    """Return how a small encoder of a family is built: three layers of width 32, a vocabulary of 100."""
    own = {**SHAPE, **IDS, "vocab_size": 100, "max_position_embeddings": 64, **OWN.get(family, {})}
    return AutoConfig.for_model(family, **own)
