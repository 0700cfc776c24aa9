"""Networks in pure torch: attention (dense, packed, cached, cross), blocks, positions, embeddings, and their start."""

from shared.networks.attention import Attention, CrossAttention
from shared.networks.blocks import Block, Head, SwiGLU, hidden_width
from shared.networks.cache import KVCache
from shared.networks.conditioning import Modulation, modulate
from shared.networks.embeddings import Embedding, LevelEmbedding
from shared.networks.initial import initialise
from shared.networks.norm import RMSNorm
from shared.networks.packed import Layout, pack, pad, unpack, unpad
from shared.networks.rotary import Rotary, rotate
from shared.networks.spacetime import SpaceTime

__all__ = [
    "Attention",
    "Block",
    "CrossAttention",
    "Embedding",
    "Head",
    "KVCache",
    "Layout",
    "LevelEmbedding",
    "Modulation",
    "RMSNorm",
    "Rotary",
    "SpaceTime",
    "SwiGLU",
    "hidden_width",
    "initialise",
    "modulate",
    "pack",
    "pad",
    "rotate",
    "unpack",
    "unpad",
]
