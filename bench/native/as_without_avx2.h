/*
 * A program as on a CPU without AVX2: included before its own source. The wide variants say that
 * they cannot run, or are the scalar ones. Their own files are then not linked, so a variant that
 * is not named here is an error of the linker or has no part in this.
 */
#ifndef AS_WITHOUT_AVX2_H
#define AS_WITHOUT_AVX2_H

#include "../bench/native/as_without_avx512.h"
#include "text/ptk_utf8.h"

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

#endif
