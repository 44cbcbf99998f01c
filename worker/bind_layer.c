/* One layer: which mixer and feed-forward it has, and their weights. */
#include "worker/bind.h"

#include <math.h>
#include <stdlib.h>

static int is_local(struct bind *b, uint32_t i, bool *local)
{
    const struct arch *a = b->m->arch;
    const struct weights_kv *pattern = bind_find_key(b, "attention.sliding_window_pattern");
    uint32_t value;
    *local = false;
    switch (a->window) {
    case ARCH_WINDOW_NONE:
        return 0;
    case ARCH_WINDOW_ALL:
        *local = true;
        return 0;
    case ARCH_WINDOW_EVEN:
        *local = i % 2 == 0;
        return 0;
    case ARCH_WINDOW_PERIOD_KEY:
    case ARCH_WINDOW_PERIOD:
        if (!pattern || pattern->type != WEIGHTS_ARRAY) {
            if (bind_u32(b, "attention.sliding_window_pattern", a->window_period, &value) < 0) {
                return -1;
            }
            *local = value == 0 || (i + 1) % value != 0;
            return 0;
        }
        break;
    case ARCH_WINDOW_ARRAY:
        break;
    }
    if (bind_u32_at(b, "attention.sliding_window_pattern", i, BIND_REQUIRED, &value) < 0) {
        return -1;
    }
    *local = value != 0;
    return 0;
}

static int bind_attention_weights(struct bind *b, uint32_t i, struct model_layer *l)
{
    const struct arch *a = b->m->arch;
    uint32_t dim = b->m->dim, h = l->n_heads, g = l->n_kv_heads;
    uint32_t q_out = h * l->k_dim * (a->flags & ARCH_HYBRID ? 2 : 1);
    if (bind_layer_linear(b, i, "attn_qkv", dim, q_out + g * (l->k_dim + l->v_dim), WANT_OPTIONAL,
                          &l->qkv) < 0 ||
        bind_layer_linear(b, i, "attn_output", h * l->v_dim, dim, WANT_REQUIRED, &l->o) < 0) {
        return -1;
    }
    if (!l->qkv.w.data) {
        enum want v_want = a->flags & ARCH_GEMMA4 ? WANT_OPTIONAL : WANT_REQUIRED;
        if (bind_layer_linear(b, i, "attn_q", dim, q_out, WANT_REQUIRED, &l->q) < 0) {
            return -1;
        }
        if (l->writes_kv &&
            (bind_layer_linear(b, i, "attn_k", dim, g * l->k_dim, WANT_REQUIRED, &l->k) < 0 ||
             bind_layer_linear(b, i, "attn_v", dim, g * l->v_dim, v_want, &l->v) < 0)) {
            return -1;
        }
        l->v_from_k = l->writes_kv && !l->v.w.data;
        if (l->v_from_k && l->v_dim != l->k_dim) {
            return err_set(b->err, ERR_BAD_FILE, "layer %u: no attn_v, and keys are no values", i);
        }
        if ((a->flags & ARCH_QKV_BIAS_REQUIRED) && (!l->q.bias || !l->k.bias || !l->v.bias)) {
            return err_set(b->err, ERR_BAD_FILE, "layer %u: attn_q, attn_k and attn_v need biases",
                           i);
        }
    }
    uint32_t q_norm = l->k_dim, k_norm = l->k_dim;
    if (a->flags & (ARCH_QK_NORM_WHOLE | ARCH_QK_NORM_PER_HEAD)) {
        q_norm *= h;
        k_norm *= g;
    }
    if (bind_layer_norm(b, i, "attn_q_norm", q_norm, WANT_OPTIONAL, &l->q_norm) < 0 ||
        (l->writes_kv &&
         bind_layer_norm(b, i, "attn_k_norm", k_norm, WANT_OPTIONAL, &l->k_norm) < 0)) {
        return -1;
    }
    return a->flags & ARCH_SINKS
               ? bind_layer_vector(b, i, "attn_sinks.weight", h, WANT_REQUIRED, &l->sinks)
               : 0;
}

static int bind_attention(struct bind *b, uint32_t i, const int ropes[2], struct model_layer *l)
{
    struct model *m = b->m;
    const struct arch *a = m->arch;
    uint32_t block_count, window;
    bool local;
    if (is_local(b, i, &local) < 0 ||
        bind_u32(b, "attention.sliding_window", a->window_default, &window) < 0 ||
        bind_u32(b, "block_count", BIND_REQUIRED, &block_count) < 0 ||
        bind_f32(b, "attention.scale", 0.0, &l->scale) < 0 ||
        bind_f32(b, "attn_logit_softcapping", (double)a->attn_softcap, &l->softcap) < 0) {
        return -1;
    }
    if (a->flags & ARCH_GEMMA4 && local &&
        (bind_u32(b, "attention.key_length_swa", l->k_dim, &l->k_dim) < 0 ||
         bind_u32(b, "attention.value_length_swa", l->k_dim, &l->v_dim) < 0)) {
        return -1;
    }
    local = local && window > 0;
    l->window = local ? window : 0;
    l->softcap = a->attn_softcap > 0.0f ? l->softcap : 0.0f;
    l->rope = ropes[local ? 1 : 0];
    if (((a->flags & ARCH_NO_ROPE_FULL) && !local) ||
        ((a->flags & ARCH_NO_ROPE_4TH) && (i + 1) % 4 == 0)) {
        l->rope = -1;
    }
    if (l->rope >= 0 && m->ropes[l->rope].n_pairs * 2 > l->k_dim) {
        return err_set(b->err, ERR_BAD_FILE, "layer %u: %u of %u components turn", i,
                       m->ropes[l->rope].n_pairs * 2, l->k_dim);
    }
    if (a->flags & ARCH_GEMMA4) {
        l->scale = 1.0f;
    } else if (a->big_layers && a->big_layers == block_count) {
        l->scale = (float)(1.0 / sqrt((double)(m->dim / l->n_heads)));
    } else if (l->scale == 0.0f) {
        l->scale = (float)(1.0 / sqrt((double)l->k_dim));
    }
    if (l->k_dim == 0 || l->v_dim == 0 || l->n_heads % l->n_kv_heads != 0 ||
        (uint64_t)l->n_heads * l->k_dim > BIND_DIM_MAX ||
        (uint64_t)l->n_heads * l->v_dim > BIND_DIM_MAX) {
        return err_set(b->err, ERR_BAD_FILE, "layer %u: %u heads over %u of %u and %u components",
                       i, l->n_heads, l->n_kv_heads, l->k_dim, l->v_dim);
    }
    l->mixer = MODEL_ATTENTION;
    return bind_attention_weights(b, i, l);
}

/* Multi-head latent attention. Split files keep the latent vector as one key/value head and meet it with absorbed
 * queries; fused files expand keys and values, because their matrix cannot be absorbed without a copy. */
static int bind_mla(struct bind *b, uint32_t i, const int ropes[2], struct model_layer *l)
{
    struct model *m = b->m;
    uint32_t d, rank, n_rot, q_rank, h = l->n_heads;
    double multiplier, factor;
    if (bind_u32(b, "attention.key_length_mla", l->k_dim, &d) < 0 ||
        bind_u32(b, "attention.value_length_mla", l->v_dim, &l->mla_v_dim) < 0 ||
        bind_u32(b, "attention.kv_lora_rank", BIND_REQUIRED, &rank) < 0 ||
        bind_u32(b, "rope.dimension_count", BIND_REQUIRED, &n_rot) < 0 ||
        bind_u32(b, "attention.q_lora_rank", 0, &q_rank) < 0 ||
        bind_f64(b, "rope.scaling.yarn_log_multiplier", 0.0, &multiplier) < 0 ||
        bind_f64(b, "rope.scaling.factor", 1.0, &factor) < 0) {
        return -1;
    }
    if (n_rot == 0 || n_rot >= d || rank == 0 || l->mla_v_dim == 0 ||
        (uint64_t)h * d > BIND_DIM_MAX || (uint64_t)h * (rank + n_rot) > BIND_DIM_MAX ||
        (uint64_t)h * l->mla_v_dim > BIND_DIM_MAX) {
        return err_set(b->err, ERR_BAD_FILE, "layer %u: latent attention of %u, %u, %u", i, d, rank,
                       n_rot);
    }
    l->mixer = MODEL_MLA;
    l->rope = ropes[0];
    l->nope_dim = d - n_rot;
    l->latent_dim = rank;
    double yarn = bind_key_is(b, "rope.scaling.type", "yarn") && factor > 1.0
                      ? 1.0 + multiplier * log(factor)
                      : 1.0;
    l->scale = (float)(yarn * yarn / sqrt((double)d));
    bool fused = bind_has(b, i, "attn_kv_b.weight");
    l->n_kv_heads = fused ? h : 1;
    l->k_dim = fused ? d : rank + n_rot;
    l->v_dim = fused ? l->mla_v_dim : rank;
    if (q_rank
            ? bind_layer_linear(b, i, "attn_q_a", m->dim, q_rank, WANT_REQUIRED, &l->q_a) < 0 ||
                  bind_layer_norm(b, i, "attn_q_a_norm", q_rank, WANT_REQUIRED, &l->q_a_norm) < 0 ||
                  bind_layer_linear(b, i, "attn_q_b", q_rank, h * d, WANT_REQUIRED, &l->q_b) < 0
            : bind_layer_linear(b, i, "attn_q", m->dim, h * d, WANT_REQUIRED, &l->q) < 0) {
        return -1;
    }
    if (bind_layer_linear(b, i, "attn_kv_a_mqa", m->dim, rank + n_rot, WANT_REQUIRED, &l->kv_a) <
            0 ||
        bind_layer_norm(b, i, "attn_kv_a_norm", rank, WANT_REQUIRED, &l->kv_a_norm) < 0 ||
        bind_layer_linear(b, i, "attn_output", h * l->mla_v_dim, m->dim, WANT_REQUIRED, &l->o) <
            0) {
        return -1;
    }
    if (fused) {
        return bind_layer_linear(b, i, "attn_kv_b", rank, h * (l->nope_dim + l->mla_v_dim),
                                 WANT_REQUIRED, &l->kv_b);
    }
    return bind_layer_matrix(b, i, "attn_k_b", l->nope_dim, rank, h, WANT_REQUIRED, &l->k_b) < 0
               ? -1
               : bind_layer_matrix(b, i, "attn_v_b", rank, l->mla_v_dim, h, WANT_REQUIRED, &l->v_b);
}

static int bind_delta_net(struct bind *b, uint32_t i, struct model_layer *l)
{
    struct model *m = b->m;
    uint32_t inner, ds, hk, hv;
    if (bind_u32(b, "ssm.state_size", BIND_REQUIRED, &m->ssm_state_dim) < 0 ||
        bind_u32(b, "ssm.group_count", BIND_REQUIRED, &m->ssm_k_heads) < 0 ||
        bind_u32(b, "ssm.time_step_rank", BIND_REQUIRED, &m->ssm_v_heads) < 0 ||
        bind_u32(b, "ssm.inner_size", BIND_REQUIRED, &inner) < 0 ||
        bind_u32(b, "ssm.conv_kernel", BIND_REQUIRED, &m->ssm_conv) < 0) {
        return -1;
    }
    ds = m->ssm_state_dim, hk = m->ssm_k_heads, hv = m->ssm_v_heads;
    if (ds == 0 || ds > 1024 || hk == 0 || hv == 0 || hv > 4096 || hv % hk != 0 ||
        inner != hv * ds || m->ssm_conv < 2 || m->ssm_conv > 16) {
        return err_set(b->err, ERR_BAD_FILE, "layer %u: delta net of %u, %u, %u heads, inner %u", i,
                       ds, hk, hv, inner);
    }
    uint32_t channels = 2 * hk * ds + inner;
    l->mixer = MODEL_DELTA_NET;
    l->conv_channels = channels;
    if (bind_has(b, i, "attn_qkv.weight")
            ? bind_layer_linear(b, i, "attn_qkv", m->dim, channels, WANT_REQUIRED, &l->qkv) < 0 ||
                  bind_layer_linear(b, i, "attn_gate", m->dim, inner, WANT_REQUIRED, &l->gate) < 0
            : bind_layer_linear(b, i, "ssm_in", m->dim, channels + inner, WANT_REQUIRED, &l->in) <
                  0) {
        return -1;
    }
    if (bind_has(b, i, "ssm_ba.weight")
            ? bind_layer_linear(b, i, "ssm_ba", m->dim, 2 * hv, WANT_REQUIRED, &l->ba) < 0
            : bind_layer_linear(b, i, "ssm_beta", m->dim, hv, WANT_REQUIRED, &l->beta) < 0 ||
                  bind_layer_linear(b, i, "ssm_alpha", m->dim, hv, WANT_REQUIRED, &l->alpha) < 0) {
        return -1;
    }
    if (bind_layer_vector(b, i, "ssm_conv1d.weight", (uint64_t)channels * m->ssm_conv,
                          WANT_REQUIRED, &l->conv) < 0 ||
        bind_layer_vector(b, i, "ssm_dt.bias", hv, WANT_REQUIRED, &l->dt_bias) < 0 ||
        bind_layer_vector(b, i, "ssm_a", hv, WANT_REQUIRED, &l->a_coef) < 0 ||
        bind_layer_norm(b, i, "ssm_norm", ds, WANT_REQUIRED, &l->ssm_norm) < 0) {
        return -1;
    }
    return bind_layer_linear(b, i, "ssm_out", inner, m->dim, WANT_REQUIRED, &l->out);
}

/* Which layers of a hybrid are recurrent. */
static int is_recurrent(struct bind *b, uint32_t i, bool *recurrent)
{
    uint32_t value;
    if (bind_find_key(b, "attention.recurrent_layers")) {
        if (bind_u32_at(b, "attention.recurrent_layers", i, BIND_REQUIRED, &value) < 0) {
            return -1;
        }
        *recurrent = value != 0;
        return 0;
    }
    if (bind_u32(b, "full_attention_interval", 4, &value) < 0) {
        return -1;
    }
    *recurrent = value == 0 || (i + 1) % value != 0;
    return 0;
}

/* Files of before April 2024 have a tensor for each expert, "blk.I.ffn_gate.E.weight", in any order. */
static int bind_single_experts(struct bind *b, uint32_t i, struct model_layer *l)
{
    uint32_t dim = b->m->dim, e = b->m->n_experts;
    l->exp_places = calloc(3 * (size_t)e, sizeof *l->exp_places);
    if (!l->exp_places) {
        return err_set(b->err, ERR_NO_MEMORY, "layer %u: %u experts", i, e);
    }
    const uint8_t **places = l->exp_places;
    if (bind_layer_experts(b, i, "ffn_gate", dim, 0, e, places, &l->exp_gate) < 0 ||
        bind_layer_experts(b, i, "ffn_up", dim, l->exp_gate.m, e, places + e, &l->exp_up) < 0) {
        return -1;
    }
    l->expert_dim = l->exp_gate.m;
    return bind_layer_experts(b, i, "ffn_down", l->expert_dim, dim, e, places + 2 * e,
                              &l->exp_down);
}

static int bind_experts(struct bind *b, uint32_t i, struct model_layer *l)
{
    struct model *m = b->m;
    uint32_t e = m->n_experts;
    l->has_moe = true;
    l->merged = bind_has(b, i, "ffn_gate_up_exps.weight");
    if (e == 0 || m->n_experts_used == 0 || m->n_experts_used > e || e > BIND_EXPERTS_MAX) {
        return err_set(b->err, ERR_BAD_FILE, "layer %u: experts, but expert_count is %u, used %u",
                       i, e, m->n_experts_used);
    }
    if (bind_layer_linear(b, i, "ffn_gate_inp", m->dim, e, WANT_REQUIRED, &l->router) < 0) {
        return -1;
    }
    if (l->merged) {
        if (bind_layer_matrix(b, i, "ffn_gate_up_exps", m->dim, 0, e, WANT_REQUIRED, &l->exp_up) <
            0) {
            return -1;
        }
        l->expert_dim = l->exp_up.m / 2;
        if (l->exp_up.m % 2 != 0) {
            return err_set(b->err, ERR_BAD_FILE, "tensor %s: %u rows are no gate and up",
                           l->exp_up.name, l->exp_up.m);
        }
    } else if (bind_has(b, i, "ffn_gate.0.weight")) {
        return bind_single_experts(b, i, l);
    } else {
        if (bind_layer_matrix(b, i, "ffn_gate_exps", m->dim, 0, e, WANT_REQUIRED, &l->exp_gate) <
                0 ||
            bind_layer_matrix(b, i, "ffn_up_exps", m->dim, l->exp_gate.m, e, WANT_REQUIRED,
                              &l->exp_up) < 0 ||
            bind_layer_vector(b, i, "ffn_gate_exps.bias", (uint64_t)e * l->exp_gate.m,
                              WANT_OPTIONAL, &l->exp_gate_bias) < 0 ||
            bind_layer_vector(b, i, "ffn_up_exps.bias", (uint64_t)e * l->exp_gate.m, WANT_OPTIONAL,
                              &l->exp_up_bias) < 0) {
            return -1;
        }
        l->expert_dim = l->exp_gate.m;
    }
    if (bind_layer_matrix(b, i, "ffn_down_exps", l->expert_dim, m->dim, e, WANT_REQUIRED,
                          &l->exp_down) < 0 ||
        bind_layer_vector(b, i, "ffn_down_exps.bias", (uint64_t)e * m->dim, WANT_OPTIONAL,
                          &l->exp_down_bias) < 0 ||
        bind_layer_vector(b, i, "ffn_down_exps.scale", e, WANT_OPTIONAL, &l->exp_down_scale) < 0 ||
        bind_layer_vector(b, i, "exp_probs_b.bias", e, WANT_OPTIONAL, &l->choice_bias) < 0 ||
        bind_layer_vector(b, i, "ffn_gate_inp.scale", m->dim, WANT_OPTIONAL, &l->router_scale) <
            0) {
        return -1;
    }
    if (!bind_has(b, i, "ffn_up_shexp.weight")) {
        return 0;
    }
    if (bind_layer_linear(b, i, "ffn_up_shexp", m->dim, 0, WANT_REQUIRED, &l->shared_up) < 0 ||
        bind_layer_linear(b, i, "ffn_gate_shexp", m->dim, l->shared_up.w.m, WANT_REQUIRED,
                          &l->shared_gate) < 0 ||
        bind_layer_linear(b, i, "ffn_down_shexp", l->shared_up.w.m, m->dim, WANT_REQUIRED,
                          &l->shared_down) < 0 ||
        bind_layer_linear(b, i, "ffn_gate_inp_shexp", m->dim, 1, WANT_OPTIONAL, &l->shared_router) <
            0) {
        return -1;
    }
    l->shared_dim = l->shared_up.w.m;
    return 0;
}

static int bind_dense(struct bind *b, uint32_t i, struct model_layer *l)
{
    struct model *m = b->m;
    l->has_ffn = true;
    l->fused = (m->arch->flags & ARCH_FFN_FUSED) && !bind_has(b, i, "ffn_gate.weight");
    if (bind_u32_at(b, "feed_forward_length", i, BIND_REQUIRED, &l->ffn_dim) < 0) {
        return -1;
    }
    if (l->ffn_dim == 0) {
        l->has_ffn = false;
        return 0;
    }
    if (bind_layer_linear(b, i, "ffn_up", m->dim, l->fused ? 2 * l->ffn_dim : l->ffn_dim,
                          WANT_REQUIRED, &l->ffn_up) < 0 ||
        bind_layer_linear(b, i, "ffn_gate", m->dim, l->ffn_dim, WANT_OPTIONAL, &l->ffn_gate) < 0) {
        return -1;
    }
    return bind_layer_linear(b, i, "ffn_down", l->ffn_dim, m->dim, WANT_REQUIRED, &l->ffn_down);
}

static int bind_layer_norms(struct bind *b, uint32_t i, struct model_layer *l)
{
    const struct arch *a = b->m->arch;
    uint32_t n = b->m->dim;
    if (a->block == ARCH_ENC) {
        return bind_layer_norm(b, i, "attn_output_norm", n, WANT_REQUIRED, &l->post_attn_norm) < 0
                   ? -1
                   : bind_layer_norm(b, i, "layer_output_norm", n, WANT_REQUIRED,
                                     &l->post_ffn_norm);
    }
    bool before = a->block != ARCH_POST, after = a->block == ARCH_SAND || a->block == ARCH_POST;
    if (before && l->mixer != MODEL_NO_MIXER &&
        bind_layer_norm(b, i, "attn_norm", n, WANT_REQUIRED, &l->attn_norm) < 0) {
        return -1;
    }
    if (before && a->block != ARCH_PAR && (l->has_ffn || l->has_moe) &&
        bind_layer_norm(b, i, a->flags & ARCH_POST_ATTN_IS_FFN ? "post_attention_norm" : "ffn_norm",
                        n, WANT_REQUIRED, &l->ffn_norm) < 0) {
        return -1;
    }
    if (after &&
        (bind_layer_norm(b, i, "post_attention_norm", n, WANT_REQUIRED, &l->post_attn_norm) < 0 ||
         bind_layer_norm(b, i, "post_ffw_norm", n, WANT_REQUIRED, &l->post_ffn_norm) < 0)) {
        return -1;
    }
    return 0;
}

static int bind_gemma4_extras(struct bind *b, uint32_t i, struct model_layer *l)
{
    struct model *m = b->m;
    if (l->has_moe &&
        (bind_layer_norm(b, i, "post_ffw_norm_1", m->dim, WANT_REQUIRED, &l->post_ffn_norm_1) < 0 ||
         bind_layer_norm(b, i, "pre_ffw_norm_2", m->dim, WANT_REQUIRED, &l->pre_ffn_norm_2) < 0 ||
         bind_layer_norm(b, i, "post_ffw_norm_2", m->dim, WANT_REQUIRED, &l->post_ffn_norm_2) <
             0)) {
        return -1;
    }
    if (m->per_layer_dim &&
        (bind_layer_linear(b, i, "inp_gate", m->dim, m->per_layer_dim, WANT_REQUIRED,
                           &l->inp_gate) < 0 ||
         bind_layer_linear(b, i, "proj", m->per_layer_dim, m->dim, WANT_REQUIRED, &l->proj) < 0 ||
         bind_layer_norm(b, i, "post_norm", m->dim, WANT_REQUIRED, &l->post_norm) < 0)) {
        return -1;
    }
    if (bind_layer_vector(b, i, "layer_output_scale.weight", 1, WANT_OPTIONAL, &l->out_scale) < 0) {
        return -1;
    }
    return 0;
}

/* gemma4: the last layers read the keys and values of the last layer of their kind that has its own. */
static int find_shared_kv(struct bind *b, uint32_t i, struct model_layer *l)
{
    struct model *m = b->m;
    uint32_t shared;
    bool local, other;
    l->writes_kv = true;
    l->kv_layer = i;
    if (!(m->arch->flags & ARCH_GEMMA4)) {
        return 0;
    }
    if (bind_u32(b, "attention.shared_kv_layers", 0, &shared) < 0 || is_local(b, i, &local) < 0) {
        return -1;
    }
    uint32_t own = shared < m->n_layers ? m->n_layers - shared : 0;
    if (i < own) {
        return 0;
    }
    l->writes_kv = false;
    for (uint32_t j = own; j-- > 0;) {
        if (is_local(b, j, &other) < 0) {
            return -1;
        }
        if (other == local) {
            l->kv_layer = j;
            return 0;
        }
    }
    return err_set(b->err, ERR_BAD_FILE, "layer %u: no layer to share keys with", i);
}

int bind_layer(struct bind *b, uint32_t i, const int ropes[2])
{
    struct model *m = b->m;
    struct model_layer *l = &m->layers[i];
    bool recurrent = false;
    l->rope = -1;
    b->data_end = 0;
    if (bind_u32_at(b, "attention.head_count", i, BIND_REQUIRED, &l->n_heads) < 0 ||
        bind_u32_at(b, "attention.head_count_kv", i, l->n_heads, &l->n_kv_heads) < 0) {
        return -1;
    }
    uint32_t first_heads;
    if (bind_u32_at(b, "attention.head_count", 0, BIND_REQUIRED, &first_heads) < 0) {
        return -1;
    }
    uint32_t d = first_heads ? m->dim / first_heads : 0;
    if (bind_u32(b, "attention.key_length", d, &l->k_dim) < 0 ||
        bind_u32(b, "attention.value_length", d, &l->v_dim) < 0 || find_shared_kv(b, i, l) < 0 ||
        ((m->arch->flags & ARCH_HYBRID) && is_recurrent(b, i, &recurrent) < 0)) {
        return -1;
    }
    int rc;
    if (recurrent) {
        rc = bind_delta_net(b, i, l);
    } else if (l->n_heads == 0) {
        l->mixer = MODEL_NO_MIXER;
        rc = 0;
    } else if (l->n_kv_heads == 0) {
        l->mixer = MODEL_LINEAR_ONLY;
        rc = bind_layer_linear(b, i, "attn_output", m->dim, m->dim, WANT_REQUIRED, &l->o);
    } else if (m->arch->flags & ARCH_MLA) {
        rc = bind_mla(b, i, ropes, l);
    } else {
        rc = bind_attention(b, i, ropes, l);
    }
    bool experts = bind_has(b, i, "ffn_gate_inp.weight");
    if (rc < 0 || (experts && bind_experts(b, i, l) < 0) ||
        ((!experts || (m->arch->flags & ARCH_GEMMA4)) && bind_dense(b, i, l) < 0) ||
        bind_layer_norms(b, i, l) < 0 ||
        ((m->arch->flags & ARCH_GEMMA4) && bind_gemma4_extras(b, i, l) < 0)) {
        return -1;
    }
    l->data_end = b->data_end;
    return 0;
}
