/* The front door: who is there, what they ask, how their end is noticed.
 * A client says Hello by ZeroMQ and gets a number; with that number it attaches by the AF_UNIX line, whose kernel
 * credentials say which principal it is, hands over its reader page and eventfd, and gets its journal shard read-only. The line's
 * end is the client's. Only attached clients may submit; others may look. Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "broker/shards.h"
#include "proto/journal.h"
#include "proto/link.h"
#include "proto/message.h"

struct broker;
struct post_to;

#define CLIENTS_MAX 4096 /* known; attached ones are bounded by descriptors and LIMIT_SEGMENTS */
#define CLIENTS_ATTACHED_MAX                                                                       \
    2000 /* LIMIT_SEGMENTS holds their reader pages beside everything else */
#define CLIENTS_VISITORS_MAX 128 /* lines that have not said who they are */
#define CLIENTS_IDLE_MS      3600000 /* who never attached and says nothing is forgotten after an hour */

enum client_state { CLIENT_GREETED, CLIENT_DEPOSITING, CLIENT_ATTACHED };

struct client {
    uint64_t number;
    struct link_peer peer;
    enum client_state state;
    char name[64];
    uint64_t flow_name; /* digest of what it calls its flow; 0: its number is its flow */
    uint64_t flow;
    uint32_t pid;
    uid_t uid;
    int line, eventfd; /* -1: not attached */
    struct shard *shard;
    uint64_t reader; /* segment of its reader page */
    uint64_t seen_ms;
    bool gone;
};

struct clients_visitor {
    int fd;
    uid_t uid;
    pid_t pid;
    uint64_t since_ms;
};

struct clients {
    struct client **list; /* owned */
    uint32_t n, room;
    struct clients_visitor visitors[CLIENTS_VISITORS_MAX];
    uint32_t n_visitors;
    uint32_t n_attached, n_attached_max;
    uint64_t *
        old_readers; /* owned: pages under the last broker, dropped when their clients had time to come back */
    uint32_t n_old;
    uint64_t old_until_ms;
};

void clients_init(struct broker *b);
void clients_clear(struct clients *c);

struct client *clients_find(const struct clients *c, uint64_t number);
struct client *clients_find_peer(const struct clients *c, const struct link_peer *peer);
/* The flow of a principal by its name's digest, or a number of its own. */
uint64_t clients_flow(uid_t uid, uint64_t name);
/* The flow that a question names; its client's when it names none (empty). */
uint64_t clients_flow_named(const struct client *c, ProtobufCBinaryData name);

struct client *clients_find_reader(const struct clients *c, uint64_t reader);

/* Hello of anybody: clients get a number, children are known by their token. */
void clients_on_hello(struct broker *b, const struct post_to *to, const Hearth__Hello *hello);

/* Lines: accept new visitors; read what a line says or notice its end. */
void clients_accept(struct broker *b, int listen_fd);
void clients_read_visitor(struct broker *b, uint32_t i);
void clients_read_line(struct broker *b, struct client *c);

/* The keeper has the reader page: the client is attached. */
void clients_on_deposit(struct broker *b, uint64_t number, const struct err *err);

/* Silent visitors go; those that are gone are freed. */
void clients_act(struct broker *b);
void clients_sweep(struct broker *b);
