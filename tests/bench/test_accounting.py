"""CPU time is that of the whole tree: of threads and children that have ended, and of grandchildren that run."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.accounting import Account, ControlGroup, ProcessTree, make_account

BURN_S = 0.15
PROGRAM = f"""
import os, sys, threading, time

def burn():
    until = time.thread_time() + {BURN_S}
    while time.thread_time() < until:
        pass

thread = threading.Thread(target=burn)  # ends before it is looked at
thread.start()
thread.join()

child = os.fork()
if child == 0:
    burn()
    os._exit(0)
os.waitpid(child, 0)

ends, told = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:  # a grandchild that lives on
        burn()
        os.write(told, b".")
        sys.stdin.read()
    else:
        os.wait()
    os._exit(0)
os.read(ends, 1)
print("burnt", flush=True)
sys.stdin.read()
os.wait()
"""


def accounts() -> list[Account]:
    group = ControlGroup.make()
    return [ProcessTree(), *([group] if group else [])]


def test_the_whole_tree_counts() -> None:
    for account in accounts():
        process = subprocess.Popen(
            account.command([sys.executable, "-S", "-E", "-c", PROGRAM]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"burnt\n"
            used = account.cpu_seconds(process.pid)
            # Thread, child and grandchild; children that ended are counted in ticks of 10 ms. Python's own start and
            # end take less than the part of one of them.
            assert 3 * BURN_S - 0.02 <= used < 4 * BURN_S + 1
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(10) == 0
        account.close()


def test_both_accounts_agree() -> None:
    group = ControlGroup.make()
    if group is None:
        return  # there is only one of them here
    process = subprocess.Popen(
        group.command([sys.executable, "-S", "-E", "-c", PROGRAM]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        tree, counted = ProcessTree().cpu_seconds(process.pid), group.cpu_seconds(process.pid)
        assert tree == pytest.approx(counted, abs=0.1)
    group.close()
    assert not group.directory.exists()


def test_a_process_that_is_gone_costs_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    assert ProcessTree().cpu_seconds(process.pid) == 0


def test_the_account_says_what_it_is() -> None:
    account = make_account()
    try:
        assert account.kind
    finally:
        account.close()
