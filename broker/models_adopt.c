/* What the last broker left: segments by their tags, and which models they mean. */
#include "broker/models_parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "broker/broker.h"
#include "proto/log.h"

/* The model of a tag's number: by the name behind it, else among all files there are. */
static struct model *model_of_tag(struct broker *b, uint64_t number, const char *name)
{
    struct err ignored;
    struct model *m = models_find_number(&b->models, number);
    if (!m && *name) {
        models_get(b, name, NULL, &ignored);
        m = models_find_number(&b->models, number);
    }
    for (uint32_t i = 0; !m && i < b->config.n_aliases; i++) {
        models_get(b, b->config.aliases[i].name, NULL, &ignored);
        m = models_find_number(&b->models, number);
    }
    return m;
}

void models_adopt_segment(struct broker *b, uint64_t segment, uint64_t bytes, const char *tag)
{
    uint64_t number;
    int used = 0;
    struct model *m = NULL;
    bool weights = sscanf(tag, "weights %" SCNx64 " %n", &number, &used) == 1 && used;
    if (!weights && sscanf(tag, "state %" SCNx64 " %n", &number, &used) == 1 && used) {
        m = model_of_tag(b, number, "");
        if (m && !m->state_segment && bytes >= m->state_want) {
            m->state_segment = segment;
            m->state_bytes = m->state_want = bytes;
            m->state_made = true;
            snprintf(m->fingerprint, sizeof m->fingerprint, "%s", tag + used);
            return;
        }
    } else if (weights) {
        m = model_of_tag(b, number, tag + used);
        if (m && !m->segment) {
            m->segment = segment;
            m->segment_bytes = bytes;
            m->adopting = true;
            return;
        }
    }
    used = 0;
    if (sscanf(tag, "window %" SCNx64 " %n", &number, &used) == 1 && used) {
        m = model_of_tag(b, number, tag + used);
        if (m && !m->window.segment) {
            m->window = (struct model_window){ .on = true, .segment = segment };
            return;
        }
    }
    log_info("segment %" PRIu64 " (%s) is nobody's any more", segment, tag);
    models_drop(b, &segment);
}

void models_adopt_child(struct broker *b, uint32_t role, uint32_t child, int32_t pid,
                        const uint8_t token[LIMIT_TOKEN_BYTES], const char *tag)
{
    uint64_t number;
    int used = 0;
    bool ours = (role == HERITAGE_LOADER &&
                 sscanf(tag, "load %" SCNx64 " %n", &number, &used) == 1) ||
                (role == HERITAGE_TEXT && sscanf(tag, "text %" SCNx64 " %n", &number, &used) == 1);
    struct model *m = ours ? model_of_tag(b, number, tag + used) : NULL;
    if (m && role == HERITAGE_LOADER && !m->loader) {
        m->loader = child;
        m->loader_pid = pid;
        m->loader_born_ms = b->now_ms;
    } else if (m && role == HERITAGE_TEXT && !m->text.child) {
        m->text.child = child;
        m->text.pid = pid;
        m->text.born_ms = b->now_ms;
        memcpy(m->text.token, token, sizeof m->text.token);
    } else {
        models_kill(b, child, SIGKILL);
    }
}

void models_adopted(struct broker *b)
{
    for (uint32_t i = 0; i < b->models.n; i++) {
        struct model *m = b->models.list[i];
        window_adopted(b, m);
        m->swap.in_turn = m->segment && m->state_segment; /* else the room is not its own yet */
        if (m->segment && m->adopting) {
            models_move(m, MODEL_LOADING, "the last broker began it");
            if (m->loader) {
                m->adopting = false; /* its notes come again */
            } else {
                struct channel_msg take = { .op = CHANNEL_TAKE, .segment = m->segment };
                keeper_line_ask(b->keeper, &take, NULL, 0, KEEPER_TAKE_WEIGHTS, m->number,
                                m->segment);
            }
        } else if (m->loader) {
            models_kill(b, m->loader, SIGKILL);
            m->loader = 0;
        }
        if (!m->segment) {
            models_drop(b, &m->state_segment);
            m->state_made = false;
        }
    }
}
