// Sequences of token ids, laid end to end.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace dynabert::host {

// (ids, positions, cu_seqlens, longest length). Position i of a sequence is position_offset + i.
pybind11::tuple pack_sequences(const pybind11::sequence& sequences, int64_t position_offset);

}  // namespace dynabert::host
