"""Nets as plain `torch.nn.Module`s that map tensors to tensors."""

from dlblocks.nets.backbone import Backbone
from dlblocks.nets.cnn import CNN
from dlblocks.nets.mlp import MLP, EmbedCategories
from dlblocks.nets.preprocess import Preprocess
from dlblocks.nets.unet import UNet
from dlblocks.nets.vision_detection import VisionDetection
from dlblocks.nets.vision_segmentation import VisionSegmentation

__all__ = [
    "CNN",
    "MLP",
    "Backbone",
    "EmbedCategories",
    "Preprocess",
    "UNet",
    "VisionDetection",
    "VisionSegmentation",
]
