"""Measurements in a process of their own, with nothing compiled before and no memory of others."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyro
import torch

ROOT = Path(__file__).parents[2]
Task = Callable[..., dict[str, Any]]


def fresh_caches(folder: str) -> dict[str, str]:
    """Environment variables that put what compilers keep into this folder."""
    return {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "XDG_CACHE_HOME": folder}


def in_child(task: str, options: Mapping[str, Any], *, threads: int, inline: bool = False) -> dict[str, Any]:
    """What a task returns, called in a new Python.

    Args:
        task: Module and function, `package.module:function`; it returns what JSON can hold.
        options: Its arguments.
        threads: Threads of torch.
        inline: Call it here instead, which shows that it runs, and nothing about time or memory.
    """
    if inline:
        with torch.random.fork_rng(devices=()), pyro.get_param_store().scope():
            return _function(task)(**options, began=time.time())
    with TemporaryDirectory() as folder:
        paths = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        env = os.environ | fresh_caches(folder) | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}
        words = [json.dumps({"task": task, "threads": threads, "began": time.time(), "options": dict(options)})]
        command = [sys.executable, "-m", "demos.benchmark.children", *words]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _function(task: str) -> Task:
    module, _, name = task.partition(":")
    function: Task = getattr(__import__(module, fromlist=[name]), name)
    return function


def peak_memory() -> float:
    """The most memory that this process has held, in MB.

    Linux has it in `VmHWM`. `ru_maxrss` would not do: after a fork it begins at what the parent held.
    """
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")


def main(words: str) -> None:
    """Do one task, and print what it returns as JSON."""
    told = json.loads(words)
    torch.set_num_threads(told["threads"])
    print(json.dumps(_function(told["task"])(**told["options"], began=told["began"])))


if __name__ == "__main__":
    main(sys.argv[1])
