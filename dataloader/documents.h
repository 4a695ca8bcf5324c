/* documents.h: cuts a block of text (text_source.h) into documents: the string under "text" of each
 * JSON line, or what lies between form feeds. Knows no tokenizer. */
#ifndef LASER_DOCUMENTS_H
#define LASER_DOCUMENTS_H

#include <cstdint>
#include <string>
#include <vector>

#include "dataloader/text_source.h"

struct BadLine {
    int64_t line;      /* in the block, from 0 */
    int64_t offset;    /* in the uncompressed file */
    const char *fault; /* "is not JSON", ... */
};

struct Documents {
    std::string text;         /* of all documents, back to back */
    std::vector<size_t> ends; /* of each in text */
    std::vector<BadLine> bad;
    int64_t lines = 0, empty = 0;
};

/* Documents of white space alone are counted as empty and left out; blank lines of JSON count as
 * nothing. Any byte comes through as it is. In JSON an escaped surrogate without its partner
 * becomes U+FFFD, and so does the escape of NUL unless keep_nul. */
void documents_cut(const Block &block, bool keep_nul, Documents *d);

#endif
