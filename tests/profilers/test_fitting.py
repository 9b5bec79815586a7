"""The fit finds parameters that are known, and stays with what it believes where nothing tells."""

from __future__ import annotations

import numpy as np
import pytest

from planner.profilers.fitting import fit_logs, loss_of


def test_known_parameters_are_found():
    truth = np.log([2.0, 5.0])
    places = np.linspace(0.1, 3.0, 30)

    def curve(logs):
        return np.log(np.exp(logs[0]) + np.exp(logs[1]) * places)

    measured = curve(truth)
    found = fit_logs(
        lambda logs: curve(logs) - measured, np.ones(30), prior=np.log([1.0, 1.0]), prior_sd=np.array([3.0, 3.0])
    )
    assert np.exp(found.logs) == pytest.approx([2.0, 5.0], rel=0.02)


def test_an_outlier_hardly_moves_the_fit():
    measured = np.zeros(21)
    measured[-1] = 5.0
    found = fit_logs(lambda logs: logs[0] - measured, np.ones(21), prior=np.array([0.5]), prior_sd=np.array([9.0]))
    assert found.logs[0] == pytest.approx(0.0, abs=0.02)


def test_what_no_measurement_tells_stays_where_it_was():
    found = fit_logs(lambda logs: logs[:1] * np.ones(4), np.ones(4), prior=np.array([0.3, 0.7]), prior_sd=np.ones(2))
    assert found.logs[1] == pytest.approx(0.7)
    assert found.logs[0] < 0.1


def test_the_loss_grows_with_errors_and_with_distance_from_the_prior():
    prior, sd = np.zeros(1), np.ones(1)
    assert loss_of(np.array([0.2]), np.ones(1), prior, prior, sd) > loss_of(
        np.array([0.1]), np.ones(1), prior, prior, sd
    )
    assert loss_of(np.zeros(1), np.ones(1), np.ones(1), prior, sd) > loss_of(np.zeros(1), np.ones(1), prior, prior, sd)
