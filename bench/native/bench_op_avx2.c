/* bench_op as on a CPU without AVX-512. */
#include "text/ptk_split_scan.h"

ptk_split_scan_fn *ptk_split_scan_avx512(unsigned number)
{
    (void)number;
    return NULL;
}

#include "../bench/native/bench_op.c"
