"""The instruction sets with which a CPU kernel is tested on this processor."""

from __future__ import annotations

from dynabert_kernels.ops import NATIVE


def usable_isas() -> tuple[str, ...]:
    """All that it has, and the emulation of tile registers in the place of real ones; none without the library."""
    if NATIVE is None:
        return ()
    facts = NATIVE.cpu_features()
    found = tuple(facts["available"])
    emulated = "avx512" in found and facts["avx512_bf16"] and facts["avx512_vnni"] and "amx" not in found
    return (*found, "amx-emulated") if emulated else found
