"""The benchmark of single entropies and of the graph and enum forms compares like with like."""

import pyro
import pytest
import torch

from demos.benchmark import entropies
from demos.benchmark.entropies import ENTROPIES, Stepper, families, step_problems, step_ways


@pytest.mark.parametrize("name", ["Categorical, logits", "Categorical, probs", "MultivariateNormal", "Normal"])
def test_entropies_are_of_the_same_distributions(name: str) -> None:
    """Ours is torch's; Rényi's falls in alpha, is next to it at alpha = 1.01; all have gradients."""
    family = families()[name]
    torch_s, ours, *renyi = (entropy(family.make(family.leaf)).mean() for entropy in ENTROPIES.values())
    assert list(ENTROPIES) == ["torch", "ours", "alpha = 0.5", "alpha = 1.01", "alpha = 2"]
    assert ours.item() == pytest.approx(torch_s.item(), rel=1e-5)
    assert renyi[0] > torch_s > renyi[1] > renyi[2]
    assert renyi[1].item() == pytest.approx(torch_s.item(), rel=0.02)
    for entropy in (torch_s, ours, *renyi):
        (gradient,) = torch.autograd.grad(entropy, family.leaf)
        assert gradient.isfinite().all()
        assert gradient.any()


def test_a_call_takes_the_entropy_of_a_new_distribution() -> None:
    family, seen = families()["Normal"], []
    for backward in (False, True):
        with entropies.entropy_call(family, lambda fn: seen.append(fn) or fn.entropy(), backward=backward) as call:
            (found,) = call() if backward else [call()]
        assert found.shape == family.leaf.shape
    assert torch.equal(found, 1 / family.leaf)  # d/ds log s
    assert seen[0] is not seen[1]


@pytest.mark.parametrize("name", step_problems())
def test_steps_are_of_the_same_loss(name: str) -> None:
    """From the same draws: Pyro's loss is ours at lam = 0, gradients too; the penalties change it, and differ."""
    losses, gradients = {}, {}
    torch.manual_seed(0)
    ways = step_ways(step_problems()[name])
    start = [parameter.detach().clone() for parameter in ways["Pyro"].parameters]
    for way, stepper in ways.items():
        with torch.no_grad():
            for parameter, value in zip(stepper.parameters, start, strict=True):
                parameter.copy_(value)
        torch.manual_seed(1)
        with stepper.ready():
            losses[way] = stepper.elbo.loss_and_grads(stepper.model, stepper.guide, stepper.rows)
        gradients[way] = [parameter.grad.clone() for parameter in stepper.parameters]
    assert losses["lam = 0"] == pytest.approx(losses["Pyro"], rel=1e-5)
    for ours, pyros in zip(gradients["lam = 0"], gradients["Pyro"], strict=True):
        assert torch.allclose(ours, pyros, rtol=1e-3, atol=1e-3 * float(pyros.abs().max()))
    assert len({round(loss, 2) for loss in losses.values()}) == 3


def test_a_step_leaves_no_gradient_and_no_parameter_behind() -> None:
    stepper = step_ways(step_problems()["graph, 8 bits"])["Pyro"]
    with stepper.ready() as step:
        step()
        assert "__baseline_avg_downstream_cost_z" in pyro.get_param_store()
    assert isinstance(stepper, Stepper)
    assert len(stepper.parameters) == 4
    assert not any(parameter.grad.any() for parameter in stepper.parameters)
    assert not list(pyro.get_param_store().keys())
