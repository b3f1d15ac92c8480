"""The sole owner of entropies, in nats: of a distribution and of a guide, in closed form and from draws."""

from banel_pyro.entropy.guide import guide_entropy
from banel_pyro.entropy.renyi import RenyiDiagnostic, renyi_entropy, renyi_from_log_q
from banel_pyro.entropy.shannon import EntropyEstimator, closed_form_entropy, density_entropy

__all__ = [
    "EntropyEstimator",
    "RenyiDiagnostic",
    "closed_form_entropy",
    "density_entropy",
    "guide_entropy",
    "renyi_entropy",
    "renyi_from_log_q",
]
