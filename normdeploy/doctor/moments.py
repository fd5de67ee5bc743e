"""Moments of what reaches a norm, channel by channel, in float64: exact to merge, in any order and from any machine.

    Chan, Golub and LeVeque 1979, updating formulae and a pairwise algorithm for computing sample variances:
    n = n_a + n_b,  d = mean_b - mean_a,  mean = mean_a + d n_b / n,  M2 = M2_a + M2_b + d² n_a n_b / n

Beside them stand the sums over batches of what ``torch.optim.swa_utils.update_bn`` averages: means and unbiased
variances.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """What is known of the values of each channel, float64 tensors of shape [C].

    Attributes:
        count: values a channel.
        mean: their mean.
        m2: the sum of their squared differences from it.
        batches: how many batches they came in.
        batch_means: the sum of the means of the batches.
        batch_variances: the sum of the unbiased variances of the batches.
        largest: the largest size of a value.
    """

    count: int
    mean: Tensor
    m2: Tensor
    batches: int
    batch_means: Tensor
    batch_variances: Tensor
    largest: float

    @classmethod
    def of(cls, values: Tensor, axis: int = 1) -> Moments:
        """Return the moments of one batch, whose channels are those of ``axis``."""
        channels = values.detach().double().movedim(axis, 0).flatten(1)
        count = channels.shape[1]
        mean = channels.mean(1)
        m2 = (channels - mean[:, None]).square().sum(1)
        variance = m2 / (count - 1) if count > 1 else torch.full_like(m2, torch.nan)
        return cls(count, mean, m2, 1, mean, variance, float(channels.abs().max()))

    def merged(self, other: Moments) -> Moments:
        """Return the moments of both."""
        count = self.count + other.count
        apart = other.mean - self.mean
        return Moments(
            count,
            self.mean + apart * (other.count / count),
            self.m2 + other.m2 + apart.square() * (self.count * other.count / count),
            self.batches + other.batches,
            self.batch_means + other.batch_means,
            self.batch_variances + other.batch_variances,
            max(self.largest, other.largest),
        )

    @property
    def variance(self) -> Tensor:
        """Return the unbiased variance of all values."""
        return self.m2 / (self.count - 1)

    @property
    def batch_mean(self) -> Tensor:
        """Return the mean of the batches' means."""
        return self.batch_means / self.batches

    @property
    def batch_variance(self) -> Tensor:
        """Return the mean of the batches' unbiased variances."""
        return self.batch_variances / self.batches
