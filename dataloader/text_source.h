/* text_source.h: documents out of text files and JSON lines, plain or gzipped. Knows no tokenizer.
 * A file named *.json, *.jsonl (or either with .gz) has one JSON object a line, its document under
 * "text"; any other file is text: one document, or several separated by form feeds. */
#ifndef LASER_TEXT_SOURCE_H
#define LASER_TEXT_SOURCE_H

#include <cstdint>
#include <string>
#include <vector>
#include <zlib.h>

/* All documents of all inputs, in order. */
struct Source {
    const std::vector<std::string> *paths;
    size_t file = 0;     /* index of the open one, or of the next */
    gzFile gz = nullptr; /* reads plain files too */
    bool json = false, at_end = false, quiet = false;
    std::string buffer; /* uncompressed bytes not yet handed out start at used */
    size_t used = 0;
    int64_t line = 0, offset = 0; /* of the next record, offset in the uncompressed text */
    int64_t documents = 0, empty = 0, bad_lines = 0, nul = 0;
};

/* The next document that is not empty; false after the last. Bad lines are counted and left out,
 * the first few by name. Dies (EXIT_INPUT) naming file and byte where a file cannot be read. */
bool source_next(Source *s, std::string *text);
void source_close(Source *s); /* where reading stops before the end */

#endif
