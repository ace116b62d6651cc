"""The same bits on every CPU: the kernel compiled for others, against a stored hash."""

import os
import re
import shutil
import subprocess
import sys

import llvmlite.binding as llvm
import pytest
from helpers.arm64 import run_on_arm64
from helpers.command import succeed
from helpers.kernel_bits import (
    AVX2,
    AVX512,
    BFLOAT16_HASH,
    EVERY_OPTION_BFLOAT16_HASH,
    EVERY_OPTION_HASH,
    HASH,
    PROGRAM,
)

TARGETS = {"generic": "", "haswell": AVX2, "skylake-avx512": AVX512, "znver4": AVX512}


def run(environment, cache, *args):
    env = os.environ | environment | {"LSTMCLI_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *args], env=env, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A cache with the kernels of this CPU."""
    cache = tmp_path_factory.mktemp("warm") / "cache"
    assert run({}, cache) == [HASH, "True"]
    return cache


def test_a_cached_kernel_needs_no_numba(warm):
    assert run({}, warm) == [HASH, "False"]
    assert len(list(warm.glob("lstmcli-lstm-f*"))) == 2  # float32, float64


@pytest.fixture(params=TARGETS)
def target(request):
    """The environment that compiles for another CPU."""
    features = TARGETS[request.param]
    needed = {feature[1:] for feature in features.split(",") if feature}
    if missing := {name for name in needed if not llvm.get_host_cpu_features().get(name)}:
        pytest.skip(f"this CPU cannot run code for {request.param}: it lacks {', '.join(sorted(missing))}")
    return {"NUMBA_CPU_NAME": request.param, "NUMBA_CPU_FEATURES": features}


@pytest.mark.parametrize("args", [[], ["fetching"]], ids=["as it is", "fetching the next panel"])
def test_other_cpus_give_the_same_bits(target, args, tmp_path):
    assert run(target, tmp_path, *args)[0] == HASH


@pytest.mark.slow
def test_other_cpus_give_the_same_bits_for_every_option(target, tmp_path):
    assert run(target, tmp_path, "every option")[0] == EVERY_OPTION_HASH


def test_other_cpus_give_the_same_bits_in_bfloat16(target, tmp_path):
    assert run(target, tmp_path, "bfloat16")[0] == BFLOAT16_HASH


def test_this_cpu_gives_the_same_bits_in_bfloat16(tmp_path):
    assert run({}, tmp_path, "bfloat16")[0] == BFLOAT16_HASH


@pytest.mark.slow
def test_other_cpus_give_the_same_bits_for_every_option_in_bfloat16(target, tmp_path):
    assert run(target, tmp_path, "every option", "bfloat16")[0] == EVERY_OPTION_BFLOAT16_HASH


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "want"),
    [
        ([], HASH),
        (["bfloat16"], BFLOAT16_HASH),
        (["every option"], EVERY_OPTION_HASH),
        (["every option", "bfloat16"], EVERY_OPTION_BFLOAT16_HASH),
    ],
    ids=" and ".join,
)
def test_arm64_gives_the_same_bits(args, want, tmp_path):
    assert run_on_arm64("-c", PROGRAM, *args, cwd=tmp_path).split()[0] == want


@pytest.mark.slow
def test_arm64_makes_the_same_file(sample_x, sample_lens, tmp_path):
    command = ["-m", "lstmcli", "run", "-i", sample_x, "-l", sample_lens, "-u", 7, "-q", "--save", "states,cells,layers", "-o"]
    run_on_arm64(*command, "arm64.h5", cwd=tmp_path)
    succeed(*command[2:], "here.h5", cwd=tmp_path)
    assert (tmp_path / "arm64.h5").read_bytes() == (tmp_path / "here.h5").read_bytes()


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "foreign", "link"])
def test_a_bad_cache_costs_a_compilation_and_nothing_else(damage, warm, tmp_path):
    cache = shutil.copytree(warm, tmp_path / "cache")
    for path in cache.iterdir():
        content = path.read_bytes()
        if damage == "link":
            path.rename(tmp_path / path.name)
            path.symlink_to(tmp_path / path.name)
        elif damage == "foreign":
            path.chmod(0o666)
        else:
            path.write_bytes({"empty": b"", "cut": content[:-1], "flipped": content[:-9] + b"x" + content[-8:]}[damage])
    assert run({}, cache) == [HASH, "True"]
    assert run({}, cache) == [HASH, "False"]  # replaced by a good one


def test_a_cache_that_others_can_write_is_not_used(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    assert run({}, cache) == [HASH, "True"]
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("bits", [32, 64])
def test_the_same_source_compiles_for_aarch64(bits):
    from numba import cfunc

    from lstmcli.kernel import lanes
    from lstmcli.kernel.layout import Options, tile_shape
    from lstmcli.kernel.native.compiled import SIGNATURE
    from lstmcli.kernel.native.float_mode import with_own_mode
    from lstmcli.kernel.native.target import Target

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = Target("aarch64-unknown-linux-gnu", "neoverse-n1", "+neon")
    shape = tile_shape(target, bits)
    assert (shape.width * bits, shape.rows, shape.together) == (128, 6, 4)
    made = cfunc(SIGNATURE, nopython=True, error_model="numpy")(lanes.define(shape, Options()))
    text, _ = with_own_mode(made._library.get_llvm_str(), made.native_name, target.triple)
    # What Numba wrote for the CPU at hand: its name, its features, and its instruction for a pause.
    text = re.sub(
        r'target (triple|datalayout) = .*|"target-(cpu|features)"="[^"]*"|(tail )?call void @llvm\.x86\.sse2\.pause\(\)',
        "",
        text,
    )
    module, machine = llvm.parse_assembly(text), target.machine()
    needed = {function.name for function in module.functions if function.is_declaration}
    # Nothing of the interpreter or of Numba, which a process with a cached kernel does not have.
    assert {name for name in needed if not name.startswith("llvm.")} <= {"memcpy", "sched_yield", "nanosleep", "clock_gettime"}
    module.triple, module.data_layout = target.triple, str(machine.target_data)
    assembly = machine.emit_assembly(module)
    assert assembly.count(f"\tfmla\tv0.{shape.width}{'s' if bits == 32 else 'd'}") > 0
    assert assembly.count("\tmsr\tFPCR") == 2
    assert machine.emit_object(module)[:4] == b"\x7fELF"


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("rows", [1, 6])
def test_aarch64_multiplies_by_an_element_of_a_register(bits, rows):
    """`fmla v0.4s, v1.4s, v2.s[0]`: in the loops on k, no instruction fills a register with one value, and none spills."""
    import llvmlite.ir as ir

    from lstmcli.kernel import tile
    from lstmcli.kernel.layout import Options, tile_shape
    from lstmcli.kernel.native.target import Target

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = Target("aarch64-unknown-linux-gnu", "neoverse-n1", "+neon")
    machine, written = target.machine(), ir.Module()
    written.triple, written.data_layout = target.triple, str(machine.target_data)
    tile.define(written, tile_shape(target, bits), Options(), rows, half=False).linkage = ""
    module = llvm.parse_assembly(str(written))
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    loops = []
    for block in re.split(r"^\.LBB", machine.emit_assembly(module), flags=re.MULTILINE):
        back = re.search(rf"\tb\.\w+\t\.LBB{block.split(':')[0]}\b", block)
        if back and "fmla" in block[: back.start()]:
            loops.append(block[: back.start()])
    assert len(loops) == 2  # over x, over h
    for loop in loops:
        assert len(re.findall(r"\tfmla\t.*\.[sd]\[0\]\n", loop)) == loop.count("fmla") == 4 * rows
        assert not re.search(r"\t(ld1r|dup)\t|\[sp", loop)
