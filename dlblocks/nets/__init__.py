"""Nets as plain `torch.nn.Module`s that map tensors to tensors."""

from dlblocks.nets.autoencoder import Autoencoder
from dlblocks.nets.backbone import Backbone
from dlblocks.nets.cnn import CNN
from dlblocks.nets.conditional import ConditionalNet
from dlblocks.nets.mlp import MLP, EmbedCategories
from dlblocks.nets.pixel_transformer import PixelTransformer
from dlblocks.nets.preprocess import Preprocess
from dlblocks.nets.unet import UNet
from dlblocks.nets.vision_segmentation import VisionSegmentation

__all__ = [
    "CNN",
    "MLP",
    "Autoencoder",
    "Backbone",
    "ConditionalNet",
    "EmbedCategories",
    "PixelTransformer",
    "Preprocess",
    "UNet",
    "VisionSegmentation",
]
