"""Which λ is taken: pooled errors against exact ones, and the choice with made-up and with exact Gaussian numbers."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from banel_pyro import Estimate
from banel_pyro.report.pooled import paired, pooled, pooled_estimates
from banel_pyro.report.recommend import Candidate, Recommendation, mean_score, recommend

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=200)


def candidate(lam: float, gain: float = 0.0, seeds: int = 3, noise: float = 0.0, **more: object) -> Candidate:
    """Runs whose score is that of λ = 0 and a gain, in every row."""
    rng = np.random.default_rng(int(100 * lam) + 1000)
    scores = {seed: ROWS + gain + noise * rng.normal(size=len(ROWS)) for seed in range(seeds)}
    return Candidate(f"λ = {lam:g}", lam, scores, **more)  # type: ignore[arg-type]


# ---- errors over seeds and rows ------------------------------------------------------------------


def test_the_error_is_that_of_seeds_and_rows_together() -> None:
    """Against the exact variance σ_a²/S + σ_b²/N + σ_e²/(SN), over many made-up sweeps."""
    sd_seed, sd_row, sd_rest, seeds, rows = 0.3, 1.0, 0.5, 4, 30
    exact = sd_seed**2 / seeds + sd_row**2 / rows + sd_rest**2 / (seeds * rows)
    found = [
        pooled(
            sd_seed * RNG.normal(size=(seeds, 1))
            + sd_row * RNG.normal(size=(1, rows))
            + sd_rest * RNG.normal(size=(seeds, rows))
        )
        for _ in range(2000)
    ]
    variances = np.array([estimate.stderr**2 for estimate in found])
    error = variances.std() / math.sqrt(len(found))
    assert abs(variances.mean() - exact) < 4 * error
    means = np.array([estimate.value for estimate in found])
    assert means.var() == pytest.approx(exact, rel=4 * math.sqrt(2 / len(found)))


@pytest.mark.parametrize("values", [RNG.normal(size=(1, 50)), RNG.normal(size=(50, 1))], ids=["one seed", "one row"])
def test_one_seed_or_one_row_is_the_usual_error(values: np.ndarray) -> None:
    assert pooled(values).stderr == pytest.approx(values.std(ddof=1) / math.sqrt(50), rel=1e-12)


def test_one_number_has_no_error_but_its_own() -> None:
    assert math.isnan(pooled(np.ones((1, 1))).stderr)
    assert pooled_estimates([Estimate(1.0, 0.25)]) == Estimate(1.0, 0.25)
    assert pooled_estimates([Estimate(1.0, 0.3), Estimate(1.0, 0.4)]).stderr == pytest.approx(0.25)
    assert pooled_estimates([Estimate(1.0, 0.0), Estimate(3.0, 0.0)]).stderr == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"shape \(3,\).*\(seed, datum\)"):
        pooled(np.ones(3))


def test_pairing_takes_out_what_seeds_and_rows_have_in_common() -> None:
    first, second = candidate(0.0), candidate(0.4, gain=0.1)
    change = paired(second.scores, first.scores)
    assert change is not None
    assert change.value == pytest.approx(0.1, abs=1e-12)
    assert change.stderr < 1e-12 < second.score.stderr
    assert paired({0: ROWS}, {1: ROWS}) is None
    only = paired({0: ROWS + 1.0, 2: ROWS}, {0: ROWS, 1: ROWS + 9.0})
    assert only is not None
    assert only.value == pytest.approx(1.0)


# ---- the choice ----------------------------------------------------------------------------------


def test_the_best_that_passes_is_taken_and_the_reason_names_the_lead() -> None:
    found = recommend([candidate(0.0), candidate(0.2, 0.3), candidate(0.4, 0.1)])
    assert found.label == "λ = 0.2"
    assert "untempered ELBO is the highest" in found.reason
    assert "by +" not in found.reason
    assert "0.200000 ± 0.000000 nats per data point over the next, λ = 0.4" in found.reason


def test_one_that_fails_is_passed_over_however_good_it_looks() -> None:
    bad = candidate(0.8, 5.0, failed=("k-hat 1.2",))
    assert recommend([bad, candidate(0.0), candidate(0.4, 0.1)]).label == "λ = 0.4"
    only = recommend([bad, candidate(0.0)])
    assert (only.label, only.reason) == ("λ = 0", "It is the only one whose checks pass.")


def test_nothing_is_recommended_where_no_run_passes() -> None:
    found = recommend([candidate(0.0, failed=("spread",)), candidate(0.4, failed=("k-hat 1.2",))])
    assert found.label is None
    assert "λ = 0: spread; λ = 0.4: k-hat 1.2" in str(found)


def test_of_ties_the_nearest_to_zero_is_taken_and_of_two_the_wider() -> None:
    ties = [candidate(lam, 0.001 * abs(lam), noise=0.5) for lam in (-0.4, 0.4, 0.6)]
    found = recommend(ties)
    assert found.label == "λ = -0.4"
    assert "cannot be told apart" in found.reason
    assert recommend([*ties, candidate(0.0, noise=0.5)]).label == "λ = 0"


def test_a_difference_that_is_none_to_a_reader_is_a_tie() -> None:
    assert recommend([candidate(0.0), candidate(0.4, 0.004)]).label == "λ = 0"
    assert recommend([candidate(0.0), candidate(0.4, 0.006)]).label == "λ = 0.4"


def test_a_clearly_worse_one_is_no_tie_even_if_it_is_nearer_to_zero() -> None:
    found = recommend([candidate(0.0, -1.0, noise=0.3), candidate(0.2, noise=0.3), candidate(0.4, noise=0.3)])
    assert found.label == "λ = 0.2"


def test_runs_without_errors_between_them_are_ties() -> None:
    """Totals of one seed, whose draws are noisy: a lead of one standard error says nothing."""
    near = [Candidate("λ = 0", 0.0, {0: Estimate(-10.0, 0.5)}), Candidate("λ = 0.4", 0.4, {0: Estimate(-9.4, 0.5)})]
    assert recommend(near).label == "λ = 0"
    assert recommend([near[0], Candidate("λ = 0.4", 0.4, {0: Estimate(-7.0, 0.5)})]).label == "λ = 0.4"


def test_what_could_not_be_told_is_said() -> None:
    assert "One seed" in str(recommend([candidate(0.0, seeds=1), candidate(0.4, 1.0, seeds=1)]))
    strangers = [Candidate("λ = 0", 0.0, {0: ROWS}), Candidate("λ = 0.4", 0.4, {1: ROWS + 1.0})]
    assert "no seed in common" in str(recommend(strangers))
    assert recommend(strangers).label == "λ = 0"  # a lead that is not known is none


def test_losses_are_refused() -> None:
    with pytest.raises(ValueError, match=r"score='loss'.*never compared"):
        recommend([candidate(0.0)], score="loss")
    with pytest.raises(ValueError, match="candidates is empty"):
        recommend([])


def test_an_entropy_target_is_met_or_not() -> None:
    runs = [candidate(lam, entropy=Estimate(entropy, 0.001)) for lam, entropy in ((0.0, -1.0), (0.4, -1.26))]
    found = recommend(runs, target=-1.25, tolerance=0.02)
    assert found.label == "λ = 0.4"
    assert found.reason.startswith("Entropy target met: its entropy is −1.2600 ± 0.0010, 0.010 nats from the −1.25")
    missed = recommend(runs, target=-1.2, tolerance=0.02)
    assert (missed.label, "nearest is λ = 0.4" in missed.reason) == (None, True)
    failing = [runs[0], candidate(0.4, entropy=Estimate(-1.25, 0.0), failed=("spread",))]
    assert recommend(failing, target=-1.25, tolerance=0.02).label is None


# ---- exact Gaussian runs -------------------------------------------------------------------------

N, LAMS = 20, (-1.0, -0.3, 0.0, 0.3, 0.6, 0.9)


def gaussian(lam: float, x: torch.Tensor) -> dist.Normal:
    """The optimum of the loss for mu ~ N(0, 1), x_n ~ N(mu, 1)."""
    variance = 1.0 / (1.0 + len(x))
    return dist.Normal(variance * x.sum(), math.sqrt((1.0 - lam) * variance))


@pytest.mark.usefixtures("float64")
def test_the_elbo_of_exact_guides_takes_lambda_zero_and_the_lead_is_the_divergence() -> None:
    """A fixed model: ELBO(λ) = log p(x) − KL(q_λ, posterior), with KL = (T − 1 − log T)/2 in one dimension."""
    x = torch.linspace(-1.0, 2.0, N)
    posterior = gaussian(0.0, x)
    evidence = dist.MultivariateNormal(torch.zeros(N), torch.eye(N) + 1.0).log_prob(x)
    runs = []
    for lam in LAMS:
        bound = float(evidence - torch.distributions.kl_divergence(gaussian(lam, x), posterior))
        runs.append(Candidate(f"λ = {lam:g}", lam, {seed: Estimate(bound, 0.001) for seed in range(3)}))
    found = recommend(runs)
    assert found.label == "λ = 0"
    next_best = 0.5 * (1.3 - 1.0 - math.log(1.3))  # T = 1.3: too wide by so much costs less than too narrow, T = 0.7
    lead = paired(runs[2].scores, runs[1].scores)
    assert lead is not None
    assert lead.value == pytest.approx(next_best, abs=1e-9)
    assert f"by {next_best:.5f}" in found.reason
    assert "over the next, λ = -0.3" in found.reason


@pytest.mark.usefixtures("float64")
def test_the_predictive_density_of_a_wrong_model_takes_a_wide_posterior() -> None:
    """Data far wider than the model says: of exact Gaussian predictive densities the warmest is the best."""
    torch.manual_seed(0)
    x, new = 3.0 * torch.randn(3), 3.0 * torch.randn(400)
    runs = []
    for lam in (-3.0, 0.0, 0.6):
        q = gaussian(lam, x)
        scores = dist.Normal(q.loc, torch.sqrt(1.0 + q.scale**2)).log_prob(new).numpy()
        runs.append(Candidate(f"λ = {lam:g}", lam, {0: scores, 1: scores}))
    found = recommend(runs, score="predictive")
    assert found.label == "λ = -3"
    assert "held-out predictive density is the highest" in found.reason


def test_a_recommendation_reads_as_a_sentence() -> None:
    assert str(Recommendation("λ = 0", "Why.", ("But.",))) == "Take λ = 0. Why. But."
    assert mean_score({0: ROWS}).value == pytest.approx(ROWS.mean())
