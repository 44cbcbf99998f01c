/* Filters on lists and dicts. */
#include <string.h>

#include "loader/text/template/eval.h"

#define ARGS struct vm *vm, struct value self, struct value *argv, const struct args *args
#define UNUSED_ARGS                                                                                \
    (void)argv;                                                                                    \
    (void)args

static bool given(struct value v)
{
    return v.kind != VALUE_ABSENT && v.kind != VALUE_NONE;
}

/* Text without regard to case, for comparison. */
static struct value fold(struct vm *vm, struct value v)
{
    static const struct args none = { .n = 0 };
    if (v.kind != VALUE_STR) {
        return v;
    }
    static const struct str lower = { .p = "lower", .len = 5, .trusted = true };
    return filter_apply(vm, &lower, v, &none);
}

static struct value filter_list(ARGS)
{
    UNUSED_ARGS;
    const struct seq *items = value_iterate(vm, self);
    struct value out = seq_new(vm, VALUE_LIST, items->n);
    vm_charge(vm, items->n / 4);
    for (size_t i = 0; i < items->n; i++) {
        seq_push(vm, out.seq, items->items[i]);
    }
    return out;
}

static struct value filter_join(ARGS)
{
    (void)args;
    const struct seq *items = value_iterate(vm, self);
    struct text out;
    text_init(&out, vm, 0);
    for (size_t i = 0; i < items->n; i++) {
        vm_charge(vm, 1);
        if (i && given(argv[0])) {
            print_value(&out, argv[0]);
        }
        struct value item = items->items[i];
        print_value(&out, given(argv[1]) ? lookup_path(vm, item, argv[1]) : item);
    }
    return text_value(&out);
}

static struct value filter_first(ARGS)
{
    UNUSED_ARGS;
    const struct seq *items = value_iterate(vm, self);
    return items->n ? items->items[0] : value_undefined();
}

static struct value filter_last(ARGS)
{
    UNUSED_ARGS;
    const struct seq *items = value_iterate(vm, self);
    return items->n ? items->items[items->n - 1] : value_undefined();
}

static struct value filter_reverse(ARGS)
{
    UNUSED_ARGS;
    const struct seq *items = value_iterate(vm, self);
    struct value out = seq_new(vm, VALUE_GENERATOR, items->n);
    struct text text;
    text_init(&text, vm, 0);
    for (size_t i = items->n; i-- > 0;) {
        vm_charge(vm, 1);
        if (self.kind == VALUE_STR) {
            text_add_str(&text, items->items[i].s);
        } else {
            seq_push(vm, out.seq, items->items[i]);
        }
    }
    return self.kind == VALUE_STR ? text_value(&text) : out;
}

static struct value filter_items(ARGS)
{
    UNUSED_ARGS;
    struct value out = seq_new(vm, VALUE_GENERATOR, 0);
    if (self.kind == VALUE_UNDEFINED) {
        return out;
    }
    if (self.kind != VALUE_DICT) {
        vm_fail(vm, TEMPLATE_RUNTIME, "Can only get item pairs from a mapping.");
    }
    for (size_t i = 0; i < self.dict->n; i++) {
        struct value pair = seq_new(vm, VALUE_TUPLE, 2);
        vm_charge(vm, 1);
        seq_push(vm, pair.seq, self.dict->entries[i].key);
        seq_push(vm, pair.seq, self.dict->entries[i].value);
        seq_push(vm, out.seq, pair);
    }
    return out;
}

/* --- order --- */

struct keyed {
    struct value key, item;
};

static void merge_sort(struct vm *vm, struct keyed *v, size_t n, struct keyed *tmp, bool down)
{
    if (n < 2) {
        return;
    }
    size_t half = n / 2;
    merge_sort(vm, v, half, tmp, down);
    merge_sort(vm, v + half, n - half, tmp, down);
    for (size_t i = 0, a = 0, b = half; i < n; i++) {
        bool left = b == n;
        if (!left && a < half) {
            int order = value_order(vm, v[b].key, v[a].key, "<");
            left = down ? order <= 0 : order >= 0;
        }
        tmp[i] = left ? v[a++] : v[b++];
    }
    memcpy(v, tmp, n * sizeof *v);
}

/* Items in the order of their keys; stable, and stable downwards too. */
static void sort_keyed(struct vm *vm, struct keyed *v, size_t n, bool down)
{
    merge_sort(vm, v, n, vm_array(vm, n + 1, sizeof *v), down);
}

/* What an item is compared by: an attribute, several with commas, itself; case folded unless asked otherwise. */
static struct value sort_key(struct vm *vm, struct value item, struct value attribute, bool folds)
{
    if (!given(attribute)) {
        return folds ? fold(vm, item) : item;
    }
    if (attribute.kind != VALUE_STR || !memchr(attribute.s->p, ',', attribute.s->len)) {
        struct value v = lookup_path(vm, item, attribute);
        return folds ? fold(vm, v) : v;
    }
    struct value out = seq_new(vm, VALUE_TUPLE, 0);
    for (size_t off = 0; off <= attribute.s->len;) {
        const char *comma = memchr(attribute.s->p + off, ',', attribute.s->len - off);
        size_t end = comma ? (size_t)(comma - attribute.s->p) : attribute.s->len;
        struct value path = value_str(str_slice(vm, attribute.s, off, end - off));
        struct value v = lookup_path(vm, item, path);
        seq_push(vm, out.seq, folds ? fold(vm, v) : v);
        off = end + 1;
    }
    return out;
}

static struct keyed *keyed_items(struct vm *vm, const struct seq *items, struct value attribute,
                                 bool folds)
{
    struct keyed *v = vm_array(vm, items->n + 1, sizeof *v);
    for (size_t i = 0; i < items->n; i++) {
        vm_charge(vm, 1);
        v[i] = (struct keyed){ .key = sort_key(vm, items->items[i], attribute, folds),
                               .item = items->items[i] };
    }
    return v;
}

static struct value filter_sort(ARGS)
{
    (void)args;
    const struct seq *items = value_iterate(vm, self);
    struct keyed *v = keyed_items(vm, items, argv[2], !arg_bool(argv[1], false));
    sort_keyed(vm, v, items->n, arg_bool(argv[0], false));
    struct value out = seq_new(vm, VALUE_LIST, items->n);
    for (size_t i = 0; i < items->n; i++) {
        seq_push(vm, out.seq, v[i].item);
    }
    return out;
}

static struct value filter_dictsort(ARGS)
{
    (void)args;
    if (self.kind != VALUE_DICT) {
        value_need(vm, self);
        vm_fail(vm, TEMPLATE_RUNTIME, "dictsort needs a mapping, not %s", value_type_name(self));
    }
    bool by_value = argv[1].kind == VALUE_STR && str_eq(argv[1].s, "value");
    struct seq *pairs = filter_items(vm, self, argv, args).seq;
    struct value part = value_int(by_value);
    struct keyed *v = keyed_items(vm, pairs, part, !arg_bool(argv[0], false));
    sort_keyed(vm, v, pairs->n, arg_bool(argv[2], false));
    struct value out = seq_new(vm, VALUE_LIST, pairs->n);
    for (size_t i = 0; i < pairs->n; i++) {
        seq_push(vm, out.seq, v[i].item);
    }
    return out;
}

static struct value extreme(struct vm *vm, struct value self, struct value *argv, int sign)
{
    const struct seq *items = value_iterate(vm, self);
    bool folds = !arg_bool(argv[0], false);
    struct value best = value_undefined(), best_key = best;
    for (size_t i = 0; i < items->n; i++) {
        struct value key = sort_key(vm, items->items[i], argv[1], folds);
        if (i == 0 || value_order(vm, key, best_key, sign < 0 ? "<" : ">") == sign) {
            best = items->items[i];
            best_key = key;
        }
    }
    return best;
}

static struct value filter_min(ARGS)
{
    (void)args;
    return extreme(vm, self, argv, -1);
}

static struct value filter_max(ARGS)
{
    (void)args;
    return extreme(vm, self, argv, 1);
}

static struct value filter_sum(ARGS)
{
    (void)args;
    const struct seq *items = value_iterate(vm, self);
    struct value sum = argv[1].kind == VALUE_ABSENT ? value_int(0) : argv[1];
    for (size_t i = 0; i < items->n; i++) {
        struct value item = items->items[i];
        vm_charge(vm, 1);
        sum = op_binary(vm, OP_ADD, sum, given(argv[0]) ? lookup_path(vm, item, argv[0]) : item);
    }
    return sum;
}

static struct value filter_unique(ARGS)
{
    (void)args;
    const struct seq *items = value_iterate(vm, self);
    struct value out = seq_new(vm, VALUE_GENERATOR, 0);
    struct dict *seen = dict_new(vm, VALUE_DICT).dict;
    for (size_t i = 0; i < items->n; i++) {
        struct value key = sort_key(vm, items->items[i], argv[1], !arg_bool(argv[0], false));
        if (!dict_find(vm, seen, key)) {
            dict_put(vm, seen, key, value_none());
            seq_push(vm, out.seq, items->items[i]);
        }
    }
    return out;
}

static struct value filter_groupby(ARGS)
{
    (void)args;
    bool folds = !arg_bool(argv[2], false);
    const struct seq *items = value_iterate(vm, self);
    struct keyed *v = keyed_items(vm, items, argv[0], folds);
    for (size_t i = 0; i < items->n; i++) {
        if (v[i].key.kind == VALUE_UNDEFINED && argv[1].kind != VALUE_ABSENT) {
            v[i].key = argv[1];
        }
    }
    sort_keyed(vm, v, items->n, false);
    struct value out = seq_new(vm, VALUE_LIST, 0);
    struct value group = { .kind = VALUE_ABSENT };
    for (size_t i = 0; i < items->n; i++) {
        if (i == 0 || !value_equal(vm, v[i].key, v[i - 1].key)) {
            struct value pair = seq_new(vm, VALUE_TUPLE, 2);
            struct value grouper = lookup_path(vm, v[i].item, argv[0]);
            group = seq_new(vm, VALUE_LIST, 0);
            seq_push(vm, pair.seq, grouper.kind == VALUE_UNDEFINED ? v[i].key : grouper);
            seq_push(vm, pair.seq, group);
            seq_push(vm, out.seq, pair);
        }
        seq_push(vm, group.seq, v[i].item);
    }
    return out;
}

/* --- map and select --- */

/* What map and select run over: like Jinja, they take anything false, none included, as empty. */
static struct seq *items_or_none(struct vm *vm, struct value v)
{
    return value_iterate(vm, value_truth(v) ? v : value_undefined());
}

/* The rest of the arguments, from the nth positional on. */
static struct args rest_of(const struct args *args, size_t from)
{
    struct args rest = *args;
    size_t skipped = args->n < from ? args->n : from;
    if (skipped) {
        rest.positional += skipped;
        rest.n -= skipped;
    }
    return rest;
}

static const struct value *keyword(const struct args *args, const char *name)
{
    for (size_t i = 0; i < args->n_keywords; i++) {
        if (str_eq(args->names[i], name)) {
            return &args->keywords[i];
        }
    }
    return NULL;
}

static struct value filter_map(ARGS)
{
    (void)argv;
    const struct seq *items = items_or_none(vm, self);
    struct value out = seq_new(vm, VALUE_GENERATOR, 0);
    const struct value *attribute = args->n ? NULL : keyword(args, "attribute");
    const struct value *fallback = keyword(args, "default");
    if (!attribute && !args->n) {
        vm_fail(vm, TEMPLATE_RUNTIME, "map requires a filter argument");
    }
    struct args rest = rest_of(args, 1);
    for (size_t i = 0; i < items->n; i++) {
        struct value item = items->items[i];
        vm_charge(vm, 1);
        if (attribute) {
            item = lookup_path(vm, item, *attribute);
            item = item.kind == VALUE_UNDEFINED && fallback ? *fallback : item;
        } else {
            item = filter_apply(vm, arg_str(vm, args->positional[0], "map"), item, &rest);
        }
        seq_push(vm, out.seq, item);
    }
    return out;
}

static struct value select_items(struct vm *vm, struct value self, const struct args *args,
                                 bool by_attribute, bool wanted)
{
    const struct seq *items = items_or_none(vm, self);
    struct value out = seq_new(vm, VALUE_GENERATOR, 0);
    size_t at = by_attribute; /* of the test's name */
    if (by_attribute && args->n == 0) {
        vm_fail(vm, TEMPLATE_RUNTIME, "Missing parameter for attribute name");
    }
    struct args rest = rest_of(args, at + 1);
    for (size_t i = 0; i < items->n; i++) {
        struct value item = items->items[i];
        vm_charge(vm, 1);
        if (by_attribute) {
            item = lookup_path(vm, item, args->positional[0]);
        }
        bool holds = args->n > at
                         ? test_apply(vm, arg_str(vm, args->positional[at], "select"), item, &rest)
                         : value_truth(item);
        if (holds == wanted) {
            seq_push(vm, out.seq, items->items[i]);
        }
    }
    return out;
}

static struct value filter_select(ARGS)
{
    (void)argv;
    return select_items(vm, self, args, false, true);
}

static struct value filter_reject(ARGS)
{
    (void)argv;
    return select_items(vm, self, args, false, false);
}

static struct value filter_selectattr(ARGS)
{
    (void)argv;
    return select_items(vm, self, args, true, true);
}

static struct value filter_rejectattr(ARGS)
{
    (void)argv;
    return select_items(vm, self, args, true, false);
}

/* --- pieces --- */

static struct value filter_batch(ARGS)
{
    (void)args;
    const struct seq *items = value_iterate(vm, self);
    int64_t size = arg_int(vm, argv[0], 1, "batch");
    if (size < 1 || size > TEMPLATE_RANGE_MAX) {
        vm_fail(vm, TEMPLATE_RUNTIME, "batch: a size of %lld", (long long)size);
    }
    struct value out = seq_new(vm, VALUE_GENERATOR, 0), part = { .kind = VALUE_ABSENT };
    for (size_t i = 0; i < items->n; i++) {
        vm_charge(vm, 1);
        if (i % (size_t)size == 0) {
            part = seq_new(vm, VALUE_LIST, 0);
            seq_push(vm, out.seq, part);
        }
        seq_push(vm, part.seq, items->items[i]);
    }
    while (given(argv[1]) && items->n && part.seq->n < (size_t)size) {
        vm_charge(vm, 1);
        seq_push(vm, part.seq, argv[1]);
    }
    return out;
}

static struct value filter_slice(ARGS)
{
    (void)args;
    const struct seq *items = value_iterate(vm, self);
    int64_t n = arg_int(vm, argv[0], 1, "slice");
    if (n < 1 || n > TEMPLATE_RANGE_MAX) {
        vm_fail(vm, TEMPLATE_RUNTIME, "slice: %lld slices", (long long)n);
    }
    size_t slices = (size_t)n, each = items->n / slices, longer = items->n % slices, at = 0;
    struct value out = seq_new(vm, VALUE_GENERATOR, 0);
    for (size_t i = 0; i < slices; i++) {
        struct value part = seq_new(vm, VALUE_LIST, 0);
        for (size_t k = 0; k < each + (i < longer); k++) {
            seq_push(vm, part.seq, items->items[at++]);
        }
        if (given(argv[1]) && i >= longer) {
            seq_push(vm, part.seq, argv[1]);
        }
        vm_charge(vm, 1 + each);
        seq_push(vm, out.seq, part);
    }
    return out;
}

const struct native filter_seq_table[] = {
    { "list", { NULL }, 0, filter_list },
    { "join", { "d", "attribute" }, 0, filter_join },
    { "first", { NULL }, 0, filter_first },
    { "last", { NULL }, 0, filter_last },
    { "reverse", { NULL }, 0, filter_reverse },
    { "items", { NULL }, 0, filter_items },
    { "dictsort", { "case_sensitive", "by", "reverse" }, 0, filter_dictsort },
    { "sort", { "reverse", "case_sensitive", "attribute" }, 0, filter_sort },
    { "min", { "case_sensitive", "attribute" }, 0, filter_min },
    { "max", { "case_sensitive", "attribute" }, 0, filter_max },
    { "sum", { "attribute", "start" }, 0, filter_sum },
    { "unique", { "case_sensitive", "attribute" }, 0, filter_unique },
    { "groupby", { "attribute", "default", "case_sensitive" }, 1, filter_groupby },
    { "map", { NULL }, NATIVE_RAW, filter_map },
    { "select", { NULL }, NATIVE_RAW, filter_select },
    { "reject", { NULL }, NATIVE_RAW, filter_reject },
    { "selectattr", { NULL }, NATIVE_RAW, filter_selectattr },
    { "rejectattr", { NULL }, NATIVE_RAW, filter_rejectattr },
    { "batch", { "linecount", "fill_with" }, 1, filter_batch },
    { "slice", { "slices", "fill_with" }, 1, filter_slice },
    { 0 },
};
