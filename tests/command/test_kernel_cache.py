"""Where kernels are kept: homes that cannot be written, folders that are shared, kernels for other CPUs."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.command import Ran, assert_one_line, lstmcli

from lstmcli.kernel.layout import Options
from lstmcli.kernel.native import cache
from lstmcli.kernel.native.target import levels_here

Run = Callable[..., Ran]
NOWHERE = "/proc/nowhere"  # not even root can make a folder there


@pytest.fixture
def run(tmp_path: Path, sample_x: Path) -> Run:
    def run_with(output: str, **variables: str) -> Ran:
        names = ("LSTMCLI_CACHE_DIR", "XDG_CACHE_HOME", "HOME", "TMPDIR")
        env = {name: value for name, value in os.environ.items() if name not in names} | variables
        ran = lstmcli("run", "-i", sample_x, "-u", 3, "-o", output, "--progress", "none", cwd=tmp_path, env=env)
        assert ran.code == 0, ran.err
        return ran

    return run_with


def test_without_a_home_kernels_outlive_the_run_and_a_note_says_where(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    variables = {"HOME": "/proc", "TMPDIR": str(tmp_path / "tmp")}
    first, second = run("a.h5", **variables), run("b.h5", **variables)
    assert first.err.count("\n") == 1
    assert all(word in first.err for word in ("note:", f"{tmp_path}/tmp/lstmcli-", "/proc/.cache", "LSTMCLI_CACHE_DIR"))
    assert second.err == ""
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize("variables", [{"LSTMCLI_CACHE_DIR": NOWHERE}, {"XDG_CACHE_HOME": NOWHERE, "TMPDIR": NOWHERE}])
def test_a_kernel_that_cannot_be_kept_is_said_with_what_helps(variables: dict[str, str], run: Run) -> None:
    err = run("a.h5", **variables).err
    assert err.count("\n") == 1
    assert all(word in err for word in ("warning:", NOWHERE, "LSTMCLI_CACHE_DIR"))


def test_a_shared_folder_is_read_and_the_next_one_is_written(run: Run, tmp_path: Path) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    level = levels_here()[0]
    env = os.environ | {"LSTMCLI_CACHE_DIR": str(shared)}
    assert lstmcli("env", "--warmup", "--cpu", level, cwd=tmp_path, env=env).code == 0
    before = sorted(shared.iterdir())
    assert run("a.h5", LSTMCLI_CACHE_DIR=f"{NOWHERE}:{shared}:{own}").err == ""
    assert sorted(shared.iterdir()) == before
    assert not own.exists()
    run("b.h5", LSTMCLI_CACHE_DIR=f"{NOWHERE}:{own}")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert list(own.iterdir())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX belongs to x86-64")
def test_bfloat16_is_compiled_ahead_for_cpus_with_amx(tmp_path: Path) -> None:
    env = os.environ | {"LSTMCLI_CACHE_DIR": str(tmp_path / "kernels")}
    assert lstmcli("env", "--warmup", "--cpu", "amx", cwd=tmp_path, env=env).code == 0
    (kernel,) = (tmp_path / "kernels").iterdir()
    assert kernel.name == cache.file_name("lstm-f32-amx", Options(bfloat16=True), "avx512")


def test_kernels_for_unknown_cpus_or_that_cannot_be_kept(tmp_path: Path) -> None:
    assert_one_line(lstmcli("env", "--warmup", "--cpu", "z80", cwd=tmp_path), 2, "z80", "native", "baseline")
    env = os.environ | {"LSTMCLI_CACHE_DIR": NOWHERE}
    assert_one_line(lstmcli("env", "--warmup", cwd=tmp_path, env=env), 73, NOWHERE, "LSTMCLI_CACHE_DIR")
