/* hearth bench -m: the same figures through the service, as a client sees them. Prompts are random token ids, new ones each time, so
 * that no cached prefix helps; the end token is ignored, so that every answer has its length. */
#include <stdlib.h>
#include <time.h>

#include "clients/direct/bench.h"
#include "clients/hearth.h"

#define IDS_LOW                                                                                    \
    3 /* ids that every vocabulary has and that are no special tokens in the usual ones */
#define IDS_HIGH     250
#define PARALLEL_MAX 64

struct service {
    const struct bench_question *q;
    struct hearth *h;
    int32_t *ids; /* (depth + n_prompt) */
    uint64_t random;
};

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int fail(const struct hearth_error *error, struct err *err)
{
    return err_set(err, err_code_of_name(error->code), "%s", error->text);
}

/* splitmix64: any sequence will do, as long as it does not repeat. */
static int32_t random_id(struct service *s)
{
    uint64_t z = s->random += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return IDS_LOW + (int32_t)((z ^ z >> 31) % (IDS_HIGH - IDS_LOW));
}

/* Submits the first n_ids ids for n_gen tokens. */
static struct hearth_request *submit(struct service *s, uint32_t n_ids, uint32_t n_gen,
                                     struct err *err)
{
    struct hearth_error error;
    const struct hearth_ask ask = {
        .model = s->q->model,
        .kind = HEARTH_TOKENS,
        .prompt = s->ids,
        .prompt_len = n_ids * sizeof *s->ids,
        .sampling = { .has_temp = true, .ignore_eos = true },
        .has_n_max = true,
        .n_max = n_gen,
    };
    struct hearth_request *r = hearth_submit(s->h, &ask, &error);
    if (!r) {
        fail(&error, err);
    }
    return r;
}

struct times {
    double first_s, last_s; /* CLOCK_MONOTONIC of the commits */
    uint32_t n_tokens, n_cached;
};

/* Reads one request to its end. */
static int follow(struct hearth_request *r, struct times *t, struct err *err)
{
    struct hearth_token token;
    struct hearth_error error;
    *t = (struct times){ 0 };
    do {
        if (hearth_next(r, &token, -1, &error) != HEARTH_TOKEN) {
            return fail(&error, err);
        }
        if (token.has_token) {
            t->last_s = (double)token.time_us * 1e-6;
            t->first_s = t->n_tokens++ ? t->first_s : t->last_s;
            t->n_cached = token.n_cached;
        }
    } while (!token.ended);
    return token.error.exit_code && t->n_tokens == 0 ? fail(&token.error, err) : 0;
}

/* One repeat: prompts side by side, from submission to the last token. */
static int once(struct service *s, double *prefill_tps, double *decode_tps, double *ttft_ms,
                struct err *err)
{
    const struct bench_question *q = s->q;
    struct hearth_request *r[PARALLEL_MAX] = { 0 };
    struct times t;
    uint32_t n_ids = q->depth + q->n_prompt;
    int rc = -1;
    double first_s = 0, last_s = 0, earliest_s = 0;
    uint64_t computed = 0, generated = 0;
    for (uint32_t i = 0; i < q->depth; i++) {
        s->ids[i] = random_id(s);
    }
    if (q->depth) {
        /* What stands before the prompt: its pages are reused, all but the last incomplete one. */
        struct hearth_request *before = submit(s, q->depth, 1, err);
        if (!before || follow(before, &t, err) < 0) {
            hearth_end(&before);
            return -1;
        }
        hearth_end(&before);
    }
    double start_s = now_s();
    for (uint32_t k = 0; k < q->n_parallel; k++) {
        for (uint32_t i = q->depth; i < n_ids; i++) {
            s->ids[i] = random_id(s);
        }
        r[k] = submit(s, n_ids, q->n_gen + 1, err);
        if (!r[k]) {
            goto done;
        }
    }
    for (uint32_t k = 0; k < q->n_parallel; k++) {
        if (follow(r[k], &t, err) < 0) {
            goto done;
        }
        earliest_s = k == 0 || t.first_s < earliest_s ? t.first_s : earliest_s;
        first_s = t.first_s > first_s ? t.first_s : first_s;
        last_s = t.last_s > last_s ? t.last_s : last_s;
        computed += n_ids - t.n_cached;
        generated += t.n_tokens - 1;
    }
    *ttft_ms = (earliest_s - start_s) * 1e3;
    *prefill_tps = (double)computed / (first_s - start_s);
    *decode_tps = (double)generated / (last_s - first_s);
    rc = 0;
done:
    for (uint32_t k = 0; k < q->n_parallel; k++) {
        hearth_end(&r[k]);
    }
    return rc;
}

static int by_value(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static double median(double *values, uint32_t n)
{
    qsort(values, n, sizeof *values, by_value);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

int bench_service(const struct bench_question *q, struct bench_result *r, struct err *err)
{
    struct hearth_error error;
    struct service s = { .q = q, .random = (uint64_t)time(NULL) };
    double prefill[BENCH_REPEATS_MAX], decode[BENCH_REPEATS_MAX], ttft[BENCH_REPEATS_MAX];
    int rc = -1;
    if (q->n_parallel > PARALLEL_MAX) {
        return err_set(err, ERR_USAGE, "--parallel %u: at most %d with -m", q->n_parallel,
                       PARALLEL_MAX);
    }
    s.ids = calloc((size_t)q->depth + q->n_prompt, sizeof *s.ids);
    s.h = hearth_open(q->run, "bench", &error);
    if (!s.ids || !s.h) {
        rc = s.ids ? fail(&error, err) : err_set(err, ERR_NO_MEMORY, "no memory for the prompt");
        goto done;
    }
    double start_s = now_s();
    if (hearth_load(s.h, q->model, false, &error) < 0) {
        rc = fail(&error, err);
        goto done;
    }
    r->load_s = now_s() - start_s;
    for (uint32_t i = 0; i < q->n_repeats; i++) {
        if (once(&s, &prefill[i], &decode[i], &ttft[i], err) < 0) {
            goto done;
        }
    }
    r->prefill_tps = median(prefill, q->n_repeats);
    r->decode_tps = median(decode, q->n_repeats);
    r->ttft_ms = median(ttft, q->n_repeats);
    rc = 0;
done:
    hearth_close(&s.h);
    free(s.ids);
    return rc;
}
