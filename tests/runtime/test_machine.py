"""What a processor calculates with, read from recorded /proc/cpuinfo texts (shortened to the flags that matter)."""

from __future__ import annotations

from pathlib import Path

import pytest

from mammo_runtime import machine
from mammo_runtime.machine import INSTRUCTION_SETS, UNKNOWN, instruction_set, instruction_set_in, machine_record

AVX2 = "sse sse2 ssse3 sse4_1 sse4_2 avx f16c fma bmi2 avx2"
AVX512 = f"{AVX2} avx512f avx512dq avx512cd avx512bw avx512vl"


def x86(flags: str, name: str = "Some CPU") -> str:
    lines = ("processor\t: 0", f"model name\t: {name}", f"flags\t\t: fpu vme {flags}", "vmx flags\t: vnmi amx_int8")
    return "\n".join((*lines, "bogomips\t: 5", "\n"))


def arm(features: str) -> str:
    return f"processor\t: 0\nBogoMIPS\t: 62.50\nFeatures\t: fp {features} evtstrm\nCPU part\t: 0xd42\n\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (x86(f"{AVX512} avx512_vnni avx_vnni amx_bf16 amx_tile amx_int8", "Xeon Platinum 8480+"), "amx_int8"),
        (x86(f"{AVX512} avx512vbmi avx512_vnni", "Xeon Gold 6338, EPYC 9654"), "avx512_vnni"),
        (x86(f"{AVX2} avx_vnni avx_vnni_int8", "Xeon 6 with E-cores, Core Ultra 200"), "avx_vnni_int8"),
        (x86(f"{AVX2} avx_vnni", "Core i7-12700"), "avx_vnni"),
        (x86(AVX512, "Xeon Gold 6154"), "avx512"),
        (x86(AVX2, "EPYC 7763"), "avx2"),
        (x86("sse sse2 avx", "Xeon E5-2680"), "avx"),
        (x86("sse sse2", "old"), "sse2"),
        (arm("asimd aes asimdhp asimddp i8mm bf16"), "neon_i8mm"),
        (arm("asimd aes asimdhp cpuid asimddp"), "neon_dotprod"),
        (arm("asimd aes crc32"), "neon"),
        ("processor\t: 0\nisa\t: rv64imafdc\n", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_instruction_sets_of_recorded_processors(text: str, expected: str) -> None:
    assert instruction_set_in(text) == expected


def test_unlike_cores_count_as_the_weakest() -> None:
    assert instruction_set_in(arm("asimd asimddp i8mm") + arm("asimd asimddp") + arm("asimd")) == "neon"


def test_this_machine_is_recorded_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert instruction_set() in {*INSTRUCTION_SETS, UNKNOWN}
    (tmp_path / "cpuinfo").write_text(x86(f"{AVX2} avx_vnni", "Core: i7"), encoding="utf-8")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    found = machine_record()
    assert (found["instruction_set"], found["processor"]) == ("avx_vnni", "Core: i7")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    assert machine_record()["instruction_set"] == UNKNOWN
