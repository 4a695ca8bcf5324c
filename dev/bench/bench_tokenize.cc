/* bench_tokenize.cc: c4_tokenize beside the library that it is made of. In turn, several times:
 * sentencepiece alone on one thread with the documents in memory; build/bin/c4_tokenize from files
 * to shards, start and end included; the reader alone (read, SHA-256, inflate, cut into blocks);
 * a worker's JSON alone. Prints medians, and what they say about many threads.
 *     make build/bin/bench_tokenize && build/bin/bench_tokenize MODEL FILE...
 * Times of the clock need a quiet machine; processor time is less easily disturbed. The program's
 * includes its start, 0.1 s with 32,000 pieces: give 100 MB of text or more. */
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

/* Part number i of n of the documents, on one thread. */
static void encode_part(
    const Tokenizer &t, const std::vector<Documents> &documents, size_t i, size_t n) {
    std::vector<int> ids;
    for (; i < documents.size(); i += n) {
        const Documents &d = documents[i];
        for (size_t k = 0, begin = 0; k < d.ends.size(); begin = d.ends[k++])
            t.sp.Encode(absl::string_view(d.text.data() + begin, d.ends[k] - begin), &ids)
                .IgnoreError();
    }
}

/* The library alone, n threads that share nothing but the model: what the machine gives. */
static void encode_alone(const Tokenizer &t, const std::vector<Documents> &documents, size_t n) {
    if (n == 1) return encode_part(t, documents, 0, 1);
    std::vector<std::thread> threads;
    for (size_t i = 0; i < n; i++)
        threads.emplace_back([&, i] { encode_part(t, documents, i, n); });
    for (std::thread &thread : threads) thread.join();
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

enum { COUNTS = 3 }; /* numbers of threads: 1, 2, all */
struct Bench {
    std::string program, model_path, out;
    std::vector<std::string> paths;
    Tokenizer tokenizer;
    std::vector<Block> blocks;
    std::vector<Documents> documents;
    double text = 0; /* MB */
    int threads[COUNTS];
    Times alone[COUNTS], program_times[COUNTS], reader, json;
};

static void measure_all(Bench *b) {
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < COUNTS; i++) {
            measure(&b->alone[i], RUSAGE_SELF,
                [&] { encode_alone(b->tokenizer, b->documents, (size_t)b->threads[i]); });
            measure(&b->program_times[i], RUSAGE_CHILDREN,
                [&] { run_program(b->program, b->model_path, b->threads[i], b->out, b->paths); });
        }
        measure(&b->reader, RUSAGE_SELF, [&] { read_inputs(b->paths, nullptr); });
        measure(&b->json, RUSAGE_SELF, [&] { cut_blocks(b->blocks, nullptr); });
    }
}

static void print_all(Bench *b) {
    char name[60];
    printf("%.1f MB of text, %zu inputs, a vocabulary of %d; medians of %d\n", b->text,
        b->paths.size(), b->tokenizer.vocab, ROUNDS);
    const Times &one = b->alone[0];
    for (int i = 0; i < COUNTS; i++) {
        const int n = b->threads[i];
        if (i > 0 && n <= b->threads[i - 1]) break;
        format(name, sizeof name, "sentencepiece alone, %d threads", n);
        print(name, b->text, b->alone[i]);
        format(name, sizeof name, "c4_tokenize --threads %d", n);
        print(name, b->text, b->program_times[i]);
        printf(
            "    of %d x sentencepiece on one thread: %.3f (the library alone: %.3f); by processor "
            "time %.3f\n",
            n, median(one.clock) / n / median(b->program_times[i].clock),
            median(one.clock) / n / median(b->alone[i].clock),
            median(one.processor) / median(b->program_times[i].processor));
    }
    print("reader alone", b->text, b->reader);
    print("JSON alone", b->text, b->json);
    const double encoding = median(one.processor), parsing = median(b->json.processor);
    printf("JSON takes %.1f %% of a worker's time; one reader feeds %.0f threads\n",
        100 * parsing / (parsing + encoding), (parsing + encoding) / median(b->reader.processor));
}

int main(int argc, char **argv) {
    if (argc < 3) die(EXIT_USAGE, "usage: bench_tokenize MODEL FILE...");
    Bench b;
    b.program = std::string(argv[0]).substr(0, std::string(argv[0]).rfind('/') + 1) + "c4_tokenize";
    b.model_path = argv[1];
    b.paths.assign(argv + 2, argv + argc);
    size_t size;
    char *model = file_read_all(argv[1], &size);
    tokenizer_load(&b.tokenizer, std::string(model, size), argv[1]);
    free(model);
    read_inputs(b.paths, &b.blocks);
    cut_blocks(b.blocks, &b.documents);
    for (const Documents &d : b.documents) b.text += 1e-6 * (double)d.text.size();
    char out[] = "/tmp/bench_tokenize.XXXXXX";
    if (!mkdtemp(out)) die(EXIT_IO, "%s: cannot be made", out);
    b.out = out;
    b.threads[0] = 1;
    b.threads[1] = 2;
    b.threads[2] = (int)std::thread::hardware_concurrency();
    measure_all(&b);
    print_all(&b);
    return system((std::string("rm -rf ") + out).c_str());
}
