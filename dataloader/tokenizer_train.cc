/* tokenizer_train.cc: the one recipe for a vocabulary (FORMAT.md). */
#include <sentencepiece_trainer.h>

#include <cinttypes>
#include <unordered_map>

#include "dataloader/tokenizer.h"
#include "laser/base.h"

/* The library leaves long sentences out. Cut at newlines, which are pieces of their own, else at a
 * space, else between characters. */
void sentences_add(const std::string &text, std::vector<std::string> *sentences) {
    enum { LONGEST = 4000 };
    size_t begin = 0;
    while (begin < text.size()) {
        size_t end = text.find('\n', begin);
        size_t next = end + 1;
        if (end == std::string::npos) end = next = text.size();
        if (end - begin > LONGEST) {
            end = text.rfind(' ', begin + LONGEST);
            if (end == std::string::npos || end <= begin) end = begin + LONGEST;
            while (end > begin + 1 && ((unsigned char)text[end] & 0xc0) == 0x80) end--;
            next = end;
        }
        if (end > begin) sentences->push_back(text.substr(begin, end - begin));
        begin = next;
    }
}

/* Hands the sentences over one by one and frees each when the next is asked for: the library keeps
 * copies. */
struct Sentences : sentencepiece::SentenceIterator {
    std::vector<std::string> *list;
    size_t at = 0;
    explicit Sentences(std::vector<std::string> *sentences) : list(sentences) {}
    bool done() const override { return at == list->size(); }
    void Next() override { std::string().swap((*list)[at++]); }
    const std::string &value() const override { return (*list)[at]; }
    sentencepiece::util::Status status() const override { return {}; }
};

std::string tokenizer_train(int64_t vocab, std::vector<std::string> *list) {
    /* Newline and tab are pieces of their own and every other byte has one, so that any text comes
     * back as it was. The number of threads is fixed: sums, and so the pieces, depend on it. */
    const std::unordered_map<std::string, std::string> spec = {
        {"model_type", "unigram"},
        {"vocab_size", std::to_string(vocab)},
        {"normalization_rule_name", "identity"},
        {"remove_extra_whitespaces", "false"},
        {"add_dummy_prefix", "false"},
        {"byte_fallback", "true"},
        {"allow_whitespace_only_pieces", "true"},
        {"split_digits", "true"},
        {"character_coverage", "0.9995"},
        {"user_defined_symbols", "\n,\t"},
        {"unk_id", "0"},
        {"eos_id", "1"},
        {"bos_id", "-1"},
        {"pad_id", "-1"},
        {"max_sentence_length", "8000"},
        {"input_sentence_size", "0"},
        {"shuffle_input_sentence", "false"},
        {"num_threads", "2"},
        {"minloglevel", "2"},
        {"hard_vocab_limit", "false"},
    };
    Sentences sentences(list);
    std::string model;
    const auto status = sentencepiece::SentencePieceTrainer::Train(spec, &sentences, &model);
    if (!status.ok())
        die(EXIT_INPUT, "cannot train the vocabulary: %s. Change --train-vocab or give more text.",
            status.ToString().c_str());
    return model;
}
