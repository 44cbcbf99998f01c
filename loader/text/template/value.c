#include "loader/text/template/value.h"

#include <math.h>
#include <string.h>

#include "loader/text/template/node.h"
#include "loader/text/template/str.h"

#define INDEX_FROM 8 /* entries from which a dict is hashed */

static const char *const type_names[VALUE_N_KINDS] = {
    [VALUE_ABSENT] = "absent",
    [VALUE_UNDEFINED] = "Undefined",
    [VALUE_NONE] = "NoneType",
    [VALUE_BOOL] = "bool",
    [VALUE_INT] = "int",
    [VALUE_BIG] = "int",
    [VALUE_FLOAT] = "float",
    [VALUE_STR] = "str",
    [VALUE_LIST] = "list",
    [VALUE_TUPLE] = "tuple",
    [VALUE_RANGE] = "range",
    [VALUE_VIEW] = "dict_view",
    [VALUE_GENERATOR] = "generator",
    [VALUE_DICT] = "dict",
    [VALUE_NAMESPACE] = "Namespace",
    [VALUE_FUNC] = "function",
    [VALUE_LOOP] = "LoopContext",
    [VALUE_CYCLER] = "Cycler",
    [VALUE_JOINER] = "Joiner",
};

const char *value_type_name(struct value v)
{
    if (v.kind == VALUE_VIEW && v.seq->name) {
        return v.seq->name;
    }
    return type_names[v.kind];
}

void value_fail_undefined(struct vm *vm, struct value v)
{
    const struct node *node = v.node;
    if (node && node->kind == NODE_NAME) {
        vm_fail(vm, TEMPLATE_UNDEFINED, "'%.*s' is undefined", (int)node->name->len, node->name->p);
    }
    if (node && node->kind == NODE_ATTR) {
        vm_fail(vm, TEMPLATE_UNDEFINED, "there is no attribute '%.*s'", (int)node->name->len,
                node->name->p);
    }
    if (node && node->kind == NODE_ITEM && node->b && node->b->kind == NODE_CONST) {
        struct value key = node->b->constant;
        if (key.kind == VALUE_STR) {
            vm_fail(vm, TEMPLATE_UNDEFINED, "there is no item '%.*s'", (int)key.s->len, key.s->p);
        }
        if (key.kind == VALUE_INT) {
            vm_fail(vm, TEMPLATE_UNDEFINED, "there is no element %lld", (long long)key.i);
        }
    }
    vm_fail(vm, TEMPLATE_UNDEFINED, "the value is undefined");
}

bool value_truth(struct value v)
{
    switch (v.kind) {
    case VALUE_ABSENT:
    case VALUE_UNDEFINED:
    case VALUE_NONE:
        return false;
    case VALUE_BOOL:
        return v.b;
    case VALUE_INT:
        return v.i != 0;
    case VALUE_FLOAT:
        return v.f != 0;
    case VALUE_STR:
        return v.s->len != 0;
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
    case VALUE_VIEW:
        return v.seq->n != 0;
    case VALUE_DICT:
        return v.dict->n != 0;
    default:
        return true;
    }
}

static bool is_number(struct value v)
{
    return v.kind == VALUE_BOOL || v.kind == VALUE_INT || v.kind == VALUE_FLOAT;
}

static double as_double(struct value v)
{
    return v.kind == VALUE_FLOAT ? v.f : v.kind == VALUE_BOOL ? v.b : (double)v.i;
}

static int64_t as_int(struct value v)
{
    return v.kind == VALUE_BOOL ? v.b : v.i;
}

/* Containers inside each other, here and below, are bounded by the depth that eval uses too. */
static void deeper(struct vm *vm)
{
    vm_charge(vm, 1);
    if (++vm->depth > TEMPLATE_DEPTH_MAX) {
        vm_fail(vm, TEMPLATE_LIMIT, "values are nested too deeply");
    }
}

static bool seq_equal(struct vm *vm, const struct seq *a, const struct seq *b)
{
    if (a->n != b->n) {
        return false;
    }
    for (size_t i = 0; i < a->n; i++) {
        if (!value_equal(vm, a->items[i], b->items[i])) {
            return false;
        }
    }
    return true;
}

static bool dict_equal(struct vm *vm, const struct dict *a, const struct dict *b)
{
    if (a->n != b->n) {
        return false;
    }
    for (size_t i = 0; i < a->n; i++) {
        const struct value *other = dict_find(vm, b, a->entries[i].key);
        if (!other || !value_equal(vm, a->entries[i].value, *other)) {
            return false;
        }
    }
    return true;
}

bool value_equal(struct vm *vm, struct value a, struct value b)
{
    deeper(vm);
    bool equal = false;
    if (is_number(a) && is_number(b)) {
        equal = a.kind == VALUE_FLOAT || b.kind == VALUE_FLOAT ? as_double(a) == as_double(b)
                                                               : as_int(a) == as_int(b);
    } else if (a.kind == b.kind) {
        switch (a.kind) {
        case VALUE_UNDEFINED:
        case VALUE_NONE:
            equal = true;
            break;
        case VALUE_STR:
        case VALUE_BIG:
            vm_charge_bytes(vm, a.s->len == b.s->len ? a.s->len : 0);
            equal = a.s->len == b.s->len && memcmp(a.s->p, b.s->p, a.s->len) == 0;
            break;
        case VALUE_LIST:
        case VALUE_TUPLE:
        case VALUE_RANGE:
        case VALUE_VIEW:
            equal = a.seq == b.seq || seq_equal(vm, a.seq, b.seq);
            break;
        case VALUE_DICT:
            equal = a.dict == b.dict || dict_equal(vm, a.dict, b.dict);
            break;
        default:
            equal = a.seq == b.seq; /* the same object */
        }
    }
    vm->depth--;
    return equal;
}

int value_order(struct vm *vm, struct value a, struct value b, const char *op)
{
    deeper(vm);
    int order = 0;
    if (is_number(a) && is_number(b)) {
        if (a.kind == VALUE_FLOAT || b.kind == VALUE_FLOAT) {
            double x = as_double(a), y = as_double(b);
            order = x < y ? -1 : x > y;
        } else {
            order = as_int(a) < as_int(b) ? -1 : as_int(a) > as_int(b);
        }
    } else if (a.kind == VALUE_STR && b.kind == VALUE_STR) {
        vm_charge_bytes(vm, a.s->len < b.s->len ? a.s->len : b.s->len);
        order = str_order(a.s, b.s);
    } else if (a.kind == b.kind && (a.kind == VALUE_LIST || a.kind == VALUE_TUPLE)) {
        size_t n = a.seq->n < b.seq->n ? a.seq->n : b.seq->n;
        size_t i = 0;
        while (i < n && value_equal(vm, a.seq->items[i], b.seq->items[i])) {
            i++;
        }
        order = i < n ? value_order(vm, a.seq->items[i], b.seq->items[i], op)
                      : (a.seq->n < b.seq->n ? -1 : a.seq->n > b.seq->n);
    } else {
        value_need(vm, a);
        value_need(vm, b);
        vm_fail(vm, TEMPLATE_RUNTIME, "'%s' not supported between instances of '%s' and '%s'", op,
                value_type_name(a), value_type_name(b));
    }
    vm->depth--;
    return order;
}

bool value_contains(struct vm *vm, struct value container, struct value item)
{
    switch (container.kind) {
    case VALUE_UNDEFINED:
        return false;
    case VALUE_STR:
        if (item.kind != VALUE_STR) {
            value_need(vm, item);
            vm_fail(vm, TEMPLATE_RUNTIME, "'in <string>' requires string as left operand, not %s",
                    value_type_name(item));
        }
        return str_find(vm, container.s, 0, item.s) >= 0;
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
    case VALUE_VIEW:
    case VALUE_GENERATOR: {
        struct seq *seq = value_iterate(vm, container);
        for (size_t i = 0; i < seq->n; i++) {
            if (value_equal(vm, seq->items[i], item)) {
                return true;
            }
        }
        return false;
    }
    case VALUE_DICT:
        if (!value_hashable(item)) {
            vm_fail(vm, TEMPLATE_RUNTIME, "unhashable type: '%s'", value_type_name(item));
        }
        return dict_find(vm, container.dict, item) != NULL;
    default:
        vm_fail(vm, TEMPLATE_RUNTIME, "argument of type '%s' is not iterable",
                value_type_name(container));
    }
}

size_t value_len(struct vm *vm, struct value v)
{
    switch (v.kind) {
    case VALUE_UNDEFINED:
        return 0;
    case VALUE_STR:
        vm_charge_bytes(vm, v.s->len);
        return utf8_count(v.s->p, v.s->len);
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
    case VALUE_VIEW:
        return v.seq->n;
    case VALUE_DICT:
        return v.dict->n;
    default:
        vm_fail(vm, TEMPLATE_RUNTIME, "object of type '%s' has no len()", value_type_name(v));
    }
}

/* --- lists --- */

struct value seq_new(struct vm *vm, enum value_kind kind, size_t cap)
{
    struct seq *seq = vm_alloc(vm, sizeof *seq);
    if (cap) {
        seq->items = vm_array(vm, cap, sizeof *seq->items);
        seq->cap = cap;
    }
    return (struct value){ .kind = kind, .seq = seq };
}

void seq_push(struct vm *vm, struct seq *seq, struct value item)
{
    if (seq->n == seq->cap) {
        size_t cap = seq->cap ? seq->cap * 2 : 8;
        vm_charge(vm, seq->n / 8);
        seq->items = vm_grow(vm, seq->items, seq->n * sizeof *seq->items, cap * sizeof *seq->items);
        seq->cap = cap;
    }
    seq->items[seq->n++] = item;
}

struct seq *value_iterate(struct vm *vm, struct value v)
{
    struct seq *out;
    switch (v.kind) {
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
    case VALUE_VIEW:
        return v.seq;
    case VALUE_GENERATOR:
        out = seq_new(vm, VALUE_LIST, 0).seq;
        out->items = v.seq->n ? v.seq->items + v.seq->done : NULL;
        out->n = out->cap = v.seq->n - v.seq->done;
        v.seq->done = v.seq->n;
        return out;
    case VALUE_UNDEFINED:
        return seq_new(vm, VALUE_LIST, 0).seq;
    case VALUE_STR: {
        out = seq_new(vm, VALUE_LIST, utf8_count(v.s->p, v.s->len)).seq;
        for (size_t off = 0; off < v.s->len;) {
            uint32_t cp;
            size_t n = utf8_next(v.s->p + off, v.s->p + v.s->len, &cp);
            vm_charge(vm, 1);
            seq_push(vm, out, value_str(str_slice(vm, v.s, off, n)));
            off += n;
        }
        return out;
    }
    case VALUE_DICT:
        out = seq_new(vm, VALUE_LIST, v.dict->n).seq;
        vm_charge(vm, v.dict->n / 8);
        for (size_t i = 0; i < v.dict->n; i++) {
            seq_push(vm, out, v.dict->entries[i].key);
        }
        return out;
    default:
        vm_fail(vm, TEMPLATE_RUNTIME, "'%s' object is not iterable", value_type_name(v));
    }
}

/* --- dicts --- */

struct value dict_new(struct vm *vm, enum value_kind kind)
{
    return (struct value){ .kind = kind, .dict = vm_alloc(vm, sizeof(struct dict)) };
}

bool value_hashable(struct value v)
{
    if (v.kind == VALUE_TUPLE) {
        for (size_t i = 0; i < v.seq->n; i++) {
            if (v.seq->items[i].kind == VALUE_TUPLE || !value_hashable(v.seq->items[i])) {
                return false; /* tuples of tuples as keys: nobody has any, and this way nothing recurses far */
            }
        }
        return true;
    }
    return v.kind == VALUE_NONE || v.kind == VALUE_BOOL || v.kind == VALUE_INT ||
           v.kind == VALUE_FLOAT || v.kind == VALUE_STR || v.kind == VALUE_BIG;
}

static uint64_t mix(uint64_t h)
{
    h ^= h >> 33;
    h *= 0xff51afd7ed558ccdull;
    return h ^ h >> 33;
}

static uint64_t hash_bytes(const char *p, size_t len)
{
    uint64_t h =
        1469598103934665603ull; /* FNV-1a; a flood of equal hashes ends at the step bound */
    for (size_t i = 0; i < len; i++) {
        h = (h ^ (unsigned char)p[i]) * 1099511628211ull;
    }
    return mix(h);
}

static uint64_t hash_of(struct value v)
{
    switch (v.kind) {
    case VALUE_STR:
    case VALUE_BIG:
        return hash_bytes(v.s->p, v.s->len);
    case VALUE_BOOL:
    case VALUE_INT:
        return mix((uint64_t)as_int(v));
    case VALUE_FLOAT: /* 1.0 is the key 1 */
        return v.f >= -9e18 && v.f <= 9e18 ? mix((uint64_t)(int64_t)v.f) : 7;
    case VALUE_TUPLE: {
        uint64_t h = 3;
        for (size_t i = 0; i < v.seq->n; i++) {
            h = mix(h * 31 + hash_of(v.seq->items[i]));
        }
        return h;
    }
    default:
        return 1;
    }
}

/* The entry of key, or NULL. */
static struct dict_entry *entry_find(struct vm *vm, const struct dict *d, struct value key,
                                     uint64_t hash)
{
    if (!d->index) {
        for (size_t i = 0; i < d->n; i++) {
            if (d->entries[i].hash == hash && value_equal(vm, d->entries[i].key, key)) {
                return &d->entries[i];
            }
        }
        return NULL;
    }
    for (size_t at = hash & (d->index_cap - 1); d->index[at]; at = (at + 1) & (d->index_cap - 1)) {
        struct dict_entry *entry = &d->entries[d->index[at] - 1];
        vm_charge(vm, 1);
        if (entry->hash == hash && value_equal(vm, entry->key, key)) {
            return entry;
        }
    }
    return NULL;
}

struct value *dict_find(struct vm *vm, const struct dict *d, struct value key)
{
    if (d->n == 0 || !value_hashable(key)) {
        return NULL;
    }
    if (key.kind == VALUE_STR) {
        vm_charge_bytes(vm, key.s->len);
    }
    struct dict_entry *entry = entry_find(vm, d, key, hash_of(key));
    return entry ? &entry->value : NULL;
}

struct value *dict_find_str(struct vm *vm, const struct dict *d, const char *p, size_t len)
{
    struct str s = { .p = p, .len = len };
    return dict_find(vm, d, value_str(&s));
}

static void index_put(struct dict *d, size_t entry)
{
    size_t at = d->entries[entry].hash & (d->index_cap - 1);
    while (d->index[at]) {
        at = (at + 1) & (d->index_cap - 1);
    }
    d->index[at] = (uint32_t)entry + 1;
}

void dict_put(struct vm *vm, struct dict *d, struct value key, struct value value)
{
    if (!value_hashable(key)) {
        value_need(vm, key);
        vm_fail(vm, TEMPLATE_RUNTIME, "unhashable type: '%s'", value_type_name(key));
    }
    uint64_t hash = hash_of(key);
    struct dict_entry *entry = entry_find(vm, d, key, hash);
    if (entry) {
        entry->value = value;
        return;
    }
    if (d->n == d->cap) {
        size_t cap = d->cap ? d->cap * 2 : 4;
        d->entries = vm_grow(vm, d->entries, d->n * sizeof *d->entries, cap * sizeof *d->entries);
        d->cap = cap;
        vm_charge(vm, d->n / 4);
    }
    d->entries[d->n++] = (struct dict_entry){ .key = key, .value = value, .hash = hash };
    if (d->n > d->index_cap / 2 && d->n > INDEX_FROM) {
        d->index_cap = d->index_cap ? d->index_cap * 2 : INDEX_FROM * 4;
        d->index = vm_array(vm, d->index_cap, sizeof *d->index);
        vm_charge(vm, d->n / 4);
        for (size_t i = 0; i < d->n; i++) {
            index_put(d, i);
        }
    } else if (d->index) {
        index_put(d, d->n - 1);
    }
}

/* --- JSON --- */

struct value value_of_json(struct vm *vm, const struct json *json, bool trusted, int depth)
{
    if (depth > JSON_DEPTH_MAX) {
        vm_fail(vm, TEMPLATE_LIMIT, "the context is nested deeper than %d", JSON_DEPTH_MAX);
    }
    vm_charge(vm, 1);
    switch (json_kind(json)) {
    case JSON_NULL:
        break;
    case JSON_BOOL:
        return value_bool(json_as_bool(json));
    case JSON_INT:
        return value_int(json_as_int(json));
    case JSON_DOUBLE:
        return value_float(json_as_double(json));
    case JSON_STRING: {
        size_t len;
        const char *p = json_as_str(json, &len);
        char *copy = vm_grow(vm, NULL, 0, len + 1);
        memcpy(copy, p, len);
        return str_value(vm, copy, len, trusted);
    }
    case JSON_ARRAY: {
        size_t n = json_len(json);
        struct value out = seq_new(vm, VALUE_LIST, n);
        for (size_t i = 0; i < n; i++) {
            seq_push(vm, out.seq, value_of_json(vm, json_at(json, i), trusted, depth + 1));
        }
        return out;
    }
    case JSON_OBJECT: {
        struct value out = dict_new(vm, VALUE_DICT);
        struct json_walk walk = json_walk_of(json);
        const char *key;
        const struct json *member;
        while (json_walk_next(&walk, &key, &member)) {
            size_t len = strlen(key);
            char *copy = vm_grow(vm, NULL, 0, len + 1);
            memcpy(copy, key, len);
            struct value name = str_value(vm, copy, len, trusted);
            dict_put(vm, out.dict, name, value_of_json(vm, member, trusted, depth + 1));
        }
        return out;
    }
    }
    return value_none();
}
