"""Run in the image's working folder: the imports and one small attention must work."""

import sys

sys.path.insert(0, "")  # this script stands elsewhere; snippets stand in the working folder

import torch
from model.attention.ECAAttention import ECAAttention

picture = torch.randn(2, 8, 7, 7)
assert ECAAttention(kernel_size=3)(picture).shape == picture.shape
print(f"torch {torch.__version__}, ECAAttention works")
