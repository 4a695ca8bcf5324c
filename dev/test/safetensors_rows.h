/* safetensors_rows.h: one row per way in which a safetensors file can be wrong, and the odd ones
 * that are right. Included by test_runs.c alone. */
#ifndef DEV_TEST_SAFETENSORS_ROWS_H
#define DEV_TEST_SAFETENSORS_ROWS_H

#include <stddef.h>

typedef struct StRow {
    const char *what, *header;
    int data;         /* bytes behind the header */
    const char *said; /* part of the message; NULL: the file is good */
} StRow;

#define F32(b, e, ...)                                                                             \
    "{\"dtype\":\"F32\",\"shape\":[" #__VA_ARGS__ "],\"data_offsets\":[" #b "," #e "]}"
#define LONG64 "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static const StRow st_rows[] = {
    {"good: two", "{\"a\":" F32(0, 8, 2) ",\"b\":" F32(8, 12, 1) "}", 12, NULL},
    {"good: padded", "{\"a\":" F32(0, 8, 2) "}     ", 8, NULL},
    {"good: spaces inside", "{ \"a\" : " F32(0, 8, 2) "\n}", 8, NULL},
    {"good: not in the order of the bytes", "{\"b\":" F32(8, 12, 1) ",\"a\":" F32(0, 8, 2) "}", 12,
        NULL},
    {"good: empty tensors share a place",
        "{\"a\":" F32(0, 8, 2) ",\"b\":" F32(8, 8, 0) ",\"c\":" F32(8, 8, 5, 0) ",\"d\":" F32(
            8, 12, 1) "}",
        12, NULL},
    {"good: nothing", "{}", 0, NULL},
    {"good: empty metadata", "{\"__metadata__\":{}}", 0, NULL},
    {"good: four dimensions", "{\"a\":" F32(0, 96, 1, 2, 3, 4) "}", 96, NULL},
    {"good: zero beside a huge dimension",
        "{\"a\":" F32(0, 0, 9007199254740991, 9007199254740991, 0) "}", 0, NULL},
    {"good: longest name", "{\"" LONG64 LONG64 "\":" F32(0, 4, 1) "}", 4, "at most 127"},
    {"not JSON", "{\"a\":", 0, "not one JSON object"},
    {"empty header", "", 0, "not one JSON object"},
    {"a list", "[]", 0, "not one JSON object"},
    {"leading space", " {}", 0, "not one JSON object"},
    {"text behind the object", "{} x", 0, "not one JSON object"},
    {"two objects", "{}{}", 0, "not one JSON object"},
    {"bad UTF-8", "{\"\xff\":" F32(0, 4, 1) "}", 4, "not UTF-8"},
    {"overlong UTF-8", "{\"\xc0\xaf\":" F32(0, 4, 1) "}", 4, "not UTF-8"},
    {"entry is a number", "{\"a\":1}", 0, "tensor a"},
    {"entry is a list", "{\"a\":[1,2,3]}", 0, "tensor a"},
    {"no dtype", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "expected dtype"},
    {"no shape", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "expected dtype"},
    {"no data_offsets", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "expected dtype"},
    {"dtype twice",
        "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
        "each once"},
    {"unknown member", "{\"a\":{\"x\":1,\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
        4, "nothing else"},
    {"dtype is a number", "{\"a\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
        "not a string"},
    {"dtype unknown", "{\"a\":{\"dtype\":\"F99\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
        "dtype F99"},
    {"dtype in lower case", "{\"a\":{\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
        "dtype f32"},
    {"shape is a number", "{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4,
        "not a list"},
    {"negative dimension", "{\"a\":" F32(0, 4, -1) "}", 4, "dimension 0"},
    {"fraction of a dimension", "{\"a\":" F32(0, 4, 1, 1.5) "}", 4, "dimension 1"},
    {"dimension is a string", "{\"a\":" F32(0, 4, "1") "}", 4, "dimension 0"},
    {"dimension above 2^53", "{\"a\":" F32(0, 4, 9007199254740993) "}", 4, "dimension 0"},
    {"dimension is huge", "{\"a\":" F32(0, 4, 1e300) "}", 4, "dimension 0"},
    {"five dimensions", "{\"a\":" F32(0, 4, 1, 1, 1, 1, 1) "}", 4, "5 dimensions"},
    {"shape overflows to 4", "{\"a\":" F32(0, 4, 4294967296, 4294967296) "}", 4, "overflows"},
    {"shape overflows by the type", "{\"a\":" F32(0, 4, 4503599627370496, 1024) "}", 4,
        "overflows"},
    {"offsets are a number", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":4}}", 4,
        "not a pair"},
    {"one offset", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4]}}", 4,
        "not a pair"},
    {"three offsets", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}}", 4,
        "not a pair"},
    {"negative offset", "{\"a\":" F32(-4, 0, 1) "}", 4, "not a pair"},
    {"ends before it begins", "{\"a\":" F32(8, 4, 1) "}", 8, "before it begins"},
    {"beyond the file", "{\"a\":" F32(0, 8, 2) "}", 4, "of which the file holds 4"},
    {"one byte short", "{\"a\":" F32(0, 8, 2) "}", 7, "of which the file holds 7"},
    {"far beyond the file", "{\"a\":" F32(0, 9007199254740988, 2251799813685247) "}", 4,
        "of which the file holds 4"},
    {"shape larger than its bytes", "{\"a\":" F32(0, 8, 3) "}", 8, "needs 12 bytes"},
    {"shape smaller than its bytes", "{\"a\":" F32(0, 8, 1) "}", 8, "needs 4 bytes"},
    {"zero dimension with bytes", "{\"a\":" F32(0, 8, 0) "}", 8, "needs 0 bytes"},
    {"hole at the start", "{\"a\":" F32(4, 8, 1) "}", 8, "leaving a hole"},
    {"hole between", "{\"a\":" F32(0, 4, 1) ",\"b\":" F32(8, 12, 1) "}", 12, "leaving a hole"},
    {"overlap", "{\"a\":" F32(0, 8, 2) ",\"b\":" F32(4, 12, 2) "}", 12, "overlapping"},
    {"the same bytes twice", "{\"a\":" F32(0, 8, 2) ",\"b\":" F32(0, 8, 2) "}", 8, "overlapping"},
    {"bytes behind the last tensor", "{\"a\":" F32(0, 8, 2) "}", 9, "has 9 bytes"},
    {"data without tensors", "{}", 4, "has 4 bytes"},
    {"a name twice", "{\"a\":" F32(0, 4, 1) ",\"a\":" F32(4, 8, 1) "}", 8,
        "two tensors are named a"},
    {"metadata is a string", "{\"__metadata__\":\"x\"}", 0, "__metadata__ is not"},
    {"metadata holds a number", "{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ is not"},
    {"metadata twice", "{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ twice"},
};

#undef F32
#undef LONG64

#endif
