/* See forward.h. forward_step reads top-down: check and make room, embed, layers, outputs, commit. */
#include "worker/forward.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/layer.h"

void forward_set_progress(struct forward *f, _Atomic uint32_t *progress)
{
    f->progress = progress;
}

/* ---- a step ---- */

/* One past the last row of the sequence that starts at row `begin`. */
static uint32_t run_end(const struct forward_batch *batch, uint32_t begin)
{
    uint32_t end = begin + 1;
    while (end < batch->n_tokens && batch->seqs[end] == batch->seqs[begin]) {
        end++;
    }
    return end;
}

static int check_run(struct pass *p, uint32_t begin, uint32_t end)
{
    const struct forward_batch *batch = p->batch;
    uint32_t seq = batch->seqs[begin];
    if (seq >= p->kv->header->max_seqs) {
        return err_set(p->err, ERR_BAD_INPUT, "row %u: no sequence %u", begin, seq);
    }
    for (uint32_t i = 0; i < begin; i = run_end(batch, i)) {
        if (batch->seqs[i] == seq) {
            return err_set(p->err, ERR_BAD_INPUT, "row %u: sequence %u stands in two places", begin,
                           seq);
        }
    }
    int64_t pos = kvcache_pos(p->kv, seq);
    for (uint32_t i = begin; i < end; i++, pos++) {
        if (batch->positions[i] != pos) {
            return err_set(p->err, ERR_BAD_INPUT, "row %u: position %lld, the sequence is at %lld",
                           i, (long long)batch->positions[i], (long long)pos);
        }
        bool fed = p->f->fed && batch->tokens[i] < 0 &&
                   batch->tokens[i] >= FORWARD_FED(OP_PICK_ROWS_MAX - 1);
        if (!fed && (batch->tokens[i] < 0 || (uint32_t)batch->tokens[i] >= p->m->vocab_size)) {
            return err_set(p->err, ERR_BAD_INPUT, "row %u: token %d, the vocabulary has %u", i,
                           batch->tokens[i], p->m->vocab_size);
        }
    }
    if (pos > p->m->ctx_len) {
        return err_set(p->err, ERR_NO_FIT, "position %lld, the context is %u", (long long)pos,
                       p->m->ctx_len);
    }
    return 0;
}

/* Checks everything that a caller can get wrong, makes room, and says for every row where it stands. */
static int admit(struct pass *p)
{
    const struct forward_batch *batch = p->batch;
    if (batch->n_tokens == 0 || batch->n_tokens > p->f->max_tokens) {
        return err_set(p->err, ERR_BAD_INPUT, "%u rows in a step, at most %u", batch->n_tokens,
                       p->f->max_tokens);
    }
    for (uint32_t begin = 0; begin < p->n; begin = run_end(batch, begin)) {
        if (check_run(p, begin, run_end(batch, begin)) < 0) {
            return -1;
        }
    }
    for (uint32_t begin = 0, end; begin < p->n; begin = end) {
        end = run_end(batch, begin);
        uint32_t seq = batch->seqs[begin];
        if (kvcache_reserve(p->kv, seq, end - begin, p->err) < 0) {
            return -1;
        }
        for (uint32_t i = begin; i < end; i++) {
            p->f->rows[i] = (struct kv_row){
                .pages = kvcache_table(p->kv, seq),
                .first_pos = p->kv->seqs[seq].first_pos,
                .pos = batch->positions[i],
                .end_pos = p->m->causal ? batch->positions[i] + 1 : batch->positions[end - 1] + 1,
            };
        }
    }
    return 0;
}

/* Waits for a part of the weights that may still be on its way. */
static int wait_for(struct pass *p, uint64_t data_end)
{
    const struct model_wait *wait = &p->m->wait;
    if (p->f->all_ready) {
        return 0;
    }
    if (wait->wait && wait->wait(wait->arg, data_end, p->err) < 0) {
        return -1;
    }
    const struct weights *w = p->m->weights;
    return p->ops->arrived ? p->ops->arrived(p->b, w->base, w->size, data_end, p->err) : 0;
}

/* The same before a layer: a step that has to wait can go on from there. */
static int wait_in_step(struct pass *p, uint64_t data_end, uint32_t next_layer)
{
    if (wait_for(p, data_end) == 0) {
        return 0;
    }
    p->f->paused = p->err->code == ERR_BUSY;
    p->f->next_layer = next_layer;
    return -1;
}

static int make_rope_tables(struct pass *p)
{
    const struct model *m = p->m;
    for (uint32_t i = 0; i < m->n_ropes; i++) {
        const struct op_rope_table op = {
            .pos = p->batch->positions,
            .freq = m->ropes[i].freq,
            .n_rows = p->n,
            .n_pairs = m->ropes[i].n_pairs,
            .mag = m->ropes[i].mag,
            .cs = p->f->cs[i],
        };
        if (p->ops->rope_table(p->b, &op, p->err) < 0) {
            return -1;
        }
    }
    for (uint32_t i = 0; m->temperature != 0.0 && i < p->n; i++) {
        double turns = floor((double)p->batch->positions[i] / m->temperature_ctx);
        p->f->temperature[i] = (float)(1.0 + m->temperature * log1p(turns));
    }
    return 0;
}

static int embed_rows(struct pass *p, const struct matrix *w, const int32_t *ids, float scale,
                      float *y)
{
    const struct op_embed op = {
        .w = w, .ids = ids, .fed = p->f->fed, .n_rows = p->n, .scale = scale, .y = y
    };
    return p->ops->embed(p->b, &op, p->err);
}

/* gemma4: g = (rms(proj x / sqrt(dim)) + table row * sqrt(q)) / sqrt(2), a vector of q for every layer. */
static int embed_per_layer(struct pass *p)
{
    const struct model *m = p->m;
    struct forward *f = p->f;
    uint32_t q = m->per_layer_dim, width = q * m->n_layers;
    const struct op_add shrink = {
        .n_rows = p->n,
        .width = width,
        .a = f->per_layer,
        .a_stride = width,
        .y_scale = (float)(1.0 / sqrt((double)m->dim)),
        .y = f->per_layer,
        .y_stride = width,
    };
    const struct op_norm norm = {
        .kind = m->arch->norm,
        .n_rows = p->n,
        .n_groups = m->n_layers,
        .width = q,
        .x = f->per_layer,
        .x_stride = width,
        .w = m->per_layer_norm.w,
        .eps = m->norm_eps,
        .y = f->per_layer,
        .y_stride = width,
    };
    struct op_add join = shrink;
    join.b = f->per_layer_table;
    join.b_stride = width;
    join.b_rows = p->n;
    join.b_scale = 1.0f;
    join.y_scale = (float)sqrt(0.5);
    if (embed_rows(p, &m->per_layer_embd, p->batch->tokens, sqrtf((float)q), f->per_layer_table) <
            0 ||
        layer_linear_to(p, &m->per_layer_proj, f->x, f->per_layer) < 0 ||
        p->ops->add(p->b, &shrink, p->err) < 0 || p->ops->norm(p->b, &norm, p->err) < 0) {
        return -1;
    }
    return p->ops->add(p->b, &join, p->err);
}

static int embed(struct pass *p)
{
    const struct model *m = p->m;
    struct forward *f = p->f;
    if (embed_rows(p, &m->token_embd, p->batch->tokens, m->embed_scale, f->x) < 0) {
        return -1;
    }
    if (m->per_layer_dim && embed_per_layer(p) < 0) {
        return -1;
    }
    if (m->token_types.data && (embed_rows(p, &m->token_types, f->zeros, 1.0f, f->t) < 0 ||
                                layer_add(p, f->x, f->t, 1.0f) < 0)) {
        return -1;
    }
    if (m->position_embd.data) {
        for (uint32_t i = 0; i < p->n; i++) {
            f->ids[i] = (int32_t)p->batch->positions[i]; /* below ctx_len, which fits the table */
        }
        if (embed_rows(p, &m->position_embd, f->ids, 1.0f, f->t) < 0 ||
            layer_add(p, f->x, f->t, 1.0f) < 0) {
            return -1;
        }
    }
    return m->embd_norm.present ? layer_norm_to(p, &m->embd_norm, f->x, f->x) : 0;
}

/* gemma4's expert branch beside the dense one; t holds the dense result. */
static int add_gemma4_experts(struct pass *p, const struct model_layer *l)
{
    struct forward *f = p->f;
    const struct model_norm router_norm = { .w = l->router_scale, .present = true };
    const struct op_add shrink = {
        .n_rows = p->n,
        .width = p->m->dim,
        .a = f->t2,
        .a_stride = p->m->dim,
        .y_scale = (float)(1.0 / sqrt((double)p->m->dim)),
        .y = f->t2,
        .y_stride = p->m->dim,
    };
    if (layer_norm_to(p, &l->post_ffn_norm_1, f->t, f->t) < 0 ||
        layer_norm_to(p, &router_norm, f->x, f->t2) < 0 || p->ops->add(p->b, &shrink, p->err) < 0 ||
        layer_norm_to(p, &l->pre_ffn_norm_2, f->x, f->h) < 0 ||
        layer_moe(p, l, f->h, f->t2, f->t3) < 0 ||
        layer_norm_to(p, &l->post_ffn_norm_2, f->t3, f->t3) < 0) {
        return -1;
    }
    return layer_add(p, f->t, f->t3, 1.0f);
}

/* gemma4's per-layer input and output scale, at the end of a layer. */
static int end_gemma4_layer(struct pass *p, uint32_t i, const struct model_layer *l)
{
    if (layer_settle(p) < 0) {
        return -1;
    }
    struct forward *f = p->f;
    const struct model *m = p->m;
    uint32_t q = m->per_layer_dim;
    if (q) {
        const struct op_act gate = {
            .kind = OP_ACT_GELU,
            .n_rows = p->n,
            .width = q,
            .g_width = q,
            .g = f->u,
            .g_stride = q,
            .u = f->per_layer + (size_t)i * q,
            .u_stride = q * m->n_layers,
            .y = f->u,
            .y_stride = q,
        };
        if (layer_linear_to(p, &l->inp_gate, f->x, f->u) < 0 ||
            p->ops->act(p->b, &gate, p->err) < 0 || layer_linear_to(p, &l->proj, f->u, f->t) < 0 ||
            layer_norm_to(p, &l->post_norm, f->t, f->t) < 0 || layer_add(p, f->x, f->t, 1.0f) < 0) {
            return -1;
        }
    }
    if (!l->out_scale) {
        return 0;
    }
    float *scale = &f->out_scales[i];
    if (isnan(*scale) && /* asked for once: the answer would be waited for */
        p->ops->download(p->b, scale, l->out_scale, sizeof *scale, p->err) < 0) {
        return -1;
    }
    const struct op_add times = {
        .n_rows = p->n,
        .width = m->dim,
        .a = f->x,
        .a_stride = m->dim,
        .y_scale = *scale,
        .y = f->x,
        .y_stride = m->dim,
    };
    return p->ops->add(p->b, &times, p->err);
}

/* The block forms of arch.h. Norms that a form has not are simply not there. */
static int run_layer(struct pass *p, uint32_t i)
{
    const struct model_layer *l = &p->m->layers[i];
    enum arch_block block = p->m->arch->block;
    bool gemma4 = p->m->arch->flags & ARCH_GEMMA4;
    float r = p->m->residual_scale;
    struct forward *f = p->f;
    const float *in = f->x;
    if (l->mixer != MODEL_NO_MIXER) {
        if (l->attn_norm.present) {
            if (layer_norm_to(p, &l->attn_norm, f->x, f->h) < 0) {
                return -1;
            }
            in = f->h;
        } else if (layer_settle(p) < 0) {
            return -1;
        }
        if (layer_mix(p, i, in, f->t) < 0) {
            return -1;
        }
        if (block == ARCH_PAR) { /* both branches read the same normed input */
            return layer_ffn(p, l, in, f->t2) < 0 || layer_add(p, f->x, f->t, 1.0f) < 0
                       ? -1
                       : layer_add(p, f->x, f->t2, 1.0f);
        }
        if (block != ARCH_ENC && l->post_attn_norm.present &&
            layer_norm_to(p, &l->post_attn_norm, f->t, f->t) < 0) {
            return -1;
        }
        layer_owe(p, r);
    }
    if (block == ARCH_ENC && layer_norm_to(p, &l->post_attn_norm, f->x, f->x) < 0) {
        return -1;
    }
    in = f->x;
    if (l->ffn_norm.present) {
        if (layer_norm_to(p, &l->ffn_norm, f->x, f->h) < 0) {
            return -1;
        }
        in = f->h;
    } else if (layer_settle(p) < 0) {
        return -1;
    }
    if (l->has_ffn || l->has_moe) {
        if (l->has_ffn ? layer_ffn(p, l, in, f->t) < 0 : layer_moe(p, l, in, in, f->t) < 0) {
            return -1;
        }
        if (gemma4 && l->has_moe && add_gemma4_experts(p, l) < 0) {
            return -1;
        }
        if (block != ARCH_ENC && l->post_ffn_norm.present &&
            layer_norm_to(p, &l->post_ffn_norm, f->t, f->t) < 0) {
            return -1;
        }
        layer_owe(p, r);
    }
    if (block == ARCH_ENC) {
        return layer_norm_to(p, &l->post_ffn_norm, f->x, f->x);
    }
    return gemma4 ? end_gemma4_layer(p, i, l) : 0;
}

/* ---- outputs ---- */

/* The states of `n` rows after the output norm, in f->out. */
static int gather_outputs(struct pass *p, const uint32_t *index, uint32_t n)
{
    const struct model *m = p->m;
    const struct op_gather gather = {
        .x = p->f->x,
        .x_stride = m->dim,
        .n_rows = n,
        .width = m->dim,
        .index = index,
        .y = p->f->out,
        .y_stride = m->dim,
    };
    const struct op_norm norm = {
        .kind = m->arch->norm,
        .n_rows = n,
        .n_groups = 1,
        .width = m->dim,
        .x = p->f->out,
        .x_stride = m->dim,
        .w = m->output_norm.w,
        .b = m->output_norm.b,
        .eps = m->norm_eps,
        .y = p->f->out,
        .y_stride = m->dim,
    };
    if (p->ops->gather(p->b, &gather, p->err) < 0) {
        return -1;
    }
    return m->output_norm.present ? p->ops->norm(p->b, &norm, p->err) : 0;
}

static int compute_logits(struct pass *p, uint32_t n)
{
    const struct model *m = p->m;
    const struct op_matmul op = {
        .x = p->f->out,
        .x_stride = m->dim,
        .n_rows = n,
        .k = m->dim,
        .n_products = 1,
        .products = { { &m->output, m->output_bias, p->f->logits, m->output.m } },
    };
    const struct op_add scale = {
        .n_rows = n,
        .width = m->output.m,
        .a = p->f->logits,
        .a_stride = m->output.m,
        .y_scale = m->logit_scale,
        .softcap = m->logit_softcap,
        .y = p->f->logits,
        .y_stride = m->output.m,
    };
    if (layer_matmul(p, &op) < 0) {
        return -1;
    }
    return m->logit_scale != 1.0f || m->logit_softcap > 0.0f ? p->ops->add(p->b, &scale, p->err)
                                                             : 0;
}

/* Rows with the flag, from place n on in out_rows; how many there are then. */
static uint32_t list_rows(struct pass *p, uint8_t flag, uint32_t n)
{
    for (uint32_t i = 0; i < p->n; i++) {
        if (p->batch->flags[i] & flag) {
            p->f->out_rows[n++] = i;
        }
    }
    return n;
}

/* The first n rows of `device`, of `width` floats each, to the host. */
static int take_out(struct pass *p, const float *device, uint32_t width, uint32_t n, float *host)
{
    return n == 0 ? 0
                  : p->ops->download(p->b, host, device, (size_t)n * width * sizeof *host, p->err);
}

/* The tokens of rows `from` up to n of this group of logits; `done` were chosen before. */
static int choose(struct pass *p, uint32_t from, uint32_t n, uint32_t done)
{
    const struct forward_sample *sample = p->batch->sample;
    const struct op_sample op = {
        .logits = p->f->logits,
        .stride = p->m->output.m,
        .n_rows = n - from,
        .n_changes = sample->n_changes,
        .picks = sample->picks + done,
        .changes = sample->changes,
        .fed = p->f->fed,
        .picked = sample->picked + done,
    };
    for (uint32_t i = 0; i < op.n_rows; i++) {
        sample->picks[done + i].row = from + i;
    }
    return p->ops->sample(p->b, &op, p->err);
}

/* Logits of all rows that want them or a token, in groups that fit the work space: to host memory first, then to tokens. */
static int put_logits(struct pass *p, float *host)
{
    uint32_t n_host = host ? list_rows(p, FORWARD_LOGITS, 0) : 0;
    uint32_t n = p->batch->sample ? list_rows(p, FORWARD_SAMPLE, n_host) : n_host;
    for (uint32_t begin = 0; begin < n; begin += p->f->max_outputs) {
        uint32_t count = n - begin < p->f->max_outputs ? n - begin : p->f->max_outputs;
        uint32_t out = n_host <= begin ? 0 : n_host - begin < count ? n_host - begin : count;
        if (gather_outputs(p, p->f->out_rows + begin, count) < 0 || compute_logits(p, count) < 0 ||
            take_out(p, p->f->logits, p->m->output.m, out,
                     out ? host + (size_t)begin * p->m->output.m : NULL) < 0 ||
            (out < count && choose(p, out, count, begin + out - n_host) < 0)) {
            return -1;
        }
    }
    return 0;
}

static int put_states(struct pass *p, float *host)
{
    uint32_t n = list_rows(p, FORWARD_EMBED, 0), width = p->m->dim;
    for (uint32_t begin = 0; begin < n; begin += p->f->max_outputs) {
        uint32_t count = n - begin < p->f->max_outputs ? n - begin : p->f->max_outputs;
        if (gather_outputs(p, p->f->out_rows + begin, count) < 0 ||
            take_out(p, p->f->out, width, count, host + (size_t)begin * width) < 0) {
            return -1;
        }
    }
    return 0;
}

#define STEADY_ROWS 16 /* decode: these shapes come again and again */

/* Steps of as many rows and outputs are the same launches on the same memory. */
static int begin_step(struct pass *p)
{
    uint64_t n_outputs = 0, n_sampled = 0;
    if (!p->ops->step) {
        return 0;
    }
    for (uint32_t i = 0; p->batch->flags && i < p->n; i++) {
        n_outputs += p->batch->flags[i] != 0;
        n_sampled += (p->batch->flags[i] & FORWARD_SAMPLE) != 0;
    }
    uint64_t key = p->f->number << 32 | (uint64_t)p->n << 24 | n_outputs << 16 | n_sampled << 8;
    /* A step that may have to wait for weights is not kept: others may come between. */
    return p->ops->step(p->b, p->f->all_ready && p->n <= STEADY_ROWS ? key : 0, p->err);
}

static struct pass pass_of(struct forward *f, struct kvcache *kv, const struct forward_batch *batch,
                           struct err *err)
{
    return (struct pass){
        .f = f,
        .m = f->m,
        .b = f->backend,
        .ops = f->backend->ops,
        .kv = kv,
        .batch = batch,
        .n = batch->n_tokens,
        .err = err,
    };
}

/* From the tokens to the outputs. */
static int run(struct pass *p, float *logits, float *embeddings)
{
    struct forward *f = p->f;
    bool outputs = logits || embeddings || p->batch->sample;
    if ((logits || p->batch->sample) && !f->m->output.data) {
        return err_set(p->err, ERR_UNSUPPORTED, "%s gives embeddings, no logits", f->m->arch->name);
    }
    assert(p->kv->mirror || !p->ops->mirror); /* kvcache_place */
    if (!f->paused) {
        f->next_layer = 0;
        f->owed = false;
        if (wait_for(p, f->m->embed_data_end) < 0 || admit(p) < 0 || begin_step(p) < 0 ||
            make_rope_tables(p) < 0 || embed(p) < 0) {
            return -1;
        }
    }
    f->paused = false;
    for (uint32_t i = f->next_layer; i < f->m->n_layers; i++) {
        if (wait_in_step(p, f->m->layers[i].data_end, i) < 0) {
            return -1;
        }
        if (f->progress) {
            atomic_fetch_add_explicit(f->progress, 1, memory_order_relaxed);
        }
        if (run_layer(p, i) < 0) {
            return err_wrap(p->err, "layer %u", i);
        }
    }
    if (outputs && wait_in_step(p, f->m->output_data_end, f->m->n_layers) < 0) {
        return -1;
    }
    f->all_ready = f->all_ready || outputs;
    if (outputs && layer_settle(p) < 0) {
        return -1;
    }
    return ((logits || p->batch->sample) && put_logits(p, logits) < 0) ||
                   (embeddings && put_states(p, embeddings) < 0)
               ? -1
               : 0;
}

int forward_step(struct forward *f, struct kvcache *kv, const struct forward_batch *batch,
                 float *logits, float *embeddings, struct err *err)
{
    struct pass p = pass_of(f, kv, batch, err);
    if (run(&p, logits, embeddings) < 0 || (p.ops->finish && p.ops->finish(p.b, err) < 0)) {
        return -1;
    }
    for (uint32_t begin = 0, end; begin < p.n; begin = end) {
        end = run_end(batch, begin);
        kvcache_commit(kv, batch->seqs[begin], end - begin);
        if (kvcache_send(kv, batch->seqs[begin], false, err) < 0) {
            return -1;
        }
    }
    return 0;
}

int forward_leave(struct forward *f, struct kvcache *kv, const struct forward_batch *batch,
                  struct err *err)
{
    struct pass p = pass_of(f, kv, batch, err);
    if (run(&p, NULL, NULL) < 0 || p.ops->leave(p.b, err) < 0) {
        return -1;
    }
    for (uint32_t begin = 0, end; begin < p.n; begin = end) {
        end = run_end(batch, begin);
        kvcache_commit(kv, batch->seqs[begin], end - begin);
    }
    return 0;
}
