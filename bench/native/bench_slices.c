/*
 * How long a long message goes on without a pause point: the longest stretch of every model that
 * PTK_TEST_IMAGES names, over the texts and operations of the test, each the best of five runs.
 * With PTK_SLICES_SHOW each message is shown.
 */
#include "test_slices.c"
