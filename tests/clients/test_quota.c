/* An API key's line and what it holds its requests to: at once, and in a minute. */
#include "clients/gateway/guard.h"
#include "clients/gateway/problem.h"
#include "tests/test.h"

#define HASH "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

static void a_line_says_name_and_limits(void **state)
{
    struct http_key key;
    struct err err;
    (void)state;
    assert_int_equal(http_key_parse(HASH, &key, &err), 0);
    assert_string_equal(key.name, "00112233");
    assert_int_equal(key.requests + key.tokens_per_minute, 0);
    assert_int_equal(key.hash[1], 0x11);
    assert_int_equal(key.hash[31], 0xff);
    assert_int_equal(http_key_parse(HASH
                                    "  name=my.ed-itor_1\ttokens_per_minute=4294967295 requests=3",
                                    &key, &err),
                     0);
    assert_string_equal(key.name, "my.ed-itor_1");
    assert_int_equal(key.requests, 3);
    assert_int_equal(key.tokens_per_minute, UINT32_MAX);
}

static void a_wrong_line_is_refused(void **state)
{
    static const char *const wrong[] = {
        "",
        HASH "0",
        "x" HASH,
        "name=a " HASH,
        HASH " name=",
        HASH " name=a:b",
        HASH " name=0123456789012345678901234567890x",
        HASH " requests",
        HASH " requests=0",
        HASH " requests=-1",
        HASH " requests=4x",
        HASH " requests=4294967296",
        HASH " tokens_per_minute=99999999999999999999999",
        HASH " tokens=5",
        HASH "                                                                                     "
             "                              name=a",
    };
    struct http_key key;
    struct err err;
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        err.code = ERR_NONE;
        assert_int_equal(http_key_parse(wrong[i], &key, &err), -1);
        assert_int_equal(err.code, ERR_USAGE);
    }
}

static struct quota *quota_of(const char *line)
{
    struct http_key key;
    struct err err;
    assert_int_equal(http_key_parse(line, &key, &err), 0);
    return quota_create(&key);
}

static void one_more_than_at_once_is_refused(void **state)
{
    struct quota *q = quota_of(HASH " name=ed requests=2");
    struct problem p;
    (void)state;
    assert_string_equal(q->flow, "key:ed");
    assert_int_equal(quota_begin(q, 1, &p), 0);
    assert_int_equal(quota_begin(q, 1, &p), 0);
    assert_int_equal(quota_begin(q, 1, &p), -1);
    assert_int_equal(p.status, 429);
    assert_string_equal(p.type, "rate_limit_error");
    assert_string_equal(p.code, "key_requests_limit");
    assert_true(p.retry);
    quota_end(q);
    assert_int_equal(quota_begin(q, 1, &p), 0);
    quota_unref(&q);
}

/* 600 in a minute are 10 in a second. */
static void an_overdrawn_minute_is_made_up_for(void **state)
{
    struct quota *q = quota_of(HASH " tokens_per_minute=600");
    struct problem p;
    uint64_t now = 5000000;
    (void)state;
    assert_int_equal(quota_begin(q, now, &p), 0);
    quota_spend(q, 599, now);
    assert_int_equal(quota_begin(q, now, &p), 0); /* one is left */
    quota_spend(q, 101, now);
    assert_int_equal(quota_begin(q, now, &p), -1);
    assert_int_equal(p.status, 429);
    assert_string_equal(p.code, "key_tokens_limit");
    assert_int_equal(p.retry_s, 11); /* 100 overdrawn and one more: 10.1 s */
    assert_int_equal(quota_begin(q, now + 10050, &p), -1);
    assert_int_equal(quota_begin(q, now + 11000, &p), 0);
    quota_spend(q, 0, now + 1000000); /* rest does not save up more than a minute */
    quota_spend(q, 600, now + 1000000);
    assert_int_equal(quota_begin(q, now + 1000000, &p), -1);
    quota_unref(&q);
}

static void without_limits_nothing_is_refused(void **state)
{
    struct quota *q = quota_of(HASH);
    struct problem p;
    (void)state;
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(quota_begin(q, 1, &p), 0);
        quota_spend(q, UINT32_MAX, 1);
    }
    quota_unref(&q);
}

static void a_key_finds_its_own_quota(void **state)
{
    static struct guard guard = { .loopback = true };
    char keys[2][64], hex[2 * HTTP_KEY_HASH_BYTES + 1], bearer[192];
    char lines[2][HTTP_KEY_LINE_BYTES];
    const char *both[] = { lines[0], lines[1] }, *many[HTTP_KEYS_MAX + 1];
    struct quota *who;
    struct problem p;
    struct err err;
    (void)state;
    assert_int_equal(guard_key(&guard, NULL, NULL, &who, &p), 0);
    assert_null(who);
    for (int i = 0; i < 2; i++) {
        guard_new_key(keys[i], hex);
        snprintf(lines[i], sizeof lines[i], "%s name=key-%d", hex, i);
    }
    assert_int_equal(guard_set(&guard, both, 2, &err), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(guard_key(&guard, NULL, keys[i], &who, &p), 0);
        assert_ptr_equal(who, guard.keys[i]);
        quota_unref(&who);
        snprintf(bearer, sizeof bearer, "Bearer %s", keys[i]);
        assert_int_equal(guard_key(&guard, bearer, NULL, &who, &p), 0);
        assert_ptr_equal(who, guard.keys[i]);
        quota_unref(&who);
    }
    assert_int_equal(guard_key(&guard, "Bearer x", NULL, &who, &p), -1);
    assert_int_equal(p.status, 401);
    assert_null(who);
    for (int i = 0; i <= HTTP_KEYS_MAX; i++) {
        many[i] = HASH;
    }
    assert_int_equal(guard_set(&guard, many, HTTP_KEYS_MAX + 1, &err), -1);
    assert_int_equal(guard.n_keys, 2);
    assert_int_equal(guard_set(&guard, many, HTTP_KEYS_MAX, &err), 0);
    guard_clear(&guard);
}

/* A key that stays keeps its counts, one that goes lives as long as its requests, and a mistake changes nothing. */
static void keys_change_under_requests(void **state)
{
    static struct guard guard = { .loopback = false };
    char keys[2][64], hex[2 * HTTP_KEY_HASH_BYTES + 1], lines[2][HTTP_KEY_LINE_BYTES];
    struct quota *who, *other;
    struct problem p;
    struct err err;
    (void)state;
    for (int i = 0; i < 2; i++) {
        guard_new_key(keys[i], hex);
        snprintf(lines[i], sizeof lines[i], "%s name=key-%d requests=1", hex, i);
    }
    const char *both[] = { lines[0], lines[1] }, *wrong[] = { lines[1], "nonsense" };
    assert_int_equal(guard_set(&guard, both, 2, &err), 0);
    assert_int_equal(guard_key(&guard, NULL, keys[0], &who, &p), 0);
    assert_int_equal(quota_begin(who, 1, &p), 0);
    assert_int_equal(guard_key(&guard, NULL, keys[1], &other, &p), 0);
    assert_int_equal(quota_begin(other, 1, &p), 0);
    assert_int_equal(guard_set(&guard, wrong, 2, &err), -1);
    assert_int_equal(guard_set(&guard, NULL, 0, &err), -1); /* nobody's gateway beyond loopback */
    assert_int_equal(err.code, ERR_REFUSED);
    assert_int_equal(guard.n_keys, 2);
    assert_int_equal(guard_set(&guard, both + 1, 1, &err), 0);
    quota_end(who); /* the last of its key */
    quota_unref(&who);
    assert_int_equal(guard_key(&guard, NULL, keys[0], &who, &p), -1);
    assert_int_equal(guard_key(&guard, NULL, keys[1], &who, &p), 0);
    assert_ptr_equal(who, other);
    assert_int_equal(quota_begin(who, 1, &p), -1);
    quota_unref(&who);
    quota_end(other);
    quota_unref(&other);
    guard_clear(&guard);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_says_name_and_limits),
        cmocka_unit_test(a_wrong_line_is_refused),
        cmocka_unit_test(one_more_than_at_once_is_refused),
        cmocka_unit_test(an_overdrawn_minute_is_made_up_for),
        cmocka_unit_test(without_limits_nothing_is_refused),
        cmocka_unit_test(a_key_finds_its_own_quota),
        cmocka_unit_test(keys_change_under_requests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
