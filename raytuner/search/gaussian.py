"""A Gaussian process over configurations, small enough to be fitted anew for every proposal.

Rasmussen and Williams: Gaussian Processes for Machine Learning, 2006, ch. 2, 4 and 5. The prior on the length scales is
that of Hvarfner, Hellsten and Nardi: Vanilla Bayesian Optimization Performs Great in High Dimensions, ICML 2024.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["GaussianProcess", "matern"]

Array = NDArray[np.float64]
LENGTH_MEAN, LENGTH_SPREAD = math.sqrt(2.0), math.sqrt(3.0)
"""The prior of a length scale's logarithm: normal, the mean growing by half the logarithm of the dimensions."""
NOISE_MEAN, NOISE_SPREAD = math.log(1e-2), 1.5
"""The same of the noise's share of the signal's variance."""
JITTER = 1e-8
ROOT5 = math.sqrt(5.0)
ITERATIONS = 30


class GaussianProcess:
    """Matern 5/2 with a length scale a dimension, a constant mean, and noise, fitted by maximum a posteriori.

    x: (points, dims), coordinates in [0, 1]; ``nominal`` (dims,) marks dimensions in which two places are equal or not,
    and nothing between. y: (points,). fitted: points that the parameters are fitted to at most, evenly from the least y
    to the greatest, since that takes thirty times the time of a prediction.
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        nominal: NDArray[np.bool_],
        *,
        fitted: int,
    ) -> None:
        self._nominal = nominal
        self._scale = float(y.std()) or 1.0
        self._offset = float(y.mean())
        unit = (y - self._offset) / self._scale
        some = _evenly(unit, fitted)
        self.parameters = self._fit(x[some], unit[some])
        self._condition(x, unit)

    def _fit(self, x: Array, y: Array) -> Array:
        """The most probable logarithms of the length scales, and of the noise."""
        from scipy.optimize import minimize

        points, dims = x.shape
        self._y = y
        self._pairs = np.tril_indices(points, -1)
        self._squares = self._distances(x)
        self._length_mean = LENGTH_MEAN + 0.5 * math.log(dims)
        default = np.array([min(self._length_mean, math.log(0.5 * math.sqrt(dims)))] * dims + [NOISE_MEAN])
        low, high = math.log(0.02), math.log(100.0)
        found = minimize(
            self._loss,
            default,
            jac=True,
            method="L-BFGS-B",
            bounds=[(low, high)] * dims + [(math.log(1e-5), math.log(10.0))],
            options={"maxiter": ITERATIONS, "ftol": 1e-6},
        )
        return np.asarray(found.x)

    def _condition(self, x: Array, y: Array) -> None:
        self._x, self._y = x, y
        points = len(x)
        self._lengths = np.exp(self.parameters[:-1])
        self._noise = math.exp(self.parameters[-1])
        _, self._inverse = self._factorised(self._kernel(x, x))
        ones = np.ones(points)
        self._mean = float(ones @ self._inverse @ self._y / (ones @ self._inverse @ ones))
        self._weights = self._inverse @ (self._y - self._mean)
        self._variance = max(float((self._y - self._mean) @ self._weights) / points, 1e-6)

    def with_points(self, x: Array) -> GaussianProcess:
        """The same process, after points at which it saw just what it expected: no news there, but no doubt either."""
        more = object.__new__(GaussianProcess)
        more.__dict__.update(self.__dict__)
        expected = (self.predict(x)[0] - self._offset) / self._scale
        more._x = np.concatenate([self._x, x])
        more._y = np.concatenate([self._y, expected])
        _, more._inverse = more._factorised(more._kernel(more._x, more._x))
        more._weights = more._inverse @ (more._y - self._mean)
        return more

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation, without noise, at (places, dims)."""
        kernel = self._kernel(x, self._x)
        mean = self._mean + kernel @ self._weights
        left = 1.0 - np.einsum("ij,ij->i", kernel @ self._inverse, kernel)
        deviation = np.sqrt(np.maximum(left, 1e-12) * self._variance)
        return self._offset + self._scale * mean, self._scale * deviation

    @property
    def noise(self) -> float:
        """The standard deviation of the common noise."""
        return self._scale * math.sqrt(self._noise * self._variance)

    @property
    def spread(self) -> float:
        """The standard deviation of the signal."""
        return self._scale * math.sqrt(self._variance)

    def _distances(self, x: Array) -> Array:
        """(dims, pairs): squared distances along each dimension, of each pair of different points."""
        apart = x[self._pairs[0]].T - x[self._pairs[1]].T
        squares = apart * apart
        squares[self._nominal] = squares[self._nominal] > 0
        return squares

    def _kernel(self, left: Array, right: Array) -> Array:
        """(left, right): Matern 5/2 with the fitted length scales."""
        from scipy.spatial.distance import cdist

        real = ~self._nominal
        squares = cdist(left[:, real] / self._lengths[real], right[:, real] / self._lengths[real], "sqeuclidean")
        for dim in np.flatnonzero(self._nominal):
            squares += (left[:, dim, None] != right[:, dim]) / self._lengths[dim] ** 2
        return matern(squares)

    def _factorised(self, kernel: Array) -> tuple[Array, Array]:
        from scipy.linalg.lapack import dpotrf, dpotri

        kernel[np.diag_indices(len(kernel))] += self._noise + JITTER
        factor, failure = dpotrf(kernel, lower=True, clean=False)
        if failure:
            raise np.linalg.LinAlgError("the kernel is not positive definite")
        inverse, _ = dpotri(factor, lower=True)
        below = np.tril(inverse)
        return np.asarray(factor), below + np.tril(below, -1).T

    def _loss(self, parameters: Array) -> tuple[float, Array]:
        """Negative logarithm of the posterior, mean and signal variance maximised out, and its gradient."""
        points = len(self._y)
        self._lengths, self._noise = np.exp(parameters[:-1]), math.exp(parameters[-1])
        inverse_squares = 1.0 / self._lengths**2
        distance = np.sqrt(np.maximum(inverse_squares @ self._squares, 0.0))
        decay = np.exp(-ROOT5 * distance)
        slope = 5.0 / 3.0 * (1.0 + ROOT5 * distance) * decay  # by the logarithm of a length scale, but for its distance
        kernel = np.eye(points)
        kernel[self._pairs] = (1.0 + ROOT5 * distance + 5.0 / 3.0 * distance**2) * decay
        factor, inverse = self._factorised(kernel)
        sums = inverse.sum(axis=1)
        mean = float(sums @ self._y / sums.sum())
        weights = inverse @ (self._y - mean)
        variance = max(float((self._y - mean) @ weights) / points, 1e-6)
        left = inverse - np.outer(weights, weights) / variance
        lengths_off = (parameters[:-1] - self._length_mean) / LENGTH_SPREAD
        noise_off = (parameters[-1] - NOISE_MEAN) / NOISE_SPREAD
        loss = (
            0.5 * points * math.log(variance)
            + float(np.log(np.diag(factor)).sum())
            + 0.5 * float(lengths_off @ lengths_off + noise_off**2)
        )
        gradient = np.empty_like(parameters)
        gradient[:-1] = (self._squares @ (left[self._pairs] * slope)) * inverse_squares + lengths_off / LENGTH_SPREAD
        gradient[-1] = 0.5 * float(np.trace(left)) * self._noise + noise_off / NOISE_SPREAD
        return loss, gradient


def matern(squares: Array) -> Array:
    """The kernel Matern 5/2 at squared distances, counted in length scales."""
    distance = np.sqrt(5.0 * squares)
    return np.asarray((1.0 + distance + distance**2 / 3.0) * np.exp(-distance))


def _evenly(y: Array, most: int) -> NDArray[np.intp]:
    if len(y) <= most:
        return np.arange(len(y))
    return np.sort(np.argsort(y, kind="stable")[np.linspace(0, len(y) - 1, most).astype(int)])
