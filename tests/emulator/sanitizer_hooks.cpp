// What instrumented code calls. The compiler is asked for thread and undefined-behaviour instrumentation, and finds
// these functions in the place of the sanitizers' libraries: an error is a fault of the kernel, and not the end of the
// process.
#include <stdio.h>

#include "internal.h"

using namespace emulator;

// ---- -fsanitize=thread: every access to memory that may be shared
// ----------------------------------------------------
#define HERE Site::code(__builtin_return_address(0))
#define ACCESSES(n)                                                                      \
  EMULATOR_EXPORT void __tsan_read##n(void* p) { access(p, n, READ, HERE); }             \
  EMULATOR_EXPORT void __tsan_write##n(void* p) { access(p, n, WRITE, HERE); }           \
  EMULATOR_EXPORT void __tsan_unaligned_read##n(void* p) { access(p, n, READ, HERE); }   \
  EMULATOR_EXPORT void __tsan_unaligned_write##n(void* p) { access(p, n, WRITE, HERE); } \
  EMULATOR_EXPORT void __tsan_volatile_read##n(void* p) { access(p, n, READ, HERE); }    \
  EMULATOR_EXPORT void __tsan_volatile_write##n(void* p) { access(p, n, WRITE, HERE); }
extern "C" {
EMULATOR_EXPORT void __tsan_init() {}
EMULATOR_EXPORT void __tsan_func_entry(void*) {}
EMULATOR_EXPORT void __tsan_func_exit() {}
EMULATOR_EXPORT void __tsan_vptr_read(void*) {}
EMULATOR_EXPORT void __tsan_vptr_update(void*, void*) {}
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
EMULATOR_EXPORT void __tsan_read_range(void* p, unsigned long n) { access(p, (unsigned)n, READ, HERE); }
EMULATOR_EXPORT void __tsan_write_range(void* p, unsigned long n) { access(p, (unsigned)n, WRITE, HERE); }
EMULATOR_EXPORT void* __tsan_memcpy(void* to, const void* from, unsigned long n) {
  access(from, (unsigned)n, READ, HERE);
  access(to, (unsigned)n, WRITE, HERE);
  return memcpy(to, from, n);
}
EMULATOR_EXPORT void* __tsan_memset(void* to, int value, unsigned long n) {
  access(to, (unsigned)n, WRITE, HERE);
  return memset(to, value, n);
}
}

// ---- -fsanitize=undefined
// ------------------------------------------------------------------------------------------------
namespace {
struct Location {
  const char* file;
  uint32_t line, column;
};
struct Type {
  uint16_t kind, info;
  char name[1];
};  // kind 0: an integer, whose info is 2 * log2(bits) + signed
struct Data {
  Location location;
  const Type* type;
};
struct MismatchData {
  Location location;
  const Type* type;
  uint8_t log_alignment, kind;
};

Site site_of(const Location& l) { return {l.file, (int)l.line}; }

// A value of up to 64 bits is passed itself, a larger one by address.
long long value_of(const Type* type, void* handle) {
  const unsigned bits = 1u << (type->info >> 1);
  const long long v = bits <= 64 ? (long long)handle : *(long long*)handle;
  return bits >= 64 ? v : type->info & 1 ? v << (64 - bits) >> (64 - bits) : v & ((1ll << bits) - 1);
}

void overflow(Data* d, const char* operation, void* a, void* b) {
  fault(site_of(d->location), "overflow of %s: %lld %s %lld", d->type->name, value_of(d->type, a), operation,
        value_of(d->type, b));
}
}  // namespace

extern "C" {
#define OVERFLOW(name, operation)                                                          \
  EMULATOR_EXPORT void __ubsan_handle_##name##_overflow_abort(Data* d, void* a, void* b) { \
    overflow(d, operation, a, b);                                                          \
  }
OVERFLOW(add, "+")
OVERFLOW(sub, "-")
OVERFLOW(mul, "*")
OVERFLOW(divrem, "/")
EMULATOR_EXPORT void __ubsan_handle_negate_overflow_abort(Data* d, void* a) {
  fault(site_of(d->location), "overflow of %s: -(%lld)", d->type->name, value_of(d->type, a));
}
struct ShiftData {
  Location location;
  const Type *left, *right;
};
EMULATOR_EXPORT void __ubsan_handle_shift_out_of_bounds_abort(ShiftData* d, void* a, void* b) {
  fault(site_of(d->location), "shift of %s out of range: %lld by %lld", d->left->name, value_of(d->left, a),
        value_of(d->right, b));
}
struct BoundsData {
  Location location;
  const Type *array, *index;
};
EMULATOR_EXPORT void __ubsan_handle_out_of_bounds_abort(BoundsData* d, void* index) {
  fault(site_of(d->location), "index %lld out of bounds of %s", value_of(d->index, index), d->array->name);
}
EMULATOR_EXPORT void __ubsan_handle_type_mismatch_v1_abort(MismatchData* d, void* pointer) {
  const unsigned alignment = 1u << d->log_alignment;
  if (!pointer) fault(site_of(d->location), "access by a null pointer");
  if ((uintptr_t)pointer % alignment)
    fault(site_of(d->location), "misaligned access to %s: it needs a multiple of %u bytes, and is %u off",
          d->type->name, alignment, (unsigned)((uintptr_t)pointer % alignment));
  fault(site_of(d->location), "not enough room for %s", d->type->name);
}
EMULATOR_EXPORT void __ubsan_handle_pointer_overflow_abort(Location* l, void*, void*) {
  fault(site_of(*l), "overflow of a pointer");
}
EMULATOR_EXPORT void __ubsan_handle_load_invalid_value_abort(Data* d, void*) {
  fault(site_of(d->location), "no value of %s", d->type->name);
}
EMULATOR_EXPORT void __ubsan_handle_float_cast_overflow_abort(Data* d, void*) {
  fault(site_of(d->location), "a float that does not fit the integer it is made");
}
EMULATOR_EXPORT void __ubsan_handle_vla_bound_not_positive_abort(Data* d, void*) {
  fault(site_of(d->location), "size of an array");
}
EMULATOR_EXPORT void __ubsan_handle_nonnull_arg_abort(Location* l) { fault(site_of(*l), "null argument"); }
EMULATOR_EXPORT void __ubsan_handle_builtin_unreachable(Location* l) {
  fault(site_of(*l), "reached what is unreachable");
}
EMULATOR_EXPORT void __ubsan_handle_missing_return(Location* l) {
  fault(site_of(*l), "the function ends without a return");
}
}
