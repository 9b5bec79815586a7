"""Fits positive parameters to measurements: least absolute logarithmic errors with a prior, in plain numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from planner.profilers.roofline import Array

STEP = 0.02
"""Relative change of a parameter by which derivatives are taken."""

SMALLEST_ERROR = 0.03
"""Errors below this count as squares: no measurement is better than that, and the fit stays smooth."""

ROUNDINGS = (0.3, 0.1, SMALLEST_ERROR)
"""Errors below which they count as squares, one after the other."""

DAMPINGS = (1.0, 0.5, 0.25, 0.1)
"""Parts of a Gauss-Newton step that are tried in turn; the first that lowers the loss is taken."""

LARGEST_MOVE = 1.0
"""Most that the logarithm of a parameter moves in one iteration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Fitted logarithms of the parameters, and the loss at them."""

    logs: Array
    loss: float


def loss_of(
    errors: Array, weights: Array, logs: Array, prior: Array, prior_sd: Array, *, smallest: float = SMALLEST_ERROR
) -> float:
    """Return the sum of the errors' pseudo-Huber losses and of the prior's squares (in units of typical errors)."""
    huber = np.sqrt(np.square(errors) + smallest**2) - smallest
    return float((weights * huber).sum() + PRIOR_WEIGHT * np.square((logs - prior) / prior_sd).sum())


PRIOR_WEIGHT = 0.15
"""Of one squared deviation of a prior, against an absolute logarithmic error of 1."""


def fit_logs(
    errors_at: Callable[[Array], Array], weights: Array, *, prior: Array, prior_sd: Array, iterations: int = 10
) -> Fit:
    """Return the logarithms that make the weighted absolute errors smallest, by iteratively reweighted Gauss-Newton.

    First errors count nearly as squares, whose valley is wide, then more and more as absolute values.

    Parameters
    ----------
    errors_at : logarithms of the parameters -> log(estimate / measurement), shape (measurements,).
    prior, prior_sd : what is believed of the logarithms beforehand, shape (parameters,); the search starts there.
    iterations : at most so many at each of the `ROUNDINGS`.
    """
    logs = prior.copy()
    for smallest in ROUNDINGS:
        found = _descend(errors_at, weights, logs, prior=prior, prior_sd=prior_sd, smallest=smallest, most=iterations)
        logs = found.logs
    return found


def _descend(
    errors_at: Callable[[Array], Array],
    weights: Array,
    logs: Array,
    *,
    prior: Array,
    prior_sd: Array,
    smallest: float,
    most: int,
) -> Fit:
    errors = errors_at(logs)
    loss = loss_of(errors, weights, logs, prior, prior_sd, smallest=smallest)
    for _ in range(most):
        slopes = np.stack([(errors_at(logs + unit) - errors) / STEP for unit in np.eye(len(logs)) * STEP], axis=1)
        scale = weights / np.sqrt(np.square(errors) + smallest**2)
        precision = 2.0 * PRIOR_WEIGHT / np.square(prior_sd)
        normal = slopes.T @ (scale[:, None] * slopes) + np.diag(precision)
        gradient = slopes.T @ (scale * errors) + precision * (logs - prior)
        move = np.clip(-np.linalg.solve(normal, gradient), -LARGEST_MOVE, LARGEST_MOVE)
        for damping in DAMPINGS:
            trial = logs + damping * move
            trial_errors = errors_at(trial)
            trial_loss = loss_of(trial_errors, weights, trial, prior, prior_sd, smallest=smallest)
            if trial_loss < loss:
                break
        else:
            break
        gained, logs, errors, loss = loss - trial_loss, trial, trial_errors, trial_loss
        if gained < 1e-3 * loss:
            break
    return Fit(logs=logs, loss=loss)


# a few points, much prior knowledge


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """How far measurements lie from estimates with the right parameters, as logarithms."""

    own: Array
    """Of each measurement alone, shape (measurements,); tails are Student's."""
    shared: Array
    """Covariance of what several of them have in common, shape (measurements, measurements)."""
    freedom: float
    """Degrees of freedom of Student's t."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """What a few measurements say of the logarithms of some parameters under one hypothesis of how they vary."""

    shifts: Array
    """Most likely changes, shape (parameters,)."""
    covariance: Array
    """Of these, shape (parameters, parameters)."""
    log_evidence: float
    """Logarithm of how likely the measurements are, but for a constant."""


def believe(shortfall_at: Callable[[Array], Array], loadings: Array, scatter: Scatter) -> Belief:
    """Return the most likely parameters, by Gauss-Newton steps, and how likely the measurements are (Laplace).

    The parameters' logarithms are `loadings` times independent standard normal numbers. Every measurement has a weight
    with the gamma law that makes its own scatter Student's (Lange, Little and Taylor, JASA 1989): one that lies far off
    counts little.

    Parameters
    ----------
    shortfall_at : changes of the parameters' logarithms -> log(measurement / estimate), shape (measurements,).
    loadings : shape (parameters, numbers); without columns nothing may change.
    """
    n_parameters, n_numbers = loadings.shape
    numbers, weights = np.zeros(n_numbers), np.ones(len(scatter.own))
    slopes, sloped_at = np.zeros((len(scatter.own), n_numbers)), np.full(n_numbers, np.inf)
    for _ in range(MOST_STEPS):
        shifts = loadings @ numbers
        shortfall = shortfall_at(shifts)
        if np.abs(numbers - sloped_at).max(initial=0.0) > FAR_FROM_SLOPES:
            by_parameter = [(shortfall - shortfall_at(shifts + unit)) / STEP for unit in np.eye(n_parameters) * STEP]
            slopes, sloped_at = np.stack(by_parameter, axis=1) @ loadings, numbers
        covariance = scatter.shared + np.diag(np.square(scatter.own) / weights)
        weighed = np.linalg.solve(covariance, slopes)
        precision = slopes.T @ weighed + np.eye(n_numbers)
        target = np.linalg.solve(precision, weighed.T @ (shortfall + slopes @ numbers))
        move = np.clip(target - numbers, -LARGEST_MOVE, LARGEST_MOVE)
        numbers = numbers + move
        left = shortfall - slopes @ move
        alone = np.square(scatter.own) / weights * np.linalg.solve(covariance, left)
        before, weights = weights, (scatter.freedom + 1.0) / (scatter.freedom + np.square(alone / scatter.own))
        if max(np.abs(move).max(initial=0.0), np.abs(weights - before).max()) < SETTLED:
            break
    covariance = scatter.shared + np.diag(np.square(scatter.own) / weights)
    whole = covariance + slopes @ slopes.T
    at_start = left + slopes @ numbers
    tails = scatter.freedom / 2.0 * float(np.sum(np.log(weights) - (weights - 1.0)))
    evidence = -0.5 * (at_start @ np.linalg.solve(whole, at_start) + np.linalg.slogdet(whole)[1]) + tails
    precision = slopes.T @ np.linalg.solve(covariance, slopes) + np.eye(n_numbers)
    return Belief(
        shifts=loadings @ numbers,
        covariance=loadings @ np.linalg.solve(precision, loadings.T),
        log_evidence=float(evidence),
    )


MOST_STEPS = 12
FAR_FROM_SLOPES = 0.3
"""Slopes are taken anew so many standard deviations away from where they were."""
SETTLED = 0.02
"""Changes below this, in standard deviations, end the search."""
