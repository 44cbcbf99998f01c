/* See emulate_runtime.h. One thread, but for registering host memory. */
#include "tests/cuda/emulate.h"

#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <deque>
#include <list>
#include <map>
#include <mutex>
#include <vector>

#include "tests/cuda/emulate_apart.h"
#include "tests/cuda/emulate_counts.h"

typedef std::function<void()> deed;

struct emulate_stream {
    bool beside; /* of another one: made with cudaStreamNonBlocking */
    std::deque<deed> waiting;
    uint64_t n_done, n_asked;
};

struct emulate_event {
    cudaStream_t stream; /* NULL: not recorded, so it has happened */
    uint64_t at;
};

struct emulate_node {
    unsigned place;
};

/* A kernel, or a copy (to is not NULL), and the nodes that it comes behind. */
struct node_call {
    dim3 grid, block;
    size_t shared_bytes;
    deed run;
    void *to;
    std::vector<unsigned> after;
};

struct emulate_graph {
    std::vector<emulate_node *> nodes; /* owned */
    std::vector<node_call> calls;
};

struct emulate_exec {
    std::vector<node_call> calls;
};

/* Bytes of the host. */
struct span {
    const char *from;
    size_t size;
    bool read_only;

    bool meets(const struct span &o) const
    {
        return from < o.from + o.size && o.from < from + size;
    }
    bool holds(const struct span &o) const
    {
        return from <= o.from && o.from + o.size <= from + size;
    }
};

static struct {
    std::map<void *, size_t> device;
    size_t used, pinned;
    std::atomic<long> n_calls;
    std::atomic<bool> broken;
    std::vector<cudaStream_t> streams;
    std::mutex lock;               /* of what follows */
    std::map<void *, size_t> host; /* cudaHostAlloc's */
    std::list<struct span> registered;
    std::list<struct span> reading; /* by copies that are still to happen */
    struct emulate_counts counts;
} r;

static long environment(const char *name, long otherwise)
{
    const char *value = getenv(name);
    return value ? atol(value) : otherwise;
}

/* Every call that a sick device may refuse passes here. */
static cudaError_t fate()
{
    long fail_at = environment("HEARTH_EMULATED_FAIL", 0);
    if (fail_at > 0 && ++r.n_calls >= fail_at) {
        r.broken = true;
    }
    return r.broken ? cudaErrorIllegalAddress : cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t rc)
{
    switch (rc) {
    case cudaSuccess:
        return "no error";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    case cudaErrorIllegalAddress:
        return "an illegal memory access was encountered";
    case cudaErrorInvalidValue:
        return "invalid argument";
    case cudaErrorNotSupported:
        return "operation not supported";
    default:
        return "device not ready";
    }
}

const char *cudaGetErrorName(cudaError_t rc)
{
    return rc == cudaErrorIllegalAddress ? "cudaErrorIllegalAddress" : "cudaError";
}

cudaError_t cudaGetLastError()
{
    return r.broken ? cudaErrorIllegalAddress : cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = (int)environment("HEARTH_EMULATED_DEVICES", 1);
    return *n > 0 ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaSetDevice(int)
{
    return cudaSuccess;
}

static void stop(const char *what)
{
    fprintf(stderr, "emulation: %s\n", what);
    abort();
}

/* ---- whose memory ---- */

static bool is_mapped(const void *p, size_t size)
{
    uintptr_t page = (uintptr_t)p / 4096 * 4096;
    std::vector<unsigned char> there((size + 8191) / 4096);
    return mincore((void *)page, (uintptr_t)p + size - page, there.data()) == 0 || errno != ENOMEM;
}

/* Whether the device can read it, though it is the host's. */
static bool is_pinned(const void *p)
{
    struct span s = { (const char *)p, 1, false };
    std::lock_guard<std::mutex> guard(r.lock);
    for (const auto &own : r.host) {
        if (span{ (const char *)own.first, own.second, false }.holds(s)) {
            return true;
        }
    }
    for (const struct span &own : r.registered) {
        if (own.holds(s)) {
            return true;
        }
    }
    return false;
}

/* Words of what the device is told that are addresses of this process and not the device's to read. */
void emulate_told(const void *what, size_t size)
{
    for (size_t i = 0; apart_level() && i + sizeof(void *) <= size; i += sizeof(void *)) {
        uintptr_t word;
        memcpy(&word, (const char *)what + i, sizeof word);
        /* Two small numbers side by side, or one beside what padding holds, may look like an address. */
        bool address = (uint32_t)word >= 1u << 16 && word >> 40 > 0 && word >> 47 == 0;
        if (address && !apart_has((void *)word) && !is_pinned((void *)word) &&
            is_mapped((void *)word, 1)) {
            fprintf(stderr, "emulation: byte %zu of %zu: %p\n", i, size, (void *)word);
            stop("a kernel is given an address of the host");
        }
    }
}

static void check_copy(const void *to, const void *from, enum cudaMemcpyKind kind)
{
    if (apart_level() && (apart_has(to) != (kind != cudaMemcpyDeviceToHost) ||
                          apart_has(from) != (kind != cudaMemcpyHostToDevice))) {
        stop("a copy that goes another way than it says");
    }
}

/* ---- memory ---- */

static void do_all();

static size_t total_bytes()
{
    return (size_t)environment("HEARTH_EMULATED_BYTES", 64l << 30);
}

cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int)
{
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? 12 : 0;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    *total = total_bytes();
    *free_bytes = *total > r.used ? *total - r.used : 0;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t size)
{
    cudaError_t rc = fate();
    *p = NULL;
    if (rc != cudaSuccess) {
        return rc;
    }
    do_all();
    if (size > total_bytes() || r.used > total_bytes() - size) {
        return cudaErrorMemoryAllocation;
    }
    *p = apart_level() ? apart_alloc(size) : aligned_alloc(256, (size + 255) / 256 * 256);
    if (!*p) {
        return cudaErrorMemoryAllocation;
    }
    r.device[*p] = size;
    r.used += size;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    do_all();
    auto at = r.device.find(p);
    if (at != r.device.end() && apart_level()) {
        apart_free(p, at->second);
    }
    if (at != r.device.end()) {
        r.used -= at->second;
        r.device.erase(at);
    }
    if (!apart_level()) {
        free(p);
    }
    return fate();
}

cudaError_t cudaHostAlloc(void **p, size_t size, unsigned)
{
    size_t most = (size_t)environment("HEARTH_EMULATED_HOST_BYTES", 64l << 30);
    *p = r.pinned + size > most ? NULL : aligned_alloc(4096, (size + 4095) / 4096 * 4096);
    if (!*p) {
        return cudaErrorMemoryAllocation;
    }
    std::lock_guard<std::mutex> guard(r.lock);
    r.host[*p] = size;
    r.pinned += size;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p)
{
    do_all();
    {
        std::lock_guard<std::mutex> guard(r.lock);
        r.pinned -= r.host[p];
        r.host.erase(p);
    }
    free(p);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *p, size_t size, unsigned flags)
{
    cudaError_t rc = fate();
    std::lock_guard<std::mutex> guard(r.lock);
    struct span s = { (const char *)p, size, (flags & cudaHostRegisterReadOnly) != 0 };
    for (const struct span &other : r.registered) {
        if (s.meets(other)) {
            stop("host memory is registered twice");
        }
    }
    if (!is_mapped(p, size)) {
        stop("memory that is not mapped is registered");
    }
    if (rc != cudaSuccess) {
        return rc;
    }
    if (r.counts.registered_bytes + size >
        (uint64_t)environment("HEARTH_EMULATED_REGISTER", 64l << 30)) {
        return cudaErrorMemoryAllocation;
    }
    r.registered.push_back(s);
    r.counts.n_registered++;
    r.counts.registered_bytes += size;
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *p)
{
    std::lock_guard<std::mutex> guard(r.lock);
    for (auto at = r.registered.begin(); at != r.registered.end(); ++at) {
        if (at->from != p) {
            continue;
        }
        for (const struct span &s : r.reading) {
            if (s.meets(*at)) {
                stop("host memory is given back before a copy has read it");
            }
        }
        if (!is_mapped(p, at->size)) {
            stop("host memory is given back after it was unmapped");
        }
        r.counts.n_unregistered++;
        r.counts.registered_bytes -= at->size;
        r.registered.erase(at);
        return fate();
    }
    stop("host memory that was not registered");
    return cudaErrorInvalidValue;
}

struct emulate_counts emulate_counted(void)
{
    std::lock_guard<std::mutex> guard(r.lock);
    return r.counts;
}

/* ---- streams ---- */

static void do_until(cudaStream_t s, uint64_t at)
{
    while (s->n_done < at && !s->waiting.empty()) {
        deed next = s->waiting.front();
        s->waiting.pop_front();
        s->n_done++;
        apart_device_acts(true);
        next();
        apart_device_acts(false);
    }
}

static void do_all()
{
    for (cudaStream_t s : r.streams) {
        do_until(s, s->n_asked);
    }
}

static cudaError_t ask(cudaStream_t s, const deed &what)
{
    cudaError_t rc = fate();
    if (rc != cudaSuccess) {
        return rc;
    }
    s->waiting.push_back(what);
    s->n_asked++;
    long lazy = environment("HEARTH_EMULATED_LAZY", 0);
    if (!lazy || (lazy == 2 && s->beside)) {
        do_until(s, s->n_asked);
    }
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *, int, int)
{
    return cudaSuccess;
}

static void check_launch(dim3 grid, dim3 block, size_t shared_bytes)
{
    unsigned n = block.x * block.y * block.z;
    if (n == 0 || n > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 ||
        grid.z > 65535 || shared_bytes > 227u << 10) {
        stop("a launch that a device refuses");
    }
}

cudaError_t emulate_launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                           const deed &run)
{
    check_launch(grid, block, shared_bytes);
    return ask(stream, [=] { emulate_run(grid, block, shared_bytes, run); });
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t size, cudaStream_t stream)
{
    return ask(stream, [=] { memset(p, value, size); });
}

/* From the host to the device: where the source can be read by the device, late. */
static cudaError_t copy_up(void *to, const void *from, size_t size, cudaStream_t stream)
{
    struct span s = { (const char *)from, size, false };
    std::unique_lock<std::mutex> guard(r.lock);
    bool late = false;
    auto next = r.host.upper_bound(const_cast<void *>(from));
    if (next != r.host.begin()) {
        auto own = std::prev(next);
        late = span{ (const char *)own->first, own->second, false }.holds(s);
    }
    for (const struct span &own : r.registered) {
        if (own.meets(s) && !own.holds(s)) {
            return cudaErrorInvalidValue; /* it crosses the end of what is registered together */
        }
        if (own.holds(s)) {
            late = true;
            r.counts.n_direct++;
            r.counts.direct_bytes += size;
        }
    }
    if (!late) {
        std::vector<char> staged((const char *)from, (const char *)from + size);
        guard.unlock();
        return ask(stream, [=] { memcpy(to, staged.data(), size); });
    }
    r.reading.push_back(s);
    auto at = --r.reading.end();
    guard.unlock();
    cudaError_t rc = ask(stream, [=] {
        memcpy(to, from, size);
        std::lock_guard<std::mutex> done(r.lock);
        r.reading.erase(at);
    });
    if (rc != cudaSuccess) {
        guard.lock();
        r.reading.erase(at);
    }
    return rc;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    check_copy(to, from, kind);
    if (kind == cudaMemcpyHostToDevice) {
        return copy_up(to, from, size, stream);
    }
    return ask(stream, [=] { memcpy(to, from, size); });
}

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    *stream = new emulate_stream();
    r.streams.push_back(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    cudaError_t rc = cudaStreamCreate(stream);
    (*stream)->beside = flags & cudaStreamNonBlocking;
    return rc;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    do_until(stream, stream->n_asked);
    for (auto at = r.streams.begin(); at != r.streams.end(); ++at) {
        if (*at == stream) {
            r.streams.erase(at);
            break;
        }
    }
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    do_until(stream, stream->n_asked);
    return fate();
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    struct emulate_event now = *event;
    return ask(stream, [now] {
        if (now.stream) {
            do_until(now.stream, now.at);
        }
    });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    *event = new emulate_event();
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    cudaError_t rc = ask(stream, [] {});
    event->stream = stream;
    event->at = stream->n_asked;
    return rc;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    cudaError_t rc = fate();
    bool done = !event->stream || event->stream->n_done >= event->at;
    if (!done) {
        do_until(event->stream, event->at); /* by the time somebody asks again */
    }
    return rc != cudaSuccess ? rc : done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    if (event->stream) {
        do_until(event->stream, event->at);
    }
    return fate();
}

/* ---- graphs: a chain of kernels, and copies beside it ---- */

static struct node_call call_of(const struct cudaKernelNodeParams *p)
{
    check_launch(p->gridDim, p->blockDim, p->sharedMemBytes);
    return {
        p->gridDim, p->blockDim, p->sharedMemBytes, p->bind(p->func, p->kernelParams), NULL, {}
    };
}

static struct node_call copy_of(void *to, const void *from, size_t size)
{
    return { {}, {}, 0, [=] { memcpy(to, from, size); }, to, {} };
}

/* Node i, once, behind all that it comes behind. */
static void do_node(const std::vector<node_call> &calls, std::vector<char> &done, unsigned i)
{
    if (done[i]) {
        return;
    }
    done[i] = 1;
    for (unsigned before : calls[i].after) {
        do_node(calls, done, before);
    }
    if (calls[i].to) {
        calls[i].run();
    } else {
        emulate_run(calls[i].grid, calls[i].block, calls[i].shared_bytes, calls[i].run);
    }
}

static bool may_begin(const std::vector<node_call> &calls, const std::vector<char> &done,
                      unsigned i)
{
    for (unsigned before : calls[i].after) {
        if (!done[before]) {
            return false;
        }
    }
    return true;
}

/* Kernels in their order; copies as late as the graph allows or, with LAZY=2, as early, so that an edge that is missing shows. */
static void do_graph(const std::vector<node_call> &calls)
{
    std::vector<char> done(calls.size());
    for (unsigned i = 0; i < calls.size(); i++) {
        for (unsigned j = 0; environment("HEARTH_EMULATED_LAZY", 0) == 2 && j < calls.size(); j++) {
            if (calls[j].to && may_begin(calls, done, j)) {
                do_node(calls, done, j);
            }
        }
        if (!calls[i].to) {
            do_node(calls, done, i);
        }
    }
    for (unsigned i = 0; i < calls.size(); i++) {
        do_node(calls, done, i);
    }
}

cudaError_t cudaGraphCreate(cudaGraph_t *graph, unsigned)
{
    *graph = new emulate_graph();
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    for (emulate_node *node : graph->nodes) {
        delete node;
    }
    delete graph;
    return cudaSuccess;
}

static cudaError_t add_node(cudaGraphNode_t *node, cudaGraph_t graph, const cudaGraphNode_t *after,
                            size_t n_after, struct node_call call)
{
    for (size_t i = 0; i < n_after; i++) {
        call.after.push_back(after[i]->place);
    }
    *node = new emulate_node{ (unsigned)graph->nodes.size() };
    graph->nodes.push_back(*node);
    graph->calls.push_back(call);
    return cudaSuccess;
}

cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t *node, cudaGraph_t graph,
                                   const cudaGraphNode_t *after, size_t n_after,
                                   const struct cudaKernelNodeParams *params)
{
    bool first = true, behind_last = false;
    unsigned last = 0;
    for (unsigned i = 0; i < graph->calls.size(); i++) {
        last = graph->calls[i].to ? last : i;
        first = first && graph->calls[i].to;
    }
    for (size_t i = 0; i < n_after; i++) {
        behind_last = behind_last || after[i]->place == last;
    }
    if (!first && !behind_last) {
        stop("kernels that are no chain");
    }
    return add_node(node, graph, after, n_after, call_of(params));
}

cudaError_t cudaGraphAddMemcpyNode1D(cudaGraphNode_t *node, cudaGraph_t graph,
                                     const cudaGraphNode_t *after, size_t n_after, void *to,
                                     const void *from, size_t size, enum cudaMemcpyKind)
{
    return add_node(node, graph, after, n_after, copy_of(to, from, size));
}

cudaError_t cudaGraphExecMemcpyNodeSetParams1D(cudaGraphExec_t exec, cudaGraphNode_t node, void *to,
                                               const void *from, size_t size, enum cudaMemcpyKind)
{
    struct node_call call = copy_of(to, from, size);
    call.after = exec->calls[node->place].after;
    exec->calls[node->place] = call;
    return fate();
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    if (!environment("HEARTH_EMULATED_GRAPHS", 1)) {
        return cudaErrorNotSupported;
    }
    *exec = new emulate_exec{ graph->calls };
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}

cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                             const struct cudaKernelNodeParams *params)
{
    struct node_call call = call_of(params);
    call.after = exec->calls[node->place].after;
    exec->calls[node->place] = call;
    return fate();
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    std::vector<node_call> calls = exec->calls;
    return ask(stream, [calls] { do_graph(calls); });
}
