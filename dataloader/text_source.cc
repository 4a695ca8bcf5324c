/* text_source.cc: cuts text files and JSON lines, plain or gzipped, into documents. A damaged line
 * is left out and counted; a damaged file ends the program. Knows no tokenizer. */
#include "dataloader/text_source.h"

#include "laser/base.h"

#include <cjson/cJSON.h>

#include <cerrno>
#include <cinttypes>
#include <cstring>

static bool has_suffix(const std::string &name, const char *suffix) {
    const size_t n = strlen(suffix);
    return name.size() >= n && name.compare(name.size() - n, n, suffix) == 0;
}

static void source_open_file(Source *s) {
    const std::string &path = (*s->paths)[s->file];
    std::string name = path;
    if (has_suffix(name, ".gz")) name.resize(name.size() - 3);
    s->json = has_suffix(name, ".json") || has_suffix(name, ".jsonl");
    fclose(xfopen(path.c_str(), "rb")); /* says why a file cannot be opened; gzopen does not */
    s->gz = gzopen(path.c_str(), "rb");
    if (!s->gz) die(EXIT_INPUT, "%s: cannot be opened: %s.", path.c_str(), strerror(errno));
    gzbuffer(s->gz, 1 << 18);
    s->at_end = false;
    s->buffer.clear();
    s->used = 0;
    s->line = 0;
    s->offset = 0;
}

static void source_close_file(Source *s) {
    gzclose(s->gz);
    s->gz = nullptr;
    s->file++;
}

/* Appends the next uncompressed bytes of the open file to the buffer. */
static void source_read(Source *s) {
    enum { CHUNK = 1 << 20 };
    s->buffer.erase(0, s->used);
    s->used = 0;
    const size_t have = s->buffer.size();
    if (have > (size_t)1 << 30)
        die(EXIT_INPUT,
            "%s: byte %" PRId64 ": a document of more than 1 GiB starts here. Separate "
            "its parts with form feeds.",
            (*s->paths)[s->file].c_str(), s->offset);
    s->buffer.resize(have + CHUNK);
    const int n = gzread(s->gz, &s->buffer[have], CHUNK);
    int status = Z_OK;
    const char *reason = gzerror(s->gz, &status);
    /* Z_BUF_ERROR after the last bytes: the compressed stream stops before its end */
    if (n < 0 || (n < CHUNK && status != Z_OK && status != Z_STREAM_END))
        die(EXIT_INPUT,
            "%s: byte %" PRId64 " (of the compressed file): %s. The file is damaged or "
            "was not copied whole: copy it again.",
            (*s->paths)[s->file].c_str(), (int64_t)gzoffset(s->gz),
            status == Z_ERRNO ? strerror(errno) : reason);
    s->buffer.resize(have + (size_t)n);
    s->at_end = n < CHUNK;
}

/* The next record of the open file, up to the delimiter or the file's end; false at the end. */
static bool source_record(Source *s, char delimiter, std::string *record) {
    size_t searched = s->used, found;
    while ((found = s->buffer.find(delimiter, searched)) == std::string::npos && !s->at_end) {
        searched = s->buffer.size() - s->used;
        source_read(s);
    }
    if (found == std::string::npos) {
        if (s->used == s->buffer.size()) return false;
        record->assign(s->buffer, s->used, std::string::npos);
        s->used = s->buffer.size();
    } else {
        record->assign(s->buffer, s->used, found - s->used);
        s->used = found + 1;
    }
    s->offset += (int64_t)record->size() + (found != std::string::npos);
    s->line++;
    return true;
}

/* cJSON returns C strings, which end at a NUL character: the escape for it becomes U+FFFD. */
static int64_t replace_nul_escapes(std::string *line) {
    int64_t count = 0;
    for (size_t i = 0; i + 1 < line->size(); i++) {
        if ((*line)[i] != '\\') continue;
        if (line->compare(i, 6, "\\u0000") == 0) {
            line->replace(i, 6, "\\ufffd");
            count++;
        }
        i++; /* past the escaped character, which may be a backslash */
    }
    return count;
}

static const char *parse_line(Source *s, std::string *line, std::string *text) {
    if (line->find('\0') != std::string::npos) return "holds a NUL byte";
    s->nul += replace_nul_escapes(line);
    const char *end = nullptr;
    cJSON *object = cJSON_ParseWithOpts(line->c_str(), &end, 1 /* nothing may follow */);
    if (!object) return "is not JSON";
    const cJSON *field = cJSON_GetObjectItemCaseSensitive(object, "text");
    const bool good = cJSON_IsString(field);
    if (good) *text = field->valuestring;
    cJSON_Delete(object);
    return good ? nullptr : "has no string under \"text\"";
}

static bool source_json(Source *s, std::string *text) {
    enum { NAMED = 10 };
    std::string line;
    for (;;) {
        const int64_t offset = s->offset;
        if (!source_record(s, '\n', &line)) return false;
        if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
        const char *fault = parse_line(s, &line, text);
        if (!fault) return true;
        s->bad_lines++;
        if (s->quiet) continue;
        if (s->bad_lines <= NAMED)
            warn("%s: line %" PRId64 " (byte %" PRId64 ") %s; it is left out.",
                (*s->paths)[s->file].c_str(), s->line, offset, fault);
        else if (s->bad_lines == NAMED + 1)
            warn("more lines are bad; they are counted, not named.");
    }
}

bool source_next(Source *s, std::string *text) {
    while (s->file < s->paths->size()) {
        if (!s->gz) source_open_file(s);
        if (!(s->json ? source_json(s, text) : source_record(s, '\f', text))) {
            source_close_file(s);
        } else if (text->find_first_not_of(" \t\r\n") == std::string::npos) {
            s->empty++;
        } else {
            s->documents++;
            return true;
        }
    }
    return false;
}

void source_close(Source *s) {
    if (s->gz) source_close_file(s);
}
