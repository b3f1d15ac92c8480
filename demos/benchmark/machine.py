"""Facts about the machine and the versions."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from demos.benchmark.ways import HAS_NUMPYRO, HAS_PYTHAE


def machine(threads: int) -> dict[str, Any]:
    """What a figure depends on, by name."""
    facts = {"cpu": _processor(), "cpus": os.cpu_count(), "threads": threads}
    facts |= {"system": platform.platform(), "python": platform.python_version()}
    packages = ["torch", "pyro-ppl", "banel-pyro"]
    packages += ["pythae"] if HAS_PYTHAE else []
    packages += ["numpyro", "jax"] if HAS_NUMPYRO else []
    return facts | {name: version(name) for name in packages}


def _processor() -> str:
    """Its name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
