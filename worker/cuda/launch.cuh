/* How kernels are launched: at once, or, inside a step that is kept (step.cu), as a line of that step's list, which then
 * goes to the device as one graph. LAUNCH looks the same in both cases. Loop thread only. */
#pragma once

#include <new>
#include <tuple>
#include <utility>

/* One line of the list: what cudaLaunchKernel takes. args points into the list's own copy of the values. Or, without a kernel, a
 * turn of a slot of streamed weights (spill.cu): it is filled from `from`, or what follows waits for that. */
struct cuda_line {
    const void *kernel; /* NULL: a turn */
    struct cuda_slot *slot;
    const uint8_t *from; /* or NULL */
    uint64_t size;
    dim3 grid, block;
    uint32_t shared_bytes, n_args;
    uint32_t args_at, bytes; /* in the list's memory: n_args pointers' offsets, then the values */
    bool early;              /* may begin while the line before still runs: it waits by itself */
#if defined(HEARTH_EMULATED)
    emulate_bind *bind; /* a pointer alone does not say how to call it */
#endif
};

struct cuda_step;

/* The list that takes launches to this stream now; NULL: none. step.cu */
struct cuda_step *cuda_step_collecting(cudaStream_t stream);

/* A new line with room for `bytes` of values, zeroed; NULL without memory (the launch is then made at once, after the
 * list). The offsets of its arguments come after. */
struct cuda_line *cuda_step_line(struct cuda_step *step, uint32_t n_args, size_t bytes,
                                 uint32_t **offsets, uint8_t **values);

#if defined(HEARTH_EMULATED)
template <class... P, size_t... I>
static std::function<void()> cuda_bind(const void *kernel, void **args, std::index_sequence<I...>)
{
    auto f = (void (*)(P...))kernel;
    auto values = std::make_tuple(*(const P *)args[I]...);
    return [f, values] { std::apply(f, values); };
}

template <class... P> static std::function<void()> cuda_bind_of(const void *kernel, void **args)
{
    return cuda_bind<P...>(kernel, args, std::index_sequence_for<P...>());
}
#endif

template <class... P, size_t... I>
static bool cuda_collect(struct cuda_step *step, void (*kernel)(P...), dim3 grid, dim3 block,
                         size_t shared_bytes, bool early, std::index_sequence<I...>, P... args)
{
    typedef std::tuple<P...> values_of;
    uint32_t *offsets;
    uint8_t *values;
    static_assert(alignof(values_of) <= 16, "the list aligns to 16");
    struct cuda_line *line = cuda_step_line(step, sizeof...(P), sizeof(values_of), &offsets,
                                            &values);
    if (!line) {
        return false;
    }
    values_of *v = new (values) values_of(args...);
    ((offsets[I] = (uint32_t)((uint8_t *)&std::get<I>(*v) - values)), ...);
    line->kernel = (const void *)kernel;
    line->grid = grid;
    line->block = block;
    line->shared_bytes = (uint32_t)shared_bytes;
    line->early = early;
#if defined(HEARTH_EMULATED)
    line->bind = cuda_bind_of<P...>;
#endif
    return true;
}

template <class... P, class... A>
static void cuda_launch_now(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                            [[maybe_unused]] bool early, cudaStream_t stream, const A &...args)
{
#if !defined(HEARTH_EMULATED)
    cudaLaunchAttribute attribute = {};
    cudaLaunchConfig_t config = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = early ? 1 : 0;
    (void)cudaLaunchKernelEx(&config, kernel, (P)args...); /* its error waits for cuda_launched */
#else
    emulate_launch(grid, block, shared_bytes, stream, [=] { kernel(args...); });
#endif
}

template <class... P, class... A>
static void cuda_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                        bool early, cudaStream_t stream, const A &...args)
{
    struct cuda_step *step = cuda_step_collecting(stream);
#if defined(HEARTH_EMULATED)
    (emulate_told(&args, sizeof args), ...);
#endif
    if (!step || !cuda_collect<P...>(step, kernel, grid, block, shared_bytes, early,
                                     std::index_sequence_for<P...>(), (P)args...)) {
        cuda_launch_now(kernel, grid, block, shared_bytes, early, stream, args...);
    }
}

#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                     \
    cuda_launch(kernel, grid, block, shared_bytes, false, stream, __VA_ARGS__)
/* For kernels that touch nothing that other kernels write before ptx_wait_for_others: they begin while the kernel before
 * ends (programmatic dependent launch, sm_90 and later). */
#define LAUNCH_EARLY(kernel, grid, block, shared_bytes, stream, ...)                               \
    cuda_launch(kernel, grid, block, shared_bytes, true, stream, __VA_ARGS__)
/* Past the list, which the caller has flushed: not a part of the step. */
#define LAUNCH_NOW(kernel, grid, block, shared_bytes, stream, ...)                                 \
    cuda_launch_now(kernel, grid, block, shared_bytes, false, stream, __VA_ARGS__)
