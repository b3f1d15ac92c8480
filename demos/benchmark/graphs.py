"""The nodes of the autograd graph of a step: a penalty adds pointwise ones, and no second pass through a network."""

from collections import Counter
from collections.abc import Mapping

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from banel_pyro import BaNEL_ELBO
from demos.benchmark.ways import LAM
from models import data, vae


def graph_nodes(loss: Tensor) -> Counter[str]:
    """How many nodes of each kind the autograd graph below a loss has."""
    seen, todo, count = set(), [loss.grad_fn], Counter[str]()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            count[node.name()] += 1
            todo += [parent for parent, _ in node.next_functions]
    return count


def vae_graphs() -> dict[str, Counter[str]]:
    """The nodes of a step of the digits VAE, in Pyro and in this library without and with a penalty."""
    (x,) = data.binarize((data.digits().train[:128],))
    losses = {"Pyro": Trace_ELBO(), "lam = 0": BaNEL_ELBO(lam=0.0), f"lam = {LAM}": BaNEL_ELBO(lam=LAM)}
    with torch.random.fork_rng(devices=()), pyro.get_param_store().scope():
        pair = vae.digits()
        return {name: graph_nodes(elbo.differentiable_loss(pair.model, pair.guide, x)) for name, elbo in losses.items()}


def describe(graphs: Mapping[str, Counter[str]]) -> str:
    """How many nodes, and which ones the penalty adds."""
    counts = ", ".join(
        f"{count.total()} ({count['AddmmBackward0']} matrix products) {'in' if name == 'Pyro' else 'at'} {name}"
        for name, count in graphs.items()
    )
    more = graphs[f"lam = {LAM}"] - graphs["lam = 0"]
    added = ", ".join(f"{n} {kind}" for kind, n in sorted(more.items()))
    return f"Autograd nodes of an eager step of the digits VAE: {counts}. The penalty adds {added}."
