/*
 * bench_op as on a CPU without AVX2: the wide variants say that they cannot run, or are the scalar
 * ones. Their own files are then not linked, so a variant that is not named here is an error of the
 * linker or has no part in this.
 */
#include "text/ptk_split_scan.h"
#include "text/ptk_utf8.h"

ptk_split_scan_fn *ptk_split_scan_avx512(unsigned number)
{
    (void)number;
    return NULL;
}

ptk_split_scan_fn *ptk_split_scan_avx2(unsigned number)
{
    (void)number;
    return NULL;
}

bool ptk_utf8_valid_avx2(const uint8_t *bytes, size_t len)
{
    return ptk_utf8_valid_scalar(bytes, len);
}

size_t ptk_utf8_count_avx2(const uint8_t *bytes, size_t len)
{
    return ptk_utf8_count_scalar(bytes, len);
}

#include "../bench/native/bench_op.c"
