/* Logits to tokens: each filter against its definition, and the same inputs give the same token. */
#include "tests/test.h"

#include <math.h>

#include "worker/rng.h"
#include "worker/sampler.h"

#define N 64

static const struct pieces no_pieces;
static struct sampler_work *work;
static struct sampler_choice choice;

static int open_work(void **state)
{
    (void)state;
    struct err err;
    work = sampler_work_create(N, 1 << 16, &no_pieces, &err);
    return work ? 0 : -1;
}

static int close_work(void **state)
{
    (void)state;
    sampler_work_destroy(&work);
    return 0;
}

static struct sampler plain(void)
{
    const struct journal_params params = {
        .temp = 1, .top_p = 1, .typical_p = 1, .repeat_penalty = 1, .seed = 7, .repeat_last_n = -1
    };
    struct sampler s;
    sampler_init(&s, &params);
    return s;
}

static int32_t choose_at(const struct sampler *s, const float *logits, const int32_t *tokens,
                         uint64_t n)
{
    struct err err;
    assert_ok(sampler_choose(work, s, logits, tokens, n, NULL, &choice, &err), err);
    return choice.token;
}

/* How often each token comes over many positions. */
static void histogram(const struct sampler *s, const float *logits, uint32_t counts[N], uint32_t n)
{
    static int32_t tokens[1 << 16];
    memset(counts, 0, N * sizeof *counts);
    struct sampler t = *s;
    t.repeat_last_n = 0;
    for (uint32_t i = 0; i < n; i++) {
        counts[choose_at(&t, logits, tokens, i)]++;
    }
}

/* The published vectors of Philox4x32-10: all zeros, and all ones. */
static void random_numbers_are_philox(void **state)
{
    (void)state;
    const uint32_t zero[4] = { 0 }, ones[4] = { UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX };
    const uint32_t want_zero[4] = { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 };
    const uint32_t want_ones[4] = { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd };
    uint32_t out[4];
    rng_philox(zero, zero, out);
    assert_memory_equal(out, want_zero, sizeof out);
    rng_philox(ones, ones, out);
    assert_memory_equal(out, want_ones, sizeof out);
}

static void greedy_takes_the_highest_and_the_lower_id(void **state)
{
    (void)state;
    float logits[N] = { 0 };
    struct sampler s = plain();
    s.temp = 0;
    logits[9] = logits[5] = 3;
    assert_int_equal(choose_at(&s, logits, NULL, 0), 5);
    logits[40] = NAN;
    logits[41] = -INFINITY;
    assert_int_equal(choose_at(&s, logits, NULL, 0), 5);
}

static void no_finite_logit_is_an_error(void **state)
{
    (void)state;
    float logits[N];
    struct err err;
    struct sampler s = plain();
    for (int i = 0; i < N; i++) {
        logits[i] = NAN;
    }
    assert_int_equal(sampler_choose(work, &s, logits, NULL, 0, NULL, &choice, &err), -1);
    assert_int_equal(err.code, ERR_FAILED);
}

/* Frequencies over 20000 draws are within five standard deviations of the probabilities; the draws are fixed by the seed. */
static void a_draw_follows_the_probabilities(void **state)
{
    (void)state;
    enum { DRAWS = 20000 };
    float logits[N];
    uint32_t counts[N];
    double p[N], sum = 0;
    struct sampler s = plain();
    s.temp = 0.7f;
    for (int i = 0; i < N; i++) {
        logits[i] = sinf((float)i) * 3;
        p[i] = exp((double)logits[i] / (double)s.temp);
        sum += p[i];
    }
    histogram(&s, logits, counts, DRAWS);
    for (int i = 0; i < N; i++) {
        double want = p[i] / sum * DRAWS, sigma = sqrt(want * (1 - p[i] / sum)) + 1;
        assert_true(fabs((double)counts[i] - want) < 5 * sigma);
    }
}

/* Which tokens can come at all under each filter, of probabilities 0.4 0.3 0.2 0.05 0.03 0.02. */
static void each_filter_keeps_what_it_should(void **state)
{
    (void)state;
    static const double p[] = { 0.05, 0.4, 0.02, 0.3, 0.03, 0.2 }; /* by id */
    static const struct {
        int32_t top_k;
        float top_p, min_p, typical_p;
        unsigned want; /* bit per id */
    } rows[] = {
        { 0, 1, 0, 1, 0x3f },
        { 1, 1, 0, 1, 0x02 },
        { 3, 1, 0, 1, 0x2a },
        { 0, 0.65f, 0, 1, 0x0a },
        { 0, 0.75f, 0, 1, 0x2a },
        { 0, 0, 0, 1, 0x02 },
        { 0, 1, 0.45f, 1, 0x2a },
        { 0, 1, 0.6f, 1, 0x0a },
        { 0, 1, 1, 1, 0x02 },
        { 2, 0.1f, 0.5f, 1, 0x02 },
        { 100, 1, 0.01f, 1, 0x3f },
        /* entropy 1.38: surprise 1.20 (id 3), 1.61 (id 5), 0.92 (id 1), then the rare ones */
        { 0, 1, 0, 0.2f, 0x08 },
        { 0, 1, 0, 0.45f, 0x28 },
        { 0, 1, 0, 0.8f, 0x2a },
    };
    float logits[N];
    uint32_t counts[N];
    for (int i = 0; i < N; i++) {
        logits[i] = i < 6 ? (float)log(p[i]) : -INFINITY;
    }
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        struct sampler s = plain();
        s.top_k = rows[r].top_k;
        s.top_p = rows[r].top_p;
        s.min_p = rows[r].min_p;
        s.typical_p = rows[r].typical_p;
        histogram(&s, logits, counts, 3000);
        unsigned got = 0;
        for (unsigned i = 0; i < N; i++) {
            got |= counts[i] && i < 32 ? 1u << i : 0;
        }
        if (got != rows[r].want) {
            fail_msg("row %zu: tokens %#x, wanted %#x", r, got, rows[r].want);
        }
    }
}

static void penalties_and_biases_move_logits(void **state)
{
    (void)state;
    float logits[N] = { [1] = 2.0f, [2] = 1.9f, [3] = 1.0f, [4] = -0.5f };
    const int32_t tokens[] = { 1, 4, 1, 2 };
    struct sampler s = plain();
    s.temp = 0;
    assert_int_equal(choose_at(&s, logits, tokens, 4), 1);
    s.repeat_penalty = 1.5f; /* 1: 1.33, 2: 1.27 */
    assert_int_equal(choose_at(&s, logits, tokens, 4), 1);
    s.repeat_penalty = 3; /* below 3 */
    assert_int_equal(choose_at(&s, logits, tokens, 4), 3);
    s.repeat_last_n = 1; /* sees only 2 */
    assert_int_equal(choose_at(&s, logits, tokens, 4), 1);
    s = plain();
    s.temp = 0;
    s.frequency_penalty = 0.1f; /* 1 stood twice: 1.8, 2: 1.8 (a tie in reals) */
    s.presence_penalty = 0.5f;
    assert_int_equal(choose_at(&s, logits, tokens, 2), 2);
    s = plain();
    s.temp = 0;
    s.n_biases = 2;
    s.biases[0] = (struct journal_bias){ 50, 2.5f };
    s.biases[1] = (struct journal_bias){ 900, 100 }; /* not in the vocabulary */
    assert_int_equal(choose_at(&s, logits, tokens, 4), 50);
    s.biases[0].bias = -INFINITY;
    assert_int_equal(choose_at(&s, logits, tokens, 4), 1);
}

static void log_probabilities_are_the_models(void **state)
{
    (void)state;
    float logits[N];
    double sum = 0;
    for (int i = 0; i < N; i++) {
        logits[i] = cosf((float)i);
        sum += exp((double)logits[i]);
    }
    struct sampler s = plain();
    s.logprobs = true;
    s.n_alternatives = 5;
    s.n_biases = 1;
    s.biases[0] = (struct journal_bias){ 33, 50 };
    assert_int_equal(choose_at(&s, logits, NULL, 0), 33);
    assert_float_equal(choice.logprob, (float)((double)logits[33] - log(sum)), 1e-6f);
    assert_int_equal(choice.n_alternatives, 5);
    for (uint32_t i = 1; i < 5; i++) {
        assert_true(choice.alternatives[i - 1].logprob >= choice.alternatives[i].logprob);
    }
    assert_int_equal(choice.alternatives[0].token, 0);
}

/* Same seed and position: same token, whatever was asked in between; another seed: another text. */
static void a_choice_depends_on_seed_and_position_alone(void **state)
{
    (void)state;
    float logits[N] = { 0 };
    static const int32_t tokens[100];
    struct sampler a = plain(), b = plain();
    int32_t first[100];
    uint32_t n_same = 0;
    b.seed = 8;
    a.repeat_last_n = b.repeat_last_n = 0;
    for (uint64_t i = 0; i < 100; i++) {
        first[i] = choose_at(&a, logits, tokens, i);
    }
    for (uint64_t i = 100; i-- > 0;) {
        n_same += choose_at(&b, logits, tokens, i) == first[i];
        assert_int_equal(choose_at(&a, logits, tokens, i), first[i]);
    }
    assert_true(n_same < 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_numbers_are_philox),
        cmocka_unit_test(greedy_takes_the_highest_and_the_lower_id),
        cmocka_unit_test(no_finite_logit_is_an_error),
        cmocka_unit_test(a_draw_follows_the_probabilities),
        cmocka_unit_test(each_filter_keeps_what_it_should),
        cmocka_unit_test(penalties_and_biases_move_logits),
        cmocka_unit_test(log_probabilities_are_the_models),
        cmocka_unit_test(a_choice_depends_on_seed_and_position_alone),
    };
    return cmocka_run_group_tests(tests, open_work, close_work);
}
