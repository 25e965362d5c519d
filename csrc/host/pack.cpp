#include "host/pack.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace py = pybind11;

namespace dynabert::host {

py::tuple pack_sequences(const py::sequence& sequences, int64_t position_offset) {
  // PySequence_Fast gives plain access to lists and tuples; one pass over Python objects, none over Python code.
  const py::object outer = py::reinterpret_steal<py::object>(
      PySequence_Fast(sequences.ptr(), "pack_sequences: sequences must be a list of lists of integers"));
  if (!outer) throw py::error_already_set();
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(outer.ptr());
  std::vector<py::object> inner;
  inner.reserve(static_cast<size_t>(count));
  py::array_t<int32_t> borders(count + 1);
  int32_t* border = borders.mutable_data();
  border[0] = 0;
  int64_t total = 0, longest = 0;
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* sequence = PySequence_Fast_GET_ITEM(outer.ptr(), i);
    inner.push_back(py::reinterpret_steal<py::object>(
        PySequence_Fast(sequence, "pack_sequences: each sequence must be a list of integers")));
    if (!inner.back()) throw py::error_already_set();
    const int64_t length = PySequence_Fast_GET_SIZE(inner.back().ptr());
    total += length;
    longest = std::max(longest, length);
    if (total > std::numeric_limits<int32_t>::max()) {
      throw py::value_error("pack_sequences: more than 2147483647 tokens; split the batch");
    }
    border[i + 1] = static_cast<int32_t>(total);
  }
  py::array_t<int64_t> ids(total), positions(total);
  int64_t* id = ids.mutable_data();
  int64_t* position = positions.mutable_data();
  for (const py::object& sequence : inner) {
    PyObject* const* items = PySequence_Fast_ITEMS(sequence.ptr());
    const Py_ssize_t length = PySequence_Fast_GET_SIZE(sequence.ptr());
    for (Py_ssize_t i = 0; i < length; ++i) {
      const long long value = PyLong_AsLongLong(items[i]);
      if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
      *id++ = value;
      *position++ = position_offset + i;
    }
  }
  return py::make_tuple(ids, positions, borders, longest);
}

}  // namespace dynabert::host
