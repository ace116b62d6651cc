"""CPUs as affinity, control groups (both versions, their files as the kernel writes them) and Slurm say."""

import os

import pytest

from lstmcli import cpus


@pytest.mark.parametrize(
    ("files", "want"),
    [
        ({"cpu.max": "250000 100000\n"}, [2]),
        ({"cpu.max": "max 100000\n"}, []),
        ({"cpu.cfs_quota_us": "400000\n", "cpu.cfs_period_us": "100000\n"}, [4]),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, []),
        ({}, []),
    ],
)
def test_quota_files(files, want, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert list(cpus.quota(tmp_path)) == want


def test_least_of_all(monkeypatch):
    monkeypatch.setattr(cpus, "quotas", lambda: iter([3]))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert cpus.available_threads() == 3
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert cpus.available_threads() == 2
    monkeypatch.setattr(cpus, "quotas", lambda: iter([0]))  # half a CPU
    assert cpus.available_threads() == 1


def test_here():
    assert 1 <= cpus.available_threads() <= (os.cpu_count() or 1)
