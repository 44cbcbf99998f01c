#include "proto/message.h"

#include <assert.h>
#include <string.h>

static void *arena_alloc(void *data, size_t size)
{
    struct message_arena *arena = data;
    size_t start = (arena->used + 15) & ~(size_t)15;
    if (size > sizeof arena->bytes || start > sizeof arena->bytes - size) {
        return NULL;
    }
    arena->used = start + size;
    return arena->bytes + start;
}

static void arena_free(void *data, void *pointer)
{
    (void)data;
    (void)pointer; /* the whole arena is reset at once */
}

Hearth__Envelope message_envelope(Hearth__Envelope__BodyCase which, void *body)
{
    Hearth__Envelope e = HEARTH__ENVELOPE__INIT;
    e.version = MESSAGE_VERSION;
    e.body_case = which;
    e.hello = body;
    return e;
}

size_t message_pack(const Hearth__Envelope *envelope, uint8_t *out, struct err *err)
{
    size_t len = hearth__envelope__get_packed_size(envelope);
    if (len > LIMIT_ENVELOPE_BYTES) {
        err_set(err, ERR_NO_FIT, "a %s message of %zu bytes is over the limit of %u",
                message_name(envelope->body_case), len, LIMIT_ENVELOPE_BYTES);
        return 0;
    }
    return hearth__envelope__pack(envelope, out);
}

Hearth__Envelope *message_unpack(struct message_arena *arena, const void *frame, size_t len,
                                 struct err *err)
{
    arena->used = 0;
    if (len > LIMIT_ENVELOPE_BYTES) {
        err_set(err, ERR_BAD_INPUT, "an envelope of %zu bytes is over the limit of %u", len,
                LIMIT_ENVELOPE_BYTES);
        return NULL;
    }
    ProtobufCAllocator allocator = { arena_alloc, arena_free, arena };
    Hearth__Envelope *e = hearth__envelope__unpack(&allocator, len, frame);
    if (!e) {
        err_set(err, ERR_BAD_INPUT, "a frame of %zu bytes is not an envelope", len);
        return NULL;
    }
    if (e->version != MESSAGE_VERSION) {
        err_set(err, ERR_BAD_INPUT, "message version %u, this build speaks %d", e->version,
                MESSAGE_VERSION);
        return NULL;
    }
    if (e->body_case == HEARTH__ENVELOPE__BODY__NOT_SET || !e->hello) {
        err_set(err, ERR_BAD_INPUT, "an envelope without a body that this build knows");
        return NULL;
    }
    return e;
}

const char *message_name(Hearth__Envelope__BodyCase which)
{
    const ProtobufCFieldDescriptor *field = protobuf_c_message_descriptor_get_field(
        &hearth__envelope__descriptor, (unsigned)which);
    return field ? field->name : "unknown";
}

ProtobufCBinaryData message_bytes(const void *data, size_t len)
{
    return (ProtobufCBinaryData){ .len = len, .data = (uint8_t *)(uintptr_t)data };
}

ProtobufCBinaryData message_str(const char *text)
{
    return message_bytes(text, strlen(text));
}

bool message_copy(char *out, size_t size, ProtobufCBinaryData from)
{
    size_t n = from.len < size ? from.len : size - 1;
    if (n > 0) {
        memcpy(out, from.data, n);
    }
    out[n] = 0;
    return n == from.len && strlen(out) == n;
}
