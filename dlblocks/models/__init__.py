"""LightningModules, which are nets with loss, metrics and optimizer."""

from dlblocks.models.autoregressive import PixelAutoregressive
from dlblocks.models.boosted import (
    AdaBoostClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
)
from dlblocks.models.classification import Classifier, CNNClassifier, MLPClassifier
from dlblocks.models.detection import BoxDetector, Detector
from dlblocks.models.diffusion import Diffusion
from dlblocks.models.flow_matching import FlowMatching
from dlblocks.models.forecast import Forecaster, LSTMForecaster, TransformerForecaster
from dlblocks.models.gan import GAN
from dlblocks.models.generative import GenerativeModel
from dlblocks.models.language import GPTLanguageModel, LanguageModel, RNNLanguageModel
from dlblocks.models.model import Model, load
from dlblocks.models.regression import MLPRegressor, Regressor
from dlblocks.models.segmentation import Segmenter, UNetSegmenter, VisionSegmenter
from dlblocks.models.seq2seq import RNNSeq2Seq, Seq2Seq, TransformerSeq2Seq
from dlblocks.models.sequence import (
    RNNClassifier,
    RNNRegressor,
    TransformerClassifier,
    ViTClassifier,
)
from dlblocks.models.tiles import predict_tiles
from dlblocks.models.vae import VAE
from dlblocks.models.vision import VisionClassifier
from dlblocks.models.voting import VotingEnsemble, VotingModule

__all__ = [
    "GAN",
    "VAE",
    "AdaBoostClassifier",
    "BoxDetector",
    "CNNClassifier",
    "Classifier",
    "Detector",
    "Diffusion",
    "FlowMatching",
    "Forecaster",
    "GPTLanguageModel",
    "GenerativeModel",
    "GradientBoostingClassifier",
    "GradientBoostingRegressor",
    "LSTMForecaster",
    "LanguageModel",
    "MLPClassifier",
    "MLPRegressor",
    "Model",
    "PixelAutoregressive",
    "RNNClassifier",
    "RNNLanguageModel",
    "RNNRegressor",
    "RNNSeq2Seq",
    "Regressor",
    "Segmenter",
    "Seq2Seq",
    "TransformerClassifier",
    "TransformerForecaster",
    "TransformerSeq2Seq",
    "UNetSegmenter",
    "ViTClassifier",
    "VisionClassifier",
    "VisionSegmenter",
    "VotingEnsemble",
    "VotingModule",
    "load",
    "predict_tiles",
]
