"""A Gaussian process over configurations, small enough to be fitted anew for every proposal.

Rasmussen and Williams: Gaussian Processes for Machine Learning, 2006, ch. 2, 4 and 5. The prior on the length scales is
that of Hvarfner, Hellsten and Nardi: Vanilla Bayesian Optimization Performs Great in High Dimensions, ICML 2024.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["GaussianProcess"]

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
    and nothing between. y: (points,). more_noise: (points,), variance that a point has beyond the common noise, in
    units of the signal's.
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        nominal: NDArray[np.bool_],
        *,
        more_noise: Array | None = None,
    ) -> None:
        from scipy.optimize import minimize

        self._x, self._nominal = x, nominal
        points, dims = x.shape
        self._more_noise = np.zeros(points) if more_noise is None else more_noise
        self._scale = float(y.std()) or 1.0
        self._offset = float(y.mean())
        self._y = (y - self._offset) / self._scale
        self._squares = self._distances(x, x).reshape(dims, points * points)
        self._length_mean = LENGTH_MEAN + 0.5 * math.log(dims)
        default = np.array([min(self._length_mean, math.log(0.5 * math.sqrt(dims)))] * dims + [NOISE_MEAN])
        low, high = math.log(0.02), math.log(100.0)
        found = minimize(
            self._loss,
            default,
            jac=True,
            method="L-BFGS-B",
            bounds=[(low, high)] * dims + [(math.log(1e-5), math.log(10.0))],
            options={"maxiter": ITERATIONS},
        )
        self.parameters: Array = found.x
        self._lengths = np.exp(found.x[:-1])
        self._noise = math.exp(found.x[-1])
        _, self._inverse = self._factorised(self._matern(self._squares, points))
        ones = np.ones(points)
        self._mean = float(ones @ self._inverse @ self._y / (ones @ self._inverse @ ones))
        self._weights = self._inverse @ (self._y - self._mean)
        self._variance = max(float((self._y - self._mean) @ self._weights) / points, 1e-6)

    def with_points(self, x: Array) -> GaussianProcess:
        """The same process, after points at which it saw just what it expected: no news there, but no doubt either."""
        more = object.__new__(GaussianProcess)
        more.__dict__.update(self.__dict__)
        expected = (self.predict(x)[0] - self._offset) / self._scale
        points = len(self._x) + len(x)
        more._x = np.concatenate([self._x, x])
        more._y = np.concatenate([self._y, expected])
        more._more_noise = np.concatenate([self._more_noise, np.zeros(len(x))])
        squares = self._distances(more._x, more._x).reshape(x.shape[1], points * points)
        _, more._inverse = more._factorised(more._matern(squares, points))
        more._weights = more._inverse @ (more._y - self._mean)
        return more

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation, without noise, at (places, dims)."""
        dims = x.shape[1]
        squares = self._distances(x, self._x).reshape(dims, len(x) * len(self._x))
        kernel = self._matern(squares, len(x), len(self._x))
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

    def _distances(self, left: Array, right: Array) -> Array:
        """(dims, left, right): squared distances along each dimension."""
        apart = left.T[:, :, None] - right.T[:, None, :]
        squares = apart * apart
        squares[self._nominal] = squares[self._nominal] > 0
        return squares

    def _matern(self, squares: Array, rows: int, columns: int | None = None) -> Array:
        distance = np.sqrt(np.maximum(1.0 / self._lengths**2 @ squares, 0.0))
        kernel = (1.0 + ROOT5 * distance + 5.0 / 3.0 * distance**2) * np.exp(-ROOT5 * distance)
        return np.asarray(kernel.reshape(rows, columns or rows))

    def _factorised(self, kernel: Array) -> tuple[Array, Array]:
        kernel = kernel + np.diag(self._noise + JITTER + self._more_noise)
        factor = np.linalg.cholesky(kernel)
        half = np.linalg.solve(factor, np.eye(len(kernel)))
        return np.asarray(factor, np.float64), np.asarray(half.T @ half, np.float64)

    def _loss(self, parameters: Array) -> tuple[float, Array]:
        """Negative logarithm of the posterior, mean and signal variance maximised out, and its gradient."""
        points = len(self._y)
        self._lengths, self._noise = np.exp(parameters[:-1]), math.exp(parameters[-1])
        inverse_squares = 1.0 / self._lengths**2
        distance = np.sqrt(np.maximum(inverse_squares @ self._squares, 0.0))
        decay = np.exp(-ROOT5 * distance)
        slope = 5.0 / 3.0 * (1.0 + ROOT5 * distance) * decay  # by the logarithm of a length scale, but for its distance
        kernel = (1.0 + ROOT5 * distance + 5.0 / 3.0 * distance**2) * decay
        factor, inverse = self._factorised(kernel.reshape(points, points))
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
        gradient[:-1] = 0.5 * (self._squares @ (left.ravel() * slope)) * inverse_squares + lengths_off / LENGTH_SPREAD
        gradient[-1] = 0.5 * float(np.trace(left)) * self._noise + noise_off / NOISE_SPREAD
        return loss, gradient
