"""Run in the image's working folder: what the rows import, and one small attention, must work."""

import sys

sys.path.insert(0, "")  # this script stands elsewhere; snippets stand in the working folder

import einops
import timm.models.layers
import torch
from model.attention.ECAAttention import ECAAttention

picture = torch.randn(2, 8, 7, 7)
assert ECAAttention(kernel_size=3)(picture).shape == picture.shape
assert einops.rearrange(picture, "b c h w -> b (c h w)").shape == (2, 392)
assert timm.models.layers.to_2tuple(3) == (3, 3)
print(f"torch {torch.__version__}: ECAAttention works")
