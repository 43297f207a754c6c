"""Generative adversarial networks.

Goodfellow et al. (2014), and Gulrajani et al. (2017) with the Wasserstein distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dlblocks._errors import check_choice, check_range, check_whole
from dlblocks.models._adversarial import energy_score
from dlblocks.models._adversarial_training import AdversarialModel, check_optimization
from dlblocks.models._image_checks import check_image_shape
from dlblocks.models._noise import AnyNoise, Noise
from dlblocks.models.generative import EVALUATION_SEED
from dlblocks.nets.adversarial import Discriminator, Generator
from dlblocks.tasks import SampleTask

LOSSES = ("non_saturating", "wasserstein")
PENALTIES = {"non_saturating": 0.1, "wasserstein": 10.0}


class GAN(AdversarialModel):
    """A generator of images, trained against a discriminator.

    With scores D(x, class) of images and x̃ = G(z, class) of normal noise z, the discriminator and
    the generator minimize the means of

        ``"non_saturating"``  softplus(-D(x)) + softplus(D(x̃)) + λ/2 ‖∇D(x)‖²  and  softplus(-D(x̃))
        ``"wasserstein"``     D(x̃) - D(x) + λ (‖∇D(x̂)‖ - 1)²                   and  -D(x̃)

    with x̂ = u x + (1 - u) x̃, u uniform for each image, and λ = `gradient_penalty`. The norm is over
    the whole flattened image. The first penalty is R1 (Mescheder, Geiger and Nowozin 2018), the
    second that of Gulrajani et al. (2017). Levels k are made continuous, x = 2 (k + u) / L - 1 with
    u uniform in [0, 1), so that rounding does not give samples away.

    A step trains the discriminator on a batch. Every `discriminator_steps` batches the generator
    takes a step, too, with the samples of the same batch. **Steps are those of the generator**:
    ``max_steps``, ``trainer.global_step``, schedules and the average count them. A schedule of the
    discriminator counts its own. The Trainer's ``gradient_clip_val`` clips both nets.

    A GAN gives no likelihood. An image y is scored by the energy score (Gneiting and Raftery 2007)

        E ‖X - y‖ - E ‖X - X'‖ / 2,  with independent samples X, X' of the class of y

    where ‖·‖ is the root mean square over pixels, and pixels count from 0 to 1. It is lowest, on
    average, if samples and images have the same distribution.

    Logged in training: ``loss`` (of the generator), ``discriminator_loss`` and
    ``discriminator_accuracy``, how often an image has a higher score than a sample. In evaluation
    ``energy_score``, which is the ``loss`` there, and has no chance in it. There is a warning if
    the discriminator has collapsed: it gives all the same score in an epoch, or with the first loss
    tells all samples from images in five epochs in a row.

    Args:
        image_shape: Channels, height and width, of any size.
        latent_dim: Length of the noise z.
        loss: ``"non_saturating"`` or ``"wasserstein"``.
        gradient_penalty: λ; None for 0.1 or 10, by the loss.
        discriminator_steps: Steps of the discriminator for each of the generator. Gulrajani et al.
            take 5.
        arch: ``"mlp"`` or ``"cnn"``; see `dlblocks.nets.Generator`.
        width: Hidden units, or channels, of both nets.
        depth: Hidden layers of both nets.
        dropout: Share of hidden units of the discriminator that are zeroed in training.
        discriminator_lr: Learning rate of the discriminator; None for `lr`.
        energy_samples: Samples of each class by which images are scored.
        num_classes: Number of classes of a conditional model, or None.
        ema_decay: Decay of the averaged generator, or None.
        optimizer: Name of the optimizer of both nets.
        optimizer_args: Its further arguments. None: betas (0.5, 0.99) for ``"adam"`` and
            ``"adamw"``.
        **kwargs: Levels and optimization; see `GenerativeModel`.

    Example:
        >>> gan = GAN([1, 8, 8], levels=17, num_classes=10, width=16)
        >>> gan.sample(3, labels=[0, 1, 2]).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (1, 8, 8),
        *,
        latent_dim: int = 64,
        loss: Literal["non_saturating", "wasserstein"] = "non_saturating",
        gradient_penalty: float | None = None,
        discriminator_steps: int = 1,
        arch: Literal["mlp", "cnn"] = "mlp",
        width: int = 256,
        depth: int = 2,
        dropout: float = 0.0,
        discriminator_lr: float | None = None,
        energy_samples: int = 100,
        num_classes: int | None = None,
        ema_decay: float | None = 0.998,
        optimizer: str = "adam",
        optimizer_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check_image_shape(image_shape)
        check_choice("loss", loss, LOSSES)
        if gradient_penalty is None:
            gradient_penalty = PENALTIES[loss]
        check_range("gradient_penalty", gradient_penalty, 0)
        check_whole("discriminator_steps", discriminator_steps, 1)
        check_range("energy_samples", energy_samples, 2)
        if discriminator_lr is not None:
            check_range("discriminator_lr", discriminator_lr, 0)
        check_optimization(optimizer, optimizer_args, kwargs.get("lr_schedule"))
        if optimizer_args is None and optimizer in ("adam", "adamw"):
            optimizer_args = {"betas": [0.5, 0.99]}
        sizes = {"arch": arch, "width": width, "depth": depth}
        net = self.make_net(image_shape, num_classes, latent_dim=latent_dim, **sizes)
        super().__init__(
            net,
            image_shape,
            num_classes=num_classes,
            ema_decay=ema_decay,
            optimizer=optimizer,
            optimizer_args=optimizer_args,
            **kwargs,
        )
        self.discriminator = self.make_discriminator(
            image_shape, num_classes, dropout=dropout, **sizes
        )
        self.latent_dim, self.adversarial_loss = latent_dim, loss
        self.gradient_penalty = float(gradient_penalty)
        self.discriminator_steps = discriminator_steps
        self.discriminator_lr = self.lr if discriminator_lr is None else float(discriminator_lr)
        self.energy_samples = energy_samples
        self._check_discriminator()

    def make_task(self) -> SampleTask:
        return SampleTask()

    def make_net(
        self, image_shape: Sequence[int], num_classes: int | None, **arguments: Any
    ) -> nn.Module:
        """Create the generator, called with (noise, labels) as a `Generator`.

        A subclass may create another one.
        """
        return Generator(image_shape, num_classes=num_classes, **arguments)

    def make_discriminator(
        self, image_shape: Sequence[int], num_classes: int | None, **arguments: Any
    ) -> nn.Module:
        """Create the discriminator, called with (images, labels) as a `Discriminator`.

        A subclass may create another one.
        """
        return Discriminator(image_shape, num_classes, **arguments)

    def _check_discriminator(self) -> None:
        parts = self.discriminator.modules()
        found = [type(part).__name__ for part in parts if isinstance(part, _BatchNorm)]
        if found and self.gradient_penalty:
            raise ValueError(
                f"the discriminator has a {found[0]}, by which the score of an image depends on "
                "the others of its batch, but the gradient penalty is of each image alone; use a "
                "layer norm or none, or gradient_penalty=0."
            )

    # Evaluation

    def losses(self, levels: Tensor, labels: Tensor | None, noise: AnyNoise) -> dict[str, Tensor]:
        scores = self.scores(levels, labels, noise)
        return {"loss": scores, self.measure: scores}

    @torch.no_grad()
    def scores(self, levels: Tensor, labels: Tensor | None, noise: AnyNoise) -> Tensor:
        top = self.levels - 1
        images = levels.flatten(1).float() / top
        found = torch.zeros_like(images[:, 0])
        # The same noise for each class and batch, so that nothing depends on the batch.
        count = self.energy_samples
        codes = Noise(EVALUATION_SEED, range(count), self.device).normal(self.latent_dim)
        for label in [None] if labels is None else labels.unique():
            rows = slice(None) if label is None or labels is None else labels == label
            of_class = None if label is None else label.expand(count)
            samples = self._made(codes, of_class).flatten(1).float() / top
            found[rows] = energy_score(samples, images[rows])
        return found

    def draw(
        self,
        noise: Noise,
        labels: Tensor | None,
        *,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Make images of levels.

        Args:
            noise: All random numbers.
            labels: Classes (N,), or None.
            steps: Not used.
            guidance: Not used.
        """
        return self._made(noise.normal(self.latent_dim), labels)

    def _made(self, codes: Tensor, labels: Tensor | None) -> Tensor:
        images = self._images(codes, labels)
        return ((images + 1) * (self.levels / 2)).floor().long().clamp(0, self.levels - 1)
