"""What PyTorch saves: checkpoints with more than tensors, whole modules, TorchScript, torch.export, files of before 1.6."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.weight_imports import assert_same, load, refusal, tree

from lstmcli.weights.containers.zip_archive import Archive

STACK = naive.Stack((wf.random_cell(3, 5, 0), wf.random_cell(5, 5, 1)))
TENSORS = {name: np.ascontiguousarray(value) for name, value in wf.torch_state_dict(STACK).items()}
PICKLED = {name: wf.p_array(str(k), value) for k, (name, value) in enumerate(TENSORS.items())}
STORED = {str(k): value.tobytes() for k, value in enumerate(TENSORS.values())}
LSTM = "torch.nn.modules.rnn.LSTM"


def test_a_file_of_before_1_6(tmp_path: Path) -> None:
    arrays = {str(k): value for k, value in enumerate(TENSORS.values())}
    assert_same(tree(wf.write_legacy(tmp_path / "a", wf.p_dict(PICKLED.items()), arrays)), STACK)
    nested = wf.p_dict([("epoch", wf.p_int(3)), ("state_dict", wf.p_dict(PICKLED.items()))])
    assert load(wf.write_legacy(tmp_path / "b", nested, arrays)).mapping[0].name == "state_dict.weight_ih_l0"


def test_views_in_a_file_of_before_1_6(tmp_path: Path) -> None:
    flat = np.concatenate([value.reshape(-1) for value in TENSORS.values()])
    starts = np.cumsum([0, *(value.size for value in TENSORS.values())])
    pairs = [
        (name, wf.p_view("all", flat.size, int(start), value))
        for (name, value), start in zip(TENSORS.items(), starts, strict=False)
    ]
    assert_same(tree(wf.write_legacy(tmp_path / "a", wf.p_dict(pairs), {"all": flat})), STACK)
    pairs[0] = ("weight_ih_l0", wf.p_view("all", flat.size, flat.size - 3, TENSORS["weight_ih_l0"]))  # it ends behind the end
    refusal(wf.write_legacy(tmp_path / "b", wf.p_dict(pairs), {"all": flat}))


@pytest.mark.parametrize("end", [-1, -30, -2000])
def test_a_cut_file_of_before_1_6(end: int, tmp_path: Path) -> None:
    path = wf.write_legacy(
        tmp_path / "a", wf.p_dict(PICKLED.items()), {str(k): value for k, value in enumerate(TENSORS.values())}
    )
    path.write_bytes(path.read_bytes()[:end])
    refusal(path)


def test_a_file_of_before_1_6_that_is_no_such(tmp_path: Path) -> None:
    arrays = {str(k): value for k, value in enumerate(TENSORS.values())}
    assert "another version" in refusal(wf.write_legacy(tmp_path / "a", wf.p_dict(PICKLED.items()), arrays, version=1002))
    assert "missing" in refusal(wf.write_legacy(tmp_path / "b", wf.p_dict(PICKLED.items()), dict(list(arrays.items())[1:])))


# What checkpoints hold beside tensors: none of it is known here, and all of it does nothing.
INERT = {
    "a namespace": wf.p_object("argparse.Namespace", wf.p_dict([("lr", wf.p_int(3)), ("units", wf.p_int(5))])),
    "a NumPy scalar": b"cnumpy.core.multiarray\nscalar\n" + wf.p_tuple(b"cnumpy\ndtype\n)R", b"C\x01a") + b"R",
    "a path": b"cpathlib\nPosixPath\n" + wf.p_tuple(wf.p_text("a"), wf.p_text("b")) + b"R",
    "an enumeration": b"cmine\nStage\n" + wf.p_tuple(wf.p_int(1)) + b"R",
    "a dataclass": wf.p_object("mine.Config", wf.p_dict([("path", b"N")])),
    "a class": b"cmine\nNet\n",
    "a dict with a factory": b"ccollections\ndefaultdict\n(c__builtin__\nlist\ntR" + wf.p_text("a") + b"]s",
    "a dict of its own class": b"cmine\nAttrDict\n)\x81(" + wf.p_text("a") + wf.p_int(1) + b"u",
    "a list of its own class": b"cmine\nList\n)\x81(" + wf.p_int(1) + wf.p_int(2) + b"e",
    "a set": b"c__builtin__\nset\n" + wf.p_tuple(b"](" + wf.p_int(1) + b"e") + b"R",
    "an object with slots": b"cmine\nSlots\n)\x81" + wf.p_tuple(b"N", wf.p_dict([("a", wf.p_int(1))])) + b"b",
    "an old instance": b"(imine\nOld\n}b",
    "an instance by its class": b"(cmine\nOld\no",
    "an instance with names": b"cmine\nNamed\n)}\x92",
    "a function": b"cfunctools\npartial\n" + wf.p_tuple(b"c__builtin__\nint\n") + b"R",
    "an object of what a function gave": b"cmine\nmake\n)R)R",
    "bytes": b"c_codecs\nencode\n" + wf.p_tuple(wf.p_text("\u00e9a"), wf.p_text("latin1")) + b"R",
    "a generator's state": b"(" + b"".join(wf.p_int(k) for k in range(625)) + b"t",
}  # fmt: skip


@pytest.mark.parametrize("what", INERT)
@pytest.mark.parametrize("place", ["before", "after", "around"])
def test_what_else_a_checkpoint_holds(what: str, place: str, tmp_path: Path) -> None:
    pairs = [("state_dict", wf.p_dict(PICKLED.items()))]
    other = [("other", INERT[what])]
    root = {"before": other + pairs, "after": pairs + other, "around": [*other, ("a", wf.p_dict(other + pairs))]}[place]
    path = wf.write_pt(tmp_path / "a", wf.p_dict(root), STORED)
    assert_same(tree(path), STACK)
    assert load(path).assumed == ()


def test_a_whole_module(tmp_path: Path) -> None:
    flat = b"](" + PICKLED["weight_ih_l0"] + b"e"  # not registered, and so not in a state_dict
    inner = wf.p_module(LSTM, PICKLED, mode=wf.p_text("LSTM"), _flat_weights=flat)
    head = wf.p_module("torch.nn.modules.linear.Linear", {"weight": PICKLED["weight_hh_l0"]})
    path = wf.write_pt(tmp_path / "a", wf.p_module("mine.Net", {}, {"encoder": inner, "head": head}), STORED)
    found = load(path)
    assert_same(tree(path), STACK)
    assert found.mapping[0].name == "encoder.weight_ih_l0"
    assert [tensor.name for tensor in found.left_out] == ["head.weight"]
    assert found.assumed == ()


@pytest.mark.parametrize("kind", ["mine.FastLSTM", "__torch__.mine.FastLSTM"])
def test_a_class_that_may_compute_otherwise_is_said(kind: str, tmp_path: Path) -> None:
    path = wf.write_pt(tmp_path / "a", wf.p_module("mine.Net", {}, {"encoder": wf.p_module(kind, PICKLED)}), STORED)
    assert_same(tree(path), STACK)
    (sentence,) = load(path).assumed
    assert "encoder is a " in sentence
    assert "FastLSTM" in sentence


def script(path: Path, root: bytes, storages: dict[str, bytes]) -> Path:
    """A TorchScript archive."""
    return wf.write_pt(path, root, storages, **{"constants.pkl": b"\x80\x02).", "code/__torch__.py": b"class ..."})


def test_torchscript(tmp_path: Path) -> None:
    for name in (LSTM, "torch.nn.modules.rnn.___torch_mangle_3.LSTM"):
        flat = ("_flat_weights", b"](" + b"".join(PICKLED.values()) + b"e")
        inner = wf.p_object(f"__torch__.{name}", wf.p_dict([*PICKLED.items(), ("training", b"\x89"), flat]))
        path = script(tmp_path / "a", wf.p_object("__torch__.mine.Net", wf.p_dict([("rnn", inner), ("drop", b"N")])), STORED)
        assert_same(tree(path), STACK)
        assert load(path).kind == "PyTorch (TorchScript)"
        assert load(path).assumed == ()
    frozen = script(tmp_path / "b", wf.p_object("__torch__.mine.Net", wf.p_dict([("training", b"\x89")])), {})
    for word in ("TorchScript", "frozen", "state_dict()"):
        assert word in refusal(frozen)


def test_torchscript_of_before_1_4(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("a/model.json", "{}")
        archive.writestr("a/tensors/0", b"1234")
    assert "TorchScript" in refusal(tmp_path / "a")


def test_torch_export(tmp_path: Path) -> None:
    path = wf.write_export(tmp_path / "a", TENSORS)
    assert_same(tree(path), STACK)
    assert "torch.export" in load(path).kind


def test_torch_export_of_other_versions(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", b"PK")
    for word in (".pt2", "torch.export"):
        assert word in refusal(tmp_path / "a")


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": 2},
        {"dtype": 8},
        {"sizes": "no"},
        {"sizes": [{"as_int": -1}]},
        {"strides": []},
        {"storage_offset": {"as_int": 1}},
        {"storage_offset": {"as_int": -1}},
        {"storage_offset": 0},
        {"strides": [{"as_int": 1 << 40}, {"as_int": 1}]},
    ],
)
def test_torch_export_that_lies(changes: dict[str, object], tmp_path: Path) -> None:
    refusal(wf.write_export(tmp_path / "a", TENSORS, **changes))


def test_quantized_weights_are_refused_as_what_they_are(tmp_path: Path) -> None:
    packed = wf.p_object("torch.ScriptObject", wf.p_text("quantized_dynamic"))
    for key in ("0._all_weight_values.0.param", "lstm._packed_params"):
        assert "quantized" in refusal(wf.write_pt(tmp_path / "a", wf.p_dict([(key, packed)]), {}))
    beside = wf.p_dict([*PICKLED.items(), ("head._packed_params", packed)])  # only the head is
    assert_same(tree(wf.write_pt(tmp_path / "b", beside, STORED)), STACK)


def test_a_view_that_reads_other_values_than_are_stored(tmp_path: Path) -> None:
    """Of a negated one the file holds the values with the other sign."""
    pickled = PICKLED["weight_ih_l0"]
    assert pickled.endswith(b"tR")
    negated = pickled[:-2] + wf.p_dict([("neg", b"\x88")]) + b"tR"
    path = wf.write_pt(tmp_path / "a", wf.p_dict([*PICKLED.items(), ("weight_ih_l0", negated)]), STORED)
    assert "negated" in refusal(path)


def test_one_storage_of_all_weights_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So an LSTM is saved that was on a GPU."""
    flat = np.concatenate([value.reshape(-1) for value in TENSORS.values()])
    pairs, start = [], 0
    for name, value in TENSORS.items():
        strides = tuple(step // value.itemsize for step in value.strides)
        pairs.append((name, wf.p_tensor("0", flat.size, value.shape, strides, start)))
        start += value.size
    names: list[str] = []
    real = Archive.read

    def read(self: Archive, name: str) -> bytes:
        names.append(name)
        return real(self, name)

    monkeypatch.setattr(Archive, "read", read)
    assert_same(tree(wf.write_pt(tmp_path / "a", wf.p_dict(pairs), {"0": flat.tobytes()})), STACK)
    assert names == ["archive/data.pkl", "archive/data/0"]


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    """Keys with dots, and dicts in dicts, come to the same."""
    twice = wf.p_dict([("a.weight_ih_l0", PICKLED["weight_ih_l0"]), ("a", wf.p_dict(PICKLED.items()))])
    assert "would both be" in refusal(wf.write_pt(tmp_path / "a", twice, STORED))


def test_a_tensor_pickled_alone(tmp_path: Path) -> None:
    """As pickle.dump(state_dict) does: in the pickle, the storage of each tensor is a file of before 1.6."""
    pairs = []
    for k, (name, value) in enumerate(TENSORS.items()):
        identity = wf.p_tuple(
            wf.p_text("storage"), b"ctorch\nFloatStorage\n", wf.p_text(str(k)), wf.p_text("cpu"), wf.p_int(value.size), b"N"
        )
        inner = wf.write_legacy(tmp_path / "inner", identity + b"Q", {str(k): value}).read_bytes()
        storage = b"ctorch.storage\n_load_from_bytes\n" + wf.p_tuple(b"B" + len(inner).to_bytes(4, "little") + inner) + b"R"
        shapes = wf.p_tuple(*map(wf.p_int, value.shape)), wf.p_tuple(*(wf.p_int(step // 4) for step in value.strides))
        hooks = b"ccollections\nOrderedDict\n)R"
        pairs.append(
            (name, b"ctorch._utils\n_rebuild_tensor_v2\n" + wf.p_tuple(storage, wf.p_int(0), *shapes, b"\x89", hooks) + b"R")
        )
    (tmp_path / "a").write_bytes(b"\x80\x03" + wf.p_dict(pairs) + b".")
    assert_same(tree(tmp_path / "a"), STACK)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_pytorch_itself(tmp_path: Path) -> None:
    """Everything above as PyTorch writes it: the outputs are its own."""
    torch = pytest.importorskip("torch", reason="files made by hand stand for PyTorch; pip install torch")
    from torch.nn.utils import prune

    torch.manual_seed(0)
    x = torch.randn(2, 7, 3)
    module = torch.nn.LSTM(3, 5, num_layers=2, batch_first=True, bidirectional=True)

    def check(name: str, made: object = module) -> None:
        want = made(x)[0].detach().numpy()  # type: ignore[operator]
        np.testing.assert_allclose(naive.run(tree(tmp_path / name), x.numpy())[0], want, rtol=0, atol=2e-6, err_msg=name)

    state = {
        "epoch": np.float64(3),
        "rng": torch.get_rng_state(),
        "numpy": np.random.default_rng(0),
        "state_dict": module.state_dict(),
    }
    for protocol in (2, 3, 4, 5):
        for zipped in (False, True):
            options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
            torch.save(state, tmp_path / "checkpoint.pt", **options)
            check("checkpoint.pt")
            torch.save(torch.nn.DataParallel(module), tmp_path / "module.pt", **options)
            check("module.pt")
    torch.jit.script(module).save(tmp_path / "script.pt")
    check("script.pt")
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "export.pt2")
    check("export.pt2")
    pruned = torch.nn.LSTM(3, 5, batch_first=True)
    prune.l1_unstructured(pruned, "weight_hh_l0", 0.4)
    torch.save(pruned.state_dict(), tmp_path / "pruned.pt")
    check("pruned.pt", pruned)
    for dim in (0, 1, None):
        normed = torch.nn.utils.weight_norm(torch.nn.LSTM(3, 5, batch_first=True), "weight_hh_l0", dim)
        torch.save(normed.state_dict(), tmp_path / "normed.pt")
        check("normed.pt", normed)
    parametrized = torch.nn.utils.parametrizations.weight_norm(torch.nn.LSTM(3, 5, batch_first=True), "weight_ih_l0")
    torch.save(parametrized.state_dict(), tmp_path / "parametrized.pt")
    check("parametrized.pt", parametrized)
