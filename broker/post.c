#include "broker/post.h"

#include "broker/broker.h"
#include "proto/log.h"

int post_say(struct broker *b, const struct post_to *to, Hearth__Envelope__BodyCase which,
             void *body, const void *payload, size_t payload_len)
{
    struct err err = { 0 };
    Hearth__Envelope e = message_envelope(which, body);
    e.has_cookie = to->has_cookie;
    e.cookie = to->cookie;
    b->n_said++;
    if (!b->link) {
        return 0;
    }
    size_t len = message_pack(&e, b->out, &err);
    if (len == 0 || link_send(b->link, &to->peer, b->out, len, payload, payload_len, &err) < 0) {
        log_debug("%s not sent: %s", message_name(which), err.text);
        return -1;
    }
    return 0;
}

int post_tell(struct broker *b, const struct link_peer *peer, Hearth__Envelope__BodyCase which,
              void *body)
{
    struct post_to to = { .peer = *peer };
    return post_say(b, &to, which, body, NULL, 0);
}

void post_failed(struct broker *b, const struct post_to *to, const uint8_t *id,
                 const struct err *err)
{
    Hearth__Failed failed = HEARTH__FAILED__INIT;
    failed.has_id = id != NULL;
    if (id) {
        failed.id = message_bytes(id, LIMIT_REQUEST_ID_BYTES);
    }
    failed.code = message_str(err_name(err->code));
    failed.text = message_str(err->text);
    if (err->code == ERR_BUSY || err->code == ERR_FULL) {
        failed.has_retry_after_ms = true;
        failed.retry_after_ms = b->quota.retry_ms ? b->quota.retry_ms : quota_retry_ms(b, 1);
        failed.has_queue_position = b->quota.position != 0;
        failed.queue_position = b->quota.position;
    }
    if (err->code == ERR_NO_FIT && b->quota.n_ctx) {
        failed.has_n_prompt = failed.has_n_ctx = true;
        failed.n_prompt = b->quota.n_prompt;
        failed.n_ctx = b->quota.n_ctx;
    }
    b->quota.retry_ms = b->quota.position = b->quota.n_prompt = b->quota.n_ctx = 0;
    post_say(b, to, HEARTH__ENVELOPE__BODY_FAILED, &failed, NULL, 0);
}

void post_done(struct broker *b, const struct post_to *to, const char *text)
{
    Hearth__Done done = HEARTH__DONE__INIT;
    done.has_text = text != NULL;
    if (text) {
        done.text = message_str(text);
    }
    post_say(b, to, HEARTH__ENVELOPE__BODY_DONE, &done, NULL, 0);
}
