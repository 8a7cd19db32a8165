"""Lets torchvision be imported where its compiled part doesn't fit torch, a CPU one for instance.

timm imports torchvision for its transforms alone, but torchvision describes two compiled operators
while it is imported, and fails if they don't exist. Here they are declared first, without a body.
A .pth file next to this one loads it when the interpreter starts.
"""

import sys

_kept = []  # a library that is collected takes its declarations with it


class _Declare:
    """A finder that finds nothing: it acts when torchvision is about to describe operators."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torchvision._meta_registrations":
            sys.meta_path.remove(_Declare)
            if not sys.modules["torchvision.extension"]._has_ops():
                import torch

                library = torch.library.Library("torchvision", "DEF")
                for operator in ("nms", "qnms"):
                    arguments = "Tensor dets, Tensor scores, float iou_threshold"
                    library.define(f"{operator}({arguments}) -> Tensor")
                _kept.append(library)
        return None


sys.meta_path.insert(0, _Declare)
