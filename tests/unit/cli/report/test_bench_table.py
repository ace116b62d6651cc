"""The tables of lstmcli bench."""

from __future__ import annotations

from typing import Any

from lstmcli.cli.report.bench_table import bench_markdown, table_of

MACHINE = {"cpu": "Some CPU (znver9)", "cpus": 8, "versions": {"lstmcli": "1.0", "torch": "3.1"}, "date": "2030-01-02"}
PLAIN = {"batch": 64, "time": 100, "embed": 128, "units": [128], "fill": 0.5}
NONE = {"projection": None, "bidirectional": False, "vocabulary": None}


def contenders(**ratios: float) -> list[dict[str, Any]]:
    ratios = {"lstmcli": 1.0} | {name.replace("_", " "): ratio for name, ratio in ratios.items()} | {"sgemm": 0.8}
    return [{"name": name, "milliseconds": 8 * r, "gflops": 100 / r, "ratio": r} for name, r in ratios.items()]


def facts(*cases: dict[str, Any], dtype: str = "float32") -> dict[str, Any]:
    return {"machine": MACHINE, "threads": 2, "dtype": dtype, "cases": list(cases)}


TWO = facts(
    {
        "case": PLAIN | NONE,
        "contenders": contenders(torch_packed=2.5, onnxruntime=1.9, torch_2_buckets=1.5, onnxruntime_8_buckets=1.3),
        "left_out": {"openvino": "openvino is not installed"},
    },
    {
        "case": PLAIN | {"units": [16, 8], "projection": 4, "bidirectional": True, "vocabulary": 500},
        "contenders": contenders(torch_packed=3.0),
        "left_out": {"onnxruntime": "ONNX's LSTM has no projection", "openvino": "openvino is not installed"},
    },
)


def test_several_cases_have_a_row_each_with_the_best_of_both_kinds() -> None:
    found = table_of(TWO)
    assert found.rows == [
        ["64, 100, 128, 128, 0.5", "8", "100.0", "80%", "1.90 onnxruntime", "1.30 onnxruntime 8 buckets"],
        [
            "64, 100, 128, 16 + 8, 0.5, projection 4, vocabulary 500, bidirectional",
            "8",
            "100.0",
            "80%",
            "3.00 torch packed",
            "",
        ],
    ]


def test_markdown() -> None:
    assert bench_markdown(TWO).splitlines() == [
        "Some CPU (znver9), 8 CPUs; threads 2, float32; lstmcli 1.0, torch 3.1; 2030-01-02. Peers: time / that of lstmcli.",
        "",
        "| batch, time, embed, units, fill | ms | GFLOP/s | of sgemm | best in one call | best in buckets |",
        "|---|--:|--:|--:|---|---|",
        "| 64, 100, 128, 128, 0.5 | 8 | 100.0 | 80% | 1.90 onnxruntime | 1.30 onnxruntime 8 buckets |",
        "| 64, 100, 128, 16 + 8, 0.5, projection 4, vocabulary 500, bidirectional | 8 | 100.0 | 80% | 3.00 torch packed |  |",
        "",
        "Left out: openvino, openvino is not installed; onnxruntime, ONNX's LSTM has no projection.",
    ]


def test_float32_of_lstmcli_is_no_peer() -> None:
    case = {"case": PLAIN | NONE, "contenders": contenders(lstmcli_float32=0.9, torch_packed=1.2), "left_out": {}}
    found = table_of(facts(case, case, dtype="bfloat16"))
    assert found.numbers == ["ms", "GFLOP/s", "of sgemm", "lstmcli float32"]
    assert found.rows[0][4:] == ["0.90", "1.20 torch packed", ""]
