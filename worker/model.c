/* Binding: metadata into numbers, names into matrices, in the order of the file's own structure. Everything that
 * the file could say wrongly is checked here once; forward.c then trusts its struct model. */
#include "worker/model.h"

#include <math.h>
#include <stdlib.h>

#include "proto/bytes.h"
#include "worker/bind.h"

#define KV_FORMAT 1 /* counted up when the meaning of a page changes */

/* ---- the whole model ---- */

static int read_numbers(struct bind *b)
{
    struct model *m = b->m;
    const struct arch *a = m->arch;
    uint32_t n_blocks, n_predict, gating, pooling, normalise;
    double eps;
    const char *eps_key = a->norm == OP_NORM_RMS ? "attention.layer_norm_rms_epsilon"
                                                 : "attention.layer_norm_epsilon";
    if (bind_u32(b, "block_count", BIND_REQUIRED, &n_blocks) < 0 ||
        bind_u32(b, "nextn_predict_layers", 0, &n_predict) < 0 ||
        bind_u32(b, "embedding_length", BIND_REQUIRED, &m->dim) < 0 ||
        bind_u32(b, "context_length", BIND_REQUIRED, &m->train_ctx_len) < 0 ||
        bind_f64(b, eps_key, (double)NAN, &eps) < 0 ||
        bind_u32(b, "expert_count", 0, &m->n_experts) < 0 ||
        bind_u32(b, "expert_used_count", 0, &m->n_experts_used) < 0 ||
        bind_u32(b, "expert_group_count", 1, &m->n_expert_groups) < 0 ||
        bind_u32(b, "expert_group_used_count", 1, &m->n_expert_groups_used) < 0 ||
        bind_u32(b, "expert_gating_func", 0, &gating) < 0 ||
        bind_u32(b, "expert_weights_norm", 0, &normalise) < 0 ||
        bind_f32(b, "expert_weights_scale", 1.0, &m->expert_scale) < 0 ||
        bind_u32(b, "pooling_type", 0, &pooling) < 0 ||
        bind_u32(b, "embedding_length_per_layer_input", 0, &m->per_layer_dim) < 0) {
        return -1;
    }
    if (n_predict >= n_blocks || n_blocks > MODEL_LAYERS_MAX || m->dim == 0 ||
        m->train_ctx_len == 0 || m->n_expert_groups > (m->n_experts ? m->n_experts : 1) ||
        (m->n_expert_groups > 1 && m->n_experts % m->n_expert_groups != 0)) {
        return err_set(b->err, ERR_BAD_FILE,
                       "%u blocks, dim %u, context %u, %u experts in %u groups", n_blocks, m->dim,
                       m->train_ctx_len, m->n_experts, m->n_expert_groups);
    }
    m->n_layers = n_blocks - n_predict;
    m->ctx_len = b->options->ctx_len ? b->options->ctx_len : m->train_ctx_len;
    m->norm_eps = (float)eps;
    m->pooling = (int)pooling;
    m->causal = a->block != ARCH_ENC;
    m->expert_scale = m->expert_scale == 0.0f ? 1.0f : m->expert_scale;
    bool by_key = a->moe == ARCH_MOE_SIGMOID || a->moe == ARCH_MOE_BY_KEY;
    if (!by_key) {
        m->expert_scale = 1.0f;
    }
    if (gating == 0 && ((a->moe == ARCH_MOE_BY_KEY && (n_blocks == 47 || n_blocks == 48)) ||
                        a->moe == ARCH_MOE_SIGMOID)) {
        gating = 2; /* GLM-4.7-Flash calls itself deepseek2 and leaves the key out */
    }
    m->gating = gating == 2 ? OP_GATING_SIGMOID : OP_GATING_SOFTMAX;
    if (a->moe == ARCH_MOE_SOFTMAX_CHOSEN) {
        m->gating = OP_GATING_LOGITS;
    }
    m->expert_normalise = by_key ? normalise != 0 : a->moe == ARCH_MOE_NORMALISED;
    return 0;
}

static int read_scales(struct bind *b)
{
    struct model *m = b->m;
    const struct arch *a = m->arch;
    double temperature_ctx = 0.0, required = (double)NAN;
    m->embed_scale = a->flags & ARCH_EMBED_SQRT_DIM ? sqrtf((float)m->dim) : 1.0f;
    m->residual_scale = m->logit_scale = 1.0f;
    if (a->flags & ARCH_SCALES) {
        float divisor;
        if (bind_f32(b, "embedding_scale", required, &m->embed_scale) < 0 ||
            bind_f32(b, "residual_scale", required, &m->residual_scale) < 0 ||
            bind_f32(b, "logit_scale", required, &divisor) < 0) {
            return -1;
        }
        m->logit_scale = 1.0f / divisor;
    }
    if ((a->flags & ARCH_LOGIT_SCALE) &&
        bind_f32(b, "logit_scale", required, &m->logit_scale) < 0) {
        return -1;
    }
    if (a->logit_softcap > 0.0f &&
        bind_f32(b, "final_logit_softcapping", (double)a->logit_softcap, &m->logit_softcap) < 0) {
        return -1;
    }
    if (a->flags & ARCH_TEMPERATURE) {
        if (bind_f64(b, "attention.temperature_scale", 0.0, &m->temperature) < 0 ||
            bind_f64(b, "rope.scaling.original_context_length", m->train_ctx_len,
                     &temperature_ctx) < 0) {
            return -1;
        }
        m->temperature_ctx = temperature_ctx > 0.0 ? temperature_ctx : 1.0;
    }
    return 0;
}

static int bind_ends(struct bind *b)
{
    struct model *m = b->m;
    const struct arch *a = m->arch;
    b->data_end = 0;
    bool tied = a->block != ARCH_ENC && !weights_find_tensor(b->w, "output.weight");
    if (tied ? bind_matrix(b, "token_embd.weight", m->dim, 0, 1, WANT_REQUIRED, &m->token_embd) < 0
             : bind_table(b, "token_embd.weight", m->dim, 0, &m->token_embd) < 0) {
        return -1;
    }
    m->vocab_size = m->token_embd.m;
    if (a->block == ARCH_ENC) {
        if (bind_matrix(b, "token_types.weight", m->dim, 0, 1, WANT_REQUIRED, &m->token_types) <
                0 ||
            bind_norm(b, "token_embd_norm", m->dim, WANT_REQUIRED, &m->embd_norm) < 0) {
            return -1;
        }
        if (a->rope == ARCH_ROPE_LEARNED) {
            if (bind_matrix(b, "position_embd.weight", m->dim, 0, 1, WANT_REQUIRED,
                            &m->position_embd) < 0) {
                return -1;
            }
            m->ctx_len = m->ctx_len < m->position_embd.m ? m->ctx_len : m->position_embd.m;
        }
    }
    uint32_t q = m->per_layer_dim;
    if (q && (m->n_layers * (uint64_t)q > BIND_DIM_MAX ||
              bind_table(b, "per_layer_token_embd.weight", q * m->n_layers, m->vocab_size,
                         &m->per_layer_embd) < 0 ||
              bind_matrix(b, "per_layer_model_proj.weight", m->dim, q * m->n_layers, 1,
                          WANT_REQUIRED, &m->per_layer_proj.w) < 0 ||
              bind_norm(b, "per_layer_proj_norm", q, WANT_REQUIRED, &m->per_layer_norm) < 0)) {
        return -1;
    }
    m->embed_data_end = b->data_end;
    if (a->block == ARCH_ENC) {
        m->output_data_end = b->data_end;
        return 0;
    }
    if (bind_matrix(b, "output.weight", m->dim, m->vocab_size, 1, WANT_OPTIONAL, &m->output) < 0 ||
        bind_vector(b, "output.bias", m->vocab_size, WANT_OPTIONAL, &m->output_bias) < 0 ||
        bind_norm(b, "output_norm", m->dim, WANT_REQUIRED, &m->output_norm) < 0) {
        return -1;
    }
    if (!m->output.data) {
        m->output = m->token_embd;
    } else if (bind_low_rank(b, &m->output) < 0) {
        return -1;
    }
    m->output_data_end = b->data_end;
    return 0;
}

/* ---- what a position keeps ---- */

static uint64_t mix(uint64_t hash, uint64_t value)
{
    for (int i = 0; i < 8; i++) { /* FNV-1a */
        hash = (hash ^ (value >> (8 * i) & 0xff)) * 0x100000001b3ull;
    }
    return hash;
}

static int kv_row_bytes(enum dtype type, uint32_t n, uint32_t *out, struct err *err)
{
    uint64_t bytes, padded = dtype_get(type)->quantised ? align_up(n, 32) : n;
    if (dtype_size(type, padded, &bytes, err) < 0) {
        return -1;
    }
    *out = (uint32_t)bytes;
    return 0;
}

static int lay_out_kv(struct bind *b)
{
    struct model *m = b->m;
    struct kv_layout *kv = &m->kv;
    uint64_t off = 0, hash = mix(0xcbf29ce484222325ull, KV_FORMAT);
    kv->k_type = b->options->k_type;
    kv->v_type = b->options->v_type;
    if (b->backend->ops->check_kv(b->backend, kv->k_type, kv->v_type, b->err) < 0) {
        return -1;
    }
    kv->n_layers = m->n_layers;
    kv->layer = calloc(m->n_layers, sizeof *kv->layer);
    if (!kv->layer) {
        return err_set(b->err, ERR_NO_MEMORY, "kv layout");
    }
    hash = mix(mix(mix(hash, kv->k_type), kv->v_type), b->w->header->digest);
    hash = mix(mix(hash, b->backend->exact), (uint64_t)b->backend->name[1] /* cPu, cUda */);
    hash = mix(hash,
               m->ropes[0].freq ? (uint64_t)(m->ropes[0].freq[m->ropes[0].n_pairs - 1] * 1e18) : 0);
    for (uint32_t i = 0; i < m->n_layers; i++) {
        struct model_layer *l = &m->layers[i];
        struct kv_layer *k = &kv->layer[i];
        if (l->mixer == MODEL_DELTA_NET) {
            l->state_off = kv->state_bytes;
            kv->state_bytes += align_up(
                ((uint64_t)m->ssm_v_heads * m->ssm_state_dim * m->ssm_state_dim +
                 (uint64_t)(m->ssm_conv - 1) * l->conv_channels) *
                    sizeof(float),
                64);
        }
        if ((l->mixer != MODEL_ATTENTION && l->mixer != MODEL_MLA) || !l->writes_kv) {
            continue;
        }
        *k = (struct kv_layer){ .n_kv_heads = l->n_kv_heads, .k_dim = l->k_dim, .v_dim = l->v_dim };
        if (kv_row_bytes(kv->k_type, k->k_dim, &k->k_row_bytes, b->err) < 0 ||
            kv_row_bytes(kv->v_type, k->v_dim, &k->v_row_bytes, b->err) < 0) {
            return -1;
        }
        k->k_off = off;
        off = align_up(off + (uint64_t)KV_PAGE_TOKENS * k->n_kv_heads * k->k_row_bytes, 64);
        k->v_off = off;
        off = align_up(off + (uint64_t)KV_PAGE_TOKENS * k->n_kv_heads * k->v_row_bytes, 64);
        hash = mix(mix(mix(hash, k->n_kv_heads), k->k_dim), k->v_dim);
    }
    kv->page_bytes = align_up(off, 4096);
    kv->fingerprint = mix(mix(hash, kv->page_bytes), kv->state_bytes);
    return 0;
}

static int bind_all(struct bind *b)
{
    struct model *m = b->m;
    const struct weights_kv *kv = weights_find_kv(b->w, "general.architecture");
    const char *name;
    size_t len;
    int ropes[2];
    uint32_t heads, k_dim;
    if (!kv || !weights_kv_str(kv, 0, &name, &len)) {
        return err_set(b->err, ERR_BAD_FILE, "key general.architecture is missing");
    }
    m->arch = arch_find(name, len);
    if (!m->arch) {
        return err_set(b->err, ERR_UNSUPPORTED, "architecture %.*s is not known",
                       (int)(len < 64 ? len : 64), name);
    }
    if (bind_adapter(b) < 0 || read_numbers(b) < 0 || read_scales(b) < 0 || bind_ends(b) < 0 ||
        bind_u32_at(b, "attention.head_count", 0, BIND_REQUIRED, &heads) < 0 ||
        bind_u32(b, "attention.key_length", heads ? m->dim / heads : 0, &k_dim) < 0 ||
        bind_ropes(b, k_dim, ropes) < 0) {
        return -1;
    }
    m->layers = calloc(m->n_layers, sizeof *m->layers);
    if (!m->layers) {
        return err_set(b->err, ERR_NO_MEMORY, "%u layers", m->n_layers);
    }
    for (uint32_t i = 0; i < m->n_layers; i++) {
        if (bind_layer(b, i, ropes) < 0) {
            return -1;
        }
    }
    return bind_adapter_end(b) < 0 ? -1 : lay_out_kv(b);
}

struct model *model_bind(const struct weights *w, struct backend *backend,
                         const struct model_options *options, struct err *err)
{
    struct model *m = calloc(1, sizeof *m);
    if (!m) {
        err_set(err, ERR_NO_MEMORY, "model");
        return NULL;
    }
    struct bind b = { .w = w, .backend = backend, .options = options, .m = m, .err = err };
    m->weights = w;
    m->backend = backend;
    m->wait = options->wait;
    if (bind_all(&b) < 0) {
        model_destroy(&m);
        return NULL;
    }
    m->bound = !backend->dry;
    backend->n_models += m->bound;
    return m;
}

void model_destroy(struct model **model)
{
    struct model *m = *model;
    if (!m) {
        return;
    }
    if (m->bound) {
        m->backend->n_models--;
    }
    if (m->backend && m->backend->ops->release) {
        m->backend->ops->release(m->backend, m->weights->base, m->weights->size);
    }
    for (uint32_t i = 0; i < m->n_ropes; i++) {
        free(m->ropes[i].freq);
    }
    for (uint32_t i = 0; m->layers && i < m->n_layers; i++) {
        free(m->layers[i].exp_places);
    }
    for (struct low_rank *r = m->low_ranks, *next; r; r = next) {
        next = r->next;
        free(r);
    }
    free(m->kv.layer);
    free(m->layers);
    free(m);
    *model = NULL;
}
