/* bench_encode as on a CPU without AVX2. */
#include "../bench/native/as_without_avx2.h"

#include "../bench/native/bench_encode.c"
