/* Candidates, DRY, mirostat, adaptive-p and banned strings against cases computed by hand. */
#include "tests/test.h"

#include <math.h>

#include "worker/held.h"
#include "worker/rng.h"
#include "worker/sampler.h"

#define N 64

/* A vocabulary of single letters: id 0 is 'a', 25 'z', 26 a space, 27 a line's end, 28 nothing, 29 "ing", 30 ": ". */
enum { SPACE = 26, LINE, NOTHING, ING, COLON, N_PIECES };
static const uint8_t pool[] = "abcdefghijklmnopqrstuvwxyz \ning: ";
static uint32_t offs[N_PIECES + 1];
static uint8_t flags[N_PIECES];
static struct pieces letters = { .n = N_PIECES, .offs = offs, .flags = flags, .bytes_max = 3 };

static struct candidate set[N], sorted[N];
static struct candidates c;

static int open_all(void **state)
{
    (void)state;
    letters.pool = (uint8_t *)(uintptr_t)pool;
    for (uint32_t i = 0; i <= NOTHING; i++) {
        offs[i] = i;
    }
    offs[ING] = 28;
    offs[COLON] = 31;
    offs[N_PIECES] = 33;
    return 0;
}

/* Candidates of these probabilities, by id. */
static void make(const double *p, uint32_t n)
{
    c = (struct candidates){ .set = set, .sorted = sorted, .n = n, .scale = 1 };
    for (uint32_t i = 0; i < n; i++) {
        set[i] = (struct candidate){ .logit = (float)log(p[i]), .id = (int32_t)i };
    }
}

static unsigned left(void)
{
    unsigned bits = 0;
    for (uint32_t i = 0; i < c.n; i++) {
        bits |= 1u << c.set[i].id;
    }
    return bits;
}

static const double six[] = { 0.05, 0.4, 0.02, 0.3, 0.03, 0.2 };

static void xtc_leaves_the_last_of_the_top(void **state)
{
    (void)state;
    make(six, 6);
    candidates_xtc(&c, 0.1); /* 0.4 0.3 0.2 reach it: 0.2 stays */
    assert_int_equal(left(), 0x35);
    make(six, 6);
    candidates_xtc(&c, 0.35); /* only one: it stays */
    assert_int_equal(left(), 0x3f);
    make(six, 6);
    candidates_xtc(&c, 0.45);
    assert_int_equal(left(), 0x3f);
    make(six, 6);
    c.scale =
        2; /* square roots: .224 .632 .141 .548 .173 .447 of 2.165: shares .103 .292 .065 .253 .080 .206 */
    candidates_xtc(&c, 0.1);
    assert_int_equal(left(), 0x15);
}

/* Logits 0 1 2 3 4: mean 2, deviation sqrt 2. */
static void top_n_sigma_measures_from_the_best(void **state)
{
    (void)state;
    static const struct {
        double n;
        unsigned want;
    } rows[] = { { 0.5, 0x10 }, { 1, 0x18 }, { 1.5, 0x1c }, { 3, 0x1f } };
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        c = (struct candidates){ .set = set, .sorted = sorted, .n = 5, .scale = 0.3 };
        for (int i = 0; i < 5; i++) {
            set[i] = (struct candidate){ .logit = (float)i, .id = i };
        }
        candidates_n_sigma(&c, rows[r].n);
        assert_int_equal(left(), rows[r].want);
    }
}

static void filters_see_the_temperature(void **state)
{
    (void)state;
    make(six, 6);
    candidates_min_p(&c, 0.6); /* 0.4 0.3 */
    assert_int_equal(left(), 0x0a);
    make(six, 6);
    c.scale = 2; /* square roots: 0.2 is 0.707 of the best now */
    candidates_min_p(&c, 0.6);
    assert_int_equal(left(), 0x2a);
    make(six, 6);
    c.scale = 0.5; /* squares: .16 .09 .04 and little */
    candidates_top_p(&c, 0.85);
    assert_int_equal(left(), 0x0a);
}

/* top-k, top-p and the draw against a list in order: of random sets, some of them full of ties. */
static void marks_are_passed_where_a_sorted_list_passes_them(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 300; round++) {
        uint32_t n = 2 + round % (N - 1);
        uint64_t seed = round;
        c = (struct candidates){ .set = set, .sorted = sorted, .n = n, .scale = 0.5 + round % 4 };
        for (uint32_t i = 0; i < n; i++) {
            double x = rng_uniform(seed, i, 0, RNG_TOKEN) * (round % 3 == 0 ? 3 : 12);
            set[i] = (struct candidate){ .logit = (float)(round % 3 == 0 ? floor(x) : x),
                                         .id = (int32_t)i };
        }
        struct candidate all[N];
        uint64_t sum = candidates_mass(&c), passed = 0;
        candidates_first(&c, n);
        memcpy(all, c.sorted, n * sizeof *all);
        double u = rng_uniform(seed, 99, 0, RNG_TOKEN), p = rng_uniform(seed, 98, 0, RNG_TOKEN);
        int32_t drawn = candidates_draw(&c, u);
        uint32_t at = 0, k = 1 + round % n;
        for (passed = all[0].mass; (double)passed <= u * (double)sum; passed += all[at].mass) {
            at++;
        }
        assert_int_equal(drawn, all[at].id);
        candidates_top_p(&c, p);
        for (at = 0, passed = all[0].mass; (double)passed < p * (double)sum;) {
            passed += all[++at].mass;
        }
        assert_int_equal(c.n, at + 1);
        for (uint32_t i = 0; i < c.n; i++) {
            assert_true(c.set[i].logit > all[at].logit ||
                        (c.set[i].logit == all[at].logit && c.set[i].id <= all[at].id));
        }
        memcpy(set, all, n * sizeof *all);
        c.n = n;
        candidates_top_k(&c, k);
        assert_int_equal(c.n, k);
        assert_int_equal(c.set[k - 1].id, all[k - 1].id);
    }
}

/* ---- a whole sampler ---- */

static struct sampler_work *work;
static struct sampler_choice choice;

static struct sampler plain(void)
{
    const struct journal_params params = {
        .temp = 1,
        .top_p = 1,
        .typical_p = 1,
        .repeat_penalty = 1,
        .seed = 7,
        .repeat_last_n = -1,
    };
    struct sampler s;
    sampler_init(&s, &params);
    return s;
}

static unsigned comes(const struct sampler *s, const float *logits, uint32_t draws)
{
    static const int32_t tokens[4096];
    struct err err;
    unsigned bits = 0;
    for (uint32_t i = 0; i < draws; i++) {
        assert_ok(sampler_choose(work, s, logits, tokens, i, NULL, &choice, &err), err);
        bits |= 1u << choice.token;
    }
    return bits;
}

static void logits_of(float logits[N_PIECES], const double *p, uint32_t n)
{
    for (uint32_t i = 0; i < N_PIECES; i++) {
        logits[i] = i < n ? (float)log(p[i]) : -INFINITY;
    }
}

static void the_order_changes_what_is_left(void **state)
{
    (void)state;
    float logits[N_PIECES];
    logits_of(logits, six, 6);
    struct sampler s = plain();
    s.temp = 2;
    s.min_p = 0.6f; /* before the temperature: 0.4 0.3; after it: 0.2 too */
    assert_int_equal(comes(&s, logits, 2000), 0x0a);
    s.n_order = 2;
    s.order[0] = JOURNAL_TEMPERATURE;
    s.order[1] = JOURNAL_MIN_P;
    assert_int_equal(comes(&s, logits, 2000), 0x2a);
    s.n_order = 1; /* min_p is not named: it does not act */
    assert_int_equal(comes(&s, logits, 4000), 0x3f);
}

static void xtc_acts_as_often_as_asked(void **state)
{
    (void)state;
    static const double two[] = { 0.7, 0.3 };
    static const int32_t tokens[4000];
    float logits[N_PIECES];
    struct err err;
    logits_of(logits, two, 2);
    struct sampler s = plain();
    s.xtc_threshold = 0.1f;
    s.xtc_probability = 1;
    assert_int_equal(comes(&s, logits, 200), 2);
    s.xtc_probability = 0.5f; /* then the second comes in 0.5 + 0.5 * 0.3 of all cases */
    int n = 0;
    for (uint32_t i = 0; i < 4000; i++) {
        assert_ok(sampler_choose(work, &s, logits, tokens, i, NULL, &choice, &err), err);
        n += choice.token == 1;
    }
    assert_true(abs(n - 2600) < 160); /* five deviations are 151 */
}

/* Entropy decides: of two equal ones it is the largest there can be, so the temperature is temp + range; of a sure one
 * temp - range. Seen by how often the other comes. */
static void the_temperature_follows_the_entropy(void **state)
{
    (void)state;
    static const double pair[] = { 0.8, 0.2 };
    static const int32_t tokens[4000];
    float logits[N_PIECES];
    struct err err;
    logits_of(logits, pair, 2);
    struct sampler s = plain();
    s.dynatemp_range = 0.8f;
    s.dynatemp_exponent = 1;
    /* entropy / ln 2 = 0.72193, T = 0.2 + 1.6 * 0.72193 = 1.35509; odds 4^(1/T) = 2.7815, share of the other 0.26445 */
    int n = 0;
    for (uint32_t i = 0; i < 4000; i++) {
        assert_ok(sampler_choose(work, &s, logits, tokens, i, NULL, &choice, &err), err);
        n += choice.token == 1;
    }
    assert_true(abs(n - 1058) < 140);
    s.temp = 0; /* not greedy: from 0 to 0.8 */
    assert_int_equal(comes(&s, logits, 2000), 3);
}

/* Penalties take the same from a set in which they find tokens by place and from one where they have to look. */
static void penalties_find_their_tokens(void **state)
{
    (void)state;
    static const double p[] = { 0.1, 0.3, 0.28, 0.22, 0.1 };
    const int32_t tokens[] = { 1, 2, 1, 3 };
    float logits[N_PIECES];
    struct err err;
    struct sampler s = plain();
    s.temp = 0;
    s.presence_penalty = 0.2f;
    s.frequency_penalty = 0.3f; /* 1: .3 e^-.8 = .135, 2: .28 e^-.5 = .170, 3: .22 e^-.5 = .133 */
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N_PIECES; i++) {
            logits[i] = i < 5 ? (float)log(p[i]) : -30;
        }
        logits[0] = round ? -INFINITY : logits[0]; /* places shift */
        assert_ok(sampler_choose(work, &s, logits, tokens, 4, NULL, &choice, &err), err);
        assert_int_equal(choice.token, 2);
        logits[2] = -INFINITY; /* and one of the window is not there */
        assert_ok(sampler_choose(work, &s, logits, tokens, 4, NULL, &choice, &err), err);
        assert_int_equal(choice.token, 1);
    }
}

static void refused_tokens_do_not_come(void **state)
{
    (void)state;
    float logits[N_PIECES];
    struct err err;
    logits_of(logits, six, 6);
    const int32_t no[] = { 1, 3 };
    const struct sampler_refused refused = { no, 2 };
    struct sampler s = plain();
    s.temp = 0;
    assert_ok(sampler_choose(work, &s, logits, NULL, 0, &refused, &choice, &err), err);
    assert_int_equal(choice.token, 5);
    const int32_t all[] = { 0, 1, 2, 3, 4, 5 };
    const struct sampler_refused every = { all, 6 };
    assert_int_equal(sampler_choose(work, &s, logits, NULL, 0, &every, &choice, &err), -1);
    assert_int_equal(err.code, ERR_FAILED);
}

/* ---- DRY ---- */

/* The text's letters as ids; n of them. */
static uint32_t spell(const char *text, int32_t *tokens)
{
    uint32_t n = 0;
    for (; text[n]; n++) {
        tokens[n] = text[n] == ' ' ? SPACE : text[n] == '\n' ? LINE : text[n] - 'a';
    }
    return n;
}

/* What DRY takes from the logit of `letter`. */
static double less(const struct dry *d, const char *text, char letter)
{
    static uint32_t lengths[N_PIECES], matches[64];
    int32_t tokens[64], id;
    uint32_t n = spell(text, tokens);
    char one[2] = { letter, 0 };
    spell(one, &id);
    c = (struct candidates){ .set = set, .sorted = sorted, .n = N_PIECES, .scale = 1 };
    for (int i = 0; i < N_PIECES; i++) {
        set[i] = (struct candidate){ .logit = 0, .id = i };
    }
    dry_apply(d, &letters, tokens, n, &c, lengths, N_PIECES, matches, 64);
    double found = -(double)set[id].logit;
    for (int i = 0; i < N_PIECES;
         i++) { /* the same in another order, where each has to be looked for */
        set[i] = (struct candidate){ .logit = 0, .id = N_PIECES - 1 - i };
    }
    dry_apply(d, &letters, tokens, n, &c, lengths, N_PIECES, matches, 64);
    assert_float_equal(-(double)set[N_PIECES - 1 - id].logit, found, 0);
    for (int i = 0; i < N_PIECES; i++) {
        assert_int_equal(lengths[i], 0);
    }
    return found;
}

static void dry_grows_with_the_repetition(void **state)
{
    (void)state;
    struct err err;
    struct dry d = { .multiplier = 0.8f, .base = 2, .allowed_length = 2, .penalty_last_n = -1 };
    assert_float_equal(less(&d, "abcdab", 'c'), 0.8f, 1e-6); /* "ab" again */
    assert_float_equal(less(&d, "abcdab", 'd'), 0, 0);
    assert_float_equal(less(&d, "abcdabc", 'd'), 1.6f, 1e-6); /* "abc" */
    assert_float_equal(less(&d, "abcdxabcdyabcd", 'x'), 3.2f, 1e-6);
    assert_float_equal(less(&d, "abcdxabcdyabcd", 'y'), 3.2f, 1e-6);
    assert_float_equal(less(&d, "bcxabcybc", 'x'), 0.8f, 1e-6);
    assert_float_equal(less(&d, "abcxbcxabc", 'x'), 1.6f, 1e-6); /* the longest counts */
    assert_float_equal(less(&d, "aaaaa", 'a'), 0.8f * 4, 1e-6);  /* four before the last */
    assert_float_equal(less(&d, "ab", 'a'), 0, 0);
    assert_float_equal(less(&d, "a", 'a'), 0, 0);
    d.penalty_last_n = 5; /* sees "bcdab": no "ab" before */
    assert_float_equal(less(&d, "abcdab", 'c'), 0, 0);
    d.penalty_last_n = 0;
    assert_float_equal(less(&d, "abcdab", 'c'), 0, 0);
    d.penalty_last_n = -1;
    d.allowed_length = 3;
    assert_float_equal(less(&d, "abcdab", 'c'), 0, 0);
    d.allowed_length = 2;
    assert_ok(dry_add_breaker(&d, (const uint8_t *)"\n", 1, &err), err);
    assert_float_equal(less(&d, "abcdab", 'c'), 0.8f, 1e-6);
    assert_float_equal(less(&d, "xa\nbcya\nbc", 'y'), 0.8f, 1e-6); /* only "bc" of "a\nbc" */
    assert_float_equal(less(&d, "abcab\n", 'c'), 0, 0);
    assert_float_equal(less(&d, "ab\ncab", '\n'), 0, 0); /* a breaker is not penalised */
    assert_ok(dry_add_breaker(&d, (const uint8_t *)"zq", 2, &err), err);
    assert_float_equal(less(&d, "azqbcyazqbc", 'y'), 0.8f, 1e-6); /* two tokens make the breaker */
    assert_float_equal(less(&d, "azbcyazbc", 'y'), 0.8f * 4, 1e-6);
    d.base = 100;
    d.multiplier = 100;
    for (int i = 0; i < 2; i++) {
        double most = less(&d, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 'a');
        assert_true(isfinite(most) && most > 1e30);
    }
}

/* ---- mirostat ---- */

static void mirostat_two_cuts_at_mu(void **state)
{
    (void)state;
    static const double p[] = { 0.5, 0.25, 0.125, 0.125 }; /* surprises 1 2 3 3 */
    struct mirostat m;
    float surprise;
    mirostat_init(&m, 2, 1.2f, 0.1f);
    assert_float_equal(m.mu, 2.4, 1e-6);
    make(p, 4);
    assert_int_equal(mirostat_draw(&m, &c, 4, 0.9, &surprise), 1);
    assert_int_equal(left(), 0x3);
    assert_float_equal(surprise, 2, 1e-6); /* of the whole, not of what is left */
    mirostat_follow(&m, surprise);
    assert_float_equal(m.mu, 2.4 - 0.1 * (2 - 1.2), 1e-6);
    m.mu = 0.5; /* less than the likeliest surprises */
    make(p, 4);
    assert_int_equal(mirostat_draw(&m, &c, 4, 0.9, &surprise), 0);
    m.mu = 10;
    make(p, 4);
    assert_int_equal(mirostat_draw(&m, &c, 4, 0.99, &surprise), 3);
    mirostat_init(&m, 3, 5, 0.1f);
    assert_int_equal(m.version, 0);
    mirostat_follow(&m, 1);
    assert_float_equal(m.mu, 10, 0);
}

/* p proportional to (i+1)^-2: s is 2 exactly, so k = ((2^mu) / (1 - 1/N))^(1/2). */
static void mirostat_one_estimates_zipf(void **state)
{
    (void)state;
    static const struct {
        double mu;
        uint32_t k;
    } rows[] = { { 0, 1 }, { 4, 4 }, { 6, 8 }, { 30, 50 }, { -9, 1 } };
    double p[50];
    struct mirostat m;
    float surprise;
    for (int i = 0; i < 50; i++) {
        p[i] = 1.0 / ((i + 1.0) * (i + 1.0));
    }
    mirostat_init(&m, 1, 5, 0.1f);
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        make(p, 50);
        m.mu = rows[r].mu;
        assert_int_equal(mirostat_draw(&m, &c, 50, 0, &surprise), 0);
        assert_int_equal(c.n, rows[r].k);
        assert_float_equal(surprise, log2(1.62513), 1e-4); /* the sum of the fifty */
    }
}

/* ---- adaptive-p ---- */

/* The mean of the chosen tokens' probabilities, the last `n` counting most, written out as one sum. */
static double mean_of(const double *chosen, int n, double target, double decay)
{
    double sum = target / (1 - decay) * pow(decay, n), weight = pow(decay, n) / (1 - decay);
    for (int i = 0; i < n; i++) {
        sum += chosen[i] * pow(decay, n - 1 - i);
        weight += pow(decay, n - 1 - i);
    }
    return sum / weight;
}

/* Which of six a draw by u is to give when aim is aimed at; -1 when u is too near an edge to tell. */
static int drawn(double aim, double u)
{
    double weight[6], sum = 0, mass = 0;
    for (int i = 0; i < 6; i++) {
        double distance = fabs(six[i] - aim) / 0.3;
        weight[i] = exp(5 - 10 * pow(distance, 2) / (1 + distance));
        sum += weight[i];
    }
    for (int n = 0; n < 6; n++) { /* the heaviest first */
        int i = 0;
        for (int k = 1; k < 6; k++) {
            i = weight[k] > weight[i] ? k : i;
        }
        mass += weight[i] / sum;
        weight[i] = 0;
        if (fabs(u - mass) < 1e-5) {
            return -1;
        }
        if (u < mass) {
            return i;
        }
    }
    return -1;
}

static void adaptive_p_draws_near_its_aim(void **state)
{
    (void)state;
    static const double targets[] = { 0, 0.05, 0.3, 0.6, 1 }, decays[] = { 0, 0.5, 0.9, 0.99 };
    static double chosen[200];
    for (size_t t = 0; t < 5; t++) {
        for (size_t d = 0; d < 4; d++) {
            double target = (double)(float)targets[t], decay = (double)(float)decays[d];
            decay = decay > 0.99 ? 0.99 : decay;
            struct adaptive a;
            int seen = 0;
            adaptive_init(&a, true, (float)targets[t], (float)decays[d]);
            for (int n = 0; n < 200; n++) {
                double aim = 2 * target - mean_of(chosen, n, target, decay);
                double u = rng_uniform(t * 10 + d, (uint64_t)n, 0, RNG_TOKEN);
                int want = drawn(aim < 0 ? 0 : aim > 1 ? 1 : aim, u);
                float p = -1;
                make(six, 6);
                c.scale = 0.5; /* the temperature has acted: what is given is the root of six */
                for (int i = 0; i < 6; i++) {
                    set[i].logit *= 0.5f;
                }
                int32_t id = adaptive_draw(&a, &c, u, &p);
                assert_true(want < 0 || id == want);
                assert_float_equal(p, six[id], 1e-6); /* as it was, not as it was drawn */
                chosen[n] = six[id];
                seen |= 1 << id;
                adaptive_follow(&a, p);
            }
            assert_true((seen & (seen - 1)) != 0); /* more than one */
        }
    }
}

/* Near a target that the tokens have, the mean of what is chosen comes to it; off, nothing is followed. */
static void adaptive_p_reaches_its_target(void **state)
{
    (void)state;
    struct adaptive a;
    double sum = 0;
    float p;
    adaptive_init(&a, true, 0.3f, 0.9f);
    for (int n = 0; n < 2000; n++) {
        make(six, 6);
        adaptive_draw(&a, &c, rng_uniform(1, (uint64_t)n, 0, RNG_TOKEN), &p);
        adaptive_follow(&a, p);
        sum += (double)p;
    }
    assert_float_equal(sum / 2000, 0.3,
                       0.03); /* by itself the draw's mean is 0.29, of an even one 0.17 */
    adaptive_init(&a, false, 0.3f, 0.9f);
    double before = a.sum;
    adaptive_follow(&a, 1);
    assert_float_equal(a.sum, before, 0);
}

/* It is the draw when it is asked for and the order names it, wherever; never at temperature 0 or beside mirostat. */
static void adaptive_p_acts_when_named(void **state)
{
    (void)state;
    static const struct {
        uint32_t asked, n_samplers;
        uint8_t samplers[3];
        float temp;
        int32_t mirostat;
        bool acts;
    } rows[] = {
        { 1, 0, { 0 }, 1, 0, true },
        { 0, 0, { 0 }, 1, 0, false },
        { 1, 2, { JOURNAL_ADAPTIVE_P, JOURNAL_TOP_K }, 1, 0, true },
        { 1, 2, { JOURNAL_TOP_K, JOURNAL_TEMPERATURE }, 1, 0, false },
        { 1, 0, { 0 }, 1, 2, false },
        { 1, 0, { 0 }, 0, 0, false },
    };
    float logits[N_PIECES] = { 3, 2, 1 };
    struct err err;
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        struct journal_params params = { .temp = rows[r].temp,
                                         .top_p = 1,
                                         .typical_p = 1,
                                         .top_k = 3,
                                         .repeat_penalty = 1,
                                         .adaptive_p = rows[r].asked,
                                         .adaptive_target = 0.05f,
                                         .adaptive_decay = 0.9f,
                                         .mirostat = rows[r].mirostat,
                                         .mirostat_tau = 50,
                                         .n_samplers = rows[r].n_samplers };
        struct sampler s;
        int n_likeliest = 0;
        memcpy(params.samplers, rows[r].samplers, sizeof rows[r].samplers);
        sampler_init(&s, &params);
        for (uint64_t at = 0; at < 200; at++) {
            params.seed = at;
            s.seed = at;
            assert_ok(sampler_choose(work, &s, logits, NULL, 0, NULL, &choice, &err), err);
            n_likeliest += choice.token == 0;
            bool told = rows[r].mirostat != 0 || rows[r].acts;
            assert_int_equal(choice.feedback > 0, told);
        }
        /* Of the three 0.67 is the likeliest's share; aimed at 0.05, it comes seldom. */
        assert_true(rows[r].acts ? n_likeliest < 20 : n_likeliest > 40);
    }
}

/* ---- banned strings ---- */

static enum banned_state look(const struct banned *b, const char *text, uint32_t n_prompt,
                              uint32_t *from)
{
    int32_t tokens[300];
    uint32_t n = spell(text, tokens);
    *from = 999;
    return banned_look(b, &letters, tokens, n_prompt, n, from);
}

static void banned_strings_are_seen_coming(void **state)
{
    (void)state;
    static struct banned b;
    struct err err;
    uint32_t from;
    assert_ok(banned_add(&b, (const uint8_t *)"Hello W", 7, &err), err);
    assert_ok(banned_add(&b, (const uint8_t *)"low", 3, &err), err);
    assert_int_equal(look(&b, "xyz", 0, &from), BANNED_NONE);
    assert_int_equal(look(&b, "xyh", 0, &from), BANNED_BEGUN);
    assert_int_equal(from, 2);
    assert_int_equal(look(&b, "xyhello", 0, &from), BANNED_BEGUN);
    assert_int_equal(from, 2);
    assert_int_equal(look(&b, "xyhelloq", 0, &from), BANNED_NONE);
    assert_int_equal(look(&b, "xyhell", 3, &from),
                     BANNED_BEGUN); /* the prompt's "h" does not count */
    assert_int_equal(from, 5);
    assert_int_equal(look(&b, "xyhellow", 0, &from), BANNED_WHOLE);
    assert_int_equal(from, 5);
    assert_int_equal(look(&b, "xyhello w", 0, &from), BANNED_WHOLE);
    assert_int_equal(from, 2);
    /* A token of several bytes, and one of none in between. */
    const int32_t tokens[] = { 18, NOTHING, ING, 18 }; /* "s" "" "ing" "s" */
    static struct banned sing;
    assert_ok(banned_add(&sing, (const uint8_t *)"NGS", 3, &err), err);
    assert_int_equal(banned_look(&sing, &letters, tokens, 0, 3, &from), BANNED_BEGUN);
    assert_int_equal(from, 2);
    assert_int_equal(banned_look(&sing, &letters, tokens, 0, 4, &from), BANNED_WHOLE);
    assert_int_equal(from, 2);
    uint8_t long_one[LIMIT_STOP_BYTES + 1] = { 0 };
    assert_int_equal(banned_add(&sing, long_one, sizeof long_one, &err), -1);
}

/* A string as long as there may be, behind many tokens, begins where it begins. */
static void the_longest_string_is_found(void **state)
{
    (void)state;
    static struct banned b;
    struct err err;
    char text[300];
    uint32_t from;
    uint8_t a[LIMIT_STOP_BYTES];
    memset(a, 'a', sizeof a);
    a[0] = 'b';
    assert_ok(banned_add(&b, a, sizeof a, &err), err);
    memset(text, 'a', sizeof text);
    text[60] = 'b';
    text[60 + LIMIT_STOP_BYTES - 1] = 0;
    assert_int_equal(look(&b, text, 0, &from), BANNED_BEGUN);
    assert_int_equal(from, 60);
    text[60 + LIMIT_STOP_BYTES - 1] = 'a';
    text[60 + LIMIT_STOP_BYTES] = 0;
    assert_int_equal(look(&b, text, 0, &from), BANNED_WHOLE);
    assert_int_equal(from, 60);
    text[60 + LIMIT_STOP_BYTES] = 'a';
    text[61 + LIMIT_STOP_BYTES] = 0;
    assert_int_equal(look(&b, text, 0, &from), BANNED_NONE);
}

static void refusals_belong_to_positions(void **state)
{
    (void)state;
    static struct held h;
    struct err err;
    assert_ok(held_refuse(&h, 5, 50, &err), err);
    assert_ok(held_refuse(&h, 5, 51, &err), err);
    assert_ok(held_refuse(&h, 7, 70, &err), err);
    struct sampler_refused at = held_refused(&h, 7);
    assert_int_equal(at.n, 1);
    assert_int_equal(at.tokens[0], 70);
    assert_int_equal(held_refused(&h, 8).n, 0);
    assert_ok(held_refuse(&h, 6, 60, &err), err); /* what hung on the token at 6 is forgotten */
    assert_int_equal(held_refused(&h, 7).n, 0);
    assert_int_equal(held_refused(&h, 6).n, 1);
    h.n = 2;
    held_pop(&h, 5);
    assert_int_equal(h.n, 1);
    assert_int_equal(h.n_refused, 1);
    assert_int_equal(held_refused(&h, 6).tokens[0], 60);
    for (int i = 0; i < HELD_REFUSED_MAX - 1; i++) {
        assert_ok(held_refuse(&h, 6, i, &err), err);
    }
    assert_int_equal(held_refuse(&h, 6, 1, &err), -1);
    assert_int_equal(err.code, ERR_FAILED);
}

static int open_work(void **state)
{
    struct err err;
    open_all(state);
    work = sampler_work_create(N_PIECES, 4096, &letters, &err);
    return work ? 0 : -1;
}

static int close_work(void **state)
{
    (void)state;
    sampler_work_destroy(&work);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(xtc_leaves_the_last_of_the_top),
        cmocka_unit_test(top_n_sigma_measures_from_the_best),
        cmocka_unit_test(filters_see_the_temperature),
        cmocka_unit_test(marks_are_passed_where_a_sorted_list_passes_them),
        cmocka_unit_test(the_order_changes_what_is_left),
        cmocka_unit_test(xtc_acts_as_often_as_asked),
        cmocka_unit_test(the_temperature_follows_the_entropy),
        cmocka_unit_test(penalties_find_their_tokens),
        cmocka_unit_test(refused_tokens_do_not_come),
        cmocka_unit_test(dry_grows_with_the_repetition),
        cmocka_unit_test(mirostat_two_cuts_at_mu),
        cmocka_unit_test(mirostat_one_estimates_zipf),
        cmocka_unit_test(adaptive_p_draws_near_its_aim),
        cmocka_unit_test(adaptive_p_reaches_its_target),
        cmocka_unit_test(adaptive_p_acts_when_named),
        cmocka_unit_test(banned_strings_are_seen_coming),
        cmocka_unit_test(the_longest_string_is_found),
        cmocka_unit_test(refusals_belong_to_positions),
    };
    return cmocka_run_group_tests(tests, open_work, close_work);
}
