// A call, told from its tensors at once. PyTorch gives their sizes, strides and addresses in DLPack's C exchange API
// (DLPack 1.3); as Python objects they cost more than a small convolution computes. Python's stable ABI; nothing of
// torch is needed to build it.
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <cstdint>
#include <cstring>

namespace {

// -- dlpack.h, as far as it is used ---------------------------------------------------------------
constexpr std::uint32_t MAJOR = 1;
constexpr std::int32_t CPU = 1;

struct Tensor {
  void *data;
  struct {
    std::int32_t type, id;
  } device;
  std::int32_t axes;
  struct {
    std::uint8_t code, bits;
    std::uint16_t lanes;
  } dtype;
  std::int64_t *shape, *strides;
  std::uint64_t byte_offset;
};

struct Exchange {
  std::uint32_t major, minor;
  Exchange *before;
  void *allocate, *take, *give;
  int (*look)(void *object, Tensor *to);
  void *stream;
};

const Exchange *exchange = nullptr;
PyTypeObject *tensor_type = nullptr, *parameter_type = nullptr; // of exactly these: others may do what they want

PyObject *is_cpu = nullptr, *layout_name = nullptr, *strided = nullptr, *no_memory = nullptr;

bool ordinary(PyObject *object) { return Py_TYPE(object) == tensor_type || Py_TYPE(object) == parameter_type; }

// Whether it is on the CPU and has strides. PyTorch would tell so by an error that takes milliseconds to write.
bool has_strides(PyObject *object) {
  PyObject *cpu = PyObject_GetAttr(object, is_cpu), *layout = PyObject_GetAttr(object, layout_name);
  const bool good = cpu == Py_True && layout == strided;
  Py_XDECREF(cpu), Py_XDECREF(layout);
  return good;
}

// A tensor on the CPU with strides; false, without an error, for all else.
bool look(PyObject *object, Tensor &to) {
  if (exchange->look(object, &to) != 0) {
    PyErr_Clear();
    return false;
  }
  return to.device.type == CPU;
}

// -- calls that are known -------------------------------------------------------------------------
constexpr int MOST_AXES = 5, TENSORS = 3, MOST_NUMBERS = 2 + TENSORS * (1 + 2 * MOST_AXES);
constexpr std::size_t SLOTS = 1 << 13, MOST_CALLS = SLOTS / 2;

// Input, weight and bias (which may be None), the number of threads, and a tuple of what else matters.
struct Call {
  std::uint64_t hash;
  int count; // of numbers; 0: none
  std::int64_t numbers[MOST_NUMBERS];
  PyObject *settings, *found;
};

Call table[SLOTS];
std::size_t known = 0;

bool read(PyObject *const *given, Call &call) {
  const Py_hash_t hash = PyObject_Hash(given[0]);
  if (hash == -1) { // a list among the settings
    PyErr_Clear();
    return false;
  }
  call.settings = given[0], call.found = nullptr, call.count = 0;
  call.numbers[call.count++] = PyLong_AsLongLong(given[1]);
  for (int i = 0; i < TENSORS; ++i) {
    PyObject *object = given[2 + i];
    if (object == Py_None && i == TENSORS - 1) {
      call.numbers[call.count++] = -1;
      continue;
    }
    Tensor t;
    if (!ordinary(object) || (i == 0 && !has_strides(object)) || !look(object, t) || t.axes > MOST_AXES)
      return false;
    call.numbers[call.count++] = t.axes << 16 | t.dtype.code << 8 | t.dtype.bits;
    for (int axis = 0; axis < t.axes; ++axis)
      call.numbers[call.count++] = t.shape[axis], call.numbers[call.count++] = t.strides[axis];
  }
  call.hash = static_cast<std::uint64_t>(hash);
  for (int i = 0; i < call.count; ++i)
    call.hash = (call.hash ^ static_cast<std::uint64_t>(call.numbers[i])) * 0x9E3779B97F4A7C15u;
  call.hash ^= call.hash >> 29;
  return true;
}

// To Python 1.0 and True equal 1, which PyTorch does not take for it.
bool same_types(PyObject *a, PyObject *b) {
  if (Py_TYPE(a) != Py_TYPE(b))
    return false;
  for (Py_ssize_t i = 0, size = PyTuple_Check(a) ? PyTuple_Size(a) : 0; i < size; ++i)
    if (!same_types(PyTuple_GetItem(a, i), PyTuple_GetItem(b, i)))
      return false;
  return true;
}

bool same(const Call &a, const Call &b) {
  if (a.hash != b.hash || a.count != b.count || std::memcmp(a.numbers, b.numbers, a.count * sizeof(std::int64_t)) != 0)
    return false;
  PyObject *held = Py_NewRef(a.settings); // what they compare with may let another thread forget them
  const int equal = held == b.settings ? 1 : PyObject_RichCompareBool(held, b.settings, Py_EQ);
  Py_DECREF(held);
  if (equal < 0)
    PyErr_Clear();
  return equal == 1 && same_types(a.settings, b.settings);
}

// Where the call stands, or the free place for it.
Call *place_of(const Call &call) {
  std::size_t at = call.hash % SLOTS;
  while (table[at].count && !same(table[at], call))
    at = (at + 1) % SLOTS;
  return &table[at];
}

void forget_all() {
  for (Call &call : table)
    if (call.count) {
      call.count = 0;
      Py_CLEAR(call.settings);
      Py_CLEAR(call.found);
    }
  known = 0;
}

// -- the module -----------------------------------------------------------------------------------
PyObject *bind(PyObject *, PyObject *const *given, Py_ssize_t count) {
  if (count != 5)
    return PyErr_Format(PyExc_TypeError, "bind takes a capsule, two types, a layout and a function");
  const auto *found = static_cast<const Exchange *>(PyCapsule_GetPointer(given[0], "dlpack_exchange_api"));
  if (!found)
    return nullptr;
  if (found->major != MAJOR || !found->look)
    Py_RETURN_FALSE;
  exchange = found;
  tensor_type = reinterpret_cast<PyTypeObject *>(Py_NewRef(given[1]));
  parameter_type = reinterpret_cast<PyTypeObject *>(Py_NewRef(given[2]));
  strided = Py_NewRef(given[3]), no_memory = Py_NewRef(given[4]);
  is_cpu = PyUnicode_InternFromString("is_cpu"), layout_name = PyUnicode_InternFromString("layout");
  Py_RETURN_TRUE;
}

PyObject *find(PyObject *, PyObject *const *given, Py_ssize_t count) {
  if (count != 5 || !exchange)
    return PyErr_Format(PyExc_TypeError, "find takes settings, threads, input, weight and bias, once bound");
  Call call;
  if (!read(given, call))
    Py_RETURN_NONE;
  const Call *place = place_of(call);
  return place->count ? Py_NewRef(place->found) : Py_NewRef(Py_None);
}

PyObject *learn(PyObject *, PyObject *const *given, Py_ssize_t count) {
  if (count != 6 || !exchange)
    return PyErr_Format(PyExc_TypeError, "learn takes what find takes, and what it shall give");
  Call call;
  if (!read(given, call))
    Py_RETURN_FALSE;
  if (known >= MOST_CALLS)
    forget_all();
  Call *place = place_of(call);
  if (!place->count)
    ++known;
  Py_XDECREF(place->settings), Py_XDECREF(place->found);
  *place = call;
  place->settings = Py_NewRef(given[0]), place->found = Py_NewRef(given[5]);
  Py_RETURN_TRUE;
}

PyObject *forget(PyObject *, PyObject *) {
  forget_all();
  Py_RETURN_NONE;
}

constexpr int MOST_TENSORS = 256;
using Kernel = std::int64_t (*)(std::int64_t which, std::int64_t type, const void *shape, const void *const *tensors);

// run(kernel, which, type, shape, *tensors): the addresses of a function of csrc/interface.cpp and of its shape.
PyObject *run(PyObject *, PyObject *const *given, Py_ssize_t count) {
  if (count < 4 || count > 4 + MOST_TENSORS || !exchange)
    return PyErr_Format(PyExc_TypeError, "run takes a kernel, two numbers, a shape, and at most %d tensors", MOST_TENSORS);
  const auto kernel = reinterpret_cast<Kernel>(PyLong_AsVoidPtr(given[0]));
  const std::int64_t which = PyLong_AsLongLong(given[1]), type = PyLong_AsLongLong(given[2]);
  const void *shape = PyLong_AsVoidPtr(given[3]), *tensors[MOST_TENSORS] = {};
  if (PyErr_Occurred())
    return nullptr;
  for (Py_ssize_t i = 4; i < count; ++i) {
    Tensor t;
    if (given[i] == Py_None)
      continue;
    if (exchange->look(given[i], &t) != 0)
      return nullptr;
    tensors[i - 4] = static_cast<char *>(t.data) + t.byte_offset;
  }
  PyThreadState *others = PyEval_SaveThread();
  const std::int64_t missing = kernel(which, type, shape, tensors);
  PyEval_RestoreThread(others);
  if (missing)
    return PyObject_CallFunction(no_memory, "L", static_cast<long long>(missing)); // which raises
  Py_RETURN_NONE;
}

template <class F> PyCFunction as_method(F *function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"bind", as_method(bind), METH_FASTCALL, "bind(capsule, tensor type, parameter type, torch.strided, what raises for so many bytes): whether it is understood"},
    {"find", as_method(find), METH_FASTCALL, "find(settings, threads, input, weight, bias): what was learned, or None"},
    {"learn", as_method(learn), METH_FASTCALL, "learn(settings, threads, input, weight, bias, value): whether it can"},
    {"run", as_method(run), METH_FASTCALL, "run(kernel, which, type, shape, *tensors)"},
    {"forget", forget, METH_NOARGS, "forget(): all that was learned"},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module_of = {PyModuleDef_HEAD_INIT, "_calls", "Calls, told from their tensors at once.", -1, methods,
                         nullptr, nullptr, nullptr, nullptr};

} // namespace

PyMODINIT_FUNC PyInit__calls() { return PyModule_Create(&module_of); }
