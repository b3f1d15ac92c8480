"""The exact answers of demos.tokens against enumeration, and the objectives against the exact answers."""

import math

import pyro
import pytest
import torch

from demos.texts.chain import AutoregressiveTokens, exact_entropy
from demos.texts.policy import Bonus, Task, exact_loss
from demos.tokens import of_texts
from tests.laws import assert_mean

SIZE, LENGTH, TEMPERATURE = 3, 4, 0.5
BONUSES = [
    Bonus(),
    *(Bonus(alpha, 0.7) for alpha in (0.5, 1.0, 2.0, 5.0)),
    *(Bonus(alpha, 0.7, "letters") for alpha in (0.5, 2.0)),
]


@pytest.fixture
def task(float64: torch.dtype) -> Task:
    torch.manual_seed(0)
    return Task(torch.randn(SIZE, SIZE, SIZE).log_softmax(-1), LENGTH, TEMPERATURE)


@pytest.fixture
def logits(float64: torch.dtype) -> torch.Tensor:
    return torch.randn(SIZE, SIZE, SIZE, generator=torch.manual_seed(1)).requires_grad_()


def enumerated_loss(logits: torch.Tensor, task: Task, bonus: Bonus) -> torch.Tensor:
    """The loss as a sum over all texts."""
    texts = torch.cartesian_prod(*[torch.arange(SIZE)] * LENGTH)
    log_q = AutoregressiveTokens(logits, LENGTH).log_prob(texts)
    log_p = AutoregressiveTokens(task.language, LENGTH).log_prob(texts) / TEMPERATURE
    log_p = log_p - LENGTH * torch.tensor(float(SIZE)).log()
    q, alpha = log_q.exp(), bonus.alpha
    assert float(q.detach().sum()) == pytest.approx(1)
    if alpha == 1:
        entropy = -(q * log_q).sum()
    elif bonus.of == "text":
        entropy = (q**alpha).sum().log() / (1 - alpha)
    else:
        after = AutoregressiveTokens(logits, LENGTH).next_tokens(texts)
        entropy = (q * ((alpha * after).logsumexp(-1) / (1 - alpha)).sum(-1)).sum()
    return (q * (log_q - log_p)).sum() + bonus.lam(TEMPERATURE) * entropy


@pytest.mark.parametrize("bonus", BONUSES, ids=str)
def test_exact_loss_is_the_sum_over_all_texts(task: Task, logits: torch.Tensor, bonus: Bonus) -> None:
    values = [enumerated_loss(logits, task, bonus), exact_loss(logits.log_softmax(-1), task, bonus)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in values))


@pytest.mark.parametrize("bonus", BONUSES, ids=str)
def test_objective_estimates_the_exact_loss_and_gradient(task: Task, logits: torch.Tensor, bonus: Bonus) -> None:
    loss = exact_loss(logits.log_softmax(-1), task, bonus)
    (gradient,) = torch.autograd.grad(loss, logits)
    objective, guide = bonus.objective(TEMPERATURE, num_particles=4000), task.guide(lambda: logits)
    losses, gradients = [], []
    for seed in range(40):
        torch.manual_seed(seed)
        logits.grad = None
        losses.append(torch.tensor(objective.loss_and_grads(task.model, guide)))
        gradients.append(logits.grad.clone())
    assert_mean(losses[10:], loss.detach())  # the first ten are for the baseline to settle
    assert_mean(gradients[10:], gradient)
    pyro.clear_param_store()


def test_entropy_of_long_texts_does_not_underflow() -> None:
    uniform = torch.zeros(27, 27, 27).log_softmax(-1)
    for alpha in (0.5, 1.0, 2.0, 5.0):
        assert float(exact_entropy(uniform, 100, alpha)) == pytest.approx(100 * math.log(27), rel=1e-5)


def test_counts_of_a_sample() -> None:
    found = of_texts(torch.tensor([[1, 2, 1, 2], [1, 2, 1, 2], [1, 2, 3, 4]]))
    assert found["distinct_1"] == pytest.approx(4 / 12)
    assert found["distinct_2"] == pytest.approx(4 / 9)  # 12, 21, 23, 34
    assert found["distinct_3"] == pytest.approx(4 / 6)  # 121, 212, 123, 234
    assert found["repeated"] == pytest.approx((1 + 1 + 0) / 9)
    assert found["same"] == pytest.approx(1 / 3)
