/* bench_op as on a CPU without AVX-512. */
#include "../bench/native/as_without_avx512.h"

#include "../bench/native/bench_op.c"
