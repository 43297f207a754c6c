"""Plain `torch.nn.Module` classes that map tensors to tensors."""

from dlblocks.nets.adversarial import Discriminator, Generator
from dlblocks.nets.attention import Attention, CrossAttention, KVCache
from dlblocks.nets.autoencoder import Autoencoder
from dlblocks.nets.backbone import Backbone
from dlblocks.nets.cnn import CNN
from dlblocks.nets.conditional import ConditionalNet
from dlblocks.nets.forecast import LSTMForecast, SeriesScaler, TransformerForecast
from dlblocks.nets.language import GPT, LSTMDecoder
from dlblocks.nets.mlp import MLP, EmbedCategories
from dlblocks.nets.pixel_transformer import PixelTransformer
from dlblocks.nets.preprocess import Preprocess
from dlblocks.nets.rnn import RNN
from dlblocks.nets.seq2seq import Seq2SeqRNN, Seq2SeqTransformer
from dlblocks.nets.transformer import Transformer
from dlblocks.nets.transformer_block import FeedForward, TransformerBlock
from dlblocks.nets.unet import UNet
from dlblocks.nets.vision_detection import VisionDetection
from dlblocks.nets.vision_segmentation import VisionSegmentation
from dlblocks.nets.vit import SequenceTransformer, ViT

__all__ = [
    "CNN",
    "GPT",
    "MLP",
    "RNN",
    "Attention",
    "Autoencoder",
    "Backbone",
    "ConditionalNet",
    "CrossAttention",
    "Discriminator",
    "EmbedCategories",
    "FeedForward",
    "Generator",
    "KVCache",
    "LSTMDecoder",
    "LSTMForecast",
    "PixelTransformer",
    "Preprocess",
    "Seq2SeqRNN",
    "Seq2SeqTransformer",
    "SequenceTransformer",
    "SeriesScaler",
    "Transformer",
    "TransformerBlock",
    "TransformerForecast",
    "UNet",
    "ViT",
    "VisionDetection",
    "VisionSegmentation",
]
