#include "broker/parks.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "broker/broker.h"
#include "broker/models_parts.h"
#include "broker/post.h"
#include "broker/route.h"
#include "proto/log.h"
#include "proto/parked.h"

#define PATH_BYTES 4200 /* directory and name */

static uint64_t unix_s(void)
{
    return broker_unix_ms() / 1000;
}

static void path_of(const struct parks *p, const struct parks_file *f, char path[PATH_BYTES])
{
    snprintf(path, PATH_BYTES, "%s/%016" PRIx64 "-%u-%016" PRIx64 ".kv", p->dir, f->key,
             (unsigned)f->uid, f->name);
}

static void temp_path(const struct parks *p, uint64_t temp, char path[PATH_BYTES])
{
    snprintf(path, PATH_BYTES, "%s/new-%016" PRIx64, p->dir, temp);
}

/* ---- the table ---- */

static void let_go(struct broker *b, struct parks_file *f)
{
    models_drop(b, &f->segment);
}

/* Takes row i out of the table, and its file away when asked. */
static void forget(struct broker *b, uint32_t i, bool unlink_it)
{
    struct parks *p = &b->parks;
    struct parks_file *f = &p->list[i];
    if (unlink_it) {
        char path[PATH_BYTES];
        path_of(p, f, path);
        unlink(path);
    }
    let_go(b, f);
    p->bytes -= f->bytes;
    free(f->tokens);
    p->list[i] = p->list[--p->n];
}

static uint32_t oldest(const struct parks *p)
{
    uint32_t at = 0;
    for (uint32_t i = 1; i < p->n; i++) {
        at = p->list[i].used_s < p->list[at].used_s ? i : at;
    }
    return at;
}

uint64_t parks_memory(const struct broker *b)
{
    return b->parks.in_memory ? b->parks.bytes : 0;
}

uint64_t parks_budget(const struct broker *b)
{
    const struct config *c = &b->config;
    uint64_t budget = c->state_budget      ? c->state_budget
                      : b->parks.in_memory ? c->ram_budget / 8
                                           : PARKS_DISK_BUDGET;
    if (!b->parks.in_memory) {
        return budget;
    }
    const struct model *first = b->models.first;
    uint64_t used = swap_used_after(b) + (first ? first->claim : 0);
    uint64_t left = lend_budget(b) > used ? lend_budget(b) - used : 0;
    return budget < left ? budget : left;
}

static void trim(struct broker *b, uint64_t budget)
{
    struct parks *p = &b->parks;
    while (p->n > 0 && p->bytes > budget) {
        forget(b, oldest(p), true);
    }
}

void parks_drop_all(struct broker *b)
{
    trim(b, 0);
}

/* Reads a file's head into a new row (segment 0), which the caller fills up with its name. */
static struct parks_file *add(struct broker *b, int fd, struct err *err)
{
    struct parks *p = &b->parks;
    struct parked file;
    if (parked_read(&file, fd, err) < 0) {
        return NULL;
    }
    if (p->n == PARKS_FILES_MAX) {
        forget(b, oldest(p), true);
    }
    struct parks_file *f = &p->list[p->n++];
    *f = (struct parks_file){ .engine = file.head.key,
                              .tag_hi = file.head.tag_hi,
                              .tag_lo = file.head.tag_lo,
                              .tokens = file.tokens,
                              .n_tokens = file.head.n_tokens,
                              .bytes = file.head.total_bytes };
    p->bytes += f->bytes;
    free(file.sums);
    return f;
}

/* ---- the directory ---- */

static void scan_one(struct broker *b, const char *name)
{
    struct parks *p = &b->parks;
    uint64_t key, random;
    unsigned uid;
    int used = 0;
    char path[PATH_BYTES];
    struct stat st;
    struct err err = { 0 };
    if (snprintf(path, sizeof path, "%s/%s", p->dir, name) >= (int)sizeof path) {
        return;
    }
    if (strncmp(name, "new-", 4) == 0) {
        unlink(path); /* its writer is dead */
        return;
    }
    if (sscanf(name, "%16" SCNx64 "-%u-%16" SCNx64 ".kv%n", &key, &uid, &random, &used) != 3 ||
        used == 0 || name[used]) {
        return; /* not ours */
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    struct parks_file *f = NULL;
    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        err_set(&err, ERR_IO, "it cannot be read");
    } else {
        f = add(b, fd, &err);
    }
    if (f) {
        f->key = key;
        f->name = random;
        f->uid = uid;
        f->used_s = (uint64_t)st.st_mtime;
    } else {
        log_warn("parked conversation %s is ignored: %s", name, err.text);
        unlink(path);
    }
    if (fd >= 0) {
        close(fd);
    }
}

/* The directory, ours alone; made when it is not there. */
static int open_dir(struct broker *b, struct err *err)
{
    struct parks *p = &b->parks;
    struct stat st;
    struct statfs fs;
    int n = b->config.state_dir[0]
                ? snprintf(p->dir, sizeof p->dir, "%s", b->config.state_dir)
                : snprintf(p->dir, sizeof p->dir, "%.4000s/parked", b->shards.dir);
    if (n >= (int)sizeof p->dir) {
        return err_set(err, ERR_USAGE, "its name is too long");
    }
    if (mkdir(p->dir, 0700) < 0 && errno != EEXIST) {
        return err_set_errno(err, ERR_IO, "make %s", p->dir);
    }
    if (stat(p->dir, &st) < 0 || statfs(p->dir, &fs) < 0) {
        return err_set_errno(err, ERR_IO, "look at %s", p->dir);
    }
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 0077)) {
        return err_set(err, ERR_REFUSED, "%s is no directory of ours alone (mode 0700)", p->dir);
    }
    p->in_memory = fs.f_type == TMPFS_MAGIC;
    if (!p->in_memory && !b->config.state_dir[0]) {
        rmdir(p->dir);
        return err_set(err, ERR_UNSUPPORTED, "there is no memory file system for it");
    }
    return 0;
}

void parks_open(struct broker *b)
{
    struct parks *p = &b->parks;
    struct err err = { 0 };
    struct dirent *entry;
    p->list = calloc(PARKS_FILES_MAX, sizeof *p->list);
    if (!p->list || open_dir(b, &err) < 0) {
        if (b->config.state_dir[0]) {
            log_error("idle conversations are not kept: %s", p->list ? err.text : "no memory");
        }
        return;
    }
    p->on = true;
    DIR *dir = opendir(p->dir);
    while (dir && (entry = readdir(dir))) {
        if (entry->d_name[0] != '.') {
            scan_one(b, entry->d_name);
        }
    }
    if (dir) {
        closedir(dir);
    }
    if (p->n) {
        log_info("%u parked conversations, %.1f MiB", p->n, (double)p->bytes / 0x1p20);
    }
}

/* ---- writing ---- */

/* What is being written is given up. */
static void abandon(struct broker *b, struct model *m)
{
    struct parks_model *pm = &m->parks;
    if (pm->segment) {
        char path[PATH_BYTES];
        temp_path(&b->parks, pm->temp, path);
        unlink(path);
        close(pm->fd);
        models_drop(b, &pm->segment);
    }
    pm->fd = -1;
    pm->told = false;
}

static void begin(struct broker *b, struct model *m, struct worker *w)
{
    struct parks_model *pm = &m->parks;
    char path[PATH_BYTES];
    broker_random(&pm->temp, sizeof pm->temp);
    temp_path(&b->parks, pm->temp, path);
    pm->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    int fd = pm->fd < 0 ? -1 : dup(pm->fd);
    if (fd < 0) {
        log_warn("parked conversation %s: %s", path, strerror(errno));
        if (pm->fd >= 0) {
            close(pm->fd);
            unlink(path);
        }
        pm->not_before_ms = b->now_ms + PARKS_RETRY_MS;
        return;
    }
    struct channel_msg msg = { .op = CHANNEL_DEPOSIT, .segment = broker_segment(b) };
    snprintf(msg.tag, sizeof msg.tag, "parked %.64s", m->file.name);
    pm->segment = msg.segment;
    pm->child = w->child;
    pm->told = false;
    keeper_line_ask(b->keeper, &msg, &fd, 1, KEEPER_NOTHING, 0, 0);
    workers_grant(b, w, pm->segment, true, false);
}

static struct parks_file *by_name(struct parks *p, uint64_t name)
{
    for (uint32_t i = 0; i < p->n; i++) {
        if (p->list[i].name == name) {
            return &p->list[i];
        }
    }
    assert(!"parks: a file that was just added");
    return NULL;
}

static bool begins_like(const struct parks_file *shorter, const struct parks_file *longer)
{
    return shorter->n_tokens <= longer->n_tokens &&
           memcmp(shorter->tokens, longer->tokens, shorter->n_tokens * sizeof(int32_t)) == 0;
}

/* A file is whole: it gets its name, and what it continues goes. */
static int keep(struct broker *b, struct model *m, uid_t uid, struct err *err)
{
    struct parks *p = &b->parks;
    struct parks_model *pm = &m->parks;
    char from[PATH_BYTES], to[PATH_BYTES];
    struct parks_file *f = add(b, pm->fd, err);
    if (!f) {
        return -1;
    }
    f->key = pm->key;
    f->name = pm->temp;
    f->uid = uid;
    f->used_s = unix_s();
    temp_path(p, pm->temp, from);
    path_of(p, f, to);
    if (f->engine != pm->engine || rename(from, to) < 0) {
        err_set_errno(err, ERR_IO, "rename to %s", to);
        forget(b, p->n - 1, false);
        return -1;
    }
    f->segment = pm->segment; /* the worker may take it again as it is */
    pm->segment = 0;
    close(pm->fd);
    pm->fd = -1;
    pm->told = false;
    for (uint32_t i = 0; i < p->n;) {
        const struct parks_file *mine = by_name(p, pm->temp), *o = &p->list[i];
        if (o != mine && o->key == mine->key && o->uid == mine->uid && begins_like(o, mine)) {
            forget(b, i, true); /* the last row comes here */
        } else {
            i++;
        }
    }
    f = by_name(p, pm->temp);
    if (f->bytes > parks_budget(b)) {
        forget(b, (uint32_t)(f - p->list), true); /* rather than all the others */
    }
    p->n_parked++;
    return 0;
}

/* The keeper holds so many of them at most; the rest is given to it anew when it is wanted. */
static void limit_held(struct broker *b)
{
    struct parks *p = &b->parks;
    for (;;) {
        struct parks_file *least = NULL;
        uint32_t n = 0;
        for (uint32_t i = 0; i < p->n; i++) {
            struct parks_file *f = &p->list[i];
            n += f->segment != 0;
            if (f->segment && (!least || f->used_s < least->used_s)) {
                least = f;
            }
        }
        if (n <= PARKS_HELD_MAX) {
            return;
        }
        let_go(b, least);
    }
}

void parks_on_parked(struct broker *b, uint32_t child, const Hearth__WorkerParked *msg)
{
    struct model *m = models_find_number(&b->models, msg->model);
    struct err err = { 0 };
    char code[64] = "", text[LIMIT_REASON_BYTES] = "";
    if (!m || m->parks.segment != msg->segment || !msg->segment || m->parks.child != child) {
        return;
    }
    struct parks_model *pm = &m->parks;
    struct shard *shard = msg->has_shard ? shards_find_segment(&b->shards, msg->shard) : NULL;
    if (msg->has_code) {
        message_copy(code, sizeof code, msg->code);
        message_copy(text, sizeof text, msg->text);
    }
    broker_alarm(b, b->now_ms);
    if (code[0] && err_code_of_name(code) == ERR_CHANGED) {
        abandon(b, m); /* somebody went on with it: later */
        pm->last_ms = b->now_ms;
        return;
    }
    if (!code[0] && shard && keep(b, m, shard->uid, &err) == 0) {
        trim(b, parks_budget(b));
        limit_held(b);
        return; /* there may be more */
    }
    abandon(b, m);
    if (!code[0] && !err.code) {
        pm->dirty = false; /* there was nothing more */
        return;
    }
    log_warn("model %s: an idle conversation is not parked: %s", m->file.name,
             code[0] ? text : err.text);
    pm->not_before_ms = b->now_ms + PARKS_RETRY_MS;
}

/* ---- when ---- */

/* A digest of the head does not tell two trainings of one model apart: the file itself counts, and its adapter's. */
static uint64_t key_of(const struct model *m, uint64_t engine)
{
    struct stat st;
    char path[sizeof m->lora];
    uint64_t facts[] = { m->file.size_bytes, (uint64_t)m->file.mtime_ns, m->file.inode, 0, 0 };
    snprintf(path, sizeof path, "%s", m->lora);
    char *scale = strrchr(path, ':');
    if (m->lora[0] && stat(path, &st) < 0 && scale) {
        *scale = 0;
    }
    if (m->lora[0] && stat(path, &st) == 0) {
        facts[3] = (uint64_t)st.st_ino;
        facts[4] = (uint64_t)st.st_mtim.tv_sec * 1000000000u + (uint64_t)st.st_mtim.tv_nsec;
    }
    uint64_t key = broker_digest(engine, facts, sizeof facts);
    return key ? key : 1;
}

void parks_bound(struct broker *b, struct model *m, uint64_t key)
{
    m->parks.engine = b->parks.on ? key : 0;
    m->parks.key = m->parks.engine ? key_of(m, key) : 0;
    m->parks.leave_until_ms = 0;
    parks_touched(b, m);
}

void parks_unbound(struct broker *b, struct model *m)
{
    abandon(b, m);
    m->parks.dirty = false;
    m->parks.leave_until_ms = 0;
}

void parks_touched(struct broker *b, struct model *m)
{
    struct parks_model *pm = &m->parks;
    if (!b->parks.on || !pm->key) {
        return;
    }
    if (!pm->dirty) {
        pm->since_ms = b->now_ms;
    }
    pm->dirty = true;
    pm->last_ms = b->now_ms;
}

static bool wants(const struct broker *b, const struct model *m)
{
    return b->parks.on && m->parks.key && m->bind == BIND_BOUND &&
           (m->parks.segment || (m->parks.dirty && b->now_ms >= m->parks.not_before_ms));
}

bool parks_holds(struct broker *b, struct model *m)
{
    struct parks_model *pm = &m->parks;
    if (!wants(b, m)) {
        return false;
    }
    if (!pm->leave_until_ms) {
        pm->leave_until_ms = b->now_ms + PARKS_LEAVE_MS;
    }
    broker_alarm(b, pm->leave_until_ms);
    return b->now_ms < pm->leave_until_ms;
}

/* Files in memory are not worth waiting for at a stop: they end too. */
bool parks_settled(struct broker *b)
{
    struct parks *p = &b->parks;
    if (!p->on || !b->config.state_dir[0] || !b->listed) {
        return true;
    }
    if (!p->stop_until_ms) {
        p->stop_until_ms = b->now_ms + PARKS_STOP_MS;
    }
    bool busy = false;
    for (uint32_t i = 0; i < b->requests.n; i++) {
        struct request *r = b->requests.list[i];
        if (r->worker && !r->gone && !request_ended(r)) {
            route_release(b, r, "the service stops");
            busy = true;
        }
    }
    for (uint32_t i = 0; i < b->models.n; i++) {
        busy |= wants(b, b->models.list[i]);
    }
    broker_alarm(b, p->stop_until_ms);
    return !busy || b->now_ms >= p->stop_until_ms;
}

static void act_model(struct broker *b, struct model *m)
{
    struct parks_model *pm = &m->parks;
    struct worker *w = workers_find(&b->workers, m->worker);
    if (pm->segment && (!w || w->child != pm->child)) {
        abandon(b, m);
    }
    if (!wants(b, m) || !w || w->state != WORKER_READY) {
        return;
    }
    if (pm->segment) {
        if (!pm->told && workers_granted(w, pm->segment)) {
            Hearth__WorkerPark park = HEARTH__WORKER_PARK__INIT;
            park.model = m->number;
            park.segment = pm->segment;
            pm->told = post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_PARK, &park) == 0;
            if (!pm->told) {
                broker_alarm(b, b->now_ms + 10);
            }
        }
        return;
    }
    uint64_t busy_at = pm->since_ms + PARKS_BUSY_MS, quiet_at = pm->last_ms + PARKS_QUIET_MS;
    uint64_t at = m->n_running ? busy_at : quiet_at < busy_at ? quiet_at : busy_at;
    if (m->state == MODEL_DRAINING || b->stopping || b->now_ms >= at) {
        begin(b, m, w);
    } else {
        broker_alarm(b, at);
    }
}

void parks_act(struct broker *b)
{
    if (!b->parks.on) {
        return;
    }
    trim(b, parks_budget(b));
    for (uint32_t i = 0; i < b->models.n; i++) {
        act_model(b, b->models.list[i]);
    }
}

/* ---- who gets one ---- */

static uint32_t in_common(const struct parks_file *f, const int32_t *prompt, uint32_t n)
{
    uint32_t most = f->n_tokens < n ? f->n_tokens : n, i = 0;
    while (i < most && f->tokens[i] == prompt[i]) {
        i++;
    }
    return i;
}

/* The file that has most of the prompt; a request that was interrupted finds its own. */
static struct parks_file *find(struct broker *b, const struct request *r)
{
    struct parks *p = &b->parks;
    struct journal_slot *slot = request_slot(r);
    const int32_t *prompt = journal_prompt(&r->shard->journal, slot);
    struct parks_file *best = NULL;
    uint32_t best_n = PARKS_TOKENS_MIN - 1;
    uint64_t id[2];
    memcpy(id, r->id, sizeof id);
    for (uint32_t i = 0; i < p->n; i++) {
        struct parks_file *f = &p->list[i];
        if (f->key != r->model->parks.key || f->uid != r->shard->uid) {
            continue;
        }
        uint32_t n = in_common(f, prompt, slot->n_prompt);
        bool own = f->tag_hi == id[0] && f->tag_lo == id[1] && f->n_tokens > slot->n_prompt;
        if (n > best_n || (n == best_n && best && own)) {
            best = f;
            best_n = n;
        }
    }
    return best;
}

/* The keeper holds it from here on; false: it cannot be opened, so it is forgotten. */
static bool hold(struct broker *b, struct parks_file *f)
{
    char path[PATH_BYTES];
    if (f->segment) {
        return true;
    }
    path_of(&b->parks, f, path);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) {
        log_warn("parked conversation %s is gone: %s", path, strerror(errno));
        forget(b, (uint32_t)(f - b->parks.list), false);
        return false;
    }
    struct channel_msg msg = { .op = CHANNEL_DEPOSIT, .segment = broker_segment(b) };
    snprintf(msg.tag, sizeof msg.tag, "parked");
    f->segment = msg.segment;
    keeper_line_ask(b->keeper, &msg, &fd, 1, KEEPER_NOTHING, 0, 0);
    return true;
}

bool parks_ready(struct broker *b, struct request *r, struct worker *w)
{
    r->parked = 0;
    if (!b->parks.on || !r->model->parks.key || b->parks.n == 0) {
        return true;
    }
    struct parks_file *f = find(b, r);
    if (!f || !hold(b, f)) {
        return true;
    }
    uint64_t segment = f->segment;
    workers_grant(b, w, segment, false, false);
    if (!workers_granted(w, segment)) {
        return false; /* the keeper's answer brings a turn */
    }
    char path[PATH_BYTES];
    path_of(&b->parks, f, path);
    f->used_s = unix_s();
    utimensat(AT_FDCWD, path, NULL, 0);
    limit_held(b);
    r->parked = f->segment;
    b->parks.n_offered++;
    return true;
}

/* ---- the end ---- */

void parks_close(struct broker *b, bool remove)
{
    struct parks *p = &b->parks;
    for (uint32_t i = 0; i < b->models.n; i++) {
        struct parks_model *pm = &b->models.list[i]->parks;
        if (pm->segment) {
            char path[PATH_BYTES];
            temp_path(p, pm->temp, path);
            unlink(path);
            close(pm->fd);
        }
    }
    for (uint32_t i = 0; i < p->n; i++) {
        char path[PATH_BYTES];
        path_of(p, &p->list[i], path);
        if (remove && p->in_memory && !b->config.state_dir[0]) {
            unlink(path);
        }
        free(p->list[i].tokens);
    }
    if (p->on && remove && p->in_memory && !b->config.state_dir[0]) {
        rmdir(p->dir);
    }
    free(p->list);
    *p = (struct parks){ 0 };
}
