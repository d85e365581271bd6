/* A program as on a CPU without AVX-512: included before its own source. */
#ifndef AS_WITHOUT_AVX512_H
#define AS_WITHOUT_AVX512_H

#include "text/ptk_split_scan.h"

ptk_split_scan_fn *ptk_split_scan_avx512(unsigned number)
{
    (void)number;
    return NULL;
}

#endif
