# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""The native core for Python: a thin wrapper without logic of its own.

Each call checks its arguments, takes the buffers, releases the GIL, calls one C function and
translates the outcome: a verdict other than OK raises `Refused(verdict)`, a set-up error raises
`SetupError(code, sentence)`. `pintok.Tokenizer` turns both into the public exceptions.
"""

cimport cython
cimport numpy as cnp
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.list cimport PyList_CheckExact
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_CheckExact
from cpython.unicode cimport PyUnicode_CheckExact, PyUnicode_DecodeUTF8
from libc.errno cimport ENOSPC
from libc.stdint cimport SIZE_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, memset

from ptk cimport *

cnp.import_array()

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t align, size_t size)

cdef extern from *:
    """
    #define prefetch(address) __builtin_prefetch(address)
    /* The value of an int of one digit, which every id is; -1 of anything else. */
    static inline long one_digit(PyObject *value)
    {
        if (!PyLong_CheckExact(value)) {
            return -1;
        }
    #if PY_VERSION_HEX >= 0x030C0000
        PyLongObject *number = (PyLongObject *)value;
        return PyUnstable_Long_IsCompact(number) ? PyUnstable_Long_CompactValue(number) : -1;
    #else
        const Py_ssize_t digits = Py_SIZE(value);
        return digits == 1 ? (long)((PyLongObject *)value)->ob_digit[0] : digits == 0 ? 0 : -1;
    #endif
    }
    /* The UTF-8 that a str has already: its own characters where all are ASCII, or what it keeps
     * since it was asked for. NULL: none. */
    static inline const char *kept_utf8(PyObject *text, Py_ssize_t *size)
    {
        if (PyUnicode_IS_COMPACT_ASCII(text)) {
            *size = PyUnicode_GET_LENGTH(text);
            return (const char *)PyUnicode_DATA(text);
        }
        if (!PyUnicode_IS_COMPACT(text)) {
            return PyUnicode_AsUTF8AndSize(text, size);
        }
        *size = ((PyCompactUnicodeObject *)text)->utf8_length;
        return ((PyCompactUnicodeObject *)text)->utf8;
    }
    """
    void prefetch(const void *address) nogil
    long one_digit(PyObject *value) nogil
    const char *kept_utf8(object text, Py_ssize_t *size) except? NULL

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    PyObject **PySequence_Fast_ITEMS(object sequence)
    object PyUnicode_New(Py_ssize_t size, uint32_t max_char)
    void *PyUnicode_DATA(object text)
    uint32_t PyUnicode_KIND(object text)  # bytes a character
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    bint PyLong_CheckExact(PyObject *value)
    long PyLong_AsLongAndOverflow(PyObject *value, int *overflow)

cdef extern from "sys/mman.h" nogil:
    int madvise(void *memory, size_t size, int advice)
    enum:
        MADV_HUGEPAGE

cdef enum:
    CACHE_LEN = 4 << 20
    TEXT_LEN_SMALL = 16 << 10
    IDS_LEN_QUICK = 1024
    POOL_MAX = 64
    TEXT_LEN_KEPT = 4 << 20
    IDS_KEPT = 16 << 20
    # Shorter texts keep the GIL: giving it up and waiting for it costs more than they take.
    TEXT_LEN_HELD = 8 << 10
    DEFAULT_OPTIONS = PTK_WIRE_OPTIONS_PARSE_SPECIAL | PTK_WIRE_OPTIONS_ADD_SPECIAL_TOKENS
    PARSE_ONLY_OPTIONS = PTK_WIRE_OPTIONS_PARSE_SPECIAL
    WINDOW_IDS_MAX = 1 << 24  # in all windows of one text: they may overlap by all but one id


class Refused(Exception):
    """The request was refused; `verdict` is a value of the wire protocol's verdict table."""

    def __init__(self, verdict):
        super().__init__(verdict)
        self.verdict = verdict


class SetupError(Exception):
    """Opening failed; `code` is a negative errno, `sentence` says what, with which value."""

    def __init__(self, code, sentence):
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


cdef class _Context:
    """What one thread at a time needs to encode: work, cache, and room for results.

    The work grows with the texts; the cache, and what it learnt, stays.
    """

    cdef void *work_memory
    cdef void *cache_memory
    cdef void *result_memory
    cdef ptk_work *work
    cdef ptk_cache *cache
    cdef size_t text_cap
    cdef size_t ids_cap
    cdef size_t bytes_cap
    cdef uint8_t *text
    cdef bint offsets
    cdef uint32_t *ids
    cdef ptk_span *spans
    cdef uint8_t *type_ids
    cdef uint8_t *mask
    cdef size_t hits

    def __cinit__(self):
        self.cache_memory = aligned_alloc(2 << 20, CACHE_LEN)
        if self.cache_memory == NULL:
            raise MemoryError
        madvise(self.cache_memory, CACHE_LEN, MADV_HUGEPAGE)  # a hint: small pages work too
        self.cache = ptk_cache_init(self.cache_memory, CACHE_LEN)

    def __dealloc__(self):
        free(self.work_memory)
        free(self.cache_memory)
        free(self.result_memory)
        free(self.text)

    cdef int grow(self, size_t text_len, bint offsets) except -1:
        """A work for texts of `text_len` bytes, and results to go with it."""
        cdef ptk_work_limits limits
        cdef size_t cap = TEXT_LEN_SMALL
        if self.text_cap >= text_len and (self.offsets or not offsets):
            return 0
        while cap < text_len:
            cap *= 2
        offsets = offsets or self.offsets
        self.let_go()
        limits.text_len_max = cap
        self.work_memory = aligned_alloc(64, _round_up(ptk_work_len(&limits)))
        if self.work_memory == NULL:
            raise MemoryError
        self.work = ptk_work_init(self.work_memory, &limits)
        self.offsets = offsets
        self.reserve(cap + 256)
        self.text_cap = cap
        return 0

    cdef void let_go(self) noexcept:
        """Give up everything that grows."""
        free(self.work_memory)
        free(self.result_memory)
        self.work_memory = NULL
        self.result_memory = NULL
        self.text_cap = 0
        self.ids_cap = 0

    cdef int reserve_text(self, size_t bytes_cap) except -1:
        """Room for decoded text."""
        if self.bytes_cap < bytes_cap:
            free(self.text)
            self.bytes_cap = _round_up(bytes_cap)
            self.text = <uint8_t *>aligned_alloc(64, self.bytes_cap)
            if self.text == NULL:
                self.bytes_cap = 0
                raise MemoryError
        return 0

    cdef int reserve(self, size_t ids_cap) except -1:
        """Room for `ids_cap` results: one id per byte of text and some for special tokens."""
        cdef size_t row = 4 + (8 + 1 + 1 if self.offsets else 0)
        cdef uint8_t *memory = <uint8_t *>aligned_alloc(64, _round_up(ids_cap * row))
        if memory == NULL:
            raise MemoryError
        free(self.result_memory)
        self.result_memory = memory
        self.ids_cap = ids_cap
        self.ids = <uint32_t *>memory
        if self.offsets:
            self.spans = <ptk_span *>(memory + 4 * ids_cap)
            self.type_ids = memory + 12 * ids_cap
            self.mask = memory + 13 * ids_cap
        return 0


cdef inline size_t _round_up(size_t len) noexcept nogil:
    return (len + 63) & ~<size_t>63


cdef cnp.ndarray _array_u32(const uint32_t *values, size_t count):
    cdef cnp.npy_intp shape = <cnp.npy_intp>count
    cdef cnp.ndarray array = cnp.PyArray_EMPTY(1, &shape, cnp.NPY_UINT32, 0)
    memcpy(cnp.PyArray_DATA(array), values, 4 * count)
    return array


cdef cnp.ndarray _array_u8(const uint8_t *values, size_t count):
    cdef cnp.npy_intp shape = <cnp.npy_intp>count
    cdef cnp.ndarray array = cnp.PyArray_EMPTY(1, &shape, cnp.NPY_UINT8, 0)
    memcpy(cnp.PyArray_DATA(array), values, count)
    return array


cdef cnp.ndarray _array_spans(const ptk_span *values, size_t count):
    cdef cnp.npy_intp shape[2]
    shape[0] = <cnp.npy_intp>count
    shape[1] = 2
    cdef cnp.ndarray array = cnp.PyArray_EMPTY(2, shape, cnp.NPY_UINT32, 0)
    memcpy(cnp.PyArray_DATA(array), values, 8 * count)
    return array


cdef void *_narrowed = NULL  # the str whose UTF-8 was made last; it may be gone


cdef const uint8_t *_kept(object text, Py_ssize_t *size) except? NULL:
    """The UTF-8 that a str keeps; NULL: none, make it. One that comes again at once keeps it from
    then on."""
    if _narrowed == <void *>text:
        return <const uint8_t *>PyUnicode_AsUTF8AndSize(text, size)
    return <const uint8_t *>kept_utf8(text, size)


cdef size_t _narrow_cap(object text) noexcept:
    """Room that _narrow needs."""
    return ptk_utf8_narrow_cap(<size_t>PyUnicode_GET_LENGTH(text), PyUnicode_KIND(text))


cdef Py_ssize_t _narrow(object text, uint8_t *utf8) except -1:
    """Make the UTF-8 of a str; its length. UnicodeEncodeError where it has surrogates."""
    global _narrowed
    cdef Py_ssize_t size
    cdef size_t made = ptk_utf8_narrow(PyUnicode_DATA(text), <size_t>PyUnicode_GET_LENGTH(text),
                                       PyUnicode_KIND(text), utf8)
    if made == SIZE_MAX:
        PyUnicode_AsUTF8AndSize(text, &size)  # raises, and says where the first one is
    _narrowed = <void *>text
    return <Py_ssize_t>made


cdef object _view(object text, const uint8_t **utf8, size_t *utf8_len):
    """UTF-8 of a str, or the bytes of a bytes object. What is returned must outlive the pointer."""
    cdef Py_ssize_t size
    if isinstance(text, str):
        utf8[0] = _kept(text, &size)
        held = text
        if utf8[0] == NULL:
            held = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>_narrow_cap(text))
            utf8[0] = <const uint8_t *>PyBytes_AS_STRING(held)
            size = _narrow(text, <uint8_t *>utf8[0])
        utf8_len[0] = <size_t>size
        return held
    if isinstance(text, bytes):
        utf8[0] = <const uint8_t *>PyBytes_AS_STRING(text)
        utf8_len[0] = <size_t>PyBytes_GET_SIZE(text)
        return text
    raise TypeError(f"text must be str or bytes, not {type(text).__name__}")


cdef str _text(const uint8_t *utf8, size_t utf8_len, bint checked):
    """A str of UTF-8; None where it is none, which is looked at where nobody has yet."""
    cdef uint8_t top = ptk_utf8_top(utf8, utf8_len)
    cdef uint32_t width = 1 if top < 0xC4 else 2 if top < 0xF0 else 4
    cdef size_t count = utf8_len
    if top >= 0x80:
        if not checked and not ptk_utf8_valid(utf8, utf8_len):
            return None
        count = ptk_utf8_count(utf8, utf8_len)
    cdef object text = PyUnicode_New(
        <Py_ssize_t>count,
        0x7F if top < 0x80 else 0xFF if width == 1 else 0xFFFF if width == 2 else 0x10FFFF)
    if top < 0x80:
        memcpy(PyUnicode_DATA(text), utf8, utf8_len)
    else:
        ptk_utf8_widen(utf8, utf8_len, width, PyUnicode_DATA(text), count)
    return text


ctypedef fused signed_id:
    int32_t
    int64_t


cdef int _copy_array(const signed_id *values, uint32_t *out, size_t count) except -1:
    """Signed ids as uint32; TypeError for one that does not fit."""
    cdef size_t i
    cdef int64_t seen = 0
    for i in range(count):
        seen |= values[i]
        out[i] = <uint32_t>values[i]
    if seen < 0 or seen > 0xFFFFFFFF:
        raise TypeError("ids must lie in 0 ... 2**32 - 1")
    return 0


cdef int _copy_ints(PyObject **items, uint32_t *out, size_t count) except -1:
    """Ints as uint32; TypeError for anything else and for one that does not fit."""
    cdef size_t i
    cdef long value
    cdef int overflow = 0
    for i in range(count):
        prefetch(items[i + 16 if i + 16 < count else i])  # each int is an object somewhere
        value = one_digit(items[i])
        if value < 0:
            if not PyLong_CheckExact(items[i]):
                raise TypeError("ids must be integers")
            value = PyLong_AsLongAndOverflow(items[i], &overflow)
            if overflow != 0 or value < 0 or value > 0xFFFFFFFF:
                raise TypeError("ids must lie in 0 ... 2**32 - 1")
        out[i] = <uint32_t>value
    return 0


cdef inline bint _is_short(object text, _Context context, ptk_encode_request *request,
                           uint32_t options) except -1:
    """Whether a text is encoded in `context` with the GIL held; then `request` asks for it."""
    cdef Py_ssize_t size
    if context is None:
        return False
    memset(request, 0, sizeof(request[0]))
    if PyUnicode_CheckExact(text):
        request.text = _kept(text, &size)
        if request.text == NULL:
            if _narrow_cap(text) > TEXT_LEN_HELD:
                return False
            context.reserve_text(_narrow_cap(text))
            request.text = context.text
            size = _narrow(text, context.text)
        request.checked = True
    elif PyBytes_CheckExact(text):
        request.text = <const uint8_t *>PyBytes_AS_STRING(text)
        size = PyBytes_GET_SIZE(text)
    else:
        return False
    request.text_len = <size_t>size
    request.options = options
    return size <= TEXT_LEN_HELD and <size_t>size + 64 <= context.text_cap


@cython.final
cdef class Model:
    """An opened image with its tokenizer: immutable, shared by all threads.

    Raises SetupError when the file is missing, damaged, or needs something this build lacks.
    """

    cdef ptk_image image
    cdef ptk_tokenizer *tokenizer
    cdef bint opened
    cdef _Context spare  # the last one given back, for the next short text
    cdef list pool
    cdef object __weakref__

    def __cinit__(self, path, *, bint share=False):
        cdef ptk_err err
        cdef bytes encoded = str(path).encode()
        cdef const char *c_path = encoded
        cdef ptk_image_hold hold = PTK_IMAGE_HOLD_MAP if share else PTK_IMAGE_HOLD_COPY
        cdef int code
        memset(&err, 0, sizeof(err))
        with nogil:
            code = ptk_image_open(c_path, hold, &self.image, &err)
        if code != 0:
            raise SetupError(code, err.text.decode())
        self.opened = True
        with nogil:
            code = ptk_tokenizer_open(&self.image, &self.tokenizer, &err)
        if code != 0:
            raise SetupError(code, err.text.decode())
        self.pool = []

    def __dealloc__(self):
        ptk_tokenizer_close(self.tokenizer)
        if self.opened:
            ptk_image_close(&self.image)

    cdef _Context borrow(self, size_t text_len, bint offsets):
        """A context that no other thread uses, with room for texts of `text_len` bytes."""
        cdef _Context context = self.spare
        if context is not None:
            self.spare = None
        elif self.pool:
            context = <_Context>self.pool.pop()
        else:
            context = _Context()
        context.grow(text_len, offsets)
        return context

    cdef void give_back(self, _Context context):
        """Keep it for the next call; what long texts needed is let go so that memory is bounded."""
        if context.text_cap > TEXT_LEN_KEPT or context.ids_cap > IDS_KEPT:
            context.let_go()
        if self.spare is None:
            self.spare = context
        elif len(self.pool) < POOL_MAX:
            self.pool.append(context)

    cdef _Context run(self, ptk_encode_request *request, size_t *count):
        """Encode into a context; `count` gets the ids written. Raises Refused; the caller gives the
        context back. Rooms that turn out too small (normalization may lengthen a text) are doubled."""
        cdef size_t text_len = max(request.text_len, request.pair_len)
        cdef bint rich = request.outputs != 0
        cdef _Context context = self.borrow(text_len + 64, rich)
        cdef ptk_encoding out
        cdef ptk_verdict verdict
        cdef int attempt
        if context.ids_cap < request.text_len + request.pair_len + 256:
            context.reserve(request.text_len + request.pair_len + 256)
        for attempt in range(6):
            memset(&out, 0, sizeof(out))
            out.ids = context.ids
            out.cap = context.ids_cap
            if rich:
                out.offsets = context.spans
                out.type_ids = context.type_ids
                out.special_tokens_mask = context.mask
            with nogil:
                verdict = ptk_tokenizer_encode(
                    self.tokenizer, context.work, context.cache, request, &out)
            if verdict == PTK_VERDICT_OK:
                count[0] = out.len
                context.hits = out.hits
                return context
            if verdict == PTK_VERDICT_REPLY_TOO_LONG:
                context.reserve(context.ids_cap * 4)
            elif verdict == PTK_VERDICT_TEXT_TOO_LONG:
                context.grow(context.text_cap * 4, rich)
            else:
                break
        self.give_back(context)
        raise Refused(<int>verdict)

    cdef object short_ids(self, text, uint32_t options):
        """Ids of a text that keeps the GIL; None when it needs more than the spare context."""
        cdef _Context context = self.spare
        cdef ptk_encode_request request
        cdef ptk_encoding out
        cdef ptk_verdict verdict
        if not _is_short(text, context, &request, options):
            return None
        memset(&out, 0, sizeof(out))
        out.ids = context.ids
        out.cap = context.ids_cap
        verdict = ptk_tokenizer_encode(self.tokenizer, context.work, context.cache, &request, &out)
        return _array_u32(out.ids, out.len) if verdict == PTK_VERDICT_OK else None

    cdef Py_ssize_t short_count(self, text, uint32_t options) except -2:
        """The same for their number; -1 when it needs more."""
        cdef _Context context = self.spare
        cdef ptk_encode_request request
        cdef size_t count = 0, hits = 0
        cdef ptk_verdict verdict
        if not _is_short(text, context, &request, options):
            return -1
        verdict = ptk_tokenizer_count(
            self.tokenizer, context.work, context.cache, &request, &count, &hits)
        return <Py_ssize_t>count if verdict == PTK_VERDICT_OK else -1

    cdef object prepare(self, text, pair, uint32_t options, uint32_t outputs, tuple truncation,
                        ptk_wire_truncation *limit, ptk_encode_request *request):
        """Fills in the request; what is returned must outlive it."""
        cdef object held, held_pair = None
        memset(request, 0, sizeof(request[0]))
        held = _view(text, &request.text, &request.text_len)
        if pair is not None:
            held_pair = _view(pair, &request.pair, &request.pair_len)
        request.options = options
        request.outputs = outputs
        request.checked = isinstance(text, str) and (pair is None or isinstance(pair, str))
        if truncation is not None:
            memset(limit, 0, sizeof(limit[0]))
            limit.max_length, limit.stride, limit.strategy, limit.direction = truncation
            request.truncation = limit
        return held if held_pair is None else (held, held_pair)

    def encode(self, text, pair, uint32_t options, tuple truncation=None):
        """Ids of a text or a pair: uint32, shape (n,)."""
        cdef ptk_encode_request request
        cdef ptk_wire_truncation limit
        cdef size_t count = 0
        held = self.prepare(text, pair, options, 0, truncation, &limit, &request)
        cdef _Context context = self.run(&request, &count)
        cdef cnp.ndarray ids = _array_u32(context.ids, count)
        self.give_back(context)
        return ids

    def encode_full(self, text, pair, uint32_t options, tuple truncation=None):
        """(ids uint32 (n,), offsets uint32 (n, 2), type ids uint8 (n,), special tokens mask uint8 (n,))."""
        cdef ptk_encode_request request
        cdef ptk_wire_truncation limit
        cdef size_t count = 0
        held = self.prepare(text, pair, options,
                     PTK_WIRE_OUTPUTS_OFFSETS | PTK_WIRE_OUTPUTS_TYPE_IDS
                     | PTK_WIRE_OUTPUTS_SPECIAL_TOKENS_MASK, truncation, &limit, &request)
        cdef _Context context = self.run(&request, &count)
        result = (
            _array_u32(context.ids, count),
            _array_spans(context.spans, count),
            _array_u8(context.type_ids, count),
            _array_u8(context.mask, count),
        )
        self.give_back(context)
        return result

    def encode_windows(self, text, pair, uint32_t options, tuple truncation not None):
        """As encode_full for all windows one after another, and their lengths, uint32 (windows,)."""
        cdef ptk_encode_request request
        cdef ptk_wire_truncation limit
        cdef ptk_windows windows
        cdef ptk_encoding out
        cdef ptk_verdict verdict = PTK_VERDICT_OK
        cdef uint8_t *memory
        cdef size_t cap
        held = self.prepare(text, pair, options,
                     PTK_WIRE_OUTPUTS_OFFSETS | PTK_WIRE_OUTPUTS_TYPE_IDS
                     | PTK_WIRE_OUTPUTS_SPECIAL_TOKENS_MASK, truncation, &limit, &request)
        cap = request.text_len + request.pair_len + 256
        cdef _Context context = self.borrow(max(request.text_len, request.pair_len) + 64, True)
        while True:
            # Whole texts: 12 bytes an id; windows: 14 bytes an id, and 4 for its length if alone.
            memory = <uint8_t *>aligned_alloc(64, _round_up(30 * cap))
            if memory == NULL:
                raise MemoryError
            try:
                memset(&windows, 0, sizeof(windows))
                memset(&out, 0, sizeof(out))
                windows.whole.offsets = <ptk_span *>memory
                out.offsets = <ptk_span *>(memory + 8 * cap)
                windows.whole.ids = <uint32_t *>(memory + 16 * cap)
                out.ids = <uint32_t *>(memory + 20 * cap)
                windows.lens = <uint32_t *>(memory + 24 * cap)
                out.type_ids = memory + 28 * cap
                out.special_tokens_mask = memory + 29 * cap
                windows.whole.cap = windows.cap = out.cap = cap
                with nogil:
                    verdict = ptk_tokenizer_encode_windows(
                        self.tokenizer, context.work, context.cache, &request, &windows, &out)
                if verdict == PTK_VERDICT_OK:
                    self.give_back(context)
                    return (
                        _array_u32(out.ids, out.len),
                        _array_spans(out.offsets, out.len),
                        _array_u8(out.type_ids, out.len),
                        _array_u8(out.special_tokens_mask, out.len),
                        _array_u32(windows.lens, windows.count),
                    )
            finally:
                free(memory)
            if verdict == PTK_VERDICT_REPLY_TOO_LONG and cap < WINDOW_IDS_MAX:
                cap = min(cap * 4, <size_t>WINDOW_IDS_MAX)
            elif verdict == PTK_VERDICT_TEXT_TOO_LONG and context.text_cap < (1 << 28):
                context.grow(context.text_cap * 4, True)
            else:
                raise Refused(<int>verdict)

    def encode_plain(self, text, uint32_t options, const uint32_t[:, ::1] ranges):
        """(ids uint32 (n,), hits): ranges (m, 3) are begin, end and all of ptk_plain_range, checked
        here: they ascend, do not overlap and lie in the text's bytes."""
        cdef ptk_encode_request request
        cdef size_t count = 0, i, end = 0, ranges_count = <size_t>ranges.shape[0]
        cdef ptk_plain_range *plain
        held = self.prepare(text, None, options, 0, None, NULL, &request)
        if ranges_count > 0 and ranges.shape[1] != 3:
            raise ValueError("ranges must have three columns")
        plain = <ptk_plain_range *>PyMem_RawMalloc((ranges_count + 1) * sizeof(ptk_plain_range))
        if plain == NULL:
            raise MemoryError
        try:
            for i in range(ranges_count):
                if ranges[i, 0] < end or ranges[i, 1] <= ranges[i, 0] or ranges[i, 1] > request.text_len:
                    raise ValueError("ranges must ascend and lie in the text")
                end = ranges[i, 1]
                plain[i].begin = ranges[i, 0]
                plain[i].end = ranges[i, 1]
                plain[i].all = ranges[i, 2] != 0
            request.plain = plain
            request.plain_count = ranges_count
            context = self.run(&request, &count)
            result = _array_u32((<_Context>context).ids, count), (<_Context>context).hits
            self.give_back(context)
            return result
        finally:
            PyMem_RawFree(plain)

    def encode_batch(self, list texts, uint32_t options, tuple truncation=None):
        """(flat ids uint32, splits int64 (len + 1,)): text i has ids[splits[i]:splits[i + 1]]."""
        cdef ptk_encode_request request
        cdef ptk_wire_truncation limit
        cdef cnp.npy_intp shape = len(texts) + 1
        cdef cnp.ndarray splits = cnp.PyArray_EMPTY(1, &shape, cnp.NPY_INT64, 0)
        cdef long long *ends = <long long *>cnp.PyArray_DATA(splits)
        cdef size_t cap = 4096, used = 0, count = 0, i
        cdef uint32_t *ids = <uint32_t *>PyMem_RawMalloc(4 * cap)
        cdef uint32_t *larger
        cdef _Context context
        if ids == NULL:
            raise MemoryError
        try:
            ends[0] = 0
            for i in range(<size_t>len(texts)):
                held = self.prepare(texts[i], None, options, 0, truncation, &limit, &request)
                context = self.run(&request, &count)
                if used + count > cap:
                    cap = 2 * (used + count)
                    larger = <uint32_t *>PyMem_RawMalloc(4 * cap)
                    if larger == NULL:
                        raise MemoryError
                    memcpy(larger, ids, 4 * used)
                    PyMem_RawFree(ids)
                    ids = larger
                memcpy(ids + used, context.ids, 4 * count)
                self.give_back(context)
                used += count
                ends[i + 1] = <long long>used
            return _array_u32(ids, used), splits
        finally:
            PyMem_RawFree(ids)

    def count(self, text, pair, uint32_t options, tuple truncation=None):
        """How many ids encode would give."""
        cdef ptk_encode_request request
        cdef ptk_wire_truncation limit
        cdef ptk_verdict verdict
        cdef size_t count = 0, hits = 0
        cdef int attempt
        held = self.prepare(text, pair, options, 0, truncation, &limit, &request)
        cdef _Context context = self.borrow(max(request.text_len, request.pair_len) + 64, False)
        for attempt in range(6):
            with nogil:
                verdict = ptk_tokenizer_count(
                    self.tokenizer, context.work, context.cache, &request, &count, &hits)
            if verdict != PTK_VERDICT_TEXT_TOO_LONG:
                break
            context.grow(context.text_cap * 4, False)
        self.give_back(context)
        if verdict != PTK_VERDICT_OK:
            raise Refused(<int>verdict)
        return count

    cpdef decode(self, ids, uint32_t options):
        """The text of the ids, as str. `ids`: a contiguous array of uint32, int64 or int32, or a
        list or tuple of int; raises TypeError for anything else, also for ids beyond uint32."""
        cdef size_t ids_len
        cdef _Context context
        cdef int kind = cnp.NPY_OBJECT
        if cnp.PyArray_Check(ids):
            if cnp.PyArray_NDIM(ids) != 1 or not cnp.PyArray_ISCARRAY_RO(ids):
                raise TypeError("ids must be a contiguous flat array")
            kind = cnp.PyArray_TYPE(ids)
            ids_len = <size_t>cnp.PyArray_SIZE(ids)
            if kind == cnp.NPY_UINT32:
                context = self.borrow(4 * ids_len + 64, False)
                return self.decode_ids(<const uint32_t *>cnp.PyArray_DATA(ids), ids_len, options,
                                       context)
        elif PyList_CheckExact(ids) or PyTuple_CheckExact(ids):
            ids_len = <size_t>len(ids)
        else:
            raise TypeError("ids must be an array, a list or a tuple")
        context = self.borrow(4 * ids_len + 64, False)
        if context.ids_cap < ids_len:
            context.reserve(ids_len + 256)
        try:
            if kind == cnp.NPY_OBJECT:
                _copy_ints(PySequence_Fast_ITEMS(ids), context.ids, ids_len)
            elif kind == cnp.NPY_INT64:
                _copy_array(<const int64_t *>cnp.PyArray_DATA(ids), context.ids, ids_len)
            elif kind == cnp.NPY_INT32:
                _copy_array(<const int32_t *>cnp.PyArray_DATA(ids), context.ids, ids_len)
            else:
                raise TypeError("ids must be an array of uint32, int64 or int32")
        except TypeError:
            self.give_back(context)
            raise
        return self.decode_ids(context.ids, ids_len, options, context)

    cdef str decode_ids(self, const uint32_t *first, size_t ids_len, uint32_t options,
                        _Context context):
        cdef size_t cap = 16 * ids_len + 256, text_len = 0
        cdef size_t cap_text
        cdef _Context holder = context  # whose ids these may be
        cdef ptk_verdict verdict
        cdef int attempt
        for attempt in range(8):
            context.reserve_text(cap)
            if ids_len <= IDS_LEN_QUICK:
                # Letting other threads in would cost more than the work takes.
                verdict = ptk_tokenizer_decode(self.tokenizer, context.work, first, ids_len,
                                               options, context.text, context.bytes_cap, &text_len)
            else:
                with nogil:
                    verdict = ptk_tokenizer_decode(self.tokenizer, context.work, first, ids_len,
                                                   options, context.text, context.bytes_cap,
                                                   &text_len)
            if verdict == PTK_VERDICT_OK:
                text = _text(context.text, text_len, ptk_tokenizer_checks_text(self.tokenizer))
                if text is None:  # The core promises otherwise: say where it is wrong.
                    PyUnicode_DecodeUTF8(<char *>context.text, <Py_ssize_t>text_len, NULL)
                self.give_back(holder)
                return text
            if verdict == PTK_VERDICT_REPLY_TOO_LONG:
                cap *= 4
            elif verdict == PTK_VERDICT_TEXT_TOO_LONG:
                cap_text = 4 * context.text_cap
                context = _Context()
                context.grow(cap_text, False)
            else:
                break
        self.give_back(holder)
        raise Refused(<int>verdict)

    def piece(self, token_id, bint skip_special):
        """What an id adds to a text that has begun, as str; None where it takes the window to say.

        That is: where it depends on other ids, is no whole characters, nothing or only spaces, or
        ends in U+FFFD.
        """
        cdef const uint8_t *bytes_ = NULL
        cdef size_t len_ = 0, spaces = 0
        cdef long value = one_digit(<PyObject *>token_id)
        if value < 0 or not ptk_tokenizer_piece(
                self.tokenizer, <uint32_t>value, skip_special, &bytes_, &len_):
            return None
        while spaces < len_ and (bytes_[spaces] == 32 or 9 <= bytes_[spaces] <= 13):
            spaces += 1
        if spaces == len_ or (len_ >= 3 and memcmp(bytes_ + len_ - 3, b"\xef\xbf\xbd", 3) == 0):
            return None
        return _text(bytes_, len_, False)

    def decode_step(self, list ids, size_t given_count, size_t new_count, uint32_t options,
                    bint flush):
        """(text, dropped_count, given_count) of one step; ids are the window and the new ids."""
        cdef size_t ids_count = <size_t>len(ids), i
        cdef size_t cap = 32 * ids_count + 256
        cdef ptk_step_request request
        cdef ptk_step out
        cdef ptk_verdict verdict
        cdef int attempt
        cdef _Context context = self.borrow(4 * ids_count + 64, False)
        if given_count > ids_count or new_count > ids_count - given_count:
            raise ValueError("the context and the new ids are more than all ids")
        memset(&request, 0, sizeof(request))
        memset(&out, 0, sizeof(out))
        for attempt in range(8):
            if context.ids_cap < ids_count:
                context.reserve(ids_count)
            for i in range(ids_count):
                context.ids[i] = <uint32_t>ids[i]
            context.reserve_text(2 * cap)
            request.ids = context.ids
            request.ids_count = ids_count
            request.given_count = given_count
            request.new_count = new_count
            request.options = options
            request.flush = flush
            request.scratch = context.text
            request.scratch_cap = cap
            out.text = context.text + cap
            out.cap = cap
            with nogil:
                verdict = ptk_tokenizer_step(self.tokenizer, context.work, &request, &out)
            if verdict == PTK_VERDICT_OK:
                text = PyUnicode_DecodeUTF8(<char *>out.text, <Py_ssize_t>out.text_len, NULL)
                self.give_back(context)
                return text, out.dropped_count, out.given_count
            cap *= 4
            if verdict == PTK_VERDICT_TEXT_TOO_LONG:
                context.grow(context.text_cap * 4, False)
        raise Refused(<int>verdict)

    @property
    def config(self):
        """The model's scalars: ids_end, vocab_len, unk_id, bos_id, eos_id, pad_id, ... as a dict."""
        cdef const ptk_image_config *config = self.image.config
        return {
            "algorithm": config.algorithm,
            "flags": config.flags,
            "ids_end": config.ids_end,
            "vocab_len": config.vocab_len,
            "unk_id": config.unk_id,
            "bos_id": config.bos_id,
            "eos_id": config.eos_id,
            "pad_id": config.pad_id,
            "truncation_max": config.truncation_max,
            "truncation_stride": config.truncation_stride,
            "truncation_kind": config.truncation_kind,
            "padding_kind": config.padding_kind,
            "padding_len": config.padding_len,
            "padding_multiple": config.padding_multiple,
            "padding_id": config.padding_id,
            "padding_type_id": config.padding_type_id,
            "source": self.image.header.source,
            "profile": self.image.header.profile,
            "tag": self.image.header.tag,
        }

    @property
    def fingerprint(self):
        """SHA-256 of the source and everything else that decides the image: 32 bytes."""
        return bytes(self.image.header.fingerprint[:32])

    @property
    def image_len(self):
        """Bytes of the image in memory."""
        return self.image.len

    @property
    def certificate(self):
        """The certificate as JSON bytes; empty when the image has none."""
        return <bytes>self.image.certificate[:self.image.certificate_len]

    @property
    def meta(self):
        """Name, sources and the like as JSON bytes."""
        return <bytes>self.image.meta[:self.image.meta_len]

    def id_to_token(self, uint32_t token_id):
        """The vocabulary's own string of an id, as bytes of UTF-8, or None."""
        if token_id >= self.image.config.ids_end or not self.image.token_flags[token_id] & PTK_IMAGE_TOKEN_FLAGS_EXISTS:
            return None
        cdef uint32_t begin = self.image.token_text_offs[token_id]
        cdef uint32_t end = self.image.token_text_offs[token_id + 1]
        return <bytes>self.image.token_text[begin:end]

    def is_special(self, uint32_t token_id):
        """True when skip_special_tokens leaves the id out."""
        return (token_id < self.image.config.ids_end
                and (self.image.token_flags[token_id] & PTK_IMAGE_TOKEN_FLAGS_SPECIAL) != 0)

    @property
    def special_tokens(self):
        """The special tokens that are looked for in texts: what is matched, as bytes, and whether
        that is in the normalized text."""
        cdef uint32_t i
        cdef const ptk_image_added *token
        cdef list found = []
        for i in range(self.image.added_count):
            token = &self.image.added[i]
            if token.flags & PTK_IMAGE_ADDED_FLAGS_SPECIAL:
                matched = <bytes>self.image.strings[token.match_off:token.match_off + token.match_len]
                found.append((matched, (token.flags & PTK_IMAGE_ADDED_FLAGS_NORMALIZED) != 0))
        return found

    def id_to_bytes(self, uint32_t token_id):
        """What an id decodes to in the middle of a text, or None."""
        if token_id >= self.image.config.ids_end or not self.image.token_flags[token_id] & PTK_IMAGE_TOKEN_FLAGS_EXISTS:
            return None
        cdef uint32_t begin = self.image.token_bytes_offs[token_id]
        cdef uint32_t end = self.image.token_bytes_offs[token_id + 1]
        return <bytes>self.image.token_bytes[begin:end]


cdef class Coder:
    """What `pintok.Tokenizer` derives from: the calls that short texts make most, with their usual
    arguments. Everything else goes to `_encode_any`, `_count_any` and `_decode_any` of the
    deriving class."""

    cdef Model _core

    def __init__(self, Model model not None):
        self._core = model

    @property
    def _model(self):
        return self._core

    def encode(self, text, *, pair=None, bint add_special_tokens=True, parse_special="all",
               bint encode_special_tokens=False, bint bos=False, bint eos=False, truncation=None):
        """The ids of a text, or of a pair: uint32, shape (n,).

        `parse_special="none"` treats special tokens written in the text as ordinary text, and
        `encode_special_tokens` the same for those marked special only. `bos` and `eos` are for
        models whose source has no post-processor. Bytes must be UTF-8. The GIL is released for
        texts longer than 8 KiB.
        """
        if (pair is None and truncation is None and parse_special is "all" and self._core is not None
                and not (encode_special_tokens or bos or eos)):
            try:
                ids = self._core.short_ids(
                    text, DEFAULT_OPTIONS if add_special_tokens else PARSE_ONLY_OPTIONS)
            except UnicodeEncodeError:
                ids = None
            if ids is not None:
                return ids
        return self._encode_any(text, pair, add_special_tokens, parse_special,
                                encode_special_tokens, bos, eos, truncation)

    def count(self, text, *, pair=None, bint add_special_tokens=True, parse_special="all"):
        """How many ids `encode` would give, without making them."""
        cdef Py_ssize_t count
        if pair is None and parse_special is "all" and self._core is not None:
            try:
                count = self._core.short_count(
                    text, DEFAULT_OPTIONS if add_special_tokens else PARSE_ONLY_OPTIONS)
            except UnicodeEncodeError:
                count = -1
            if count >= 0:
                return count
        return self._count_any(text, pair, add_special_tokens, parse_special)

    def decode(self, ids, *, bint skip_special_tokens=False):
        """The text of the ids. Ids the vocabulary lacks are left out, bytes that are not UTF-8
        become U+FFFD, both as the reference does. Raises ValueError for ids outside of uint32.

        The GIL is released for more than 1024 ids.
        """
        if self._core is not None:
            try:
                return self._core.decode(
                    ids, PTK_WIRE_OPTIONS_SKIP_SPECIAL_TOKENS if skip_special_tokens else 0)
            except (TypeError, Refused):
                pass  # any other sequence, buffer or type of integers, or none; or refused
        return self._decode_any(ids, skip_special_tokens)


# ---- The table builders of the image: only `pintok_server.vocab` calls these. ----


cdef cnp.ndarray _rows_u32(size_t rows, size_t columns):
    cdef cnp.npy_intp shape[2]
    shape[0] = <cnp.npy_intp>rows
    shape[1] = <cnp.npy_intp>columns
    return cnp.PyArray_EMPTY(2, shape, cnp.NPY_UINT32, 0)


cdef ptk_build_keys _keys(const uint32_t[::1] offs, const uint8_t[::1] keys) except *:
    """Checked so that C may index: the offsets ascend from 0 to the length of the keys at most."""
    cdef ptk_build_keys out
    cdef Py_ssize_t i
    if offs.shape[0] < 2 or offs[0] != 0 or offs[offs.shape[0] - 1] > <size_t>keys.shape[0]:
        raise ValueError("key offsets do not fit the keys")
    for i in range(1, offs.shape[0]):
        if offs[i] < offs[i - 1]:
            raise ValueError("key offsets do not ascend")
    out.offs = &offs[0]
    out.bytes = &keys[0] if keys.shape[0] > 0 else NULL
    out.ids_end = <uint32_t>(offs.shape[0] - 1)
    return out


def build_pairs(const uint32_t[:, ::1] merges):
    """(table uint32 (capacity, 4), longest run) of merges (n, 4): left, right, rank, id."""
    cdef size_t count = <size_t>merges.shape[0]
    cdef size_t capacity = ptk_build_capacity(count)
    cdef uint32_t probe_max = 0
    cdef const ptk_image_pair *first = <const ptk_image_pair *>&merges[0, 0] if count > 0 else NULL
    cdef ptk_image_pair *table
    cdef int code
    if merges.shape[1] != 4:
        raise ValueError("merges must have four columns")
    while True:
        out = _rows_u32(capacity, 4)
        table = <ptk_image_pair *>cnp.PyArray_DATA(out)
        with nogil:
            code = ptk_build_pairs(first, count, table, capacity, &probe_max)
        if code == 0:
            return out, probe_max
        capacity *= 2


def build_vocab(const uint32_t[::1] offs, const uint8_t[::1] keys):
    """(table uint32 (capacity,), longest run). Raises SetupError for two ids with one key."""
    cdef ptk_build_keys view = _keys(offs, keys)
    cdef size_t i, count = 0
    for i in range(view.ids_end):
        count += offs[i + 1] != offs[i]
    cdef size_t capacity = ptk_build_capacity(count)
    cdef uint32_t probe_max = 0, duplicate = 0
    cdef uint32_t *table
    cdef int code
    while True:
        out = _rows_u32(capacity, 1)
        table = <uint32_t *>cnp.PyArray_DATA(out)
        with nogil:
            code = ptk_build_vocab(&view, table, capacity, &probe_max, &duplicate)
        if code == 0:
            return out.reshape(-1), probe_max
        if code != -ENOSPC:
            raise SetupError(code, f"the token of id {duplicate} stands in the vocabulary twice")
        capacity *= 2


def build_pieces(const uint8_t[:, ::1] pieces):
    """(table uint8 (capacity, 32), buckets read at most) of image_piece rows (n, 32)."""
    cdef size_t count = <size_t>pieces.shape[0]
    cdef size_t capacity = ptk_build_piece_capacity(count)
    cdef uint32_t probe_max = 0
    cdef const ptk_image_piece *first = NULL
    cdef ptk_image_piece *table
    cdef int code
    if pieces.shape[1] != 32:
        raise ValueError("pieces must have 32 columns")
    if count > 0:
        first = <const ptk_image_piece *>&pieces[0, 0]
    while True:
        out = _rows_u32(capacity, 8)
        table = <ptk_image_piece *>cnp.PyArray_DATA(out)
        with nogil:
            code = ptk_build_pieces(first, count, table, capacity, &probe_max)
        if code == 0:
            return out, probe_max
        capacity *= 2


def build_trie(const uint32_t[::1] offs, const uint8_t[::1] keys, const uint32_t[::1] ids):
    """Units of the double array, uint32 (n, 2), over the keys of `ids`, which ascend by key."""
    cdef ptk_build_keys view = _keys(offs, keys)
    cdef size_t count = <size_t>ids.shape[0]
    cdef const uint32_t *first = &ids[0] if count > 0 else NULL
    cdef ptk_image_trie_unit *units = NULL
    cdef uint32_t unit_count = 0
    cdef size_t i
    cdef int code
    for i in range(count):
        if ids[i] >= view.ids_end:
            raise ValueError("an id has no key")
    with nogil:
        code = ptk_build_trie(&view, first, count, &units, &unit_count)
    if code != 0:
        raise SetupError(code, "the trie of the vocabulary does not fit an image")
    out = _rows_u32(unit_count, 2)
    memcpy(cnp.PyArray_DATA(out), units, 8 * <size_t>unit_count)
    ptk_build_free(units)
    return out


def build_rank_merges(const uint32_t[::1] offs, const uint8_t[::1] keys,
                      const uint32_t[::1] table, const uint32_t[::1] ranks):
    """(merges uint32 (n, 4), reachable uint8 (ids,)) of a vocabulary that has ranks only."""
    cdef ptk_build_keys view = _keys(offs, keys)
    cdef size_t capacity = <size_t>table.shape[0], count = 0
    if <size_t>ranks.shape[0] != view.ids_end or capacity < 2 or capacity & (capacity - 1):
        raise ValueError("ranks or table do not fit the keys")
    merges = _rows_u32(view.ids_end, 4)
    cdef cnp.npy_intp shape = <cnp.npy_intp>view.ids_end
    reachable = cnp.PyArray_EMPTY(1, &shape, cnp.NPY_UINT8, 0)
    cdef ptk_image_pair *merges_out = <ptk_image_pair *>cnp.PyArray_DATA(merges)
    cdef uint8_t *reachable_out = <uint8_t *>cnp.PyArray_DATA(reachable)
    cdef int code
    with nogil:
        code = ptk_build_rank_merges(&view, &table[0], capacity, &ranks[0], merges_out, &count,
                                     reachable_out)
    if code != 0:
        raise SetupError(code, "a byte has no token, or a token is longer than 2048 bytes")
    return merges[:count], reachable


cdef ptk_build_tables _tables(const uint32_t[::1] table, const uint32_t[:, ::1] pairs,
                              const uint32_t[::1] byte_ids) except *:
    """The tables that merging one token alone reads; without `byte_ids` it starts from characters."""
    cdef ptk_build_tables out
    if table.shape[0] < 2 or pairs.shape[0] < 2 or pairs.shape[1] != 4:
        raise ValueError("tables must come from build_vocab and build_pairs")
    out.vocab = &table[0]
    out.vocab_capacity = <size_t>table.shape[0]
    out.pairs = <const ptk_image_pair *>&pairs[0, 0]
    out.pair_capacity = <size_t>pairs.shape[0]
    out.byte_ids = NULL
    if byte_ids is not None:
        if byte_ids.shape[0] != 256:
            raise ValueError("byte_ids must have 256 entries")
        out.byte_ids = &byte_ids[0]
    return out


def prune_merges(const uint32_t[::1] offs, const uint8_t[::1] keys, const uint32_t[::1] table,
                 const uint32_t[:, ::1] pairs, const uint32_t[:, ::1] merges,
                 const uint32_t[::1] byte_ids):
    """(keep uint8 (merges,), reachable uint8 (ids,)): merges and ids that a text can ever yield."""
    cdef ptk_build_keys view = _keys(offs, keys)
    cdef ptk_build_tables tables = _tables(table, pairs, byte_ids)
    cdef size_t count = <size_t>merges.shape[0], i
    cdef int code
    if count == 0 or merges.shape[1] != 4:
        raise ValueError("merges must have four columns and at least one row")
    for i in range(count):
        if merges[i, 3] >= view.ids_end:
            raise ValueError("a merge makes an id that has no key")
    cdef cnp.npy_intp shape = <cnp.npy_intp>count
    keep = cnp.PyArray_EMPTY(1, &shape, cnp.NPY_UINT8, 0)
    shape = <cnp.npy_intp>view.ids_end
    reachable = cnp.PyArray_EMPTY(1, &shape, cnp.NPY_UINT8, 0)
    cdef uint8_t *keep_out = <uint8_t *>cnp.PyArray_DATA(keep)
    cdef uint8_t *reachable_out = <uint8_t *>cnp.PyArray_DATA(reachable)
    cdef const ptk_image_pair *first = <const ptk_image_pair *>&merges[0, 0]
    with nogil:
        code = ptk_build_prune_merges(&view, &tables, first, count, keep_out, reachable_out)
    if code != 0:
        raise MemoryError
    return keep, reachable


def seed_pieces(const uint32_t[::1] offs, const uint8_t[::1] keys, const uint32_t[::1] table,
                const uint32_t[:, ::1] pairs, const uint32_t[::1] byte_ids,
                const uint32_t[::1] text_offs, const uint8_t[::1] texts, *, bint whole,
                bint space_marks):
    """image_piece rows, uint8 (n, 32), of those texts whose ids as whole pieces are certain."""
    cdef ptk_build_keys view = _keys(offs, keys)
    cdef ptk_build_tables tables = _tables(table, pairs, byte_ids)
    cdef ptk_build_keys text_view = _keys(text_offs, texts)
    cdef ptk_build_seeds seeds
    cdef size_t written = 0
    cdef int code
    seeds.offs = text_view.offs
    seeds.bytes = text_view.bytes
    seeds.count = text_view.ids_end
    seeds.whole = whole
    seeds.space_marks = space_marks
    cdef cnp.npy_intp shape[2]
    shape[0] = <cnp.npy_intp>seeds.count
    shape[1] = 32
    out = cnp.PyArray_EMPTY(2, shape, cnp.NPY_UINT8, 0)
    if seeds.count == 0:
        return out
    cdef ptk_image_piece *rows = <ptk_image_piece *>cnp.PyArray_DATA(out)
    with nogil:
        code = ptk_build_seed_pieces(&view, &tables, &seeds, rows, &written)
    if code != 0:
        raise MemoryError
    return out[:written]


def normalize(const uint8_t[::1] program, uint32_t profile, const uint8_t[::1] text):
    """What a normalizer program makes of one text of valid UTF-8, as bytes.

    Raises SetupError for a program that cannot run, Refused where it gives the text up.
    """
    cdef ptk_norm_config config
    cdef ptk_norm_limits limits
    cdef ptk_norm_section section
    cdef ptk_split_text result
    cdef ptk_norm *norm = NULL
    cdef ptk_verdict verdict = PTK_VERDICT_OK
    cdef ptk_err err
    cdef void *memory
    cdef int code, attempt
    if text.shape[0] == 0 or program.shape[0] == 0:
        return bytes(text)
    memset(&config, 0, sizeof(config))
    memset(&limits, 0, sizeof(limits))
    memset(&section, 0, sizeof(section))
    config.program = &program[0]
    config.program_len = <size_t>program.shape[0]
    config.profile = profile
    section.bytes = &text[0]
    section.len = <size_t>text.shape[0]
    code = ptk_norm_open(&config, &norm, &err)
    if code != 0:
        raise SetupError(code, err.text.decode())
    try:
        limits.text_len_max = 4096
        for attempt in range(12):
            memory = aligned_alloc(64, _round_up(ptk_norm_work_len(&limits)))
            if memory == NULL:
                raise MemoryError
            try:
                verdict = ptk_norm_run(norm, ptk_norm_work_init(memory, &limits), &section, &result)
                if verdict == PTK_VERDICT_OK:
                    return <bytes>result.bytes[:result.len]
            finally:
                free(memory)
            if verdict != PTK_VERDICT_TEXT_TOO_LONG:
                break
            limits.text_len_max *= 4
        raise Refused(<int>verdict)
    finally:
        ptk_norm_close(norm)


def build_neighbours(const uint8_t[::1] image):
    """(neighbours, neighbour_chars, unigram_neighbours): the sections as bytes, empty where the
    model needs none, of an image with or without them. Raises SetupError where it cannot be opened."""
    cdef ptk_image view
    cdef ptk_tokenizer *tokenizer = NULL
    cdef ptk_err err
    cdef size_t length = <size_t>image.shape[0]
    cdef cnp.npy_intp shape = <cnp.npy_intp>(length + 64)
    room = cnp.PyArray_EMPTY(1, &shape, cnp.NPY_UINT8, 0)
    cdef size_t start = <size_t>cnp.PyArray_DATA(room)
    cdef uint8_t *copy = <uint8_t *>((start + 63) & ~<size_t>63)
    cdef int code
    if length == 0:
        raise ValueError("an image is not empty")
    memset(&err, 0, sizeof(err))
    with nogil:
        memcpy(copy, &image[0], length)
        code = ptk_image_view(copy, length, &view, &err)
        if code == 0:
            code = ptk_tokenizer_open(&view, &tokenizer, &err)
    if code != 0:
        raise SetupError(code, err.text.decode())
    try:
        return _neighbours_of(tokenizer)
    finally:
        ptk_tokenizer_close(tokenizer)


cdef tuple _neighbours_of(const ptk_tokenizer *tokenizer):
    cdef const ptk_image_neighbours *bpe = ptk_tokenizer_neighbours(tokenizer)
    cdef const ptk_image_unigram_neighbours *unigram = ptk_tokenizer_unigram_neighbours(tokenizer)
    cdef cnp.npy_intp shape = <cnp.npy_intp>ptk_tokenizer_neighbour_chars(tokenizer, NULL)
    chars = cnp.PyArray_EMPTY(1, &shape, cnp.NPY_UINT32, 0)
    ptk_tokenizer_neighbour_chars(tokenizer, <uint32_t *>cnp.PyArray_DATA(chars))
    return (
        (<const char *>bpe)[:sizeof(ptk_image_neighbours)] if bpe != NULL else b"",
        chars.tobytes(),
        (<const char *>unigram)[:sizeof(ptk_image_unigram_neighbours)] if unigram != NULL else b"",
    )


def image_checksum(const uint8_t[::1] image):
    """The checksum that belongs into the header of these bytes of an image."""
    if image.shape[0] < 128 or image.shape[0] % 64 != 0:
        raise ValueError("an image has at least 128 bytes and a multiple of 64")
    return ptk_image_checksum(&image[0], <size_t>image.shape[0])


def crc32c(const uint8_t[::1] data):
    """CRC32C of the bytes, as in the header of a message."""
    cdef size_t length = <size_t>data.shape[0]
    cdef uint32_t crc
    if length == 0:
        return 0
    with nogil:
        crc = ptk_crc32c(&data[0], length)
    return crc
