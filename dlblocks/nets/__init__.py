"""Plain `torch.nn.Module`s: tensors in, tensors out."""

from dlblocks.nets.cnn import CNN
from dlblocks.nets.mlp import MLP, EmbedCategories
from dlblocks.nets.preprocess import Preprocess
from dlblocks.nets.unet import UNet
from dlblocks.nets.vision_segmentation import VisionSegmentation

__all__ = ["CNN", "MLP", "EmbedCategories", "Preprocess", "UNet", "VisionSegmentation"]
