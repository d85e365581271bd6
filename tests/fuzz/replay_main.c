/*
 * Runs a fuzz target over files, without a fuzzer: every corpus file replays in every test run.
 *
 *   fuzz_NAME FILE...
 *
 * Each input is handed over in an allocation of exactly its length, so that the address sanitizer
 * sees a read behind its end.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        perror(path);
        return 1;
    }
    const long len = ftell(file);
    rewind(file);
    uint8_t *data = len > 0 ? malloc((size_t)len) : NULL;
    if (len < 0 ||
        (len > 0 && (data == NULL || fread(data, 1, (size_t)len, file) != (size_t)len))) {
        fprintf(stderr, "%s: cannot be read\n", path);
        return 1;
    }
    (void)fclose(file); /* Read only. */
    (void)LLVMFuzzerTestOneInput(data, (size_t)len);
    free(data);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: %s FILE...\n", argv[0]);
        return 1;
    }
    for (int i = 1; i < argc; i++) {
        if (replay(argv[i]) != 0) {
            return 1;
        }
    }
    printf("%d inputs\n", argc - 1);
    return 0;
}
