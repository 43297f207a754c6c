"""Plain `torch.nn.Module`s: tensors in, tensors out."""

from dlblocks.nets.cnn import CNN
from dlblocks.nets.mlp import MLP, EmbedCategories

__all__ = ["CNN", "MLP", "EmbedCategories"]
