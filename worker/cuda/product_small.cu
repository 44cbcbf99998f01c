/* Products of types with small blocks: instances of product.cuh, a file of their own as they take nvcc minutes. */
#include "worker/cuda/product.cuh"

extern const struct product_instance product_small[] = {
#define ROW(type, ...) { DTYPE_##type, launch_product<DTYPE_##type> },
    TILE_TYPES_SMALL(ROW)
#undef ROW
        { DTYPE_F32, NULL },
};
