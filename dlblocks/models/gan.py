"""Generative adversarial networks.

Goodfellow et al. (2014), and Gulrajani et al. (2017) with the Wasserstein distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from dlblocks._errors import check_choice, check_range, check_whole
from dlblocks.models._adversarial import (
    discriminator_loss,
    energy_score,
    generator_loss,
    gradient_norm,
)
from dlblocks.models._noise import AnyNoise, Noise
from dlblocks.models.generative import (
    EVALUATION_SEED,
    GenerativeModel,
    check_image_shape,
    weighted_mean,
)
from dlblocks.nets.adversarial import Discriminator, Generator
from dlblocks.optim import make_optimizer, make_schedule
from dlblocks.optim.param_groups import GROUP_ARGS
from dlblocks.optim.schedules import schedule_needs_total_steps
from dlblocks.tasks import SampleTask
from dlblocks.tasks.task import Stage

LOSSES = ("non_saturating", "wasserstein")
PENALTIES = {"non_saturating": 0.1, "wasserstein": 10.0}
CERTAIN = 0.999  # share of pairs from which a discriminator is said to tell all
PATIENCE = 5  # epochs of that before the warning; at the start it is usual


class GAN(GenerativeModel):
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
        _check_optimization(optimizer, optimizer_args, kwargs.get("lr_schedule"))
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
        self._has_warned, self._won = False, 0  # a discriminator that collapsed; epochs it won

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
        images: Tensor = self.used_net(codes, labels)
        return ((images.float() + 1) * (self.levels / 2)).floor().long().clamp(0, self.levels - 1)

    # Training

    def configure_callbacks(self) -> list[Callback]:
        # Lightning refuses gradient_clip_val for manual optimization after this hook and before
        # `setup`. Here both nets are clipped.
        self.automatic_optimization = True
        return []

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.automatic_optimization = False
        if stage == "fit":
            self._check_trainer()
            self._has_warned, self._won = False, 0

    def _check_trainer(self) -> None:
        name, trainer = type(self).__name__, self.trainer
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"accumulate_grad_batches={trainer.accumulate_grad_batches}, but {name} steps two "
                "optimizers by itself; use a larger batch_size."
            )
        if str(trainer.precision).startswith("16"):
            raise ValueError(
                f"precision={trainer.precision!r} scales the loss, which {name} does not support; "
                "use 'bf16-mixed' or '32-true'."
            )
        if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise ValueError(
                f"{name} trains on one device or with strategy='ddp', not with "
                f"{type(trainer.strategy).__name__}."
            )
        callbacks: list[Callback] = vars(trainer)["callbacks"]  # it has no annotation
        for callback in callbacks:
            if isinstance(callback, WeightAveraging):
                raise ValueError(
                    f"{type(callback).__name__} would average the discriminator, too; leave it out "
                    f"and set ema_decay, now {self.ema_decay}."
                )

    def configure_optimizers(self) -> Any:
        steps = batches = None
        if (
            schedule_needs_total_steps(self.lr_schedule)
            or self.warmup_steps
            or self.discriminator_steps > 1
        ):
            steps, batches = self._planned_steps()
        optimizers: list[Optimizer] = []
        schedules: list[Any] = []
        for net, lr, every in (
            (self.net, self.lr, self.discriminator_steps),
            (self.discriminator, self.discriminator_lr, 1),
        ):
            optimizers.append(
                make_optimizer(
                    self.optimizer_name,
                    net,
                    lr=lr,
                    weight_decay=self.weight_decay,
                    args=self.optimizer_args,
                )
            )
            made = make_schedule(
                self.lr_schedule,
                optimizers[-1],
                total_steps=None if steps is None else steps // every,
                steps_per_epoch=None if batches is None else max(1, batches // every),
                warmup_steps=self.warmup_steps,
                args=self.lr_schedule_args,
            )
            schedules += [each["scheduler"] for each in made]
        return optimizers, schedules

    def _planned_steps(self) -> tuple[int | None, int | None]:
        """Count the discriminator's steps of a fit and an epoch.

        None if they are not known.
        """
        trainer, every = self.trainer, self.discriminator_steps
        trainer.estimated_stepping_batches  # noqa: B018 - lets Lightning count the batches
        of_epoch = trainer.num_training_batches
        batches = int(of_epoch) if of_epoch < float("inf") else None
        epochs = trainer.max_epochs
        bounds = [] if trainer.max_steps < 0 else [trainer.max_steps * every]
        if batches is not None and epochs is not None and epochs >= 0:
            bounds.append(batches * epochs)
            if bounds[-1] < every:
                raise ValueError(
                    f"discriminator_steps={every}, but the fit has {bounds[-1]} batches, so the "
                    "generator takes no step; train longer, or use smaller batches."
                )
        return min(bounds, default=None), batches

    def _step(self, batch: Any, stage: Stage) -> Tensor:
        if stage != "train":
            return super()._step(batch, stage)
        levels, labels, weights = self._checked(batch, stage)
        noise = self._noise(stage, len(levels))
        real = (levels + noise.uniform(*self.image_shape)) * (2 / self.levels) - 1
        done = self.trainer.fit_loop.epoch_loop.total_batch_idx
        is_turn = (done + 1) % self.discriminator_steps == 0
        with torch.set_grad_enabled(is_turn):
            fake = self.net(noise.normal(self.latent_dim), labels).float()
        found, loss = self._train_discriminator(real, fake.detach(), labels, weights, noise)
        if is_turn:
            each = generator_loss(self._scores(fake, labels), self.adversarial_loss)
            loss = weighted_mean(each, weights)
            self._take_step(0, self.net, loss)
            if self.ema is not None:
                self.ema.update(self.net)
        self.record(stage, loss.detach(), found, weights)
        return loss.detach()

    def _scores(self, images: Tensor, labels: Tensor | None) -> Tensor:
        found: Tensor = self.discriminator(images, labels)
        if found.shape != (len(images),):
            raise ValueError(
                f"the discriminator returns shape {tuple(found.shape)} for {len(images)} images; "
                f"it must return one score for each, shape ({len(images)},)."
            )
        return found.float()

    def _train_discriminator(
        self,
        real: Tensor,
        fake: Tensor,
        labels: Tensor | None,
        weights: Tensor | None,
        noise: AnyNoise,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Step the discriminator.

        Returns:
            Values (N,) to log, and the generator's loss before the step.
        """
        kind, strength = self.adversarial_loss, self.gradient_penalty
        of_fake = self._scores(fake, labels)
        penalty: Tensor | float = 0.0

        def score(images: Tensor) -> Tensor:
            return self._scores(images, labels)

        if strength and kind == "non_saturating":
            of_real, norm = gradient_norm(score, real)
            penalty = strength / 2 * norm.square()
        else:
            of_real = score(real)
        if strength and kind == "wasserstein":
            points = torch.lerp(fake, real, noise.uniform()[:, None, None, None])
            penalty = strength * (gradient_norm(score, points)[1] - 1).square()
        loss = discriminator_loss(of_real, of_fake, kind) + penalty
        self._take_step(1, self.discriminator, weighted_mean(loss, weights))
        of_real, of_fake = of_real.detach(), of_fake.detach()
        wins = (of_real > of_fake).float() + 0.5 * (of_real == of_fake)
        found = {
            "discriminator_loss": loss,
            "discriminator_accuracy": wins,
            "discriminator_gap": (of_real - of_fake).abs(),
        }
        return found, weighted_mean(generator_loss(of_fake, kind), weights)

    def _take_step(self, number: int, net: nn.Module, loss: Tensor) -> None:
        """Step the optimizer of a net, by gradients of that net alone."""
        optimizer: Any = self.optimizers()[number]  # type: ignore[index]
        parameters = [p for p in net.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        # DDP waits for gradients of all parameters, and gets those of one net at a time. So it is
        # passed by, as `torch.autograd.grad` does, and the mean over ranks is taken here.
        for parameter, gradient in zip(parameters, self._averaged(gradients), strict=True):
            parameter.grad = gradient
        if number == 0:
            optimizer.step()
        else:  # Lightning would count the step
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)
        schedules: Any = self.lr_schedulers()
        if schedules is not None:
            schedules[number].step()

    def _averaged(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        if self.trainer.world_size == 1:
            return gradients
        known = [gradient for gradient in gradients if gradient is not None]
        flat = torch.cat([gradient.flatten() for gradient in known])
        flat = self.trainer.strategy.reduce(flat, reduce_op="mean")
        parts = iter(flat.split([gradient.numel() for gradient in known]))
        return [None if g is None else next(parts).view_as(g) for g in gradients]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # After the hooks of callbacks, which may add a penalty.
        self.configure_gradient_clipping(
            optimizer, self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
        )

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        values = self.trainer.callback_metrics
        accuracy = float(values["train/discriminator_accuracy"])
        gap = float(values["train/discriminator_gap"])
        self._won = self._won + 1 if accuracy > CERTAIN else 0
        said = None
        if gap == 0:
            said = (
                "gives all images and samples the same score, so the generator learns nothing; "
                "lower discriminator_lr or the gradient penalty"
            )
        elif self._won >= PATIENCE and self.adversarial_loss == "non_saturating":
            said = (
                f"has told all samples from images for {self._won} epochs, so the generator learns "
                "little; lower discriminator_lr, raise gradient_penalty or dropout, or use "
                "loss='wasserstein'"
            )
        if said is not None and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(f"epoch {self.current_epoch}: the discriminator {said}.")


def _check_optimization(
    optimizer: str, args: dict[str, Any] | None, lr_schedule: str | None
) -> None:
    if optimizer == "lbfgs" or optimizer.endswith(".LBFGS"):
        raise ValueError(
            f"optimizer={optimizer!r} computes a loss several times a step, and the two losses of "
            "a GAN change each other; use 'adam'."
        )
    if lr_schedule == "plateau":
        raise ValueError(
            "lr_schedule='plateau' waits for a loss that falls, which a GAN has not; use 'cosine' "
            "or 'constant'."
        )
    grouped = [name for name in GROUP_ARGS if name in (args or {}) and name != "skip_norm_bias"]
    if grouped:
        raise ValueError(
            f"optimizer_args has {grouped[0]!r}, which is for a single net; use discriminator_lr."
        )
