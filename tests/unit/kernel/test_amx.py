"""The kernel with AMX: its instructions, its bits in two emulators, and what is used where it may not run.

On a CPU with AMX, test_bfloat16.py and the tests of bfloat16 in test_bits.py run it as it is.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import llvmlite.ir as ir
import pytest
from helpers.bochs import run_in_bochs
from helpers.kernel_bits import AVX512, BFLOAT16_HASH, PROGRAM
from helpers.system_tools import need

from lstmcli.kernel import amx, lstm
from lstmcli.kernel.layout import Options, tile_shape
from lstmcli.kernel.native import amx as native
from lstmcli.kernel.native import compiled
from lstmcli.kernel.native.target import target_of

pytestmark = pytest.mark.skipif((platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="AMX: x86-64, Linux")
BFLOAT16 = Options(bfloat16=True)
EMULATOR = Path(__file__).parents[2] / "helpers/amx_emulator.c"


@pytest.mark.parametrize("half", [False, True])
def test_the_loops_hold_their_sums_in_registers(half: bool) -> None:
    """One block of lanes by all gates, and two blocks by two gates at a time: loads of each and the products, nothing else."""
    here, module = target_of("avx512"), ir.Module()
    amx.define(module, tile_shape(here, 32, amx=True), BFLOAT16, half).linkage = ""
    text = here.machine().emit_assembly(llvm.parse_assembly(str(module)))
    loops = []
    for block in re.split(r"^\.LBB", text, flags=re.MULTILINE):
        back = re.search(rf"\tj\w+\t\.LBB{block.split(':')[0]}\b", block)
        if back and "tdpbf16ps" in block[: back.start()]:
            loops.append(block[: back.start()])
    found = [(loop.count("\ttileloadd\t"), loop.count("\ttdpbf16ps\t")) for loop in loops]
    assert sorted(found) == ([(3, 2), (4, 4)] if half else [(4, 4), (4, 4), (5, 4)])
    for loop in loops:
        assert "(%rsp" not in loop
    assert text.count("\ttdpbf16ps\t") == sum(products for _, products in found)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which this CPU has AMX, and a cache of its own."""
    need("gcc")
    if not llvm.get_host_cpu_features().get("avx512vl"):
        pytest.skip("the emulator has no AVX-512, and neither has this CPU")
    folder = tmp_path_factory.mktemp("amx")
    library = folder / "amx_emulator.so"
    flags = ["-O2", "-mfma", "-ffp-contract=off", "-shared", "-fPIC", "-lm"]
    subprocess.run(["gcc", str(EMULATOR), "-o", str(library), *flags], check=True, timeout=60)
    features = {"NUMBA_CPU_NAME": "skylake-avx512", "NUMBA_CPU_FEATURES": f"{AVX512},+amx-tile,+amx-bf16"}
    return features | {"LD_PRELOAD": str(library), "LSTMCLI_CACHE_DIR": str(folder / "cache")}


def python(environment: dict[str, str], *args: str) -> str:
    command = [sys.executable, *args]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kernels(environment: dict[str, str]) -> list[str]:
    folder = Path(environment["LSTMCLI_CACHE_DIR"])
    return sorted(path.name.removeprefix("lstmcli-").rpartition("-")[0] for path in folder.glob("lstmcli-lstm-*"))


def test_the_bits_in_an_emulator(emulator: dict[str, str]) -> None:
    assert python(emulator, "-c", PROGRAM, "bfloat16").split()[0] == BFLOAT16_HASH
    assert kernels(emulator) == ["lstm-f32-amx"]


@pytest.mark.parametrize("tests", ["many_lanes", pytest.param("not many_lanes", marks=pytest.mark.slow)])
def test_as_defined_in_an_emulator(tests: str, emulator: dict[str, str]) -> None:
    """What test_bfloat16.py checks: shapes, options, threads and lanes. faulthandler would take the emulator's signal."""
    path = str(Path(__file__).with_name("test_bfloat16.py"))
    python(emulator, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "no:faulthandler", path, "-k", tests)


@pytest.mark.slow
def test_the_bits_in_bochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSTMCLI_CACHE_DIR", str(tmp_path / "kernels"))
    compiled.keep(lstm.recipe(32, BFLOAT16, amx=True), target_of("avx512"), "avx512")
    printed = run_in_bochs(f"import sys\nsys.argv.append('bfloat16')\n{PROGRAM}", tmp_path / "kernels", tmp_path)
    assert f"{BFLOAT16_HASH} False" in printed


def test_without_permission_fmas_are_used(emulator: dict[str, str], tmp_path: Path) -> None:
    refused = emulator | {"AMX_EMULATOR_REFUSES": "1", "LSTMCLI_CACHE_DIR": str(tmp_path / "cache")}
    assert python(refused, "-c", PROGRAM, "bfloat16").split()[0] == BFLOAT16_HASH
    assert kernels(refused) == ["lstm-f32"]


@pytest.mark.parametrize("granted", [False, True])
@pytest.mark.parametrize("features", [AVX512, f"{AVX512},+amx-tile", f"{AVX512},+amx-tile,+amx-bf16"])
def test_who_uses_amx(granted: bool, features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setenv("NUMBA_CPU_FEATURES", features)
    monkeypatch.setattr(native, "is_granted", lambda: asked.append(1) or granted)
    native.may_use_amx.cache_clear()
    try:
        names = [lstm.recipe_here(32, options).name for options in (Options(), BFLOAT16, BFLOAT16)]
    finally:
        native.may_use_amx.cache_clear()
    has = features.endswith("+amx-bf16")
    assert names == ["lstm-f32", *["lstm-f32-amx" if has and granted else "lstm-f32"] * 2]
    assert asked == [1] * has  # once, and no plain run asks


def test_linux_answers() -> None:
    """Whether it grants or refuses follows from the CPU: it has AMX, as Linux shows it, or it has not."""
    if native.is_granted():
        assert "amx_tile" in Path("/proc/cpuinfo").read_text()
