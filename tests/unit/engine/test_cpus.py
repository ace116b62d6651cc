"""CPUs as affinity, control groups (both versions, their files as the kernel writes them) and Slurm say."""

import os

import pytest
from helpers.command import succeed
from helpers.system_tools import under

from lstmcli.engine import cpus


@pytest.mark.parametrize(
    ("files", "want"),
    [
        ({"cpu.max": "250000 100000\n"}, [3]),
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
    monkeypatch.setattr(cpus, "quotas", lambda: iter([0]))
    assert cpus.available_threads() == 1


def test_here():
    assert 1 <= cpus.available_threads() <= (os.cpu_count() or 1)


def test_nested_groups_of_both_versions(monkeypatch, tmp_path):
    v1, v2 = tmp_path / "cpu" / "job" / "step", tmp_path / "docker" / "id"
    for folder in (v1, v2):
        folder.mkdir(parents=True)
    (v1.parent / "cpu.cfs_quota_us").write_text("500000\n")
    (v1.parent / "cpu.cfs_period_us").write_text("100000\n")
    (v2.parent / "cpu.max").write_text("300000 100000\n")
    (v2 / "cpu.max").write_text("max 100000\n")
    (tmp_path / "cgroup").write_text("3:cpuacct,cpu:/job/step\n2:name=systemd:/job\n0::/docker/id\n")
    monkeypatch.setattr(cpus, "CGROUPS", tmp_path)
    monkeypatch.setattr(cpus, "MEMBERSHIPS", tmp_path / "cgroup")
    assert list(cpus.quotas()) == [5, 3]


def test_strange_slurm_variables(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "²")
    assert cpus.available_threads() >= 1


@pytest.fixture
def one_cpu():
    """The folder of a group without limits in a group of one CPU, of the version that has the CPUs here."""
    outer = (cpus.CGROUPS / "cpu" if (cpus.CGROUPS / "cpu").is_dir() else cpus.CGROUPS) / f"lstmcli-{os.getpid()}"
    made = []
    try:
        for folder in (outer, outer / "inner"):
            folder.mkdir()
            made.append(folder)
        if outer.parent.name == "cpu":
            (outer / "cpu.cfs_quota_us").write_text("100000")
        else:
            (outer.parent / "cgroup.subtree_control").write_text("+cpu")
            (outer / "cpu.max").write_text("100000 100000")
        yield outer / "inner"
    except OSError as error:
        pytest.skip(f"no control group with a quota can be made here: {error}")
    finally:
        for folder in reversed(made):
            folder.rmdir()


@pytest.mark.root
def test_a_real_quota(one_cpu, sample_x, tmp_path):
    dry = ["run", "-i", sample_x, "-u", 3, "--dry-run", "--json"]
    if succeed(*dry, cwd=tmp_path).json["threads"] < 2:
        pytest.skip("there is one CPU")
    ran = under(["sh", "-c", f'echo $$ > {one_cpu}/cgroup.procs && exec "$@"', "sh"], *dry, cwd=tmp_path)
    assert (ran.code, ran.json["threads"]) == (0, 1)


@pytest.mark.parametrize(("text", "want"), [("512K\n", 512 << 10), ("2048K\n", 2 << 20), ("", 1 << 20), (None, 1 << 20)])
def test_second_level_cache(text, want, monkeypatch, tmp_path):
    if text is not None:
        (tmp_path / "size").write_text(text)
    monkeypatch.setattr(cpus, "SECOND_CACHE", tmp_path / "size")
    cpus.second_cache_bytes.cache_clear()
    assert cpus.second_cache_bytes() == want
    cpus.second_cache_bytes.cache_clear()
