"""Why one side is chosen over another: the logistic model of a choice, with ties (Davidson 1970), by Newton's method.

One fit serves both the ranking of models (a feature for each model) and an annotator's lean (a constant and the difference in
length). With `d = features @ coefficients` and the tie parameter `nu`, the chances of first, second and tie are
`e^(d/2), e^(-d/2), nu` over their sum. Without ties that is logistic regression.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from annotate.quality.estimates import Floats

RUNAWAY = 40.0  # log-odds; a coefficient on its way to infinity passes it, a measured one never does


class ChoiceFit(NamedTuple):
    """The maximum of the likelihood: `coefficients` (P,), `log_nu` (None without ties), their joint `covariance`."""

    coefficients: Floats
    log_nu: float | None
    covariance: Floats
    log_likelihood: float


def _log_likelihood(parameters: Floats, features: Floats, outcomes: Floats, weights: Floats, ties: bool) -> tuple[float, Floats]:
    """Its value, and the (N, 3) chances of first, second and tie."""
    gap = features @ parameters[: features.shape[1]]
    tie = np.full_like(gap, parameters[-1] if ties else -np.inf)
    utilities = np.stack([gap / 2, -gap / 2, tie], axis=1)
    largest = utilities.max(1, keepdims=True)
    log_chances = utilities - largest - np.log(np.exp(utilities - largest).sum(1, keepdims=True))
    seen = log_chances[np.arange(len(gap)), np.where(outcomes > 0, 0, np.where(outcomes < 0, 1, 2))]
    return float(weights @ seen), np.exp(log_chances)


def fit_choice(
    features: Floats, outcomes: Floats, weights: Floats | None = None, start: Floats | None = None
) -> ChoiceFit | None:
    """The most likely coefficients, or None where there are none: a direction in which the likelihood never falls.

    The log-likelihood is concave, so that Newton with halved steps finds the maximum wherever it exists.

    Args:
        features: (N, P). outcomes: (N,) 1 first, -1 second, 0 tie. weights: (N,) at or above 0, 1 by default.
        start: (P,) or, with ties, (P + 1,) parameters to begin from.
    """
    weights = np.ones(len(outcomes)) if weights is None else weights
    ties = bool((weights[outcomes == 0] > 0).any())
    size = features.shape[1] + ties
    parameters = np.zeros(size) if start is None else start[:size].copy()
    value, chances = _log_likelihood(parameters, features, outcomes, weights, ties)
    for _ in range(200):
        score = np.sign(outcomes) / 2 - (chances[:, 0] - chances[:, 1]) / 2
        spread = (chances[:, 0] + chances[:, 1]) / 4 - ((chances[:, 0] - chances[:, 1]) / 2) ** 2
        gradient = features.T @ (weights * score)
        curvature = (features.T * (weights * spread)) @ features
        if ties:
            cross = -features.T @ (weights * chances[:, 2] * (chances[:, 0] - chances[:, 1]) / 2)
            own = weights @ (chances[:, 2] * (1 - chances[:, 2]))
            gradient = np.append(gradient, weights @ ((outcomes == 0) - chances[:, 2]))
            curvature = np.block([[curvature, cross[:, None]], [cross[None, :], np.array([[own]])]])
        if np.linalg.cond(curvature) > 1e13:
            return None
        step = np.linalg.solve(curvature, gradient)
        promised = gradient @ step
        parameters_before, value_before = parameters, value
        scale = 1.0
        while True:
            parameters = parameters_before + scale * step
            value, chances = _log_likelihood(parameters, features, outcomes, weights, ties)
            # Below the rounding of the value itself only the step can tell, and there Newton's whole step is right.
            if value >= value_before + 1e-4 * scale * promised or promised < 1e-10 * (1 + abs(value_before)) or scale < 1e-10:
                break
            scale /= 2
        if np.abs(parameters).max() > RUNAWAY:
            return None
        if np.abs(step).max() < 1e-11 or promised < 1e-23 * (1 + abs(value)):
            coefficients, covariance = parameters[: features.shape[1]], np.linalg.inv(curvature).astype(np.float64)
            return ChoiceFit(coefficients, float(parameters[-1]) if ties else None, covariance, value)
    return None
