"""Adversarial training of two nets by two optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from dlblocks.models._adversarial import discriminator_loss, generator_loss, gradient_norm
from dlblocks.models._noise import AnyNoise
from dlblocks.models.generative import GenerativeModel, weighted_mean
from dlblocks.optim import make_optimizer, make_schedule
from dlblocks.optim.param_groups import GROUP_ARGS
from dlblocks.optim.schedules import schedule_needs_total_steps
from dlblocks.tasks.task import Stage

CERTAIN = 0.999  # share of pairs from which a discriminator is said to tell all
PATIENCE = 5  # epochs of that before the warning; at the start it is usual


class AdversarialModel(GenerativeModel):
    """Train a generator against a discriminator.

    `GAN` defines the nets and losses.
    """

    discriminator: nn.Module
    latent_dim: int
    adversarial_loss: str
    gradient_penalty: float
    discriminator_steps: int
    discriminator_lr: float | None
    _has_warned = False  # of a discriminator that collapsed
    _won = 0  # epochs that the discriminator won

    @property
    def _turn(self) -> int:
        """Batches for each step of the generator.

        A fast_dev_run may have fewer than `discriminator_steps`, and is to run the generator too.
        """
        batches = int(self.trainer.fast_dev_run)  # type: ignore[attr-defined]
        return min(self.discriminator_steps, batches or self.discriminator_steps)

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
        if schedule_needs_total_steps(self.lr_schedule) or self.warmup_steps or self._turn > 1:
            steps, batches = self._planned_steps()
        optimizers: list[Optimizer] = []
        schedules: list[Any] = []
        for net, lr, every in (
            (self.net, self.lr, self._turn),
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
                steps_per_epoch=None if batches is None else batches / every,
                warmup_steps=self.warmup_steps,
                args=self.lr_schedule_args,
            )
            schedules += [each["scheduler"] for each in made]
        return optimizers, schedules

    def _planned_steps(self) -> tuple[int | None, int | None]:
        """Count the discriminator's steps of a fit and an epoch.

        None if they are not known.
        """
        trainer, every = self.trainer, self._turn
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
        is_turn = (done + 1) % self._turn == 0
        with torch.set_grad_enabled(is_turn):
            fake = self._images(noise.normal(self.latent_dim), labels)
        found, loss = self._train_discriminator(real, fake.detach(), labels, weights, noise)
        if is_turn:
            each = generator_loss(self._scores(fake, labels), self.adversarial_loss)
            loss = weighted_mean(each, weights)
            self._take_step(0, self.net, loss)
            if self.ema is not None:
                self.ema.update(self.net)
        self.record(stage, loss.detach(), found, weights, size=len(real))
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

    def _images(self, codes: Tensor, labels: Tensor | None) -> Tensor:
        images: Tensor = self.used_net(codes, labels)
        expected = (len(codes), *self.image_shape)
        if images.shape != expected:
            raise ValueError(
                f"the generator returns shape {tuple(images.shape)} for {len(codes)} images; it "
                f"must return shape {expected}, with values from -1 to 1."
            )
        return images.float()


def check_optimization(
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
