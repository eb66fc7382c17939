"""The modules and functions that are pasted into artifacts: what a `ModuleCall` or an edit names."""

from peftc.modules.adapter import Adapter
from peftc.modules.dtype import added
from peftc.modules.gate import CentralGate, ConstantGate, MaskedGate, SequenceGate, TokenGate
from peftc.modules.given import expect_given, expect_none
from peftc.modules.ia3 import IA3
from peftc.modules.layout import folded_prefix, prefix_like, windowed_prefix
from peftc.modules.lora import LoRA, LoRAEmbedding
from peftc.modules.prefix import Prefix, PrefixSlice, PrefixTrunk, beside_prefix, with_prefix
from peftc.modules.window import prefix_scores, prefix_sum, without_prefix

__all__ = [
    "IA3",
    "Adapter",
    "CentralGate",
    "ConstantGate",
    "LoRA",
    "LoRAEmbedding",
    "MaskedGate",
    "Prefix",
    "PrefixSlice",
    "PrefixTrunk",
    "SequenceGate",
    "TokenGate",
    "added",
    "beside_prefix",
    "expect_given",
    "expect_none",
    "folded_prefix",
    "prefix_like",
    "prefix_scores",
    "prefix_sum",
    "windowed_prefix",
    "with_prefix",
    "without_prefix",
]
