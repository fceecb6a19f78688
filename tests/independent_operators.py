"""The operators, computed a second time: the formulas of the paper in NumPy, in extended precision.

They take the normals as an argument and share nothing with adt_fast. ``cosh`` stands in for the exponentials of the
kernels, so that not even the way of writing 1 - tanh^2 is the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Ball(NamedTuple):
    """|x_adv - x| <= epsilon, lower <= x_adv <= upper."""

    epsilon: float
    lower: float = 0.0
    upper: float = 1.0


class TanhGaussian:
    """k samples around a batch, ``[k, B, ...]``, with everything that the operators derive from them.

    With ``log_offset`` o the density has log(sigma + o) and log(1 - tanh^2 + o), as the published code writes it.
    """

    def __init__(
        self, x: np.ndarray, mu: np.ndarray, rho: np.ndarray, r: np.ndarray, ball: Ball, log_offset: float = 0.0
    ) -> None:
        self.x, self.mu, self.r, self.ball, self.log_offset = x, mu, r, ball, log_offset
        self.sigma, self.sigmoid = np.logaddexp(0, rho), np.exp(-np.logaddexp(0, -rho))
        u = mu + self.sigma * r
        log_cosh = np.logaddexp(u, -u) - np.log(u.dtype.type(2))
        self.tanh, self.derivative = np.tanh(u), np.exp(-2 * log_cosh)
        self.log_sigma = np.log(self.sigma + log_offset)
        self.log_derivative = np.log(self.derivative + log_offset) if log_offset else -2 * log_cosh
        self.unclamped = x + ball.epsilon * self.tanh
        self.passes = (ball.lower <= self.unclamped) & (self.unclamped <= ball.upper)

    def x_adv(self) -> np.ndarray:
        """Eq. 9, and the clamp to the data bounds."""
        return np.clip(self.unclamped, self.ball.lower, self.ball.upper)

    def neg_log_density(self) -> np.ndarray:
        """-log p ``[k, B]``, Eq. 11, with all constants."""
        constants = np.log(8 * np.arctan(self.r.dtype.type(1))) / 2 + np.log(self.r.dtype.type(self.ball.epsilon))
        return sum_per_row(self.r**2 / 2 + self.log_sigma + self.log_derivative + constants)

    def gradients(self, grad_x_adv: np.ndarray, grad_density: np.ndarray | float) -> dict[str, np.ndarray]:
        """Of sum(grad_x_adv x_adv) + sum(grad_density (-log p)) in x, mu, rho, by the chain rule.

        grad_density is ``[k, B]``, or one number for all.
        """
        passed, weight = grad_x_adv * self.passes, per_row(grad_density, self.r)
        d_u = self.ball.epsilon * self.derivative * passed
        d_u = d_u - 2 * weight * self.tanh * self.derivative / (self.derivative + self.log_offset)
        d_sigma = d_u * self.r + weight / (self.sigma + self.log_offset)
        return {"x": passed.sum(0), "mu": d_u.sum(0), "rho": self.sigmoid * d_sigma.sum(0)}

    def magnitudes(
        self, grad_x_adv: np.ndarray | float = 0.0, grad_density: np.ndarray | float = 0.0
    ) -> dict[str, np.ndarray]:
        """How large the numbers are that are added up on the way to each result: rounding costs some ulp of these.

        A result may be much smaller, where terms cancel. The density has many terms, whose rounding errors cancel
        as well: there the root of the sum of squares counts.
        """
        weight, passed = np.abs(per_row(grad_density, self.r)), np.abs(grad_x_adv) * self.passes
        u = np.abs(self.mu) + self.sigma * (1 + np.abs(self.r))  # 1: a small normal is still radius times cosine
        kept = self.derivative / (self.derivative + self.log_offset)  # of the density's gradient
        entropy = 2 * weight * kept * (1 + self.derivative * u + (1 - kept) * 2 * u)
        d_u = self.ball.epsilon * self.derivative * passed * (1 + 2 * u) + entropy
        density = self.r**2 + np.abs(self.log_sigma) + np.abs(self.log_derivative) + 2 * kept * u + 1
        density = density + abs(np.log(self.ball.epsilon))
        return {
            "x_adv": np.abs(self.x) + self.ball.epsilon * (1 + self.derivative * u),
            "neg_log_density": np.maximum(np.sqrt(sum_per_row(density**2)), np.abs(self.neg_log_density())),
            "x": passed.sum(0),
            "mu": d_u.sum(0),
            "rho": self.sigmoid * (d_u * (1 + np.abs(self.r)) + weight / (self.sigma + self.log_offset)).sum(0),
        }

    def clamp_is_undecided(self, ulp: float) -> np.ndarray:
        """Where a sample is so near a bound that rounding decides whether it is clamped, ``[B, ...]``."""
        error = 8 * ulp * self.magnitudes()["x_adv"]
        distance = np.minimum(np.abs(self.unclamped - self.ball.lower), np.abs(self.unclamped - self.ball.upper))
        return (distance <= error).any(0)


def direction(gradient: np.ndarray, update: str) -> np.ndarray:
    """Adam with betas (0, 0), or the sign."""
    return np.sign(gradient) if update == "sign" else gradient / (np.abs(gradient) + 1e-8)


def linf_step(x_adv: np.ndarray, grad: np.ndarray, x: np.ndarray, step_size: float, ball: Ball) -> np.ndarray:
    inside = np.clip(x_adv + step_size * np.sign(grad), x - ball.epsilon, x + ball.epsilon)
    return np.clip(inside, ball.lower, ball.upper)


def accumulate_momentum(momentum: np.ndarray, grad: np.ndarray, decay: float) -> np.ndarray:
    """decay * momentum + grad / ||grad||_1; an example without gradient adds nothing."""
    norm = per_example(np.abs(grad).reshape(len(grad), -1).sum(1), grad)
    return decay * momentum + grad / np.where(norm > 0, norm, 1)


def l2_step(x_adv: np.ndarray, grad: np.ndarray, x: np.ndarray, step_size: float, ball: Ball) -> np.ndarray:
    norm = per_example(np.sqrt((grad**2).reshape(len(grad), -1).sum(1)), grad)
    d = x_adv + step_size * grad / np.where(norm > 0, norm, 1) - x
    length = per_example(np.sqrt((d**2).reshape(len(d), -1).sum(1)), d)
    return np.clip(x + d * np.minimum(1, ball.epsilon / np.where(length > 0, length, 1)), ball.lower, ball.upper)


def uniform_start(x: np.ndarray, uniform: np.ndarray, ball: Ball) -> np.ndarray:
    return np.clip(x + ball.epsilon * uniform, ball.lower, ball.upper)


def affine_relu(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, relu: bool) -> np.ndarray:
    y = x * per_channel(scale, x) + per_channel(shift, x)
    return np.maximum(y, 0) if relu else y


def sum_per_row(values: np.ndarray) -> np.ndarray:
    """``[k, B, ...]`` -> ``[k, B]``."""
    return values.reshape(*values.shape[:2], -1).sum(2)


def per_row(values: np.ndarray | float, like: np.ndarray) -> np.ndarray:
    """``[k, B]``, or one number for all, against ``[k, B, ...]``."""
    return np.broadcast_to(values, like.shape[:2]).reshape(*like.shape[:2], *[1] * (like.ndim - 2))


def per_channel(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    return values.reshape(1, -1, *[1] * (like.ndim - 2))


def per_example(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    return values.reshape(-1, *[1] * (like.ndim - 1))
