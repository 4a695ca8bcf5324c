/* text_source.h: reads text files, plain or gzipped, in blocks of whole records, and hashes the
 * bytes of the files as it reads them. A file named *.json, *.jsonl (or either with .gz) has one
 * JSON object a line; in any other file form feeds separate documents. Knows neither documents nor
 * a tokenizer, and ends no program: a file that cannot be read on is a block with a fault. */
#ifndef LASER_TEXT_SOURCE_H
#define LASER_TEXT_SOURCE_H

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

enum { BLOCK_BYTES = 1 << 18 }; /* of text in a block, unless one record has more */

struct Block {
    size_t file = 0;    /* index of the input */
    bool json = false;  /* records are lines, else they end with form feeds */
    std::string data;   /* whole records, delimiters included; may be empty at the end of a file */
    int64_t offset = 0; /* of data in the uncompressed file */
    int64_t read = 0;   /* bytes of the file itself, as it lies on disk, read so far */
    bool last = false;  /* of its file: read is the file's size, sha256 is set */
    std::string sha256; /* of the file itself, 64 hexadecimal digits */
    std::string fault;  /* not empty: what is wrong, naming file and byte; no block follows */
};

struct Source;
/* Reads the files from number first on; paths must outlive the source. */
Source *source_open(const std::vector<std::string> *paths, size_t first);
/* The next block, the last one of each file included; false after the last file. Where blocks end
 * depends on the text alone. */
bool source_next(Source *s, Block *block);
void source_close(Source *s);

/* SHA-256 as 64 hexadecimal digits. */
std::string sha256_hex(const std::string &data);

#endif
