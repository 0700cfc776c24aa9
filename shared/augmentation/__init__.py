"""Augmentations that are true for any data; each takes its randomness as an argument and returns what it did."""

from shared.augmentation.conditions import drop_condition
from shared.augmentation.masking import delete_tokens, mask_spans, mask_tokens
from shared.augmentation.mixing import mix
from shared.augmentation.windows import crop_window

__all__ = ["crop_window", "delete_tokens", "drop_condition", "mask_spans", "mask_tokens", "mix"]
