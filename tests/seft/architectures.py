"""Every supported architecture as a tiny model with random weights: two blocks, with the special parts of each.

Biases and norms are random too, because zeros and ones hide mistakes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 384


@dataclass(frozen=True)
class Architecture:
    """`matrices` is the number of targets in both blocks; `dense` names the matrices in them that are not targets."""

    kind: str
    matrices: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    dense: tuple[str, ...] = ()

    def model(self) -> Any:
        """Build the model, always with the same weights."""
        config = AutoConfig.for_model(self.kind, **{**_SMALL, **self.settings})
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.1)
        return model


_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_GROUPED = {"num_key_value_heads": 2}
_HEADS = {**_GROUPED, "head_dim": 8}
_SLIDING = {**_HEADS, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {**_GROUPED, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    **_EXPERTS,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 2,
    "topk_group": 1,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GATES = tuple(f"{block}.mlp.gate.weight" for block in (0, 1))

ARCHITECTURES = {
    "llama": Architecture("llama", 14, {**_GROUPED, "rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "mistral": Architecture("mistral", 14, {**_GROUPED, "sliding_window": 8}),
    "mixtral": Architecture("mixtral", 2 * (4 + 8), _EXPERTS, _GATES),
    "deepseek_v2": Architecture(
        "deepseek_v2",
        2 * 5 + 3 + 8 + 3,
        {**LATENT, "topk_method": "group_limited_greedy"},
        _GATES[1:],
    ),
    "deepseek_v2_lite": Architecture("deepseek_v2", 2 * 4 + 3 + 8 + 3, {**LATENT, "q_lora_rank": None}, _GATES[1:]),
    "deepseek_v3": Architecture("deepseek_v3", 2 * 5 + 3 + 8 + 3, LATENT, _GATES[1:]),
    "qwen2": Architecture("qwen2", 14, {**_GROUPED, "tie_word_embeddings": True}),
    "qwen3": Architecture("qwen3", 14, _HEADS),
    "qwen2_moe": Architecture(
        "qwen2_moe",
        2 * (4 + 8 + 3),
        {**_EXPERTS, "shared_expert_intermediate_size": 4},  # equal to the number of experts
        tuple(f"{block}.mlp.{gate}.weight" for block in (0, 1) for gate in ("gate", "shared_expert_gate")),
    ),
    "qwen3_moe": Architecture("qwen3_moe", 2 * (4 + 8), {**_EXPERTS, "head_dim": 8}, _GATES),
    "gemma2": Architecture("gemma2", 14, {**_SLIDING, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0}),
    "gemma3": Architecture(
        "gemma3_text", 14, {**_SLIDING, "hidden_size": 72}
    ),  # its square root is not exact in bfloat16
    "phi3": Architecture("phi3", 8, _GROUPED),
    "gpt_neox": Architecture("gpt_neox", 8),
    "opt": Architecture("opt", 12, {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt2": Architecture("gpt2", 8, {"n_inner": 48}),
    "gpt_oss": Architecture(
        "gpt_oss",
        2 * (4 + 8),
        {**_EXPERTS, **_SLIDING, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        tuple(f"{block}.mlp.router.weight" for block in (0, 1)),
    ),
}
