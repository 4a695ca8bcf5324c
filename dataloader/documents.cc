/* documents.cc: see documents.h. The JSON is cJSON's to read. It returns C strings and refuses
 * halves of surrogate pairs, so such escapes are rewritten before it reads, and put right after. */
#include "dataloader/documents.h"

#include <cjson/cJSON.h>

#include <cstring>

/* Stands for NUL while cJSON reads: FF is no part of any UTF-8, and is doubled where it is text. */
static const char mark = '\xff', mark_nul = '0';

/* The four hexadecimal digits at s, -1 if they are not. */
static int code_unit(const char *s, const char *end) {
    int value = 0;
    for (int i = 0; i < 4; i++, s++) {
        if (s == end) return -1;
        const char c = *s;
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* Bytes of the escape at s (a backslash); *instead is set to what cJSON is to read in its place. */
static size_t read_escape(const char *s, const char *end, bool keep_nul, const char **instead) {
    static const char replacement[] = "\xef\xbf\xbd", nul[] = {mark, mark_nul, 0};
    if (end - s < 2) return 1;
    if (s[1] != 'u') return 2;
    const int unit = code_unit(s + 2, end);
    if (unit < 0) return 2; /* cJSON refuses it */
    if (unit == 0) *instead = keep_nul ? nul : replacement;
    if (unit < 0xd800 || unit > 0xdfff) return 6;
    const int second =
        unit < 0xdc00 && end - s >= 12 && s[6] == '\\' && s[7] == 'u' ? code_unit(s + 8, end) : -1;
    if (second >= 0xdc00 && second <= 0xdfff) return 12;
    *instead = replacement;
    return 6;
}

/* Whether the eight characters at s are ASCII, and none of them a control character, a quotation
 * mark or a backslash. The usual arithmetic on bytes: x - 1 has its high bit set where x was 0. */
static bool all_plain(const char *s) {
    const uint64_t ones = 0x0101010101010101;
    uint64_t w;
    memcpy(&w, s, 8);
    const uint64_t quote = w ^ (ones * '"'), backslash = w ^ (ones * '\\');
    return ((w | (w - ones * 0x20) | (quote - ones) | (backslash - ones)) & (ones << 7)) == 0;
}

/* Copies a line for cJSON, which takes control characters in strings that JSON does not allow:
 * false for those. */
static bool prepare_line(const char *line, size_t size, bool keep_nul, std::string *prepared) {
    const char *const end = line + size, *from = line;
    bool in_string = false;
    prepared->clear();
    for (const char *s = line; s < end;) {
        if (end - s >= 8 && all_plain(s)) {
            s += 8;
            continue;
        }
        const unsigned char c = (unsigned char)*s;
        const char *instead = nullptr;
        size_t n = 1;
        if (c == '"')
            in_string = !in_string;
        else if (c == '\\')
            n = read_escape(s, end, keep_nul, &instead);
        else if (*s == mark)
            instead = "\xff\xff";
        else if (c == 0 || (c < 0x20 && in_string))
            return false;
        if (instead) {
            prepared->append(from, s).append(instead);
            from = s + n;
        }
        s += n;
    }
    prepared->append(from, end);
    return true;
}

static void append_text(const char *value, std::string *text) {
    const char *from = value, *found;
    while ((found = strchr(from, mark))) {
        text->append(from, found);
        *text += found[1] == mark_nul ? '\0' : mark;
        from = found + 2;
    }
    text->append(from);
}

/* Appends the document of a line; returns what is wrong with the line, or NULL. */
static const char *read_line(const std::string &line, std::string *text) {
    const char *end = nullptr;
    cJSON *object = cJSON_ParseWithLengthOpts(line.c_str(), line.size() + 1, &end, 1);
    if (!object) return "is not JSON";
    const cJSON *field = cJSON_GetObjectItemCaseSensitive(object, "text");
    const bool good = cJSON_IsString(field);
    if (good) append_text(field->valuestring, text);
    cJSON_Delete(object);
    return good ? nullptr : "has no string under \"text\"";
}

static bool is_blank(const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!strchr(" \t\r\n", s[i]) || s[i] == '\0') return false;
    return true;
}

void documents_cut(const Block &block, bool keep_nul, Documents *d) {
    const char delimiter = block.json ? '\n' : '\f';
    const std::string &data = block.data;
    std::string prepared;
    for (size_t begin = 0, end; begin < data.size(); begin = end + 1, d->lines++) {
        end = data.find(delimiter, begin);
        if (end == std::string::npos) end = data.size();
        const char *record = data.data() + begin;
        const size_t size = end - begin, old = d->text.size();
        if (!block.json) {
            d->text.append(record, size);
        } else {
            if (is_blank(record, size)) continue;
            const char *fault = prepare_line(record, size, keep_nul, &prepared)
                                    ? read_line(prepared, &d->text)
                                    : "is not JSON: it holds a control character";
            if (fault) d->bad.push_back({d->lines, block.offset + (int64_t)begin, fault});
            if (fault) continue;
        }
        if (is_blank(d->text.data() + old, d->text.size() - old)) {
            d->text.resize(old);
            d->empty++;
        } else {
            d->ends.push_back(d->text.size());
        }
    }
}
