/* tokenize_pipeline.cc: see tokenize_pipeline.h. One mutex guards the queue: batches are so large
 * that it is taken a few times a second. */
#include "dataloader/tokenize_pipeline.h"

#include <unistd.h>

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "laser/base.h"

struct Job {
    Batch batch;
    int64_t number = 0; /* in the order of the input */
    size_t bytes = 0;   /* that it counts for */
    bool done = false;
};

struct Queue {
    const Pipeline *p;
    std::mutex mutex;
    std::condition_variable room;          /* for the reader */
    std::condition_variable waiting;       /* a job has come, or none will; for workers */
    std::condition_variable numbered;      /* the next job knows its first document; for workers */
    std::condition_variable done;          /* for the consumer */
    std::deque<std::unique_ptr<Job>> jobs; /* not yet consumed, in order */
    size_t taken = 0;                      /* of jobs, by workers */
    size_t bytes = 0;                      /* of jobs */
    int64_t jobs_numbered = 0, documents = 0;
    bool ended = false; /* no job will come */
    bool stopped = false;
};

static void read_jobs(Queue *q) {
    const size_t most = (size_t)(q->p->threads + 1) * 4 * BLOCK_BYTES;
    Source *source = source_open(q->p->paths, q->p->first_input);
    for (int64_t number = 0;; number++) {
        std::unique_ptr<Job> job(new Job);
        const bool more = source_next(source, &job->batch.block);
        job->number = number;
        job->bytes = job->batch.block.data.size();
        std::unique_lock<std::mutex> lock(q->mutex);
        q->room.wait(
            lock, [&] { return q->stopped || q->jobs.empty() || q->bytes + job->bytes <= most; });
        if (!more || q->stopped) break;
        q->bytes += job->bytes;
        q->jobs.push_back(std::move(job));
        q->waiting.notify_one();
    }
    source_close(source);
    std::lock_guard<std::mutex> lock(q->mutex);
    q->ended = true;
    q->waiting.notify_all();
    q->done.notify_all();
}

/* Jobs are taken in order, so the one that has to be numbered first is always with a worker. */
static bool number_job(Queue *q, Job *job) {
    std::unique_lock<std::mutex> lock(q->mutex);
    q->numbered.wait(lock, [&] { return q->stopped || q->jobs_numbered == job->number; });
    job->batch.first_document = q->documents;
    q->documents += (int64_t)job->batch.documents.ends.size();
    q->jobs_numbered++;
    q->numbered.notify_all();
    return !q->stopped;
}

static void encode_document(
    const Pipeline &p, Batch *batch, int64_t number, const char *text, size_t size) {
    batch->crcs.push_back(crc32c(0, text, size));
    const bool wanted = batch->fault.empty() && p.wanted(number);
    if (wanted) {
        bool same = true;
        batch->fault = tokenizer_encode(*p.tokenizer, text, size, &batch->ids, &same);
        if (!batch->fault.empty())
            batch->fault = "document " + std::to_string(number + 1) + ": " + batch->fault;
        if (!same) batch->altered++;
        if (p.separator >= 0) batch->ids.push_back(p.separator);
    }
    batch->encoded.push_back(wanted);
    batch->id_ends.push_back(batch->ids.size());
}

static void work_on(Queue *q, Job *job) {
    Batch *batch = &job->batch;
    Documents *d = &batch->documents;
    documents_cut(batch->block, q->p->tokenizer->exact, d);
    std::string().swap(batch->block.data);
    if (!number_job(q, job)) return;
    size_t begin = 0;
    for (size_t i = 0; i < d->ends.size(); i++) {
        encode_document(*q->p, batch, batch->first_document + (int64_t)i, d->text.data() + begin,
            d->ends[i] - begin);
        begin = d->ends[i];
    }
    std::string().swap(d->text);
}

static void work(Queue *q) {
    std::unique_lock<std::mutex> lock(q->mutex);
    for (;;) {
        q->waiting.wait(lock, [&] { return q->stopped || q->taken < q->jobs.size() || q->ended; });
        if (q->stopped || q->taken == q->jobs.size()) return;
        Job *job = q->jobs[q->taken++].get();
        lock.unlock();
        work_on(q, job);
        lock.lock();
        job->done = true;
        q->done.notify_one();
    }
}

static void consume_jobs(Queue *q) {
    std::unique_lock<std::mutex> lock(q->mutex);
    for (;;) {
        q->done.wait(lock, [&] { return q->jobs.empty() ? q->ended : q->jobs.front()->done; });
        if (q->jobs.empty()) break;
        const std::unique_ptr<Job> job = std::move(q->jobs.front());
        q->jobs.pop_front();
        q->taken--;
        lock.unlock();
        const bool more = q->p->consume(job->batch);
        lock.lock();
        q->bytes -= job->bytes;
        q->room.notify_one();
        if (more) continue;
        q->stopped = true;
        break;
    }
    q->room.notify_all();
    q->waiting.notify_all();
    q->numbered.notify_all();
}

/* die() while threads are in the library: its destructors must not run under them. */
static void leave_at_once(int status, void *unused) {
    (void)unused;
    fflush(stdout);
    _exit(status);
}

void pipeline_run(const Pipeline &p) {
    REQUIRE(on_exit(leave_at_once, nullptr) == 0, "on_exit");
    Queue q;
    q.p = &p;
    q.documents = p.first_document;
    std::vector<std::thread> threads;
    try {
        threads.emplace_back(read_jobs, &q);
        for (int i = 0; i < p.threads; i++) threads.emplace_back(work, &q);
    } catch (const std::system_error &e) {
        die(EXIT_IO, "cannot start %d threads: %s. Give --threads a smaller number.", p.threads + 1,
            e.what());
    }
    consume_jobs(&q);
    for (std::thread &t : threads) t.join();
}
