/* bench_tokenize.cc: c4_tokenize beside the library that it is made of. In turn, several times:
 * sentencepiece alone on one thread with the documents in memory; build/bin/c4_tokenize from files
 * to shards, start and end included; the reader alone (read, SHA-256, inflate, cut into blocks);
 * a worker's JSON alone. Prints medians, and what they say about many threads.
 *     make build/bin/bench_tokenize && build/bin/bench_tokenize MODEL FILE...
 * Times of the clock need a quiet machine; processor time is less easily disturbed. */
#include <fcntl.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "dataloader/documents.h"
#include "dataloader/tokenizer.h"
#include "laser/base.h"

enum { ROUNDS = 5 };

struct Times {
    std::vector<double> clock, processor; /* (rounds) seconds */
};

static double processor_seconds(int who) {
    struct rusage u;
    getrusage(who, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* Adds the time that f takes in this process or in those that it starts. */
template <typename F> static void measure(Times *times, int who, F f) {
    const double clock = now_seconds(), processor = processor_seconds(who);
    f();
    times->clock.push_back(now_seconds() - clock);
    times->processor.push_back(processor_seconds(who) - processor);
}

static double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

static void read_inputs(const std::vector<std::string> &paths, std::vector<Block> *blocks) {
    Source *source = source_open(&paths, 0);
    for (Block block; source_next(source, &block);) {
        if (!block.fault.empty()) die(EXIT_INPUT, "%s", block.fault.c_str());
        if (blocks) blocks->push_back(std::move(block));
    }
    source_close(source);
}

static void cut_blocks(const std::vector<Block> &blocks, std::vector<Documents> *documents) {
    for (const Block &block : blocks) {
        Documents d;
        documents_cut(block, true, &d);
        if (documents) documents->push_back(std::move(d));
    }
}

static void encode_alone(const Tokenizer &t, const std::vector<Documents> &documents) {
    std::vector<int> ids;
    for (const Documents &d : documents)
        for (size_t i = 0, begin = 0; i < d.ends.size(); begin = d.ends[i++])
            t.sp.Encode(absl::string_view(d.text.data() + begin, d.ends[i] - begin), &ids)
                .IgnoreError();
}

static void run_program(const std::string &program, const std::string &model, int threads,
    const std::string &out, const std::vector<std::string> &paths) {
    std::vector<std::string> words = {program, "--quiet", "--force", "--model", model, "--threads",
        std::to_string(threads), "--out", out + "/bench"};
    words.insert(words.end(), paths.begin(), paths.end());
    std::vector<char *> argv;
    for (std::string &word : words) argv.push_back(&word[0]);
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    pid_t pid;
    int status = 1;
    if (posix_spawn(&pid, program.c_str(), &actions, nullptr, argv.data(), environ) != 0 ||
        waitpid(pid, &status, 0) != pid || status != 0)
        die(EXIT_INPUT, "%s: did not end well", program.c_str());
    posix_spawn_file_actions_destroy(&actions);
}

static void print(const char *name, double megabytes, const Times &t) {
    printf("%-34s %9.2f MB/s of text  %9.2f MB a second of processor time\n", name,
        megabytes / median(t.clock), megabytes / median(t.processor));
}

int main(int argc, char **argv) {
    if (argc < 3) die(EXIT_USAGE, "usage: bench_tokenize MODEL FILE...");
    const std::string program =
        std::string(argv[0]).substr(0, std::string(argv[0]).rfind('/') + 1) + "c4_tokenize";
    const std::vector<std::string> paths(argv + 2, argv + argc);
    char *model = file_read_all(argv[1], nullptr);
    Tokenizer t;
    size_t size = (size_t)file_size(argv[1]);
    tokenizer_load(&t, std::string(model, size), argv[1]);
    free(model);
    std::vector<Block> blocks;
    read_inputs(paths, &blocks);
    std::vector<Documents> documents;
    cut_blocks(blocks, &documents);
    double text = 0;
    for (const Documents &d : documents) text += 1e-6 * (double)d.text.size();
    char out[] = "/tmp/bench_tokenize.XXXXXX";
    if (!mkdtemp(out)) die(EXIT_IO, "%s: cannot be made", out);
    const int threads[] = {1, 2, (int)std::thread::hardware_concurrency()};
    const int counts = threads[2] > 2 ? 3 : 2;
    Times alone, reader, json, program_times[3];
    for (int round = 0; round < ROUNDS; round++) {
        measure(&alone, RUSAGE_SELF, [&] { encode_alone(t, documents); });
        for (int i = 0; i < counts; i++)
            measure(&program_times[i], RUSAGE_CHILDREN,
                [&] { run_program(program, argv[1], threads[i], out, paths); });
        measure(&reader, RUSAGE_SELF, [&] { read_inputs(paths, nullptr); });
        measure(&json, RUSAGE_SELF, [&] { cut_blocks(blocks, nullptr); });
    }
    printf("%.1f MB of text, %zu inputs, a vocabulary of %d; medians of %d\n", text, paths.size(),
        t.vocab, ROUNDS);
    print("sentencepiece alone, 1 thread", text, alone);
    for (int i = 0; i < counts; i++) {
        char name[40];
        format(name, sizeof name, "c4_tokenize --threads %d", threads[i]);
        print(name, text, program_times[i]);
        printf("    of %d x sentencepiece: %.3f by the clock, %.3f by processor time\n", threads[i],
            median(alone.clock) / threads[i] / median(program_times[i].clock),
            median(alone.processor) / median(program_times[i].processor));
    }
    print("reader alone", text, reader);
    print("JSON alone", text, json);
    printf("JSON takes %.1f %% of a worker's time; one reader feeds %.0f threads\n",
        100 * median(json.processor) / (median(json.processor) + median(alone.processor)),
        median(alone.processor) / median(reader.processor));
    const std::string remove = std::string("rm -rf ") + out;
    return system(remove.c_str());
}
