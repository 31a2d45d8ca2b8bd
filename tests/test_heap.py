"""Commands keep the memory that one run of a program frees for the next."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import re, resource, sys
if sys.argv[1] == "kept":
    from zipper_jax.cli import main
    main.main(["train", "--help"])
import jax, jax.numpy as jnp
from jax import lax
x = jnp.ones((4096, 4096))  # 64 MiB; so is what the reversed sum is of
run = jax.jit(lambda x: lax.fori_loop(0, 2, lambda i, y: jnp.sin(y[::-1]).T, x).sum())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
least = min([faults() for _ in range(4)][1:])
print(least, re.search(r"AnonHugePages: *([0-9]+) kB", open("/proc/self/smaps_rollup").read())[1])
"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_a_program_that_runs_again_gets_the_memory_it_had():
    found = {}
    for name in ("kept", "given back"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, name], env=os.environ | {"JAX_PLATFORMS": "cpu"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found[name] = [int(number) for number in done.stdout.splitlines()[-1].split()]
    (kept, kept_huge), (given_back, _) = found["kept"], found["given back"]
    setting = HUGE_PAGES.read_text() if HUGE_PAGES.is_file() else "[never]"
    assert kept < 1_000
    if "[always]" not in setting:
        assert given_back > 16_000  # pages of 4 KiB: the check can fail
    if "[never]" not in setting:
        assert kept_huge > 2**16  # kB: the 64 MiB of the temporary buffer and more


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize("limits", ["", "ulimit -v 8000000", "ulimit -d 8000000", "export MALLOC_PERTURB_=85"])
def test_addresses_are_taken_only_where_there_is_no_limit(limits):
    program = """
from zipper_jax.utils.heap import keep_freed_memory
status = lambda: {line.split()[0]: int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("Vm")}
before = status()
keep_freed_memory()
after = status()
print(*(after[name] - before[name] for name in ("VmSize:", "VmRSS:")))
"""
    shell = f"{limits or 'true'}; exec {sys.executable} -c '{program}'"
    done = subprocess.run(
        ["bash", "-c", shell], env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=True
    )
    addresses, memory = map(int, done.stdout.split())
    assert memory < 2**14  # kB
    if limits:
        assert addresses < 2**14
