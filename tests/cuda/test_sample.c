/* Tokens chosen on the emulated device against worker/sampler.c: the same token and the same bits of its log-probability, for
 * requests and rows of every kind. */
#include "tests/cuda/twins.h"

#include "worker/pick.h"
#include "worker/rng.h"

#define ROWS   5
#define TOKENS 90

static const uint32_t vocabs[] = { 3, 37, 512, 2500, 9001 };
static uint64_t seed = 1;

static double number(void)
{
    static uint64_t n;
    return rng_uniform(seed, n++, 0, RNG_TOKEN);
}

static uint32_t below(uint32_t n)
{
    return (uint32_t)(number() * n);
}

static double normal(void)
{
    return sqrt(-2 * log(1 - number())) * cos(6.283185307 * number());
}

/* Rows as models make them, and as none should. */
static void fill(float *logits, uint32_t n, uint32_t kind)
{
    for (uint32_t i = 0; i < n; i++) {
        double x = normal() * 3;
        switch (kind) {
        case 0: /* a model's */
            logits[i] = (float)(x + (below(50) == 0 ? 12 : 0));
            break;
        case 1: /* many ties, in both zeros */
            logits[i] = (float)round(x) * 0.5f * (below(2) ? 1.0f : -1.0f);
            break;
        case 2:
            logits[i] = 1.25f;
            break;
        case 3: /* as far apart as floats go */
            logits[i] = (float)x * (below(3) == 0 ? 1e38f : below(2) ? 1e-38f : 1.0f);
            break;
        case 4: /* hardly anybody there */
            logits[i] = below(n) > 2 ? -INFINITY : below(3) == 0 ? NAN : (float)x;
            break;
        case 5: /* nobody, or too much */
            logits[i] = below(n) == 0 && below(2) == 0 ? INFINITY : below(2) ? -INFINITY : NAN;
            break;
        default: /* more alike than the device's list is long */
            logits[i] = (float)(x * 1e-4);
            break;
        }
    }
}

static struct sampler any_sampler(uint32_t n_vocab)
{
    static const float temps[] = { 0, 0.05f, 0.7f, 1, 3 };
    struct journal_params params = {
        .seed = below(1u << 30),
        .temp = temps[below(5)],
        .top_p = below(2) ? 1 : (float)number(),
        .min_p = below(3) ? 0 : (float)number(),
        .top_k = (int32_t)(below(2) ? 0 : 1 + below(below(2) ? 60 : 2 * n_vocab)),
        .typical_p = 1,
        .repeat_penalty = below(2) ? 1 : (float)(0.5 + 2 * number()),
        .presence_penalty = below(3) ? 0 : (float)normal(),
        .frequency_penalty = below(3) ? 0 : (float)normal(),
        .repeat_last_n = below(4) == 0 ? -1 : (int32_t)below(TOKENS + 30),
        .logprobs = below(2) == 0,
        .ignore_eos = below(2) == 0,
    };
    struct sampler s;
    sampler_init(&s, &params);
    if (below(4) == 0) { /* the temperature before filters */
        const enum journal_sampler order[] = { JOURNAL_PENALTIES, JOURNAL_TEMPERATURE,
                                               JOURNAL_MIN_P, JOURNAL_TOP_P, JOURNAL_TOP_K };
        s.n_order = 1 + below(5);
        memcpy(s.order, order, sizeof order);
    }
    for (uint32_t i = below(3) == 0 ? below(20) : 0; i > 0; i--) {
        s.biases[s.n_biases++] = (struct journal_bias){ (int32_t)below(n_vocab + 5),
                                                        below(3) == 0 ? -INFINITY
                                                                      : (float)(normal() * 10) };
    }
    return s;
}

static void one_op(struct backend *b, uint32_t n_vocab, struct picker *picker,
                   struct sampler_work *work, int32_t *fed, uint32_t *n_compared)
{
    static struct sampler samplers[ROWS];
    static int32_t tokens[ROWS][TOKENS + 1];
    static struct op_pick picks[ROWS];
    static struct op_pick_change changes[ROWS * OP_PICK_CHANGES_MAX];
    struct op_picked picked[ROWS];
    uint32_t n_tokens[ROWS], n_rows = 0, n_changes = 0;
    float *logits = malloc((size_t)ROWS * n_vocab * sizeof *logits);
    float *same = malloc((size_t)ROWS * n_vocab * sizeof *same);
    struct err err;
    assert_non_null(logits);
    assert_non_null(same);
    for (uint32_t i = 0; i < ROWS; i++) {
        struct sampler *s = &samplers[n_rows];
        bool follows = below(2);
        *s = any_sampler(n_vocab);
        fill(logits + (size_t)i * n_vocab, n_vocab, below(7));
        n_tokens[n_rows] = below(TOKENS) + 1;
        for (uint32_t k = 0; k < n_tokens[n_rows]; k++) {
            tokens[n_rows][k] = (int32_t)below(below(2) ? 9 : n_vocab + 3);
        }
        if (!pick_can(picker, s, n_tokens[n_rows])) {
            continue;
        }
        struct op_pick *pick = &picks[n_rows];
        pick->row = i;
        pick->slot = ROWS - 1 - i;
        fed[pick->slot] = follows ? tokens[n_rows][n_tokens[n_rows] - 1] : 1;
        pick->n_changes = pick_make(picker, s, tokens[n_rows], n_tokens[n_rows] - follows, follows,
                                    pick, changes + n_changes);
        pick->first_change = n_changes;
        n_changes += pick->n_changes;
        n_rows++;
    }
    memcpy(same, logits, (size_t)ROWS * n_vocab * sizeof *same);
    const struct op_sample op = { .logits = logits,
                                  .stride = n_vocab,
                                  .n_rows = n_rows,
                                  .n_changes = n_changes,
                                  .picks = picks,
                                  .changes = changes,
                                  .fed = fed,
                                  .picked = picked };
    assert_ok(b->ops->sample(b, &op, &err), err);
    assert_ok(b->ops->finish(b, &err), err);
    for (uint32_t i = 0; i < n_rows; i++) {
        struct sampler_choice want, got = { .token = -1 };
        int rc = sampler_choose(work, &samplers[i], same + (size_t)picks[i].row * n_vocab,
                                tokens[i], n_tokens[i], NULL, &want, &err);
        assert_int_equal(fed[picks[i].slot], picked[i].token);
        assert_int_equal(rc < 0, picked[i].token < 0);
        if (rc == 0) {
            got = pick_choice(&samplers[i], &picked[i]);
            if (got.token != want.token || memcmp(&got.logprob, &want.logprob, sizeof(float))) {
                fail_msg("of %u: token %d (%g), the host's %d (%g); temp %g k %d p %g min %g",
                         n_vocab, got.token, (double)got.logprob, want.token, (double)want.logprob,
                         (double)samplers[i].temp, samplers[i].top_k, (double)samplers[i].top_p,
                         (double)samplers[i].min_p);
            }
            (*n_compared)++;
        }
    }
    free(logits);
    free(same);
}

static void the_devices_token_is_the_hosts(void **state)
{
    struct twins *t = *state;
    uint32_t n_compared = 0;
    struct err err;
    for (size_t v = 0; v < sizeof vocabs / sizeof *vocabs; v++) {
        uint32_t n = vocabs[v], n_pieces = n > 40 ? n - 5 : n;
        uint8_t *flags = calloc(n_pieces, 1);
        uint32_t *offs = calloc(n_pieces + 1, sizeof *offs);
        assert_non_null(flags);
        assert_non_null(offs);
        flags[n_pieces / 2] = flags[2] = PIECES_END;
        const struct pieces pieces = { .n = n_pieces, .flags = flags, .offs = offs };
        struct picker *picker = picker_create(n, &pieces, &err);
        struct sampler_work *work = sampler_work_create(n, 256, &pieces, &err);
        int32_t *fed = t->cuda->ops->alloc(t->cuda, ROWS * sizeof *fed, &err);
        assert_non_null(picker);
        assert_non_null(work);
        assert_non_null(fed);
        for (int i = 0; i < 120; i++) {
            one_op(t->cuda, n, picker, work, fed, &n_compared);
        }
        t->cuda->ops->free(t->cuda, fed);
        sampler_work_destroy(&work);
        picker_destroy(&picker);
        free(flags);
        free(offs);
    }
    assert_true(n_compared > 1500);
}

/* What the host alone does is refused. */
static void what_a_device_cannot_is_told(void **state)
{
    static const uint32_t offs[12];
    static const uint8_t flags[11];
    const struct pieces pieces = { .n = 11,
                                   .flags = (uint8_t *)(uintptr_t)flags,
                                   .offs = (uint32_t *)(uintptr_t)offs };
    const struct journal_params plain = {
        .temp = 1, .top_p = 1, .typical_p = 1, .repeat_penalty = 1, .repeat_last_n = 64
    };
    struct err err;
    (void)state;
    struct picker *p = picker_create(11, &pieces, &err);
    assert_non_null(p);
    struct sampler s;
    sampler_init(&s, &plain);
    assert_true(pick_can(p, &s, 9));
    for (int i = 0; i < 10; i++) {
        sampler_init(&s, &plain);
        s.typical_p = i == 0 ? 0.5f : 1;
        s.top_n_sigma = i == 1;
        s.xtc_probability = i == 2;
        s.dry.multiplier = i == 3;
        s.mirostat.version = i == 4;
        s.dynatemp_range = i == 5;
        s.n_alternatives = i == 6;
        s.adaptive.on = i == 7;
        s.n_biases = i == 8 ? 2 : 0; /* both of token 0 */
        if (i == 9) {
            s.repeat_penalty = 1.1f;
            s.order[0] = JOURNAL_TEMPERATURE;
            s.order[1] = JOURNAL_PENALTIES;
        }
        assert_false(pick_can(p, &s, 9));
    }
    sampler_init(&s, &plain);
    s.presence_penalty = 1;
    s.repeat_last_n = -1;
    assert_true(pick_can(p, &s, OP_PICK_CHANGES_MAX));
    assert_false(pick_can(p, &s, OP_PICK_CHANGES_MAX + 1));
    picker_destroy(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_devices_token_is_the_hosts),
        cmocka_unit_test(what_a_device_cannot_is_told),
    };
    return cmocka_run_group_tests(tests, twins_open, twins_close);
}
