// What layernorm.cu needs of a GPU, and nothing else: conversions, shuffles, barriers, distributed shared memory.
// tests/kernels/shim.h has the same functions for a CPU.

#define SHARED(type, name) __shared__ type name
#if CLUSTER > 1
#define CLUSTER_DIMENSIONS(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define CLUSTER_DIMENSIONS(blocks)
#endif

// -- conversions, all to nearest even ------------------------------------------------------------

__device__ __forceinline__ float float_of(unsigned bits) { return __uint_as_float(bits); }
__device__ __forceinline__ unsigned bits_of(float value) { return __float_as_uint(value); }

#include "rounding.cuh"

__device__ __forceinline__ int int_of(float value) { return __float2int_rn(value); }

__device__ __forceinline__ float float_of_half(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ unsigned short half_of(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ unsigned short bfloat16_of(float value) {
#if __CUDA_ARCH__ >= 800
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    return rounded_bfloat16(value);
#endif
}

// One word of two elements, by one instruction where there is one: of two, the compiler holds a register for each half.
__device__ __forceinline__ unsigned halves_of(float low, float high) {
#if __CUDA_ARCH__ >= 800
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return half_of(low) | unsigned(half_of(high)) << 16;
#endif
}

__device__ __forceinline__ unsigned bfloat16s_of(float low, float high) {
#if __CUDA_ARCH__ >= 800
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return bfloat16_of(low) | unsigned(bfloat16_of(high)) << 16;
#endif
}

__device__ __forceinline__ unsigned char e4m3_of(float value) {
#if __CUDA_ARCH__ >= 890
    unsigned short pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(value));
    return (unsigned char)pair;
#else
    return rounded_e4m3(value);
#endif
}

// -- memory --------------------------------------------------------------------------------------

// Load 16 bytes that nobody writes, and not before what stands above: held early, they cost registers.
template <class Packed>
__device__ __forceinline__ Packed loaded_late(const Packed* place) {
    static_assert(sizeof(Packed) == 16, "a vector");
    Packed v;
    unsigned* word = reinterpret_cast<unsigned*>(&v);
    asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "l"(__cvta_generic_to_global(place)));
    return v;
}

// Load one element so, as the bits of its type.
__device__ __forceinline__ unsigned element_late(const unsigned* place) {
    unsigned bits;
    asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(bits) : "l"(__cvta_generic_to_global(place)));
    return bits;
}

__device__ __forceinline__ unsigned short element_late(const unsigned short* place) {
    unsigned short bits;
    asm volatile("ld.global.nc.b16 %0, [%1];" : "=h"(bits) : "l"(__cvta_generic_to_global(place)));
    return bits;
}

// Store 16, 8 or 4 bytes at once: left to itself, the compiler merges this with the stores of single elements.
template <class Packed>
__device__ __forceinline__ void store_whole(Packed* place, const Packed& v) {
    const unsigned* word = reinterpret_cast<const unsigned*>(&v);
    const size_t address = __cvta_generic_to_global(place);
    if constexpr (sizeof(Packed) == 16)
        asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(word[0]), "r"(word[1]), "r"(word[2]),
                     "r"(word[3]) : "memory");
    else if constexpr (sizeof(Packed) == 8)
        asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(word[0]), "r"(word[1]) : "memory");
    else
        asm volatile("st.global.b32 [%0], %1;" ::"l"(address), "r"(word[0]) : "memory");
}

// -- threads of a warp, a block, a cluster -------------------------------------------------------

__device__ __forceinline__ float shuffled(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
__device__ __forceinline__ unsigned shuffled(unsigned value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
__device__ __forceinline__ void block_barrier() { __syncthreads(); }

#if CLUSTER > 1
__device__ __forceinline__ int cluster_rank() {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return int(rank);
}

__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Store `value` where `place` lies in the shared memory of block `rank` of the cluster.
template <class Value>
__device__ __forceinline__ void store_remote(Value* place, const Value& value, int rank) {
    static_assert(sizeof(Value) % 4 == 0, "stored word by word");
    unsigned remote;
    const unsigned local = unsigned(__cvta_generic_to_shared(place));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
#pragma unroll
    for (unsigned word = 0; word < sizeof(Value) / 4; ++word) {
        const unsigned bits = reinterpret_cast<const unsigned*>(&value)[word];
        asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(remote + 4 * word), "r"(bits) : "memory");
    }
}
#else
__device__ __forceinline__ int cluster_rank() { return 0; }
__device__ __forceinline__ void cluster_arrive() {}
__device__ __forceinline__ void cluster_wait() {}
template <class Value>
__device__ __forceinline__ void store_remote(Value*, const Value&, int) {}
#endif
