#include "clients/gateway/pool.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "clients/gateway/exchange.h"
#include "clients/gateway/problem.h"
#include "clients/hearth.h"
#include "proto/log.h"

#define STACK_BYTES (512u << 10) /* a submission's arrays are some 20 KiB; the rest is for libc */

struct hand {
    struct pool *pool;
    pthread_t thread;
    int interrupt_fd;
    struct hearth *hearth;
};

struct pool {
    const char *run;
    int n_max, n_hands, n_idle, n_busy, n_queued;
    struct hand hands[POOL_HANDS_MAX];
    struct exchange *queue[POOL_QUEUE_MAX]; /* in the order in which they came */
    bool by_key, ending;
    pthread_mutex_t lock;
    pthread_cond_t work;
};

/* ---- one hand ---- */

/* A connection that stands, or a problem. */
static bool connect_hand(struct hand *hand, struct hearth_error *error)
{
    if (hand->hearth && hearth_check(hand->hearth, error) < 0) {
        hearth_close(&hand->hearth);
    }
    if (!hand->hearth) {
        hand->hearth = hearth_open(hand->pool->run, "http", error);
        if (hand->hearth) {
            hearth_interrupt_fd(hand->hearth, hand->interrupt_fd);
        }
    }
    return hand->hearth != NULL;
}

static void work_on(struct hand *hand, struct exchange *x)
{
    struct hearth_error error;
    uint64_t count;
    pthread_mutex_lock(&x->lock);
    bool gone = x->gone;
    x->hand = hand;
    pthread_mutex_unlock(&x->lock);
    if (gone) {
        exchange_close(x);
    } else if (!connect_hand(hand, &error)) {
        struct problem problem;
        problem_of_error(&problem, &error);
        problem_reply(x, &problem);
    } else {
        x->route->handler(x, hand->hearth);
    }
    pthread_mutex_lock(&x->lock);
    x->hand = NULL;
    pthread_mutex_unlock(&x->lock);
    while (read(hand->interrupt_fd, &count, sizeof count) > 0) {
        /* it was meant for this exchange */
    }
}

/* What is worked on next, taken from the queue; NULL: nothing that may be. The lock is held. */
static struct exchange *take(struct pool *p)
{
    int best = -1;
    uint32_t least = UINT32_MAX;
    for (int i = 0; i < p->n_queued; i++) {
        const struct quota *key = p->by_key ? p->queue[i]->quota : NULL;
        uint32_t n = key ? key->n_hands : 0;
        if (n < POOL_KEY_HANDS && n < least) {
            least = n;
            best = i;
        }
    }
    if (best < 0) {
        return NULL;
    }
    struct exchange *x = p->queue[best];
    p->n_queued--;
    memmove(&p->queue[best], &p->queue[best + 1],
            (size_t)(p->n_queued - best) * sizeof p->queue[0]);
    if (p->by_key && x->quota) {
        x->quota->n_queued--;
        x->quota->n_hands++;
    }
    return x;
}

static void *hand_main(void *argument)
{
    struct hand *hand = argument;
    struct pool *p = hand->pool;
    pthread_mutex_lock(&p->lock);
    while (!p->ending) {
        struct exchange *x = take(p);
        if (!x) {
            p->n_idle++;
            pthread_cond_wait(&p->work, &p->lock);
            p->n_idle--;
            continue;
        }
        p->n_busy++;
        pthread_mutex_unlock(&p->lock);
        work_on(hand, x);
        pthread_mutex_lock(&p->lock);
        p->n_busy--;
        if (p->by_key && x->quota) {
            x->quota->n_hands--;
        }
        pthread_mutex_unlock(&p->lock);
        exchange_unref(&x);
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    hearth_close(&hand->hearth);
    return NULL;
}

void pool_interrupt(struct hand *hand)
{
    uint64_t one = 1;
    if (write(hand->interrupt_fd, &one, sizeof one) < 0) {
        log_warn("an interrupt is lost"); /* only a counter at its end: it is readable then */
    }
}

/* ---- the pool ---- */

struct pool *pool_create(const char *run, int n_max, bool by_key, struct err *err)
{
    struct pool *p = calloc(1, sizeof *p);
    if (!p) {
        err_set(err, ERR_NO_MEMORY, "no memory for the hands");
        return NULL;
    }
    p->run = run;
    p->n_max = n_max;
    p->by_key = by_key;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    return p;
}

/* One more hand; the lock is held. */
static bool add_hand(struct pool *p)
{
    struct hand *hand = &p->hands[p->n_hands];
    pthread_attr_t attributes;
    *hand = (struct hand){ .pool = p, .interrupt_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
    if (hand->interrupt_fd < 0) {
        return false;
    }
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    bool made = pthread_create(&hand->thread, &attributes, hand_main, hand) == 0;
    pthread_attr_destroy(&attributes);
    if (made) {
        p->n_hands++;
    } else {
        close(hand->interrupt_fd);
    }
    return made;
}

bool pool_give(struct pool *p, struct exchange *x)
{
    pthread_mutex_lock(&p->lock);
    struct quota *key = p->by_key ? x->quota : NULL;
    bool room = p->n_queued < POOL_QUEUE_MAX && (!key || key->n_queued < POOL_KEY_QUEUE);
    if (room && p->n_idle <= p->n_queued && p->n_hands < p->n_max && !add_hand(p)) {
        log_warn("no thread for one more hand");
    }
    room = room && p->n_hands > 0;
    if (room) {
        p->queue[p->n_queued++] = x;
        if (key) {
            key->n_queued++;
        }
        pthread_cond_signal(&p->work);
    }
    pthread_mutex_unlock(&p->lock);
    return room;
}

void pool_load(struct pool *p, int *n_busy, int *n_waiting)
{
    pthread_mutex_lock(&p->lock);
    *n_busy = p->n_busy;
    *n_waiting = p->n_queued;
    pthread_mutex_unlock(&p->lock);
}

void pool_destroy(struct pool **pp)
{
    struct pool *p = *pp;
    if (!p) {
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->ending = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->n_hands; i++) {
        pthread_join(p->hands[i].thread, NULL);
        close(p->hands[i].interrupt_fd);
    }
    while (p->n_queued > 0) {
        exchange_unref(&p->queue[--p->n_queued]);
    }
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->work);
    free(p);
    *pp = NULL;
}
